-- name: insert_run
-- Records a run. Returns nothing if the name is taken, or if the owner has submitted this key before.
INSERT INTO flq_state.run (name, app, bundle_hash, config, seed, owner, idempotency_key, node_selector, min_nodes,
                           priority, weight, wall_time_limit, keep_replies, keep_checkpoints)
VALUES (%(name)s, %(app)s, %(bundle_hash)s, %(config)s, %(seed)s, %(owner)s, %(idempotency_key)s, %(node_selector)s,
        %(min_nodes)s, %(priority)s, %(weight)s, %(wall_time_limit)s, %(keep_replies)s, %(keep_checkpoints)s)
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
-- starting | running → pending: another attempt will be made, after a while. What the ended one has used counts for the
-- wall-time limit, up to the end of its lease: if all was down behind that, nobody has worked.
UPDATE flq_state.run r
SET status = 'pending', attempt_token = 0,
    active_time = active_time + least(clock_timestamp(), CASE WHEN a.claimed_at IS NOT NULL THEN a.lease_until END)
                              - starting_at,
    not_before = clock_timestamp() + make_interval(secs => %(delay)s),
    excused_attempts = CASE WHEN %(excused)s THEN r.attempt ELSE excused_attempts END
FROM flq_state.run_attempt a
WHERE r.run_id = %(run_id)s AND r.status IN ('starting', 'running') AND a.run_id = r.run_id AND a.attempt = r.attempt

-- name: finish_run
-- → finished. Nobody holds a token any more, so nobody can write.
UPDATE flq_state.run r
SET status = 'finished', outcome = %(outcome)s, reason = %(reason)s, finished_at = clock_timestamp(), attempt_token = 0,
    not_before = NULL,
    active_time = active_time + coalesce((
        SELECT least(clock_timestamp(), CASE WHEN a.claimed_at IS NOT NULL THEN a.lease_until END) - r.starting_at
        FROM flq_state.run_attempt a
        WHERE a.run_id = r.run_id AND a.attempt = r.attempt AND r.attempt_token <> 0), interval '0')
WHERE r.run_id = %(run_id)s AND r.status <> 'finished'

-- name: resumable_run
-- What decides whether a run can be resumed, with the row locked: how it ended, whether what its next attempt starts from
-- is still there, and what is left of its wall-time limit in seconds.
SELECT r.name, r.status, r.outcome, r.reason,
       r.pruned_at IS NOT NULL OR EXISTS (
           SELECT FROM flq_state.checkpoint c
           WHERE c.run_id = r.run_id AND c.state IS NULL
             AND c.round = (SELECT max(k.round) FROM flq_state.checkpoint k WHERE k.run_id = r.run_id)),
       extract(epoch FROM r.wall_time_limit)::float8, extract(epoch FROM r.active_time)::float8
FROM flq_state.run r
WHERE r.run_id = %(run_id)s
FOR NO KEY UPDATE

-- name: resume_run
-- finished → pending, unless it has completed. Earlier attempts do not count towards the cap any more.
UPDATE flq_state.run
SET status = 'pending', outcome = NULL, reason = NULL, finished_at = NULL, stop_requested_at = NULL, not_before = NULL,
    excused_attempts = attempt, wall_time_limit = coalesce(%(wall_time_limit)s, wall_time_limit)
WHERE run_id = %(run_id)s AND status = 'finished' AND outcome IN ('failed', 'stopped') AND pruned_at IS NULL

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
       running_at, finished_at, forked_from, forked_from_round, rerun_of,
       extract(epoch FROM wall_time_limit)::float8, extract(epoch FROM active_time)::float8
FROM flq.runs
WHERE %(run_id)s::bigint IS NULL OR run_id = %(run_id)s
ORDER BY run_id DESC
LIMIT %(limit)s

-- name: list_rounds
-- The rounds of a run from one on.
SELECT round, status, nodes, tasks, done, errors, duration, metrics
FROM flq.rounds
WHERE run_id = %(run_id)s AND round >= %(since)s
ORDER BY round

-- name: why_waiting
-- What keeps a run from going on, what weighs most first.
SELECT cause, reason FROM flq.waiting WHERE run_id = %(run_id)s ORDER BY place
