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

-- name: note_consumption
-- Whether a SuperExec takes its housekeeping jobs; as little as a heartbeat does it wait for the disk.
UPDATE flq_state.process
SET consumed_at = CASE WHEN %(taken)s THEN clock_timestamp() ELSE consumed_at END,
    jobs_missed = %(missed)s, consumer_restarts = %(restarts)s
WHERE process_id = %(process_id)s
RETURNING set_config('synchronous_commit', 'off', true)

-- name: retire_process
-- Says goodbye: the process is gone at once, not when its time has passed.
UPDATE flq_state.process SET alive_until = least(alive_until, clock_timestamp()) WHERE process_id = %(process_id)s

-- name: superexecs
-- What people see of SuperExecs.
SELECT process_id::text, host, pid, version, online, consuming, slots, slots_taken, consumed_at, jobs_missed,
       consumer_restarts
FROM flq.superexecs ORDER BY started_at, process_id
