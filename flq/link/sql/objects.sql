-- name: present_objects
-- Those of the objects that are stored, pinned for an hour from now: a message that names them can be pushed.
WITH present AS MATERIALIZED (
    SELECT object_hash, directory FROM flq_state.object
    WHERE object_hash = ANY (%(hashes)s::bytea[])
    ORDER BY object_hash
    FOR KEY SHARE
), pinned AS (
    INSERT INTO flq_state.object_pin AS p (object_hash, pinned_until)
    SELECT object_hash, clock_timestamp() + interval '1 hour' FROM present ORDER BY object_hash
    ON CONFLICT (object_hash) DO UPDATE SET pinned_until = greatest(p.pinned_until, excluded.pinned_until)
)
SELECT object_hash, directory FROM present

-- name: hold_objects
-- Locks objects against collection until the transaction has stored what refers to them.
SELECT object_hash FROM flq_state.object
WHERE object_hash = ANY (%(hashes)s::bytea[])
ORDER BY object_hash
FOR KEY SHARE

-- name: find_object
-- An object's size, and the directory that it is in unless it is in the database.
SELECT size, directory FROM flq_state.object WHERE object_hash = %(object_hash)s

-- name: touch_upload
-- An upload of several transactions begins or goes on: what it has left is not to be collected for a day.
INSERT INTO flq_state.object_upload (object_hash, directory) VALUES (%(object_hash)s, %(directory)s)
ON CONFLICT (object_hash) DO UPDATE SET touched_at = clock_timestamp(), directory = excluded.directory

-- name: lock_upload
-- Locks an upload against its collection before the object is completed; nothing comes back if it was collected.
SELECT object_hash FROM flq_state.object_upload WHERE object_hash = %(object_hash)s FOR UPDATE

-- name: stored_chunks
-- The chunks that an interrupted upload has left: it goes on behind them.
SELECT sequence FROM flq_state.object_chunk WHERE object_hash = %(object_hash)s

-- name: insert_chunk
-- One chunk. Another upload of the same object may have stored it already.
INSERT INTO flq_state.object_chunk (object_hash, sequence, data)
VALUES (%(object_hash)s, %(sequence)s, %(data)s)
ON CONFLICT DO NOTHING

-- name: complete_object
-- The object's row. Pinned, since what will refer to it comes later. It waits for a collection of the same object, which
-- may have taken chunks away that were there a moment ago: so they are counted in a statement behind this one.
WITH made AS (
    INSERT INTO flq_state.object (object_hash, size) VALUES (%(object_hash)s, %(size)s)
    ON CONFLICT DO NOTHING
    RETURNING object_hash
), over AS (
    DELETE FROM flq_state.object_upload u USING made WHERE u.object_hash = made.object_hash
), pinned AS (
    INSERT INTO flq_state.object_pin AS p (object_hash, pinned_until)
    SELECT object_hash, clock_timestamp() + make_interval(secs => %(pin)s) FROM made
    ON CONFLICT (object_hash) DO UPDATE SET pinned_until = greatest(p.pinned_until, excluded.pinned_until)
)
SELECT count(*) FROM made

-- name: count_chunks
-- How many chunks there are of an object, and how many bytes.
SELECT count(*), coalesce(sum(octet_length(data)), 0)
FROM flq_state.object_chunk
WHERE object_hash = %(object_hash)s

-- name: complete_file
-- The object's row for a file that is in its place. One that stood in the database stays there; a file that was lost is
-- back with this.
WITH made AS (
    INSERT INTO flq_state.object AS o (object_hash, size, directory)
    VALUES (%(object_hash)s, %(size)s, %(directory)s)
    ON CONFLICT (object_hash) DO UPDATE SET directory = excluded.directory WHERE o.directory IS NOT NULL
    RETURNING object_hash
), over AS (
    DELETE FROM flq_state.object_upload WHERE object_hash = %(object_hash)s
)
INSERT INTO flq_state.object_pin AS p (object_hash, pinned_until)
VALUES (%(object_hash)s, clock_timestamp() + make_interval(secs => %(pin)s))
ON CONFLICT (object_hash) DO UPDATE SET pinned_until = greatest(p.pinned_until, excluded.pinned_until)

-- name: read_chunks
-- An object's bytes in order.
COPY (
    SELECT data FROM flq_state.object_chunk WHERE object_hash = %(object_hash)s ORDER BY sequence
) TO STDOUT (FORMAT binary)

-- name: all_objects
-- Every object, for a check of what is stored.
SELECT object_hash, size FROM flq_state.object ORDER BY object_hash
