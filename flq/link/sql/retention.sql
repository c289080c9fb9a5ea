-- name: unfinished
-- Those of the runs that are not finished. Their forks, too, if the history is to go: nodes that come to a fork late start
-- from the client state that its parent has left.
SELECT name FROM flq_state.run
WHERE (run_id = ANY (%(run_ids)s) OR (%(history)s AND forked_from = ANY (%(run_ids)s))) AND status <> 'finished'
ORDER BY name

-- name: finished_before
-- Runs that ended long ago and that still have something of what is to go.
SELECT run_id FROM flq_state.run
WHERE finished_at < clock_timestamp() - make_interval(secs => %(age)s)
  AND (%(history)s OR pruned_at IS NULL
       OR (NOT %(payloads)s AND EXISTS (SELECT FROM flq_state.batch b JOIN flq_state.result s ON s.batch_id = b.batch_id
                                        WHERE b.run_id = run.run_id)))
  AND NOT (%(history)s AND EXISTS (SELECT FROM flq_state.run f WHERE f.forked_from = run.run_id AND f.status <> 'finished'))
ORDER BY run_id

-- name: prune_timeouts
-- What is deleted is bounded, but disks may be slow.
SELECT set_config('statement_timeout', '10min', true)

-- name: survey_payloads
-- What runs store of messages, replies and checkpoints, how many objects, and how many bytes nothing else refers to.
WITH going AS MATERIALIZED (
    SELECT object_hash, holder, holder_id, run_id FROM flq_state.object_ref
    WHERE run_id = ANY (%(run_ids)s) AND (%(history)s OR holder <> 'artifact')
), freed AS (
    SELECT DISTINCT g.object_hash
    FROM going g
    WHERE NOT EXISTS (
        SELECT FROM flq_state.object_ref o
        WHERE o.object_hash = g.object_hash
          AND NOT EXISTS (SELECT FROM going x
                          WHERE x.object_hash = o.object_hash AND x.holder = o.holder AND x.holder_id = o.holder_id)
    )
)
SELECT (SELECT count(*) FROM freed),
       (SELECT coalesce(sum(o.size), 0)::bigint FROM freed JOIN flq_state.object o USING (object_hash)),
       (SELECT count(*) FROM flq_state.checkpoint WHERE run_id = ANY (%(run_ids)s) AND state IS NOT NULL)

-- name: survey_tasks
-- How many results runs have, and how many lines of output, with those of days that go as a whole.
SELECT (SELECT count(*) FROM flq_state.batch b JOIN flq_state.result s ON s.batch_id = b.batch_id
        WHERE b.run_id = ANY (%(run_ids)s)),
       (SELECT count(*) FROM flq_state.log_line
        WHERE run_id = ANY (%(run_ids)s)
           OR at < date_trunc('day', clock_timestamp() - make_interval(secs => %(age)s::float8), 'UTC'))

-- name: survey_history
-- How many metrics, events and artifacts runs have.
SELECT (SELECT count(*) FROM flq_state.round_metric WHERE run_id = ANY (%(run_ids)s)),
       (SELECT count(*) FROM flq_state.run_event WHERE run_id = ANY (%(run_ids)s)),
       (SELECT count(*) FROM flq_state.artifact WHERE run_id = ANY (%(run_ids)s))

-- name: mark_pruned
-- From here on the run cannot go on. Nothing comes back if it is not finished.
UPDATE flq_state.run SET pruned_at = coalesce(pruned_at, clock_timestamp())
WHERE run_id = %(run_id)s AND status = 'finished'
RETURNING run_id

-- name: release_run
-- Takes away what a run refers to, and the states of its checkpoints. The pins that have passed are for the collector.
WITH gone AS (
    DELETE FROM flq_state.object_ref
    WHERE run_id = %(run_id)s AND (%(history)s OR holder <> 'artifact')
    RETURNING object_hash
), states AS (
    UPDATE flq_state.checkpoint SET state = NULL WHERE run_id = %(run_id)s AND state IS NOT NULL
)
INSERT INTO flq_state.object_pin (object_hash, pinned_until)
SELECT DISTINCT object_hash, clock_timestamp() FROM gone ORDER BY object_hash
ON CONFLICT DO NOTHING

-- name: empty_messages
-- What the messages of some batches held themselves. A batch keeps its row, for the history of rounds.
WITH batches AS (
    UPDATE flq_state.batch SET manifest = '' WHERE batch_id = ANY (%(batch_ids)s) AND octet_length(manifest) > 0
)
DELETE FROM flq_state.task_message WHERE batch_id = ANY (%(batch_ids)s)

-- name: empty_replies
-- What the replies to some batches held themselves.
UPDATE flq_state.result SET manifest = ''
WHERE batch_id = ANY (%(batch_ids)s) AND octet_length(manifest) > 0

-- name: batches_of_run
-- A run's batches with the number of their tasks, in the order of their ids.
SELECT batch_id, tasks FROM flq_state.batch WHERE run_id = %(run_id)s ORDER BY batch_id

-- name: delete_attempts
-- The ended attempts at the tasks of some batches.
DELETE FROM flq_state.task_attempt a
USING flq_state.result s
WHERE s.batch_id = ANY (%(batch_ids)s) AND a.task_id = s.task_id

-- name: delete_results
-- What became of the tasks of some batches, where that did not go with its partition.
DELETE FROM flq_state.result WHERE batch_id = ANY (%(batch_ids)s)

-- name: delete_logs
-- Lines of output of a run, so many at once.
DELETE FROM flq_state.log_line l
USING (SELECT at, line_id FROM flq_state.log_line WHERE run_id = %(run_id)s LIMIT %(limit)s) x
WHERE l.at = x.at AND l.line_id = x.line_id

-- name: delete_history
-- All that is left of a run that holds no objects any more; runs that were forked from it, or repeat it, forget that.
WITH children AS (
    UPDATE flq_state.run
    SET forked_from = nullif(forked_from, %(run_id)s), rerun_of = nullif(rerun_of, %(run_id)s)
    WHERE forked_from = %(run_id)s OR rerun_of = %(run_id)s
), metrics AS (
    DELETE FROM flq_state.round_metric WHERE run_id = %(run_id)s
), events AS (
    DELETE FROM flq_state.run_event WHERE run_id = %(run_id)s
), artifacts AS (
    DELETE FROM flq_state.artifact WHERE run_id = %(run_id)s
), states AS (
    DELETE FROM flq_state.client_state WHERE run_id = %(run_id)s
), checkpoints AS (
    DELETE FROM flq_state.checkpoint WHERE run_id = %(run_id)s
), batches AS (
    DELETE FROM flq_state.batch WHERE run_id = %(run_id)s
), steps AS (
    DELETE FROM flq_state.step WHERE run_id = %(run_id)s
), node_lists AS (
    DELETE FROM flq_state.node_list WHERE run_id = %(run_id)s
)
DELETE FROM flq_state.run_attempt WHERE run_id = %(run_id)s

-- name: delete_run
-- The run, and its bundle if no other run has it.
WITH gone AS (
    DELETE FROM flq_state.run WHERE run_id = %(run_id)s RETURNING bundle_hash
)
SELECT bundle_hash FROM gone

-- name: delete_bundle
-- A bundle that no run has. A run that is being submitted with it holds it by its foreign key.
DELETE FROM flq_state.bundle b
WHERE b.bundle_hash = ANY (%(bundles)s::bytea[])
  AND NOT EXISTS (SELECT FROM flq_state.run r WHERE r.bundle_hash = b.bundle_hash)

-- name: old_partitions
-- Partitions that can go as a whole: days of output that have passed, and results of nothing but runs that go. Also those
-- that an earlier call has begun to detach. The newest block of results stays: it is written to.
WITH part AS (
    SELECT c.oid, c.relname::text AS name, p.relname::text AS parent, i.inhdetachpending AS detaching
    FROM pg_inherits i
    JOIN pg_class c ON c.oid = i.inhrelid
    JOIN pg_class p ON p.oid = i.inhparent
    JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = 'flq_state' AND c.relkind = 'r' AND p.relname IN ('result', 'log_line')
), newest AS (
    SELECT coalesce(max(batch_id), 0) / 1000000 AS block FROM flq_state.batch
)
SELECT part.name, part.parent, part.detaching, pg_total_relation_size(part.oid)
FROM part, newest
WHERE part.detaching
   OR (part.parent = 'log_line'
       AND to_date(right(part.name, 8), 'YYYYMMDD')
           < ((clock_timestamp() - make_interval(secs => %(age)s::float8)) AT TIME ZONE 'UTC')::date)
   OR (part.parent = 'result' AND right(part.name, 6)::bigint < newest.block
       AND NOT EXISTS (
           SELECT FROM flq_state.batch b JOIN flq_state.run r ON r.run_id = b.run_id
           WHERE b.batch_id >= right(part.name, 6)::bigint * 1000000 AND b.batch_id < (right(part.name, 6)::bigint + 1) * 1000000
             AND r.run_id <> ALL (%(run_ids)s)
             AND (r.status <> 'finished' OR EXISTS (SELECT FROM flq_state.result s WHERE s.batch_id = b.batch_id))))
ORDER BY part.name

-- name: detached_partitions
-- Tables that were detached and not dropped: a call was broken off between the two.
SELECT c.relname::text
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = 'flq_state' AND c.relkind = 'r' AND c.relname ~ '^(result|log_line)_p[0-9]+$'
  AND NOT EXISTS (SELECT FROM pg_inherits i WHERE i.inhrelid = c.oid)
