-- name: present_objects
-- Those of the objects that are stored, pinned for an hour from now: a message that names them can be pushed.
WITH present AS MATERIALIZED (
    SELECT object_hash FROM flq_state.object
    WHERE object_hash = ANY (%(hashes)s::bytea[])
    ORDER BY object_hash
    FOR KEY SHARE
), pinned AS (
    INSERT INTO flq_state.object_pin AS p (object_hash, pinned_until)
    SELECT object_hash, clock_timestamp() + interval '1 hour' FROM present
    ON CONFLICT (object_hash) DO UPDATE SET pinned_until = greatest(p.pinned_until, excluded.pinned_until)
)
SELECT object_hash FROM present

-- name: hold_objects
-- Locks objects against collection until the transaction has stored what refers to them.
SELECT object_hash FROM flq_state.object
WHERE object_hash = ANY (%(hashes)s::bytea[])
ORDER BY object_hash
FOR KEY SHARE

-- name: object_size
-- An object's size.
SELECT size FROM flq_state.object WHERE object_hash = %(object_hash)s

-- name: stored_chunks
-- The chunks that an interrupted upload has left: it goes on behind them.
SELECT sequence FROM flq_state.object_chunk WHERE object_hash = %(object_hash)s

-- name: insert_chunk
-- One chunk. Another upload of the same object may have stored it already.
INSERT INTO flq_state.object_chunk (object_hash, sequence, data)
VALUES (%(object_hash)s, %(sequence)s, %(data)s)
ON CONFLICT DO NOTHING

-- name: complete_object
-- The object's row: it is there, so its chunks are. Pinned, since what will refer to it comes later.
WITH made AS (
    INSERT INTO flq_state.object (object_hash, size) VALUES (%(object_hash)s, %(size)s)
    ON CONFLICT DO NOTHING
)
INSERT INTO flq_state.object_pin AS p (object_hash, pinned_until)
VALUES (%(object_hash)s, clock_timestamp() + interval '1 hour')
ON CONFLICT (object_hash) DO UPDATE SET pinned_until = greatest(p.pinned_until, excluded.pinned_until)

-- name: read_chunks
-- An object's bytes in order.
COPY (
    SELECT data FROM flq_state.object_chunk WHERE object_hash = %(object_hash)s ORDER BY sequence
) TO STDOUT (FORMAT binary)
