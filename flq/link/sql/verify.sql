-- name: begin_verify
-- All invariants are looked at in one snapshot, in which each of them holds, however busy the database is.
SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY

-- name: verify_timeouts
-- A look at everything may take its time.
SELECT set_config('statement_timeout', '0', true), set_config('idle_in_transaction_session_timeout', '0', true)

-- name: one_lease_per_task
-- A task has one row, so at most one lease.
SELECT format('task %%s has %%s rows', task_id, count(*))
FROM flq_state.task
GROUP BY task_id
HAVING count(*) > 1
LIMIT %(limit)s

-- name: leases_have_holders
-- A claimed task says by whom, when, with which token and epoch; one that is not claimed says none of these.
SELECT format('task %%s of node %%s: token %%s, process %%s, attempt %%s, epoch %%s of %%s', t.task_id, t.node_id, t.token,
              t.process_id, t.attempt, t.epoch, n.epoch)
FROM flq_state.task t
LEFT JOIN flq_state.node n ON n.node_id = t.node_id
WHERE (t.token <> 0) <> (t.process_id IS NOT NULL)
   OR (t.token <> 0) <> (t.claimed_at IS NOT NULL)
   OR (t.token = 0 AND t.lease_until > '-infinity')
   OR (t.token <> 0 AND t.attempt < 1)
   OR t.epoch > n.epoch
LIMIT %(limit)s

-- name: open_or_finished
-- A task is open or finished, never both.
SELECT format('task %%s of batch %%s is open, and has result %%s', t.task_id, t.batch_id, s.status)
FROM flq_state.task t
JOIN flq_state.result s ON s.batch_id = t.batch_id AND s.task_id = t.task_id
LIMIT %(limit)s

-- name: tasks_are_complete
-- Every task that a batch was pushed with is open or finished, unless its run was pruned.
SELECT format('batch %%s was pushed with %%s tasks; %%s are open, %%s finished', b.batch_id, b.tasks,
              coalesce(t.open, 0), coalesce(s.finished, 0))
FROM flq_state.batch b
JOIN flq_state.run r ON r.run_id = b.run_id
LEFT JOIN (SELECT batch_id, count(*) AS open FROM flq_state.task GROUP BY batch_id) t ON t.batch_id = b.batch_id
LEFT JOIN (SELECT batch_id, count(*) AS finished FROM flq_state.result GROUP BY batch_id) s ON s.batch_id = b.batch_id
WHERE r.pruned_at IS NULL AND b.tasks <> coalesce(t.open, 0) + coalesce(s.finished, 0)
LIMIT %(limit)s

-- name: finished_runs_have_no_tasks
-- The end of a run ends its open tasks.
SELECT format('task %%s is open, and its run %%s is finished', t.task_id, r.name)
FROM flq_state.task t
JOIN flq_state.run r ON r.run_id = t.run_id
WHERE r.status = 'finished'
LIMIT %(limit)s

-- name: attempts_rise
-- The ended attempts at a task count from 1 without a gap, up to that of its result, or to what its open row says.
SELECT format('task %%s has %%s ended attempts from %%s to %%s', a.task_id, count(*), min(a.attempt), max(a.attempt))
FROM flq_state.task_attempt a
LEFT JOIN flq_state.task t ON t.task_id = a.task_id
GROUP BY a.task_id, t.attempt, t.token
HAVING min(a.attempt) <> 1
    OR max(a.attempt) <> count(*)
    OR max(a.attempt) > t.attempt
    OR (max(a.attempt) = t.attempt AND t.token <> 0)
LIMIT %(limit)s

-- name: results_have_attempts
-- A result that a node has sent stands on an attempt of that node; no attempt is newer.
SELECT format('result of task %%s, attempt %%s of node %%s: %%s', s.task_id, s.attempt, s.node_id,
              CASE WHEN a.task_id IS NULL THEN 'no such attempt' ELSE 'the attempt is of node ' || a.node_id END)
FROM flq_state.result s
LEFT JOIN flq_state.task_attempt a ON a.task_id = s.task_id AND a.attempt = s.attempt
LEFT JOIN flq_state.run r ON r.run_id = s.run_id
WHERE s.started_at IS NOT NULL AND r.pruned_at IS NULL AND (a.task_id IS NULL OR a.node_id <> s.node_id)
UNION ALL
SELECT format('task %%s finished with attempt %%s, and has an attempt %%s', s.task_id, s.attempt, a.attempt)
FROM flq_state.result s
JOIN flq_state.task_attempt a ON a.task_id = s.task_id AND a.attempt > s.attempt
LIMIT %(limit)s

-- name: states_have_replies
-- A version of client state was left by an accepted reply of its node and run.
SELECT format('task %%s is said to have left a client state on node %%s in run %%s; its result: %%s', v.task_id, v.node_id,
              v.run_id, coalesce(format('%%s of node %%s in run %%s', s.status, s.node_id, s.run_id), 'none'))
FROM flq_state.client_state v
LEFT JOIN flq_state.run r ON r.run_id = v.run_id
LEFT JOIN flq_state.result s ON s.batch_id = v.batch_id AND s.task_id = v.task_id
WHERE r.pruned_at IS NULL
  AND (s.status = 'ok' AND s.node_id = v.node_id AND s.run_id = v.run_id) IS NOT TRUE
LIMIT %(limit)s

-- name: no_orphans
-- Every row has the rows that it belongs to, also where no foreign key says so.
SELECT format('task %%s has no batch %%s of run %%s', t.task_id, t.batch_id, t.run_id)
FROM flq_state.task t
LEFT JOIN flq_state.batch b ON b.batch_id = t.batch_id AND b.run_id = t.run_id
WHERE b.batch_id IS NULL
UNION ALL
SELECT format('task %%s has no node %%s', t.task_id, t.node_id)
FROM flq_state.task t
LEFT JOIN flq_state.node n ON n.node_id = t.node_id
WHERE n.node_id IS NULL
UNION ALL
SELECT format('the message of task %%s has no task and no result', m.task_id)
FROM flq_state.task_message m
LEFT JOIN flq_state.task t ON t.task_id = m.task_id AND t.batch_id = m.batch_id
LEFT JOIN flq_state.result s ON s.task_id = m.task_id AND s.batch_id = m.batch_id
WHERE t.task_id IS NULL AND s.task_id IS NULL
UNION ALL
SELECT format('attempt %%s has no task and no result %%s', a.attempt, a.task_id)
FROM flq_state.task_attempt a
LEFT JOIN flq_state.task t ON t.task_id = a.task_id
LEFT JOIN flq_state.result s ON s.task_id = a.task_id
WHERE t.task_id IS NULL AND s.task_id IS NULL
UNION ALL
SELECT format('result of task %%s has no batch %%s of run %%s', s.task_id, s.batch_id, s.run_id)
FROM flq_state.result s
LEFT JOIN flq_state.batch b ON b.batch_id = s.batch_id AND b.run_id = s.run_id
WHERE b.batch_id IS NULL
UNION ALL
SELECT format('result of task %%s has no node %%s', s.task_id, s.node_id)
FROM flq_state.result s
LEFT JOIN flq_state.node n ON n.node_id = s.node_id
WHERE n.node_id IS NULL
UNION ALL
SELECT format('log line %%s has no run %%s', l.line_id, l.run_id)
FROM flq_state.log_line l
LEFT JOIN flq_state.run r ON r.run_id = l.run_id
WHERE r.run_id IS NULL
LIMIT %(limit)s

-- name: steps_are_whole
-- Every push and every commit of a run is a step of it, and no step is without; a forked run has inherited its first commit.
SELECT format('batch %%s of run %%s is no step %%s of branch %%s', b.batch_id, b.run_id, b.sequence, b.branch)
FROM flq_state.batch b
LEFT JOIN flq_state.step s
       ON s.run_id = b.run_id AND s.branch = b.branch AND s.sequence = b.sequence AND s.kind = 'push'
WHERE s.run_id IS NULL
UNION ALL
SELECT format('step %%s of branch %%s of run %%s is a push without a batch', s.sequence, s.branch, s.run_id)
FROM flq_state.step s
LEFT JOIN flq_state.batch b ON b.run_id = s.run_id AND b.branch = s.branch AND b.sequence = s.sequence
WHERE s.kind = 'push' AND b.batch_id IS NULL
UNION ALL
SELECT format('the commit of round %%s of run %%s is no step %%s of branch %%s', c.round, r.name, c.next_sequence - 1, c.branch)
FROM flq_state.checkpoint c
JOIN flq_state.run r ON r.run_id = c.run_id
LEFT JOIN flq_state.step s
       ON s.run_id = c.run_id AND s.branch = c.branch AND s.sequence = c.next_sequence - 1 AND s.kind = 'checkpoint'
WHERE s.run_id IS NULL AND (r.forked_from_round IS NULL OR c.round > r.forked_from_round)
LIMIT %(limit)s

-- name: commits_follow
-- Rounds are committed in the order of the program, one behind the other.
SELECT format('round %%s of run %%s was committed with step %%s, and round %%s before it with step %%s', x.round, x.run_id,
              x.next_sequence - 1, x.round_before, x.sequence_before - 1)
FROM (
    SELECT run_id, round, next_sequence,
           lag(round) OVER following AS round_before, lag(next_sequence) OVER following AS sequence_before
    FROM flq_state.checkpoint
    WINDOW following AS (PARTITION BY run_id ORDER BY round)
) x
WHERE x.sequence_before >= x.next_sequence
LIMIT %(limit)s

-- name: deliveries_exist
-- What a step says was delivered to the app exists: results of batches of its run that were pushed before it, and lists of
-- nodes. A result stays when what it refers to is released; those of pruned runs do not.
WITH given AS (
    SELECT s.run_id, s.branch, s.sequence, i.task_id
    FROM flq_state.step s
    CROSS JOIN jsonb_array_elements(s.delivered) d
    CROSS JOIN jsonb_array_elements(coalesce(d -> 'received', d -> 'pulled', '[]')) g
    CROSS JOIN generate_series((g ->> 0)::bigint, (g ->> 0)::bigint + (g ->> 1)::bigint - 1) i(task_id)
)
SELECT format('step %%s of branch %%s of run %%s was given a result of task %%s, which has none', g.sequence, g.branch, r.name,
              g.task_id)
FROM given g
JOIN flq_state.run r ON r.run_id = g.run_id AND r.pruned_at IS NULL
LEFT JOIN flq_state.result s ON s.run_id = g.run_id AND s.task_id = g.task_id
WHERE s.task_id IS NULL
UNION ALL
SELECT format('step %%s of branch %%s of run %%s was given a result of task %%s, which was pushed with step %%s', g.sequence,
              g.branch, g.run_id, g.task_id, b.sequence)
FROM given g
JOIN flq_state.result s ON s.run_id = g.run_id AND s.task_id = g.task_id
JOIN flq_state.batch b ON b.batch_id = s.batch_id
WHERE b.sequence >= g.sequence
UNION ALL
SELECT format('step %%s of branch %%s of run %%s was given a list of nodes that is not kept', s.sequence, s.branch, s.run_id)
FROM flq_state.step s
CROSS JOIN jsonb_array_elements(s.delivered) d
LEFT JOIN flq_state.node_list n ON n.run_id = s.run_id AND n.list_hash = decode(d ->> 'nodes', 'hex')
WHERE d ? 'nodes' AND n.run_id IS NULL
LIMIT %(limit)s

-- name: delivered_once
-- A result is delivered, and so applied, at most once on each branch of its run.
SELECT format('the result of task %%s was delivered %%s times on branch %%s of run %%s, with steps %%s', i.task_id, count(*),
              s.branch, s.run_id, string_agg(s.sequence::text, ', ' ORDER BY s.sequence))
FROM flq_state.step s
CROSS JOIN jsonb_array_elements(s.delivered) d
CROSS JOIN jsonb_array_elements(coalesce(d -> 'received', d -> 'pulled', '[]')) g
CROSS JOIN generate_series((g ->> 0)::bigint, (g ->> 0)::bigint + (g ->> 1)::bigint - 1) i(task_id)
GROUP BY s.run_id, s.branch, i.task_id
HAVING count(*) > 1
LIMIT %(limit)s

-- name: time_outs_stay
-- A task that the app was told had no reply, and went on with that, has none.
SELECT format('step %%s of branch %%s of run %%s was told that task %%s has no reply, and it is %%s', s.sequence, s.branch,
              s.run_id, i.task_id, t.status)
FROM flq_state.step s
CROSS JOIN jsonb_array_elements(s.delivered) d
CROSS JOIN jsonb_array_elements(coalesce(d -> 'timed_out', '[]')) g
CROSS JOIN generate_series((g ->> 0)::bigint, (g ->> 0)::bigint + (g ->> 1)::bigint - 1) i(task_id)
JOIN flq_state.result t ON t.run_id = s.run_id AND t.task_id = i.task_id
WHERE t.status IN ('ok', 'error')
LIMIT %(limit)s

-- name: references_have_holders
-- What holds an object exists, and an artifact holds its own.
SELECT format('%%s %%s of run %%s holds an object and does not exist', o.holder, o.holder_id, o.run_id)
FROM flq_state.object_ref o
LEFT JOIN flq_state.batch b ON o.holder = 'batch' AND b.batch_id = o.holder_id AND b.run_id = o.run_id
LEFT JOIN flq_state.result s ON o.holder = 'result' AND s.task_id = o.holder_id AND s.run_id = o.run_id
LEFT JOIN flq_state.checkpoint c
       ON o.holder = 'checkpoint' AND c.checkpoint_id = o.holder_id AND c.run_id = o.run_id AND c.state IS NOT NULL
LEFT JOIN flq_state.artifact a
       ON o.holder = 'artifact' AND a.artifact_id = o.holder_id AND a.run_id = o.run_id
      AND a.object_hash = o.object_hash
WHERE b.batch_id IS NULL AND s.task_id IS NULL AND c.checkpoint_id IS NULL AND a.artifact_id IS NULL
UNION ALL
SELECT format('artifact %%s of run %%s does not hold its object', a.name, a.run_id)
FROM flq_state.artifact a
LEFT JOIN flq_state.object_ref o
       ON o.holder = 'artifact' AND o.holder_id = a.artifact_id AND o.object_hash = a.object_hash AND o.run_id = a.run_id
WHERE o.object_hash IS NULL
LIMIT %(limit)s

-- name: objects_are_complete
-- An object that something refers to is there, with all of its bytes.
SELECT format('object %%s is gone, and %%s %%s refers to it', left(encode(r.object_hash, 'hex'), 12), r.holder, r.holder_id)
FROM flq_state.object_ref r
LEFT JOIN flq_state.object o ON o.object_hash = r.object_hash
WHERE o.object_hash IS NULL
UNION ALL
SELECT format('object %%s has %%s of %%s bytes, in %%s chunks', left(encode(o.object_hash, 'hex'), 12),
              coalesce(c.bytes, 0), o.size, coalesce(c.chunks, 0))
FROM flq_state.object o
LEFT JOIN (
    SELECT object_hash, count(*) AS chunks, max(sequence) AS last, sum(octet_length(data)) AS bytes
    FROM flq_state.object_chunk
    GROUP BY object_hash
) c ON c.object_hash = o.object_hash
WHERE o.directory IS NULL AND (coalesce(c.bytes, 0) <> o.size OR coalesce(c.last + 1, 0) <> coalesce(c.chunks, 0))
LIMIT %(limit)s

-- name: nothing_is_left_over
-- The collector finds everything that it has to: an object without a reference has a pin, chunks without an object are
-- those of an upload.
SELECT format('object %%s has neither a reference nor a pin', left(encode(o.object_hash, 'hex'), 12))
FROM flq_state.object o
WHERE NOT EXISTS (SELECT FROM flq_state.object_ref r WHERE r.object_hash = o.object_hash)
  AND NOT EXISTS (SELECT FROM flq_state.object_pin p WHERE p.object_hash = o.object_hash)
UNION ALL
SELECT format('chunks of %%s belong to no object and to no upload', left(encode(c.object_hash, 'hex'), 12))
FROM (SELECT DISTINCT object_hash FROM flq_state.object_chunk) c
LEFT JOIN flq_state.object o ON o.object_hash = c.object_hash AND o.directory IS NULL
LEFT JOIN flq_state.object_upload u ON u.object_hash = c.object_hash
WHERE o.object_hash IS NULL AND u.object_hash IS NULL
LIMIT %(limit)s

-- name: bundles_are_whole
-- A bundle has the hash that it is stored under, and a run has its bundle.
SELECT format('bundle %%s does not have its hash', left(encode(bundle_hash, 'hex'), 12))
FROM flq_state.bundle
WHERE sha256(data) <> bundle_hash
UNION ALL
SELECT format('run %%s has no bundle', r.name)
FROM flq_state.run r
LEFT JOIN flq_state.bundle b ON b.bundle_hash = r.bundle_hash
WHERE b.bundle_hash IS NULL
LIMIT %(limit)s

-- name: drawn_transitions
-- A run's history goes along the drawn graph only, and ends where the run stands. A completed run does not begin again.
WITH step AS (
    SELECT e.run_id, e.event_id, e.event, m.status,
           lag(m.status) OVER (PARTITION BY e.run_id ORDER BY e.event_id) AS before,
           lag(e.event) OVER (PARTITION BY e.run_id ORDER BY e.event_id) AS event_before,
           lead(m.status) OVER (PARTITION BY e.run_id ORDER BY e.event_id) AS next
    FROM flq_state.run_event e
    JOIN (VALUES ('submitted', 'pending'), ('requeued', 'pending'), ('resumed', 'pending'), ('starting', 'starting'),
                 ('running', 'running'), ('completed', 'finished'), ('failed', 'finished'), ('stopped', 'finished'))
         m(event, status) ON m.event = e.event
)
SELECT format('run %%s went from %%s to %%s', r.name, coalesce(s.before, 'nothing'), s.status)
FROM step s
JOIN flq_state.run r ON r.run_id = s.run_id
WHERE CASE
          WHEN s.before IS NULL THEN s.event <> 'submitted'
          WHEN s.event_before = 'completed' THEN true
          ELSE NOT EXISTS (SELECT FROM unnest(%(froms)s::text[], %(tos)s::text[]) g(f, t)
                           WHERE g.f = s.before AND g.t = s.status)
      END
UNION ALL
SELECT format('run %%s is %%s, and its history ends with %%s', r.name, r.status, coalesce(s.status, 'nothing'))
FROM flq_state.run r
LEFT JOIN step s ON s.run_id = r.run_id AND s.next IS NULL
WHERE s.status IS DISTINCT FROM r.status::text
   OR (r.status = 'finished' AND s.event IS DISTINCT FROM r.outcome::text)
LIMIT %(limit)s

-- name: one_active_attempt
-- A run that starts or runs has one attempt that has not ended, the newest one; another run has none.
SELECT format('run %%s is %%s at attempt %%s, and has %%s open attempts (%%s)', r.name, r.status, r.attempt, count(a.attempt),
              string_agg(a.attempt || ' ' || a.status, ', ' ORDER BY a.attempt))
FROM flq_state.run r
LEFT JOIN flq_state.run_attempt a ON a.run_id = r.run_id AND a.status <> 'ended'
GROUP BY r.run_id
HAVING count(a.attempt) <> (r.status IN ('starting', 'running'))::int
    OR min(a.attempt) <> r.attempt
    OR (r.status = 'running' AND bool_or(a.status <> 'claimed'))
LIMIT %(limit)s

-- name: tokens_match
-- The token under which a ServerApp may write is that of its run's open attempt; without one nobody may write.
SELECT format('run %%s is %%s: its token %%s that of attempt %%s', r.name, r.status,
              CASE WHEN r.attempt_token = 0 THEN 'is not set, unlike' ELSE 'is not' END, r.attempt)
FROM flq_state.run r
LEFT JOIN flq_state.run_attempt a ON a.run_id = r.run_id AND a.attempt = r.attempt AND a.status <> 'ended'
WHERE r.attempt_token <> coalesce(a.token, 0)
UNION ALL
SELECT format('attempts of %%s runs have the same token', count(*))
FROM flq_state.run_attempt
GROUP BY token
HAVING count(*) > 1
LIMIT %(limit)s

-- name: partitions
-- What is written now and soon has its partition, each one has the bounds that its name says, and none is left detached.
WITH part AS (
    SELECT c.relname::text AS name, pg_get_expr(c.relpartbound, c.oid) AS bounds, i.inhdetachpending AS detaching
    FROM pg_class c
    JOIN pg_namespace n ON n.oid = c.relnamespace
    LEFT JOIN pg_inherits i ON i.inhrelid = c.oid
    WHERE n.nspname = 'flq_state' AND c.relkind = 'r' AND c.relname ~ '^(result|log_line)_p[0-9]+$'
), wanted AS (
    SELECT format('result_p%%s', to_char(n, 'FM000000')) AS name
    FROM (SELECT coalesce(max(batch_id), 0) / 1000000 AS block FROM flq_state.batch) b, generate_series(block, block + 1) n
    UNION ALL
    SELECT format('log_line_p%%s', to_char((clock_timestamp() AT TIME ZONE 'UTC')::date + n, 'YYYYMMDD'))
    FROM generate_series(0, 1) n
), read AS (
    SELECT name, bounds, detaching,
           CASE WHEN name LIKE 'result%%' THEN
               format('FOR VALUES FROM (''%%s'') TO (''%%s'')', substr(name, 9)::bigint * 1000000,
                      (substr(name, 9)::bigint + 1) * 1000000)
           ELSE
               format('FOR VALUES FROM (''%%s 00:00:00+00'') TO (''%%s 00:00:00+00'')', to_date(substr(name, 11), 'YYYYMMDD'),
                      to_date(substr(name, 11), 'YYYYMMDD') + 1)
           END AS said
    FROM part
)
SELECT format('there is no partition %%s', w.name) FROM wanted w LEFT JOIN part p ON p.name = w.name WHERE p.name IS NULL
UNION ALL
SELECT format('partition %%s is %%s', name, coalesce('for ' || bounds, 'not attached'))
FROM read
WHERE bounds IS DISTINCT FROM said OR detaching
LIMIT %(limit)s

-- name: objects_in_directories
-- Objects that something refers to and whose bytes are files.
SELECT o.object_hash, o.size, o.directory
FROM flq_state.object o
WHERE o.directory IS NOT NULL AND EXISTS (SELECT FROM flq_state.object_ref r WHERE r.object_hash = o.object_hash)
