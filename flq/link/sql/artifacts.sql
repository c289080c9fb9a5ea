-- name: put_artifact
-- Makes an object the run's artifact of a name, and moves the reference from the one before.
WITH made AS (
    INSERT INTO flq_state.artifact AS a (run_id, name, object_hash)
    VALUES (%(run_id)s, %(name)s, %(object_hash)s)
    ON CONFLICT (run_id, name) DO UPDATE SET object_hash = excluded.object_hash, created_at = excluded.created_at
    RETURNING artifact_id
), former AS (
    DELETE FROM flq_state.object_ref o
    USING made
    WHERE o.holder = 'artifact' AND o.holder_id = made.artifact_id AND o.object_hash <> %(object_hash)s
      AND o.run_id = %(run_id)s
    RETURNING o.object_hash
), due AS (
    -- a pin that has passed: the collector looks whether anything else refers to it
    INSERT INTO flq_state.object_pin (object_hash, pinned_until)
    SELECT object_hash, clock_timestamp() FROM former
    ON CONFLICT DO NOTHING
)
INSERT INTO flq_state.object_ref (object_hash, holder, holder_id, run_id)
SELECT %(object_hash)s, 'artifact', artifact_id, %(run_id)s FROM made
ON CONFLICT DO NOTHING

-- name: list_artifacts
-- The files that a run stored.
SELECT a.name, a.object_hash, o.size, a.created_at
FROM flq_state.artifact a JOIN flq_state.object o ON o.object_hash = a.object_hash
WHERE a.run_id = %(run_id)s
ORDER BY a.name
