-- name: try_lock
-- One sweeper at a time, whoever it is. The lock ends with the transaction, so a frozen one blocks nobody for long.
SELECT pg_try_advisory_xact_lock(hashtext('flq.sweep.' || %(sweep)s))

-- name: make_partitions
-- Partitions for what will be written soon.
SELECT flq_state.make_partitions()
