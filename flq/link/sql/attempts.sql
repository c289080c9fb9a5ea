-- name: due_runs
-- Pending runs in the order in which they start, at most as many as the live SuperExecs have free slots.
WITH room AS (
    SELECT greatest(0, (SELECT coalesce(sum(slots), 0) FROM flq_state.process
                        WHERE kind = 'superexec' AND alive_until > clock_timestamp())
                     - (SELECT count(*) FROM flq_state.run_attempt WHERE status <> 'ended')) AS slots
)
SELECT run_id FROM flq_state.run
WHERE status = 'pending'
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
-- with every publication, up to a minute.
UPDATE flq_state.run_attempt a
SET job_id = gen_random_uuid()::text, publications = publications + 1, published_at = clock_timestamp()
FROM flq_state.run r
WHERE r.run_id = a.run_id AND r.attempt = a.attempt AND a.status = 'published'
  AND a.published_at < clock_timestamp()
                     - make_interval(secs => least(60, %(patience)s * 2 ^ least(a.publications - 1, 10)))
RETURNING a.run_id, r.name, a.attempt, a.job_id

-- name: claim_attempt
-- published → claimed, for one SuperExec only.
UPDATE flq_state.run_attempt
SET status = 'claimed', process_id = %(process_id)s, job_id = %(job_id)s, claimed_at = clock_timestamp(),
    lease_until = clock_timestamp() + make_interval(secs => %(lease)s)
WHERE run_id = %(run_id)s AND attempt = %(attempt)s AND status = 'published'
RETURNING token

-- name: wall_time_limit
-- The run's limit in seconds, or null.
SELECT extract(epoch FROM wall_time_limit)::float8 FROM flq_state.run WHERE run_id = %(run_id)s

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
