-- name: hold_attempt
-- Locks the run for a write of its ServerApp: a take-over, a stop or an end waits, or nothing comes back.
SELECT branch, attempt FROM flq_state.run
WHERE run_id = %(run_id)s AND attempt_token = %(token)s AND status = 'running'
FOR SHARE

-- name: commit_round
-- Commits a round, once: a repeated commit makes nothing.
WITH made AS (
    INSERT INTO flq_state.checkpoint (run_id, round, branch, attempt, next_sequence, state, metrics)
    VALUES (%(run_id)s, %(round)s, %(branch)s, %(attempt)s, %(next_sequence)s, %(state)s, %(metrics)s)
    ON CONFLICT (run_id, round) DO NOTHING
    RETURNING checkpoint_id
), referred AS (
    INSERT INTO flq_state.object_ref (object_hash, holder, holder_id, run_id)
    SELECT o.object_hash, 'checkpoint', made.checkpoint_id, %(run_id)s
    FROM made, unnest(%(objects)s::bytea[]) o(object_hash)
)
SELECT count(*) FROM made

-- name: last_checkpoint
-- The newest committed round of a run, with the objects that its state names.
SELECT c.round, c.state, c.metrics, c.next_sequence,
       (SELECT coalesce(array_agg(o.object_hash), '{}') FROM flq_state.object_ref o
        WHERE o.holder = 'checkpoint' AND o.holder_id = c.checkpoint_id)
FROM flq_state.checkpoint c
WHERE c.run_id = %(run_id)s
ORDER BY c.round DESC
LIMIT 1
