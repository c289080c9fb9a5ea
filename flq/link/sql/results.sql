-- name: submit
-- Finishes tasks: each at most once, by the token that claimed it. Lock order: tasks in key order, then results.
WITH sent AS MATERIALIZED (
    SELECT *
    FROM unnest(%(node_ids)s::bigint[], %(run_ids)s::bigint[], %(task_ids)s::bigint[], %(batch_ids)s::bigint[],
                %(tokens)s::bigint[], %(statuses)s::flq_state.result_status[], %(error_codes)s::smallint[],
                %(error_texts)s::text[], %(manifests)s::bytea[], %(metrics)s::jsonb[], %(payload_bytes)s::bigint[],
                %(started)s::timestamptz[], %(ended)s::timestamptz[])
         s(node_id, run_id, task_id, batch_id, token, status, error_code, error_text, manifest, metrics, payload_bytes,
           started_at, ended_at)
), held AS MATERIALIZED (
    SELECT t.node_id, t.run_id, t.task_id, t.attempt, t.process_id, t.claimed_at
    FROM sent s
    JOIN flq_state.task t ON t.node_id = s.node_id AND t.run_id = s.run_id AND t.task_id = s.task_id AND t.token = s.token
    JOIN flq_state.node n ON n.node_id = t.node_id AND n.epoch = t.epoch  -- a superseded process finishes nothing
    ORDER BY t.node_id, t.run_id, t.task_id
    FOR UPDATE OF t
), closed AS (
    DELETE FROM flq_state.task t
    USING held h
    WHERE t.node_id = h.node_id AND t.run_id = h.run_id AND t.task_id = h.task_id
    RETURNING t.task_id
), noted AS (
    INSERT INTO flq_state.task_attempt (task_id, attempt, run_id, node_id, process_id, claimed_at, reason)
    SELECT h.task_id, h.attempt, h.run_id, h.node_id, h.process_id, h.claimed_at, s.status::text
    FROM held h JOIN sent s USING (task_id)
), stored AS (
    INSERT INTO flq_state.result (batch_id, task_id, run_id, node_id, status, error_code, error_text, manifest, metrics,
                                  payload_bytes, attempt, token, process_id, claimed_at, started_at, ended_at)
    SELECT s.batch_id, s.task_id, s.run_id, s.node_id, s.status, s.error_code, s.error_text, s.manifest, s.metrics,
           s.payload_bytes, h.attempt, s.token, h.process_id, h.claimed_at, s.started_at, s.ended_at
    FROM sent s JOIN held h USING (task_id)
    RETURNING task_id, run_id
), referred AS (
    INSERT INTO flq_state.object_ref (object_hash, holder, holder_id, run_id)
    SELECT o.object_hash, 'result', stored.task_id, stored.run_id
    FROM unnest(%(object_tasks)s::bigint[], %(objects)s::bytea[]) o(task_id, object_hash)
    JOIN stored USING (task_id)
), told AS (
    SELECT pg_notify('flq_results_' || run_id, '') FROM (SELECT DISTINCT run_id FROM stored) r
)
SELECT task_id, (SELECT count(*) FROM told) FROM stored

-- name: stored_before
-- Of the tasks that a submit did not finish: those whose stored result carries the very token.
SELECT s.task_id
FROM unnest(%(batch_ids)s::bigint[], %(task_ids)s::bigint[], %(tokens)s::bigint[]) w(batch_id, task_id, token)
JOIN flq_state.result s ON s.batch_id = w.batch_id AND s.task_id = w.task_id AND s.token = w.token
WHERE s.started_at IS NOT NULL  -- not one that a sweep or a stop has put there

-- name: arrived
-- Results of some batches by transactions from `xmin` on, keys only: what an earlier look could not see is among them.
SELECT look.xmin, s.batch_id, s.task_id, s.node_id, s.status, s.xid::text::bigint
FROM (SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS xmin) look
LEFT JOIN (
    SELECT batch_id, task_id, node_id, status, xid
    FROM flq_state.result
    WHERE batch_id = ANY (%(batch_ids)s) AND xid >= %(xmin)s::text::xid8
) s ON true

-- name: replies
-- Results with their manifests.
SELECT s.batch_id, s.task_id, s.node_id, s.status::text, s.error_code, s.error_text, s.manifest,
       extract(epoch FROM s.ended_at)::float8
FROM unnest(%(batch_ids)s::bigint[], %(task_ids)s::bigint[]) w(batch_id, task_id)
JOIN flq_state.result s ON s.batch_id = w.batch_id AND s.task_id = w.task_id
