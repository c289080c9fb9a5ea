-- name: hold_attempt
-- Locks the run for a write of its ServerApp: a take-over, a stop or an end waits, or nothing comes back.
SELECT branch, attempt FROM flq_state.run
WHERE run_id = %(run_id)s AND attempt_token = %(token)s AND status = 'running' AND stop_requested_at IS NULL
FOR SHARE

-- name: commit_round
-- Commits a round with its step, once: a repeated commit makes nothing, nor does one whose number a push has.
WITH taken AS (
    SELECT kind FROM flq_state.step
    WHERE run_id = %(run_id)s AND branch = %(branch)s AND sequence = %(next_sequence)s - 1
), numbered AS (
    INSERT INTO flq_state.step (run_id, branch, sequence, kind, attempt, delivered)
    VALUES (%(run_id)s, %(branch)s, %(next_sequence)s - 1, 'checkpoint', %(attempt)s, %(delivered)s)
    ON CONFLICT (run_id, branch, sequence) DO NOTHING
), made AS (
    INSERT INTO flq_state.checkpoint (run_id, round, branch, attempt, next_sequence, first_sequence, state, metrics)
    SELECT %(run_id)s, %(round)s, %(branch)s, %(attempt)s, %(next_sequence)s, %(first_sequence)s, %(state)s, %(metrics)s
    WHERE NOT EXISTS (SELECT FROM taken WHERE kind = 'push')
    ON CONFLICT (run_id, round) DO NOTHING
    RETURNING checkpoint_id
), referred AS (
    INSERT INTO flq_state.object_ref (object_hash, holder, holder_id, run_id)
    SELECT o.object_hash, 'checkpoint', made.checkpoint_id, %(run_id)s
    FROM made, unnest(%(objects)s::bytea[]) o(object_hash)
)
SELECT (SELECT count(*) FROM made), EXISTS (SELECT FROM taken WHERE kind = 'push')

-- name: release_rounds
-- After a commit: takes away what the batches refer to that the next attempt leaves out, with their results, and the states
-- of all but the newest checkpoints. Batches with replies that the app has not been given stay. It looks back over the last
-- three checkpoints, for replies that came in late, and to what an earlier commit has left open; the rest goes when the run
-- has completed. The pins that have passed are for the collector.
WITH run AS (
    SELECT branch, keep_replies, nullif(coalesce(keep_checkpoints, 3), 0) AS keep
    FROM flq_state.run WHERE run_id = %(run_id)s
), since AS (
    SELECT coalesce(min(next_sequence), 0) AS sequence
    FROM (
        SELECT next_sequence FROM flq_state.checkpoint
        WHERE run_id = %(run_id)s
        ORDER BY round DESC
        OFFSET 1
        LIMIT 3
    ) x
), over AS MATERIALIZED (
    SELECT b.batch_id
    FROM flq_state.batch b
    WHERE b.run_id = %(run_id)s
      AND b.branch = ANY (ARRAY(SELECT generate_series(0, branch) FROM run))  -- or all its batches would be looked at
      AND b.sequence < %(next_sequence)s AND b.sequence >= %(first_sequence)s
      AND b.sequence >= least((SELECT sequence FROM since), %(open_from)s::bigint)
      AND b.batch_id <> ALL (%(open_batches)s::bigint[])
      AND NOT (SELECT keep_replies FROM run)
), sent AS (
    DELETE FROM flq_state.object_ref o
    USING over
    WHERE o.run_id = %(run_id)s AND o.holder = 'batch' AND o.holder_id = over.batch_id
    RETURNING o.object_hash
), received AS (
    DELETE FROM flq_state.object_ref o
    USING over
    JOIN flq_state.result s ON s.batch_id = over.batch_id
    WHERE o.run_id = %(run_id)s AND o.holder = 'result' AND o.holder_id = s.task_id
    RETURNING o.object_hash
), old AS (
    -- each commit makes one more than are kept, so the next one is looked at, not all that were released long ago
    UPDATE flq_state.checkpoint c
    SET state = NULL
    WHERE c.state IS NOT NULL
      AND c.checkpoint_id = ANY (ARRAY(
          SELECT k.checkpoint_id FROM flq_state.checkpoint k
          WHERE k.run_id = %(run_id)s AND (SELECT keep FROM run) IS NOT NULL
          ORDER BY k.round DESC
          OFFSET (SELECT keep FROM run)
          LIMIT 3))
    RETURNING c.checkpoint_id
), saved AS (
    DELETE FROM flq_state.object_ref o
    USING old
    WHERE o.run_id = %(run_id)s AND o.holder = 'checkpoint' AND o.holder_id = old.checkpoint_id
    RETURNING o.object_hash
), gone AS (
    SELECT object_hash FROM sent UNION SELECT object_hash FROM received UNION SELECT object_hash FROM saved
), due AS (
    INSERT INTO flq_state.object_pin (object_hash, pinned_until)
    SELECT object_hash, clock_timestamp() FROM gone ORDER BY object_hash
    ON CONFLICT DO NOTHING
)
SELECT count(*) FROM gone

-- name: last_checkpoint
-- The newest committed round of a run, with the objects that its state names.
SELECT c.round, c.state, c.metrics, c.next_sequence, c.first_sequence,
       (SELECT coalesce(array_agg(o.object_hash), '{}') FROM flq_state.object_ref o
        WHERE o.run_id = c.run_id AND o.holder = 'checkpoint' AND o.holder_id = c.checkpoint_id)
FROM flq_state.checkpoint c
WHERE c.run_id = %(run_id)s
ORDER BY c.round DESC
LIMIT 1
