-- name: try_lock
-- One sweeper at a time, whoever it is. The lock ends with the transaction, so a frozen one blocks nobody for long.
SELECT pg_try_advisory_xact_lock(hashtext('flq.sweep.' || %(sweep)s))

-- name: sweep_timeouts
-- A sweep that meets a long lock or a slow disk gives up, and goes on where it was the next time.
SELECT set_config('lock_timeout', '2s', true), set_config('statement_timeout', '30s', true)

-- name: last_runs
-- The age in seconds of each sweep's last run, and whether that did something: then more may be left.
SELECT DISTINCT ON (name) name, extract(epoch FROM clock_timestamp() - at)::float8, done > 0
FROM flq_state.maintenance_run
ORDER BY name, at DESC

-- name: record_sweep
-- What a sweep has done, and what it forgets of its history.
WITH forgotten AS (
    DELETE FROM flq_state.maintenance_run
    WHERE name = %(name)s AND maintenance_id <= (
        SELECT maintenance_id FROM flq_state.maintenance_run
        WHERE name = %(name)s
        ORDER BY maintenance_id DESC
        OFFSET %(keep)s - 1
        LIMIT 1
    ) AND (done > 0 OR error IS NOT NULL)
)
INSERT INTO flq_state.maintenance_run (name, duration, done, error)
VALUES (%(name)s, make_interval(secs => %(seconds)s), %(done)s, %(error)s)

-- name: record_idle
-- A sweep ran and found nothing to do: one row for each, written anew every few seconds, without waiting for the disk.
INSERT INTO flq_state.maintenance_run AS m (name, duration, done)
SELECT %(name)s, make_interval(secs => %(seconds)s), 0
FROM (SELECT set_config('synchronous_commit', 'off', true)) late
ON CONFLICT (name) WHERE done = 0 AND error IS NULL
DO UPDATE SET at = excluded.at, duration = excluded.duration
WHERE m.at < excluded.at - make_interval(secs => %(every)s)

-- name: make_partitions
-- Partitions for what will be written soon.
SELECT flq_state.make_partitions()

-- name: forget_processes
-- Process instances that have been gone for a week and that nothing refers to.
DELETE FROM flq_state.process p
WHERE p.process_id IN (
    SELECT d.process_id FROM flq_state.process d
    WHERE greatest(d.alive_until, d.started_at) < clock_timestamp() - interval '7 days'
      AND NOT EXISTS (SELECT FROM flq_state.node n WHERE n.process_id = d.process_id)
      AND NOT EXISTS (SELECT FROM flq_state.run_attempt a WHERE a.process_id = d.process_id)
    ORDER BY d.process_id
    LIMIT %(limit)s
    FOR UPDATE SKIP LOCKED
)
