-- name: claim
-- Leases open tasks for all nodes that a process hosts, in one statement: by priority, then by weighted share between the
-- runs of a node, then by age. What is looked at says `flq.link.cursors`. Locks tasks only, and waits for nobody.
WITH RECURSIVE wanted AS MATERIALIZED (
    -- a node that another process hosts now gets nothing, and is told
    SELECT w.node_id, w.epoch, w.clock, w.beyond, n.epoch IS NOT DISTINCT FROM w.epoch AS ours
    FROM unnest(%(node_ids)s::bigint[], %(epochs)s::bigint[], %(clocks)s::float8[], %(beyonds)s::bigint[])
         w(node_id, epoch, clock, beyond)
    LEFT JOIN flq_state.node n ON n.node_id = w.node_id
), known AS MATERIALIZED (
    -- the runs that the process knows of, and where it stands in them
    SELECT k.node_id, k.run_id, k.after, k.tag
    FROM unnest(%(known_nodes)s::bigint[], %(known_runs)s::bigint[], %(known_after)s::bigint[], %(known_tags)s::float8[])
         k(node_id, run_id, after, tag)
), found (node_id, run_id) AS (
    -- the other runs, by a loose index scan: one look into the index for each run, however many tasks it has
    SELECT w.node_id, (SELECT t.run_id FROM flq_state.task t
                       WHERE t.node_id = w.node_id AND t.run_id > w.beyond ORDER BY t.run_id LIMIT 1)
    FROM wanted w
    WHERE w.ours
    UNION ALL
    SELECT f.node_id, (SELECT t.run_id FROM flq_state.task t
                       WHERE t.node_id = f.node_id AND t.run_id > f.run_id ORDER BY t.run_id LIMIT 1)
    FROM found f
    WHERE f.run_id IS NOT NULL
), again AS MATERIALIZED (
    -- the first call of a retried claim went through: the same rows, and no other
    SELECT t.node_id, t.run_id, t.task_id, w.epoch
    FROM wanted w
    CROSS JOIN LATERAL (
        SELECT o.node_id, o.run_id, o.task_id
        FROM flq_state.task o
        WHERE o.node_id = w.node_id
          AND o.token - %(token)s = 0 AND o.epoch - w.epoch = 0  -- few, whatever the statistics say of either
        OFFSET 0                                                 -- node by node, never the whole table
    ) t
    WHERE %(again)s AND w.ours
), fresh AS MATERIALIZED (
    SELECT f.node_id, f.run_id, 0::bigint AS after, w.clock AS tag
    FROM found f
    JOIN wanted w ON w.node_id = f.node_id
    WHERE f.run_id IS NOT NULL
      AND NOT EXISTS (SELECT FROM known k WHERE k.node_id = f.node_id AND k.run_id = f.run_id)
), run_on_node AS (
    SELECT node_id, run_id, after, tag FROM known
    UNION ALL
    SELECT node_id, run_id, after, tag FROM fresh
), due AS (
    -- of each run no more than can be claimed, with start tags 1/weight apart
    SELECT p.node_id, p.run_id, x.task_id, w.epoch, r.priority, r.weight,
           p.tag + (row_number() OVER (PARTITION BY p.node_id, p.run_id ORDER BY x.task_id) - 1) / r.weight AS tag
    FROM run_on_node p
    JOIN wanted w ON w.node_id = p.node_id AND w.ours
    JOIN flq_state.run r ON r.run_id = p.run_id
    CROSS JOIN LATERAL (
        SELECT t.task_id
        FROM flq_state.task t
        JOIN flq_state.batch b ON b.batch_id = t.batch_id
        WHERE t.node_id = p.node_id AND t.run_id = p.run_id AND t.task_id > p.after
          AND (t.lease_until < clock_timestamp()  -- queued, or its process has not renewed it
               OR t.epoch < w.epoch)              -- left behind by the process that hosted the node before
          AND t.attempt < %(max_attempts)s
          AND b.deadline > clock_timestamp()
        ORDER BY t.task_id
        LIMIT %(per_node)s
    ) x
    WHERE NOT EXISTS (SELECT FROM again)
), placed AS (
    -- the lowest tags of a node first
    SELECT due.*, row_number() OVER (PARTITION BY node_id ORDER BY priority DESC, tag, run_id, task_id) AS place
    FROM due
), chosen AS MATERIALIZED (
    SELECT node_id, run_id, task_id, epoch, NULL::float8 AS tag, 1::float8 AS weight FROM again
    UNION ALL
    -- where the total cuts, each node gets its first before one gets its second, and who got least lately is first
    (SELECT node_id, run_id, task_id, epoch, tag, weight
     FROM placed
     WHERE place <= %(per_node)s
     ORDER BY priority DESC, place, tag, node_id
     LIMIT %(total)s)
), held AS MATERIALIZED (
    -- OF t: a plain SKIP LOCKED would lock the batches too, and concurrent claimers would get nothing. What has changed
    -- since the look is looked at again, as the lock sees it.
    SELECT x.*, c.epoch AS new_epoch, c.tag, c.weight
    FROM chosen c
    CROSS JOIN LATERAL (
        SELECT t.node_id, t.run_id, t.task_id, t.token AS old_token, t.attempt AS old_attempt,
               t.process_id AS old_process, t.claimed_at AS old_claimed_at,
               b.kind, b.group_id, b.created_at, b.deadline
        FROM flq_state.task t
        JOIN flq_state.batch b ON b.batch_id = t.batch_id
        WHERE t.node_id = c.node_id AND t.run_id = c.run_id AND t.task_id = c.task_id
          AND (t.token = %(token)s
               OR (t.attempt < %(max_attempts)s AND (t.lease_until < clock_timestamp() OR t.epoch < c.epoch)))
        FOR UPDATE OF t SKIP LOCKED
    ) x
), displaced AS (
    -- the attempt that loses its task to this one goes into the history
    INSERT INTO flq_state.task_attempt (task_id, attempt, run_id, node_id, process_id, claimed_at, reason)
    SELECT task_id, old_attempt, run_id, node_id, old_process, old_claimed_at, 'displaced'
    FROM held
    WHERE old_attempt > 0 AND old_token <> %(token)s AND old_process IS NOT NULL
    ON CONFLICT DO NOTHING
), taken AS (
    UPDATE flq_state.task t
    SET token = %(token)s,
        epoch = h.new_epoch,
        attempt = t.attempt + (t.token <> %(token)s)::int,
        process_id = %(process_id)s,
        claimed_at = CASE WHEN t.token = %(token)s THEN t.claimed_at ELSE clock_timestamp() END,
        lease_until = clock_timestamp() + make_interval(secs => %(lease)s)
    FROM held h
    WHERE t.node_id = h.node_id AND t.run_id = h.run_id AND t.task_id = h.task_id
    RETURNING t.node_id, t.run_id, t.task_id, t.batch_id, t.attempt, h.kind, h.group_id, h.created_at, h.deadline,
              h.tag, h.weight
), late AS (
    -- a claim that a crash forgets is only delivered again: it need not wait for the disk
    SELECT set_config('synchronous_commit', 'off', true) AS mode
)
SELECT taken.node_id, taken.run_id, taken.task_id, taken.batch_id, taken.attempt, taken.kind, taken.group_id,
       extract(epoch FROM taken.created_at)::float8, extract(epoch FROM taken.deadline)::float8, taken.tag, taken.weight,
       late.mode
FROM taken, late
UNION ALL
-- what the process did not know: runs, and nodes that are not its own any more
SELECT node_id, run_id, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL FROM fresh
UNION ALL
SELECT node_id, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL FROM wanted WHERE NOT ours

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
    RETURNING t.run_id, t.batch_id, t.task_id
), told AS (
    -- as a push does: whoever hosts the node looks at these again
    SELECT pg_notify('flq_tasks', concat_ws(' ', run_id, min(batch_id), min(task_id))) FROM freed GROUP BY run_id
)
SELECT (SELECT count(*) FROM freed), (SELECT count(*) FROM told)

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
-- Open tasks whose deadline has passed. By a loose index scan: a look for each batch that has open tasks.
WITH RECURSIVE open_batch (batch_id) AS (
    (SELECT t.batch_id FROM flq_state.task t ORDER BY t.batch_id LIMIT 1)
    UNION ALL
    SELECT (SELECT t.batch_id FROM flq_state.task t WHERE t.batch_id > o.batch_id ORDER BY t.batch_id LIMIT 1)
    FROM open_batch o
    WHERE o.batch_id IS NOT NULL
)
SELECT t.node_id, t.run_id, t.task_id
FROM open_batch o
JOIN flq_state.batch b ON b.batch_id = o.batch_id AND b.deadline <= clock_timestamp()
JOIN flq_state.task t ON t.batch_id = b.batch_id
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
