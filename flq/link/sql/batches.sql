-- name: push
-- Creates a batch and its tasks in one statement. Lock order: run, batch, task.
WITH held AS MATERIALIZED (
    -- FOR SHARE: a take-over, a stop or an end waits for this push, or this push sees it and writes nothing
    SELECT run_id, branch, attempt
    FROM flq_state.run
    WHERE run_id = %(run_id)s AND attempt_token = %(token)s AND status = 'running' AND stop_requested_at IS NULL
    FOR SHARE
), unknown AS (
    SELECT d.node_id
    FROM unnest(%(node_ids)s::bigint[]) d(node_id)
    WHERE NOT EXISTS (SELECT FROM flq_state.node n WHERE n.node_id = d.node_id)
), made AS (
    -- a sequence that exists is a repeated push: it makes nothing, and the caller looks at what is there
    INSERT INTO flq_state.batch (run_id, branch, sequence, attempt, kind, group_id, round, tasks, deadline, content_hash,
                                 manifest)
    SELECT run_id, branch, %(sequence)s, attempt, %(kind)s, %(group_id)s, %(round)s, cardinality(%(node_ids)s::bigint[]),
           clock_timestamp() + make_interval(secs => %(ttl)s), %(content_hash)s, %(manifest)s
    FROM held
    WHERE NOT EXISTS (SELECT FROM unknown)
    ON CONFLICT (run_id, branch, sequence) DO NOTHING
    RETURNING batch_id, run_id
), sent AS (
    INSERT INTO flq_state.task (node_id, run_id, batch_id)
    SELECT d.node_id, made.run_id, made.batch_id
    FROM made, unnest(%(node_ids)s::bigint[]) WITH ORDINALITY d(node_id, place)
    ORDER BY d.place
    RETURNING task_id
), addressed AS (
    -- task ids rise in the order of the destinations, so the n-th message belongs to the n-th of them
    INSERT INTO flq_state.task_message (batch_id, task_id, manifest)
    SELECT made.batch_id, s.task_id, m.manifest
    FROM made, (SELECT task_id, row_number() OVER (ORDER BY task_id) AS place FROM sent) s
    JOIN unnest(%(manifests)s::bytea[]) WITH ORDINALITY m(manifest, place) USING (place)
), referred AS (
    INSERT INTO flq_state.object_ref (object_hash, holder, holder_id, run_id)
    SELECT o.object_hash, 'batch', made.batch_id, made.run_id
    FROM made, unnest(%(objects)s::bytea[]) o(object_hash)
), told AS (
    SELECT pg_notify('flq_tasks', concat_ws(' ', made.run_id, made.batch_id, (SELECT min(task_id) FROM sent))) FROM made
)
SELECT (SELECT count(*) FROM held) AS held,
       (SELECT array_agg(node_id) FROM unknown) AS unknown,
       (SELECT batch_id FROM made) AS batch_id,
       (SELECT array_agg(task_id ORDER BY task_id) FROM sent) AS task_ids,
       (SELECT count(*) FROM told) AS told

-- name: pushed_before
-- The batch that has a sequence on the run's present branch, and its tasks, open or finished.
SELECT b.batch_id, b.content_hash,
       (SELECT array_agg(x.task_id ORDER BY x.task_id)
        FROM (SELECT t.task_id FROM flq_state.task t WHERE t.batch_id = b.batch_id
              UNION ALL
              SELECT s.task_id FROM flq_state.result s WHERE s.batch_id = b.batch_id) x) AS task_ids
FROM flq_state.run r
JOIN flq_state.batch b ON b.run_id = r.run_id AND b.branch = r.branch AND b.sequence = %(sequence)s
WHERE r.run_id = %(run_id)s AND r.attempt_token = %(token)s

-- name: open_branch
-- What follows was not pushed by the attempt before: it goes on in a branch of its own.
UPDATE flq_state.run SET branch = branch + 1
WHERE run_id = %(run_id)s AND attempt_token = %(token)s
RETURNING branch

-- name: batches_from
-- The batches of the run's present branch from a sequence on.
SELECT b.batch_id
FROM flq_state.run r
JOIN flq_state.batch b ON b.run_id = r.run_id AND b.branch = r.branch AND b.sequence >= %(sequence)s
WHERE r.run_id = %(run_id)s
