-- name: quotas
-- The limits of a run: its own, or else those of the federation; NULL where there is none.
SELECT coalesce(r.max_open_tasks, (SELECT value::bigint FROM flq_state.setting WHERE name = 'max_open_tasks')),
       coalesce(r.max_bytes, (SELECT value::bigint FROM flq_state.setting WHERE name = 'max_bytes'))
FROM flq_state.run r
WHERE r.run_id = %(run_id)s

-- name: open_tasks
-- How many open tasks a run has.
SELECT count(*)
FROM flq_state.batch b JOIN flq_state.task t ON t.batch_id = b.batch_id
WHERE b.run_id = %(run_id)s

-- name: stored_bytes
-- How much a run stores: each object that it refers to, once.
SELECT coalesce(sum(o.size), 0)::bigint
FROM (SELECT DISTINCT object_hash FROM flq_state.object_ref WHERE run_id = %(run_id)s) r
JOIN flq_state.object o ON o.object_hash = r.object_hash

-- name: set_quotas
-- Limits of one run; NULL for those of the federation.
UPDATE flq_state.run SET max_open_tasks = %(max_open_tasks)s, max_bytes = %(max_bytes)s WHERE run_id = %(run_id)s
