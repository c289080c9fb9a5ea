-- name: push
-- Creates a step with its batch and tasks in one statement. Lock order: run, step, batch, task.
WITH held AS MATERIALIZED (
    -- FOR SHARE: a take-over, a stop or an end waits for this push, or this push sees it and writes nothing
    SELECT run_id, branch, attempt,
           (max_open_tasks IS NOT NULL OR max_bytes IS NOT NULL
            OR EXISTS (SELECT FROM flq_state.setting WHERE name IN ('max_open_tasks', 'max_bytes'))) AS limited
    FROM flq_state.run
    WHERE run_id = %(run_id)s AND attempt_token = %(token)s AND status = 'running' AND stop_requested_at IS NULL
    FOR SHARE
), unknown AS (
    SELECT d.node_id
    FROM unnest(%(node_ids)s::bigint[]) d(node_id)
    WHERE NOT EXISTS (SELECT FROM flq_state.node n WHERE n.node_id = d.node_id)
), numbered AS (
    -- a number that is taken is that of a repeated push: nothing is made, and the caller looks at what is there
    INSERT INTO flq_state.step (run_id, branch, sequence, kind, attempt, delivered)
    SELECT run_id, branch, %(sequence)s, 'push', attempt, %(delivered)s
    FROM held
    WHERE NOT EXISTS (SELECT FROM unknown) AND (%(checked)s OR NOT limited)
    ON CONFLICT (run_id, branch, sequence) DO NOTHING
    RETURNING run_id, branch, sequence, attempt
), made AS (
    INSERT INTO flq_state.batch (run_id, branch, sequence, attempt, kind, group_id, round, tasks, deadline, content_hash,
                                 manifest)
    SELECT run_id, branch, sequence, attempt, %(kind)s, %(group_id)s, %(round)s, cardinality(%(node_ids)s::bigint[]),
           clock_timestamp() + make_interval(secs => %(ttl)s), %(content_hash)s, %(manifest)s
    FROM numbered
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
       (SELECT limited FROM held) AS limited,
       (SELECT count(*) FROM told) AS told

-- name: pushed_before
-- The batch that has a sequence on the run's present branch, and its tasks, open or finished. Without a batch it is a
-- checkpoint that has the number, or nothing.
SELECT b.batch_id, b.content_hash,
       (SELECT array_agg(x.task_id ORDER BY x.task_id)
        FROM (SELECT t.task_id FROM flq_state.task t WHERE t.batch_id = b.batch_id
              UNION ALL
              SELECT s.task_id FROM flq_state.result s WHERE s.batch_id = b.batch_id) x) AS task_ids
FROM flq_state.run r
LEFT JOIN flq_state.batch b ON b.run_id = r.run_id AND b.branch = r.branch AND b.sequence = %(sequence)s
WHERE r.run_id = %(run_id)s AND r.attempt_token = %(token)s

-- name: reissue
-- Opens tasks again that ended without a reply, where nobody was told of that end: an attempt that repeats their push wants
-- them done. They keep their ids, so that replies keep their order. Lock order: run, batch, result, task.
WITH held AS MATERIALIZED (
    SELECT run_id
    FROM flq_state.run
    WHERE run_id = %(run_id)s AND attempt_token = %(token)s AND status = 'running' AND stop_requested_at IS NULL
    FOR SHARE
), renewed AS (
    UPDATE flq_state.batch b SET deadline = clock_timestamp() + make_interval(secs => %(ttl)s)
    FROM held
    WHERE b.batch_id = %(batch_id)s AND b.run_id = held.run_id
    RETURNING b.batch_id
), taken AS (
    DELETE FROM flq_state.result s
    USING renewed
    WHERE s.batch_id = renewed.batch_id AND s.task_id = ANY (%(task_ids)s::bigint[]) AND s.status IN ('cancelled', 'expired')
    RETURNING s.*
), opened AS (
    -- the attempts at a task are counted on
    INSERT INTO flq_state.task (node_id, run_id, task_id, batch_id, attempt)
    OVERRIDING SYSTEM VALUE
    SELECT node_id, run_id, task_id, batch_id, attempt FROM taken ORDER BY task_id
    RETURNING run_id, batch_id, task_id
), told AS (
    SELECT pg_notify('flq_tasks', concat_ws(' ', run_id, batch_id, min(task_id))) FROM opened GROUP BY run_id, batch_id
)
SELECT (SELECT count(*) FROM held), (SELECT count(*) FROM opened), (SELECT count(*) FROM told)
