-- name: register_process
-- Introduces a process instance; a repeated call changes nothing but that it lives.
INSERT INTO flq_state.process (process_id, kind, host, pid, version, slots, alive_until)
VALUES (%(process_id)s, %(kind)s, %(host)s, %(pid)s, %(version)s, %(slots)s,
        clock_timestamp() + make_interval(secs => %(alive)s))
ON CONFLICT (process_id) DO UPDATE SET alive_until = excluded.alive_until

-- name: beat_process
-- A heartbeat: may be lost in a crash, so it does not wait for the disk.
UPDATE flq_state.process
SET alive_until = clock_timestamp() + make_interval(secs => %(alive)s)
WHERE process_id = %(process_id)s
RETURNING set_config('synchronous_commit', 'off', true)

-- name: retire_process
-- Says goodbye: the process is gone at once, not when its time has passed.
UPDATE flq_state.process SET alive_until = least(alive_until, clock_timestamp()) WHERE process_id = %(process_id)s
