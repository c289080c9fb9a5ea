-- name: claim
-- Leases open tasks for all nodes that a process hosts, in one statement: by priority, then by weighted share between the
-- runs of a node, then by age. What is looked at says `flq.link.cursors`. Locks tasks only, and waits for nobody.
-- Tasks and batches are joined by what can be neither hashed nor merged (`= ANY (ARRAY[...])`, OFFSET 0), here and below:
-- planned while the statistics say that a table is empty, any other join would read all of it, the dead included.
WITH RECURSIVE wanted AS (
    -- a node that another process hosts now gets nothing, and is told
    SELECT w.node_id, w.epoch, w.clock, w.beyond, n.epoch IS NOT DISTINCT FROM w.epoch AS ours
    FROM unnest(%(node_ids)s::bigint[], %(epochs)s::bigint[], %(clocks)s::float8[], %(beyonds)s::bigint[])
         w(node_id, epoch, clock, beyond)
    LEFT JOIN flq_state.node n ON n.node_id = ANY (ARRAY[w.node_id])
), known AS (
    -- the runs that the process knows of, and where it stands in them
    SELECT k.node_id, k.run_id, k.after, k.tag
    FROM unnest(%(known_nodes)s::bigint[], %(known_runs)s::bigint[], %(known_after)s::bigint[], %(known_tags)s::float8[])
         k(node_id, run_id, after, tag)
), found (node_id, run_id) AS (
    -- the other runs, by a loose index scan: one look into the index for each run, however many tasks it has
    SELECT node_id, beyond FROM wanted WHERE ours
    UNION ALL
    SELECT f.node_id, (SELECT t.run_id FROM flq_state.task t
                       WHERE t.node_id = f.node_id AND t.run_id > f.run_id ORDER BY t.run_id LIMIT 1)
    FROM found f
    WHERE f.run_id IS NOT NULL
), fresh AS (
    SELECT f.node_id, f.run_id, 0::bigint AS after, w.clock AS tag
    FROM found f
    JOIN wanted w ON w.node_id = f.node_id
    WHERE f.run_id > w.beyond AND NOT EXISTS (
        SELECT FROM known k WHERE k.node_id = f.node_id AND k.run_id = f.run_id)
), run_on_node AS (
    TABLE known
    UNION ALL
    TABLE fresh
), due AS (
    -- of each run no more than can be claimed, with start tags 1/weight apart
    SELECT p.node_id, p.run_id, x.task_id, x.deadline, w.epoch, r.priority, r.weight,
           p.tag + (row_number() OVER (PARTITION BY p.node_id, p.run_id ORDER BY x.task_id) - 1) / r.weight AS tag
    FROM run_on_node p
    JOIN wanted w ON w.node_id = p.node_id AND w.ours
    JOIN flq_state.run r ON r.run_id = p.run_id
    CROSS JOIN LATERAL (
        SELECT t.task_id, b.deadline
        FROM flq_state.task t
        -- with OFFSET: else it might begin with the batches, and look at all tasks of the node
        CROSS JOIN LATERAL (SELECT deadline FROM flq_state.batch WHERE batch_id = t.batch_id OFFSET 0) b
        WHERE t.node_id = p.node_id AND t.run_id = p.run_id AND t.task_id > p.after
          AND (t.lease_until < clock_timestamp()  -- queued, or its process has not renewed it
               OR t.epoch < w.epoch)              -- left behind by the process that hosted the node before
          AND t.attempt < %(max_attempts)s
          AND b.deadline > clock_timestamp()
        ORDER BY t.task_id
        LIMIT %(per_node)s
    ) x
), placed AS (
    -- the lowest tags of a node first
    SELECT due.*, row_number() OVER (PARTITION BY node_id ORDER BY priority DESC, tag, run_id, task_id) AS place
    FROM due
), chosen AS MATERIALIZED (
    -- where the total cuts, each node gets its first before one gets its second, and who got least lately is first
    SELECT node_id, run_id, task_id, deadline, epoch, tag, weight
    FROM placed
    WHERE place <= %(per_node)s
    ORDER BY priority DESC, place, tag, node_id
    LIMIT %(total)s
), held AS (
    -- Not joined with the batches: SKIP LOCKED would lock them too, and concurrent claimers would get nothing. What has
    -- changed since the look is looked at again, as the lock sees it.
    SELECT x.*, c.epoch AS new_epoch, c.deadline, c.tag, c.weight
    FROM chosen c
    CROSS JOIN LATERAL (
        SELECT t.node_id, t.run_id, t.task_id, t.attempt AS old_attempt, t.process_id AS old_process,
               t.claimed_at AS old_claimed_at
        FROM flq_state.task t
        WHERE t.node_id = c.node_id AND t.run_id = c.run_id AND t.task_id = c.task_id
          AND t.attempt < %(max_attempts)s AND (t.lease_until < clock_timestamp() OR t.epoch < c.epoch)
        FOR UPDATE SKIP LOCKED
    ) x
), displaced AS (
    -- the attempt that loses its task to this one goes into the history
    INSERT INTO flq_state.task_attempt (task_id, attempt, run_id, node_id, process_id, claimed_at, reason)
    SELECT task_id, old_attempt, run_id, node_id, old_process, old_claimed_at, 'displaced'
    FROM held
    WHERE old_attempt > 0 AND old_process IS NOT NULL
    ON CONFLICT DO NOTHING
), taken AS (
    UPDATE flq_state.task t
    SET token = %(token)s,
        epoch = h.new_epoch,
        attempt = t.attempt + 1,
        process_id = %(process_id)s,
        claimed_at = clock_timestamp(),
        lease_until = clock_timestamp() + make_interval(secs => %(lease)s)
    FROM held h
    WHERE t.node_id = ANY (ARRAY[h.node_id]) AND t.run_id = ANY (ARRAY[h.run_id]) AND t.task_id = ANY (ARRAY[h.task_id])
    RETURNING t.node_id, t.run_id, t.task_id, t.batch_id, t.attempt, h.deadline, h.tag, h.weight
), late AS (
    -- a claim that a crash forgets is only delivered again: it need not wait for the disk
    SELECT set_config('synchronous_commit', 'off', true) AS mode
)
SELECT node_id, run_id, task_id, batch_id, attempt, date_part('epoch', deadline), tag, weight, mode, NULL, NULL::bytea
FROM taken
CROSS JOIN late
UNION ALL
-- what the process did not know: batches and their messages, runs, and nodes that are not its own any more
SELECT NULL, NULL, NULL, b.batch_id, branch, date_part('epoch', created_at), NULL, NULL, kind, group_id, manifest
FROM (SELECT DISTINCT batch_id FROM taken WHERE batch_id <> ALL (%(known_batches)s::bigint[])) t
JOIN flq_state.batch b ON b.batch_id = ANY (ARRAY[t.batch_id])
UNION ALL
SELECT node_id, run_id, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL FROM fresh
UNION ALL
SELECT node_id, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL FROM wanted WHERE NOT ours

-- name: claim_again
-- What the first call of a retried claim has leased: the same rows, prolonged, and no other. Rows as those of `claim`.
WITH wanted AS MATERIALIZED (
    SELECT w.node_id, w.epoch
    FROM unnest(%(node_ids)s::bigint[], %(epochs)s::bigint[]) w(node_id, epoch)
    JOIN flq_state.node n ON n.node_id = w.node_id AND n.epoch = w.epoch
), held AS MATERIALIZED (
    SELECT x.*
    FROM wanted w
    CROSS JOIN LATERAL (
        SELECT t.node_id, t.run_id, t.task_id
        FROM flq_state.task t
        WHERE t.node_id = w.node_id AND t.token = %(token)s AND t.epoch = w.epoch
        FOR UPDATE SKIP LOCKED
    ) x
), taken AS (
    UPDATE flq_state.task t
    SET lease_until = clock_timestamp() + make_interval(secs => %(lease)s)
    FROM held h
    WHERE t.node_id = ANY (ARRAY[h.node_id]) AND t.run_id = ANY (ARRAY[h.run_id]) AND t.task_id = ANY (ARRAY[h.task_id])
    RETURNING t.node_id, t.run_id, t.task_id, t.batch_id, t.attempt
)
SELECT node_id, run_id, task_id, t.batch_id, attempt, date_part('epoch', deadline), NULL::float8, NULL::float8, NULL, NULL,
       NULL::bytea
FROM taken t
CROSS JOIN LATERAL (SELECT deadline FROM flq_state.batch WHERE batch_id = t.batch_id OFFSET 0) b
UNION ALL
SELECT NULL, NULL, NULL, b.batch_id, branch, date_part('epoch', created_at), NULL, NULL, kind, group_id, manifest
FROM (SELECT DISTINCT batch_id FROM taken WHERE batch_id <> ALL (%(known_batches)s::bigint[])) t
JOIN flq_state.batch b ON b.batch_id = ANY (ARRAY[t.batch_id])

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
    JOIN flq_state.task t ON t.node_id = ANY (ARRAY[a.node_id]) AND t.run_id = ANY (ARRAY[a.run_id])
                         AND t.task_id = ANY (ARRAY[a.task_id]) AND t.token = a.token AND t.epoch = a.node_epoch
    ORDER BY t.node_id, t.run_id, t.task_id
    FOR UPDATE OF t
), renewed AS (
    UPDATE flq_state.task t
    SET lease_until = clock_timestamp() + make_interval(secs => %(lease)s)
    FROM held h
    WHERE t.node_id = ANY (ARRAY[h.node_id]) AND t.run_id = ANY (ARRAY[h.run_id]) AND t.task_id = ANY (ARRAY[h.task_id])
    RETURNING t.task_id
)
SELECT task_id, set_config('synchronous_commit', 'off', true) FROM renewed

-- name: release
-- Gives claimed tasks back. The attempt that was begun counts and goes into the history.
WITH held AS MATERIALIZED (
    SELECT t.*
    FROM unnest(%(node_ids)s::bigint[], %(run_ids)s::bigint[], %(task_ids)s::bigint[], %(tokens)s::bigint[])
         w(node_id, run_id, task_id, token)
    JOIN flq_state.task t ON t.node_id = ANY (ARRAY[w.node_id]) AND t.run_id = ANY (ARRAY[w.run_id])
                         AND t.task_id = ANY (ARRAY[w.task_id]) AND t.token = w.token
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
    WHERE t.node_id = ANY (ARRAY[h.node_id]) AND t.run_id = ANY (ARRAY[h.run_id]) AND t.task_id = ANY (ARRAY[h.task_id])
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
    JOIN flq_state.task t ON t.node_id = ANY (ARRAY[w.node_id]) AND t.run_id = ANY (ARRAY[w.run_id])
                         AND t.task_id = ANY (ARRAY[w.task_id])
    ORDER BY t.node_id, t.run_id, t.task_id
    FOR UPDATE OF t
), deleted AS (
    DELETE FROM flq_state.task t
    USING gone g
    WHERE t.node_id = ANY (ARRAY[g.node_id]) AND t.run_id = ANY (ARRAY[g.run_id]) AND t.task_id = ANY (ARRAY[g.task_id])
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
-- Open tasks that have been tried too often and that nobody works on, among the next ones in key order; and the last one
-- that was looked at, unless there are no more. No index knows of them: one on `attempt` would cost each claim its place
-- in the page.
WITH looked AS MATERIALIZED (
    SELECT node_id, run_id, task_id, attempt, lease_until
    FROM flq_state.task
    WHERE (node_id, run_id, task_id) > (%(after_node)s, %(after_run)s, %(after_task)s)
    ORDER BY node_id, run_id, task_id
    LIMIT %(look)s
)
(SELECT node_id, run_id, task_id, true AS exhausted
 FROM looked
 WHERE attempt >= %(max_attempts)s AND lease_until < clock_timestamp()
 LIMIT %(limit)s)
UNION ALL
(SELECT node_id, run_id, task_id, false FROM looked ORDER BY node_id, run_id, task_id OFFSET %(look)s - 1)

-- name: superseded_nodes
-- Those of the nodes whose epoch is not the one that the caller knows.
SELECT w.node_id
FROM unnest(%(node_ids)s::bigint[], %(epochs)s::bigint[]) w(node_id, epoch)
LEFT JOIN flq_state.node n ON n.node_id = w.node_id
WHERE n.epoch IS DISTINCT FROM w.epoch
