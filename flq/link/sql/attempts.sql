-- name: due_runs
-- Pending runs in the order in which they start, at most as many as the live SuperExecs have free slots.
WITH room AS (
    SELECT greatest(0, (SELECT coalesce(sum(slots), 0) FROM flq_state.process
                        WHERE kind = 'superexec' AND alive_until > clock_timestamp())
                     - (SELECT count(*) FROM flq_state.run_attempt WHERE status <> 'ended')) AS slots
)
SELECT run_id FROM flq_state.run
WHERE status = 'pending' AND (not_before IS NULL OR not_before <= clock_timestamp())
ORDER BY priority DESC, run_id
LIMIT (SELECT slots FROM room)
FOR NO KEY UPDATE SKIP LOCKED

-- name: start_attempt
-- pending → starting, with a new attempt and its token.
UPDATE flq_state.run
SET status = 'starting', starting_at = clock_timestamp(), attempt = attempt + 1, attempt_token = %(token)s
WHERE run_id = %(run_id)s AND status = 'pending'
RETURNING name, attempt

-- name: insert_attempt
-- An attempt that is about to be published.
INSERT INTO flq_state.run_attempt (run_id, attempt, token, job_id)
VALUES (%(run_id)s, %(attempt)s, %(token)s, %(job_id)s)

-- name: unclaimed_attempts
-- Attempts whose job nobody has taken in time, with a new job id: the broker may have lost the old one. The time doubles
-- with every publication, up to a limit. One that the broker did not take is due at once.
UPDATE flq_state.run_attempt a
SET job_id = gen_random_uuid()::text, publications = publications + (publications > 0)::int,
    published_at = clock_timestamp()
FROM flq_state.run r
WHERE r.run_id = a.run_id AND r.attempt = a.attempt AND a.status = 'published'
  AND (a.publications = 0
       OR a.published_at < clock_timestamp()
                         - make_interval(secs => least(%(most)s, %(patience)s * 2 ^ least(a.publications - 1, 10))))
RETURNING a.run_id, r.name, a.attempt, a.job_id

-- name: republished_attempts
-- The broker has taken jobs that it had refused before.
UPDATE flq_state.run_attempt a
SET publications = 1
FROM unnest(%(run_ids)s::bigint[], %(attempts)s::int[], %(job_ids)s::text[]) w(run_id, attempt, job_id)
WHERE a.run_id = w.run_id AND a.attempt = w.attempt AND a.job_id = w.job_id AND a.publications = 0

-- name: unpublish_attempts
-- The broker did not take these jobs: they are to be published as soon as it does. The history says so once for each
-- reason.
WITH refused AS (
    UPDATE flq_state.run_attempt a
    SET publications = 0
    FROM unnest(%(run_ids)s::bigint[], %(attempts)s::int[], %(job_ids)s::text[]) w(run_id, attempt, job_id)
    WHERE a.run_id = w.run_id AND a.attempt = w.attempt AND a.job_id = w.job_id AND a.status = 'published'
    RETURNING a.run_id
)
INSERT INTO flq_state.run_event (run_id, event, actor, reason)
SELECT f.run_id, 'delayed', 'superlink', %(reason)s
FROM refused f
JOIN flq_state.run r ON r.run_id = f.run_id
WHERE NOT EXISTS (
    SELECT FROM flq_state.run_event e
    WHERE e.run_id = f.run_id AND e.event = 'delayed' AND e.reason = %(reason)s AND e.at >= r.starting_at
)

-- name: claim_attempt
-- published → claimed, for one SuperExec only.
UPDATE flq_state.run_attempt
SET status = 'claimed', process_id = %(process_id)s, job_id = %(job_id)s, claimed_at = clock_timestamp(),
    lease_until = clock_timestamp() + make_interval(secs => %(lease)s)
WHERE run_id = %(run_id)s AND attempt = %(attempt)s AND status = 'published'
RETURNING token

-- name: wall_time
-- The run's limit in seconds, or null, and what it has used of it in all of its attempts.
SELECT extract(epoch FROM wall_time_limit)::float8,
       extract(epoch FROM active_time + (clock_timestamp() - starting_at))::float8
FROM flq_state.run
WHERE run_id = %(run_id)s

-- name: futile_attempts
-- How many attempts in a row have not brought the run on: since the last one that has committed a round, and since it was
-- resumed or its SuperExec was shut down.
SELECT r.attempt - greatest(r.excused_attempts, coalesce(
           (SELECT max(c.attempt) FROM flq_state.checkpoint c WHERE c.run_id = r.run_id), 0))
FROM flq_state.run r
WHERE r.run_id = %(run_id)s

-- name: overlong_runs
-- Runs that have been starting and running for longer than they may, attempts of now and before taken together. What a
-- SuperExec holds has some grace: it ends the run itself, in good order.
SELECT r.run_id
FROM flq_state.run r
LEFT JOIN flq_state.run_attempt a ON a.run_id = r.run_id AND a.attempt = r.attempt AND a.status <> 'ended'
WHERE r.status <> 'finished' AND r.stop_requested_at IS NULL AND (%(run_id)s::bigint IS NULL OR r.run_id = %(run_id)s)
  AND r.wall_time_limit + CASE WHEN a.status = 'claimed' THEN make_interval(secs => %(grace)s) ELSE interval '0' END
      <= r.active_time
         + CASE WHEN a.run_id IS NULL THEN interval '0' ELSE
               least(clock_timestamp(), CASE WHEN a.claimed_at IS NOT NULL THEN a.lease_until END) - r.starting_at
           END
ORDER BY r.run_id
LIMIT 100

-- name: launched_attempt
-- Where the ServerApp runs.
UPDATE flq_state.run_attempt SET pid = %(pid)s
WHERE run_id = %(run_id)s AND token = %(token)s AND status = 'claimed'

-- name: renew_attempt
-- Prolongs the lease, and says whether a stop was requested. Nothing comes back if the attempt is no longer current.
UPDATE flq_state.run_attempt a
SET lease_until = clock_timestamp() + make_interval(secs => %(lease)s)
FROM flq_state.run r
WHERE a.run_id = %(run_id)s AND a.token = %(token)s AND a.status = 'claimed'
  AND r.run_id = a.run_id AND r.attempt_token = a.token
RETURNING r.stop_requested_at IS NOT NULL

-- name: end_attempt
-- claimed | published → ended.
UPDATE flq_state.run_attempt
SET status = 'ended', ended_at = clock_timestamp(), exit_code = %(exit_code)s, error = %(error)s
WHERE run_id = %(run_id)s AND attempt = %(attempt)s AND status <> 'ended'

-- name: end_unclaimed
-- published → ended, so that a SuperExec that comes for it finds nothing.
UPDATE flq_state.run_attempt
SET status = 'ended', ended_at = clock_timestamp()
WHERE run_id = %(run_id)s AND attempt = %(attempt)s AND status = 'published'

-- name: attempts_of_process
-- What a SuperExec holds.
SELECT run_id, token FROM flq_state.run_attempt
WHERE status = 'claimed' AND process_id = %(process_id)s
ORDER BY run_id

-- name: held_attempt
-- The token of an attempt, if this SuperExec holds it.
SELECT token FROM flq_state.run_attempt
WHERE run_id = %(run_id)s AND attempt = %(attempt)s AND process_id = %(process_id)s AND status = 'claimed'

-- name: abandoned_attempts
-- Claimed attempts whose SuperExec has stopped renewing their lease.
SELECT run_id, attempt, token FROM flq_state.run_attempt
WHERE status = 'claimed' AND lease_until < clock_timestamp()
ORDER BY run_id
LIMIT 100

-- name: list_attempts
-- The attempts of a run.
SELECT attempt, status, host, pid, job_id, exit_code, error, published_at, claimed_at, ended_at
FROM flq.attempts WHERE run_id = %(run_id)s ORDER BY attempt
