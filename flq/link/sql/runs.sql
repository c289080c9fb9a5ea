-- name: insert_run
-- Records a run. Returns nothing if the name is taken, or if the owner has submitted this key before.
INSERT INTO flq_state.run (name, app, bundle_hash, config, seed, owner, idempotency_key, node_selector, min_nodes,
                           priority, weight, wall_time_limit)
VALUES (%(name)s, %(app)s, %(bundle_hash)s, %(config)s, %(seed)s, %(owner)s, %(idempotency_key)s, %(node_selector)s,
        %(min_nodes)s, %(priority)s, %(weight)s, %(wall_time_limit)s)
ON CONFLICT DO NOTHING
RETURNING run_id

-- name: submitted_run
-- The run that an owner has submitted under a key.
SELECT run_id FROM flq_state.run WHERE owner = %(owner)s AND idempotency_key = %(idempotency_key)s

-- name: resolve_run
-- A run's id by its name, or by its id in digits. A name wins.
SELECT run_id FROM flq_state.run
WHERE name = %(run)s OR (run_id = %(run_id)s AND NOT EXISTS (SELECT FROM flq_state.run WHERE name = %(run)s))

-- name: similar_runs
-- Names that somebody may have meant.
SELECT name FROM flq_state.run ORDER BY run_id DESC LIMIT 1000

-- name: lock_run
-- Locks a run against every other change of its state, and against the writes of its ServerApp, which take FOR SHARE.
-- Not FOR UPDATE: that deadlocks with the checks of foreign keys.
SELECT status, attempt, attempt_token, stop_requested_at IS NOT NULL
FROM flq_state.run WHERE run_id = %(run_id)s
FOR NO KEY UPDATE

-- name: begin_run
-- starting → running, by the attempt that holds the token.
UPDATE flq_state.run
SET status = 'running', running_at = clock_timestamp()
WHERE run_id = %(run_id)s AND attempt_token = %(token)s AND status = 'starting'

-- name: requeue_run
-- starting | running → pending: another attempt will be made.
UPDATE flq_state.run
SET status = 'pending', attempt_token = 0
WHERE run_id = %(run_id)s AND status IN ('starting', 'running')

-- name: finish_run
-- → finished. Nobody holds a token any more, so nobody can write.
UPDATE flq_state.run
SET status = 'finished', outcome = %(outcome)s, reason = %(reason)s, finished_at = clock_timestamp(), attempt_token = 0
WHERE run_id = %(run_id)s AND status <> 'finished'

-- name: request_stop
-- Asks the SuperExec that holds the attempt to end it.
UPDATE flq_state.run
SET stop_requested_at = coalesce(stop_requested_at, clock_timestamp())
WHERE run_id = %(run_id)s AND status <> 'finished'

-- name: run_info
-- What a ServerApp or a ClientApp needs to know of its run.
SELECT run_id, name, app, bundle_hash, config, seed, status FROM flq_state.run WHERE run_id = %(run_id)s

-- name: ended_runs
-- Those of the runs that are finished, asked to stop, or unknown.
SELECT w.run_id
FROM unnest(%(run_ids)s::bigint[]) w(run_id)
LEFT JOIN flq_state.run r ON r.run_id = w.run_id
WHERE r.run_id IS NULL OR r.status = 'finished' OR r.stop_requested_at IS NOT NULL

-- name: plan_rounds
-- How many rounds the run will have, for people who watch.
UPDATE flq_state.run SET rounds_planned = %(rounds)s
WHERE run_id = %(run_id)s AND attempt_token = %(token)s AND status = 'running'

-- name: list_runs
-- The newest runs, or one of them.
SELECT run_id, run, app, owner, status, outcome, reason, attempt, rounds_planned, rounds_done, tasks_open, results_ok,
       results_error, stop_requested_at IS NOT NULL, config, node_selector, bundle_hash, created_at, starting_at,
       running_at, finished_at
FROM flq.runs
WHERE %(run_id)s::bigint IS NULL OR run_id = %(run_id)s
ORDER BY run_id DESC
LIMIT %(limit)s

-- name: list_rounds
-- The rounds of a run from 1 on.
SELECT round, status, nodes, tasks, done, errors, duration, metrics FROM flq.rounds WHERE run_id = %(run_id)s ORDER BY round

-- name: why_waiting
-- What keeps a run from going on.
SELECT reason FROM flq.waiting WHERE run_id = %(run_id)s
