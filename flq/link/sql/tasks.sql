-- name: claim
-- Leases open tasks for all nodes that a process hosts, in one statement.
WITH wanted AS MATERIALIZED (
    SELECT w.node_id, w.epoch, n.epoch IS NOT DISTINCT FROM w.epoch AS ours
    FROM unnest(%(node_ids)s::bigint[], %(epochs)s::bigint[]) w(node_id, epoch)
    LEFT JOIN flq_state.node n ON n.node_id = w.node_id
), due AS MATERIALIZED (
    -- MATERIALIZED: otherwise the planner may run the lateral again and lock more than the limit.
    -- OF task: a plain SKIP LOCKED over the join would lock the batches too, and concurrent claimers would get nothing.
    SELECT x.*, w.epoch AS new_epoch
    FROM wanted w,
    LATERAL (
        SELECT t.node_id, t.run_id, t.task_id, t.batch_id, t.token AS old_token, t.attempt AS old_attempt,
               t.process_id AS old_process, t.claimed_at AS old_claimed_at, b.kind, b.group_id, b.created_at, b.deadline
        FROM flq_state.task t
        JOIN flq_state.batch b ON b.batch_id = t.batch_id
        WHERE t.node_id = w.node_id
          AND (t.lease_until < clock_timestamp()  -- queued, or its process has not renewed it
               OR t.epoch < w.epoch               -- left behind by the process that hosted the node before
               OR t.token = %(token)s)            -- a retried claim: the same rows again
          AND (t.attempt < %(max_attempts)s OR t.token = %(token)s)
          AND b.deadline > clock_timestamp()
        ORDER BY t.task_id
        LIMIT %(per_node)s
        FOR UPDATE OF t SKIP LOCKED
    ) x
    WHERE w.ours
    LIMIT %(total)s
), displaced AS (
    -- the attempt that loses its task to this one goes into the history
    INSERT INTO flq_state.task_attempt (task_id, attempt, run_id, node_id, process_id, claimed_at, reason)
    SELECT task_id, old_attempt, run_id, node_id, old_process, old_claimed_at, 'displaced'
    FROM due
    WHERE old_attempt > 0 AND old_token <> %(token)s AND old_process IS NOT NULL
    ON CONFLICT DO NOTHING
), taken AS (
    UPDATE flq_state.task t
    SET token = %(token)s,
        epoch = due.new_epoch,
        attempt = t.attempt + (t.token <> %(token)s)::int,
        process_id = %(process_id)s,
        claimed_at = CASE WHEN t.token = %(token)s THEN t.claimed_at ELSE clock_timestamp() END,
        lease_until = clock_timestamp() + make_interval(secs => %(lease)s)
    FROM due
    WHERE t.node_id = due.node_id AND t.run_id = due.run_id AND t.task_id = due.task_id
    RETURNING t.node_id, t.run_id, t.task_id, t.batch_id, t.attempt, due.kind, due.group_id, due.created_at, due.deadline
), late AS (
    -- a claim that a crash forgets is only delivered again: it need not wait for the disk
    SELECT set_config('synchronous_commit', 'off', true) AS mode
)
SELECT taken.node_id, taken.run_id, taken.task_id, taken.batch_id, taken.attempt, taken.kind, taken.group_id,
       extract(epoch FROM taken.created_at)::float8, extract(epoch FROM taken.deadline)::float8, late.mode
FROM taken, late
UNION ALL
SELECT node_id, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL FROM wanted WHERE NOT ours

-- name: broadcast_manifests
-- The messages that all nodes of a batch get.
SELECT batch_id, manifest FROM flq_state.batch WHERE batch_id = ANY (%(batch_ids)s)

-- name: own_manifests
-- The messages that single tasks get.
SELECT m.task_id, m.manifest
FROM unnest(%(batch_ids)s::bigint[], %(task_ids)s::bigint[]) w(batch_id, task_id)
JOIN flq_state.task_message m ON m.batch_id = w.batch_id AND m.task_id = w.task_id

-- name: renew
-- Prolongs leases. What does not come back as `held` is lost. In key order, so that two flushes cannot deadlock.
WITH asked AS MATERIALIZED (
    SELECT w.*, n.epoch AS node_epoch
    FROM unnest(%(node_ids)s::bigint[], %(run_ids)s::bigint[], %(task_ids)s::bigint[], %(tokens)s::bigint[])
         w(node_id, run_id, task_id, token)
    LEFT JOIN flq_state.node n ON n.node_id = w.node_id
), held AS MATERIALIZED (
    SELECT t.node_id, t.run_id, t.task_id
    FROM asked a
    JOIN flq_state.task t ON t.node_id = a.node_id AND t.run_id = a.run_id AND t.task_id = a.task_id
                         AND t.token = a.token AND t.epoch = a.node_epoch
    ORDER BY t.node_id, t.run_id, t.task_id
    FOR UPDATE OF t
), renewed AS (
    UPDATE flq_state.task t
    SET lease_until = clock_timestamp() + make_interval(secs => %(lease)s)
    FROM held h
    WHERE t.node_id = h.node_id AND t.run_id = h.run_id AND t.task_id = h.task_id
    RETURNING t.task_id
)
SELECT task_id, set_config('synchronous_commit', 'off', true) FROM renewed

-- name: release
-- Gives claimed tasks back. The attempt that was begun counts and goes into the history.
WITH held AS MATERIALIZED (
    SELECT t.*
    FROM unnest(%(node_ids)s::bigint[], %(run_ids)s::bigint[], %(task_ids)s::bigint[], %(tokens)s::bigint[])
         w(node_id, run_id, task_id, token)
    JOIN flq_state.task t ON t.node_id = w.node_id AND t.run_id = w.run_id AND t.task_id = w.task_id AND t.token = w.token
    ORDER BY t.node_id, t.run_id, t.task_id
    FOR UPDATE OF t
), noted AS (
    INSERT INTO flq_state.task_attempt (task_id, attempt, run_id, node_id, process_id, claimed_at, reason)
    SELECT task_id, attempt, run_id, node_id, process_id, claimed_at, 'released' FROM held
    ON CONFLICT DO NOTHING
), freed AS (
    UPDATE flq_state.task t
    SET lease_until = '-infinity', token = 0, process_id = NULL, claimed_at = NULL
    FROM held h
    WHERE t.node_id = h.node_id AND t.run_id = h.run_id AND t.task_id = h.task_id
    RETURNING t.run_id
)
SELECT (SELECT count(*) FROM freed), (SELECT pg_notify('flq_tasks', '') FROM freed LIMIT 1)

-- name: end_tasks
-- Ends open tasks without a reply, as a cancellation, an expiry or an error. A task that was finished meanwhile stays so.
WITH gone AS MATERIALIZED (
    SELECT t.node_id, t.run_id, t.task_id
    FROM unnest(%(node_ids)s::bigint[], %(run_ids)s::bigint[], %(task_ids)s::bigint[]) w(node_id, run_id, task_id)
    JOIN flq_state.task t ON t.node_id = w.node_id AND t.run_id = w.run_id AND t.task_id = w.task_id
    ORDER BY t.node_id, t.run_id, t.task_id
    FOR UPDATE OF t
), deleted AS (
    DELETE FROM flq_state.task t
    USING gone g
    WHERE t.node_id = g.node_id AND t.run_id = g.run_id AND t.task_id = g.task_id
    RETURNING t.*
), noted AS (
    INSERT INTO flq_state.task_attempt (task_id, attempt, run_id, node_id, process_id, claimed_at, reason)
    SELECT task_id, attempt, run_id, node_id, process_id, claimed_at, %(status)s
    FROM deleted
    WHERE process_id IS NOT NULL
    ON CONFLICT DO NOTHING
), stored AS (
    INSERT INTO flq_state.result (batch_id, task_id, run_id, node_id, status, error_code, error_text, attempt, token,
                                  process_id, claimed_at)
    SELECT batch_id, task_id, run_id, node_id, %(status)s::flq_state.result_status, %(error_code)s, %(error_text)s,
           attempt, token, process_id, claimed_at
    FROM deleted
    RETURNING run_id
), told AS (
    SELECT pg_notify('flq_results_' || run_id, '') FROM (SELECT DISTINCT run_id FROM stored) r
)
SELECT (SELECT count(*) FROM stored), (SELECT count(*) FROM told)

-- name: open_tasks_of_run
-- The open tasks of a run.
SELECT t.node_id, t.run_id, t.task_id
FROM flq_state.batch b JOIN flq_state.task t ON t.batch_id = b.batch_id
WHERE b.run_id = %(run_id)s

-- name: open_tasks_of_batches
-- The open tasks of some batches of a run.
SELECT node_id, run_id, task_id FROM flq_state.task WHERE batch_id = ANY (%(batch_ids)s) AND run_id = %(run_id)s

-- name: overdue_tasks
-- Open tasks whose deadline has passed.
SELECT t.node_id, t.run_id, t.task_id
FROM flq_state.task t JOIN flq_state.batch b ON b.batch_id = t.batch_id
WHERE b.deadline <= clock_timestamp()
LIMIT %(limit)s

-- name: exhausted_tasks
-- Open tasks that have been tried too often and that nobody works on.
SELECT t.node_id, t.run_id, t.task_id
FROM flq_state.task t
WHERE t.attempt >= %(max_attempts)s AND t.lease_until < clock_timestamp()
LIMIT %(limit)s

-- name: superseded_nodes
-- Those of the nodes whose epoch is not the one that the caller knows.
SELECT w.node_id
FROM unnest(%(node_ids)s::bigint[], %(epochs)s::bigint[]) w(node_id, epoch)
LEFT JOIN flq_state.node n ON n.node_id = w.node_id
WHERE n.epoch IS DISTINCT FROM w.epoch
