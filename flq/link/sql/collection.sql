-- name: due_pins
-- Pins that have passed: each is one object to look at. One that was renewed meanwhile, or that another collector has, is
-- left out. Objects, which are locked behind them, are not waited for, so nobody waits in a circle. The clock is read in a
-- subquery: as it is volatile, the index could not be searched for it otherwise.
SELECT object_hash
FROM flq_state.object_pin
WHERE pinned_until < (SELECT clock_timestamp())
ORDER BY pinned_until
LIMIT %(limit)s
FOR UPDATE SKIP LOCKED

-- name: lock_unreferenced
-- Of these, the objects that nothing refers to, locked. An object that somebody is about to refer to is locked FOR KEY
-- SHARE and left out.
SELECT o.object_hash
FROM flq_state.object o
WHERE o.object_hash = ANY (%(hashes)s::bytea[])
  AND NOT EXISTS (SELECT FROM flq_state.object_ref r WHERE r.object_hash = o.object_hash)
ORDER BY o.object_hash
FOR UPDATE OF o SKIP LOCKED

-- name: still_unreferenced
-- A second look, in a new snapshot: what was referred to between the first one and the lock stays. Nobody can refer to
-- one of these any more, since that takes its lock. At most so many bytes at once, but always one object.
SELECT object_hash, size, directory
FROM (
    SELECT o.object_hash, o.size, o.directory, sum(o.size) OVER (ORDER BY o.object_hash) - o.size AS before
    FROM flq_state.object o
    WHERE o.object_hash = ANY (%(hashes)s::bytea[])
      AND NOT EXISTS (SELECT FROM flq_state.object_ref r WHERE r.object_hash = o.object_hash)
) x
WHERE before < %(limit_bytes)s

-- name: collect_objects
-- Deletes objects that are locked, with their chunks and pins.
WITH chunks AS (
    DELETE FROM flq_state.object_chunk WHERE object_hash = ANY (%(hashes)s::bytea[])
), pins AS (
    DELETE FROM flq_state.object_pin WHERE object_hash = ANY (%(hashes)s::bytea[])
)
DELETE FROM flq_state.object WHERE object_hash = ANY (%(hashes)s::bytea[])

-- name: drop_pins
-- Takes away pins that have passed from objects that are referred to: these are looked at again when they no longer are.
-- The reference is locked, so that it cannot go at this very moment and leave the object with neither.
WITH referred AS MATERIALIZED (
    SELECT p.object_hash
    FROM unnest(%(hashes)s::bytea[]) p(object_hash)
    CROSS JOIN LATERAL (
        SELECT FROM flq_state.object_ref r WHERE r.object_hash = p.object_hash LIMIT 1 FOR KEY SHARE SKIP LOCKED
    ) r
)
DELETE FROM flq_state.object_pin p
USING referred
WHERE p.object_hash = referred.object_hash

-- name: drop_dangling_pins
-- Likewise pins of objects that are gone.
DELETE FROM flq_state.object_pin p
WHERE p.object_hash = ANY (%(hashes)s::bytea[])
  AND NOT EXISTS (SELECT FROM flq_state.object o WHERE o.object_hash = p.object_hash)

-- name: old_uploads
-- Uploads that nobody has gone on with for a day. One that goes on at this moment holds its row or takes it anew.
SELECT u.object_hash, u.directory
FROM flq_state.object_upload u
WHERE u.touched_at < (SELECT clock_timestamp()) - make_interval(secs => %(age)s)
ORDER BY u.touched_at
LIMIT %(limit)s
FOR UPDATE SKIP LOCKED

-- name: collect_uploads
-- Deletes what interrupted uploads have left, unless the object was completed by another one.
WITH unfinished AS (
    SELECT w.object_hash
    FROM unnest(%(hashes)s::bytea[]) w(object_hash)
    WHERE NOT EXISTS (SELECT FROM flq_state.object o WHERE o.object_hash = w.object_hash)
), chunks AS (
    DELETE FROM flq_state.object_chunk c USING unfinished u WHERE c.object_hash = u.object_hash
), gone AS (
    DELETE FROM flq_state.object_upload WHERE object_hash = ANY (%(hashes)s::bytea[])
)
SELECT object_hash FROM unfinished

-- name: runs_with_payloads
-- Runs that have completed and still hold what they sent and received: no attempt will ask for it again. The ids are
-- found by a walk over the index from run to run.
WITH RECURSIVE holding AS (
    (SELECT run_id FROM flq_state.object_ref ORDER BY run_id LIMIT 1)
    UNION ALL
    SELECT (SELECT o.run_id FROM flq_state.object_ref o WHERE o.run_id > h.run_id ORDER BY o.run_id LIMIT 1)
    FROM holding h
    WHERE h.run_id IS NOT NULL
)
SELECT r.run_id
FROM holding h
JOIN flq_state.run r ON r.run_id = h.run_id
WHERE r.outcome = 'completed' AND NOT r.keep_replies
  AND EXISTS (SELECT FROM flq_state.object_ref o WHERE o.run_id = r.run_id AND o.holder IN ('batch', 'result'))
LIMIT %(limit)s

-- name: release_payloads
-- Takes away what batches and results of runs refer to. The pins that have passed are for the collector.
WITH gone AS (
    DELETE FROM flq_state.object_ref
    WHERE run_id = ANY (%(run_ids)s) AND holder IN ('batch', 'result')
    RETURNING object_hash
), due AS (
    INSERT INTO flq_state.object_pin (object_hash, pinned_until)
    SELECT DISTINCT object_hash, clock_timestamp() FROM gone ORDER BY object_hash
    ON CONFLICT DO NOTHING
)
SELECT count(*) FROM gone
