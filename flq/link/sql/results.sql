-- name: submit
-- Finishes tasks: each at most once, by the token that claimed it. Lock order: tasks in key order, then results.
WITH sent AS (
    SELECT node_id, run_id, task_id, batch_id, token, status::flq_state.result_status, error_code, error_text, manifest,
           coalesce(metrics::jsonb, '{}'::jsonb) AS metrics, payload_bytes, to_timestamp(started_at) AS started_at,
           to_timestamp(ended_at) AS ended_at
    FROM unnest(%(node_ids)s::bigint[], %(run_ids)s::bigint[], %(task_ids)s::bigint[], %(batch_ids)s::bigint[],
                %(tokens)s::bigint[], %(statuses)s::text[], %(error_codes)s::smallint[], %(error_texts)s::text[],
                %(manifests)s::bytea[], %(metrics)s::text[], %(payload_bytes)s::bigint[], %(started)s::float8[],
                %(ended)s::float8[])
         s(node_id, run_id, task_id, batch_id, token, status, error_code, error_text, manifest, metrics, payload_bytes,
           started_at, ended_at)
), closed AS MATERIALIZED (
    -- Sessions that submit go by key (BY_KEY), so this takes one task after the other in key order, and two flushes cannot
    -- deadlock: locking them first, as the other statements do, costs a ninth of a submit more. With all that was sent, so
    -- that nothing below joins it again.
    DELETE FROM flq_state.task t
    USING (SELECT * FROM sent ORDER BY node_id, run_id, task_id OFFSET 0) s, flq_state.node n
    WHERE t.node_id = ANY (ARRAY[s.node_id]) AND t.run_id = ANY (ARRAY[s.run_id]) AND t.task_id = ANY (ARRAY[s.task_id])
      AND t.token = s.token
      AND n.node_id = ANY (ARRAY[s.node_id]) AND n.epoch = t.epoch  -- a superseded process finishes nothing
    RETURNING s.*, t.attempt, t.process_id, t.claimed_at
), noted AS (
    INSERT INTO flq_state.task_attempt (task_id, attempt, run_id, node_id, process_id, claimed_at, reason)
    SELECT task_id, attempt, run_id, node_id, process_id, claimed_at, status::text FROM closed
), stored AS (
    INSERT INTO flq_state.result (batch_id, task_id, run_id, node_id, status, error_code, error_text, manifest, metrics,
                                  payload_bytes, attempt, token, process_id, claimed_at, started_at, ended_at)
    SELECT batch_id, task_id, run_id, node_id, status, error_code, error_text, manifest, metrics,
           payload_bytes, attempt, token, process_id, claimed_at, started_at, ended_at
    FROM closed
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

-- name: note_late
-- Counts results that came when their claim no longer held: an event of the run for each flush, and none for a claim that
-- stands in one already.
WITH late AS (
    SELECT w.run_id, w.task_id, w.node_id, format('%%s:%%s', w.task_id, w.token) AS claim
    FROM unnest(%(node_ids)s::bigint[], %(run_ids)s::bigint[], %(task_ids)s::bigint[], %(batch_ids)s::bigint[],
                %(tokens)s::bigint[]) w(node_id, run_id, task_id, batch_id, token)
    JOIN flq_state.batch b ON b.batch_id = w.batch_id AND b.run_id = w.run_id
    WHERE (EXISTS (SELECT FROM flq_state.result s
                   WHERE s.batch_id = w.batch_id AND s.task_id = w.task_id AND s.node_id = w.node_id)
           OR EXISTS (SELECT FROM flq_state.task t
                      WHERE t.node_id = w.node_id AND t.run_id = w.run_id AND t.task_id = w.task_id))
      AND NOT EXISTS (SELECT FROM flq_state.run_event e
                      WHERE e.run_id = w.run_id AND e.event = 'late results'
                        AND e.details -> 'claims' ? format('%%s:%%s', w.task_id, w.token))
)
INSERT INTO flq_state.run_event (run_id, event, actor, reason, details)
SELECT run_id, 'late results', 'supernode', format('%%s came after their claims had ended', count(*)),
       jsonb_build_object('count', count(*), 'tasks', jsonb_agg(task_id ORDER BY task_id),
                          'nodes', jsonb_agg(DISTINCT node_id), 'claims', jsonb_agg(DISTINCT claim))
FROM late
GROUP BY run_id

-- name: arrived
-- Results of some batches by transactions from `xmin` on, keys only: what an earlier look could not see is among them.
SELECT look.xmin, s.batch_id, s.task_id, s.node_id, s.status::text, s.xid::text::bigint
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
