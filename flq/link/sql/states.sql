-- name: record
-- Notes that accepted replies have left a version each. In the transaction that accepts them.
INSERT INTO flq_state.client_state (run_id, node_id, task_id, batch_id)
SELECT k.run_id, k.node_id, k.task_id, k.batch_id
FROM unnest(%(run_ids)s::bigint[], %(node_ids)s::bigint[], %(task_ids)s::bigint[], %(batch_ids)s::bigint[])
     k(run_id, node_id, task_id, batch_id)
ORDER BY k.run_id, k.node_id, k.task_id
ON CONFLICT DO NOTHING

-- name: bases
-- The version that each task starts from: the newest one of an earlier task of its node on the way of its run; if there is
-- none and the run was forked, the newest one at the parent's checkpoint, and so on. On the way to a branch are its own
-- steps, and those that a later branch has taken over from it: no step of their number, or of a lower one, has stayed.
WITH RECURSIVE asked AS MATERIALIZED (
    SELECT k.task_id, k.node_id, b.run_id, b.branch
    FROM unnest(%(run_ids)s::bigint[], %(node_ids)s::bigint[], %(task_ids)s::bigint[], %(batch_ids)s::bigint[])
         k(run_id, node_id, task_id, batch_id)
    CROSS JOIN LATERAL (
        SELECT b.run_id, b.branch FROM flq_state.batch b WHERE b.batch_id = k.batch_id AND b.run_id = k.run_id
        OFFSET 0  -- here and below: one look by key, whatever the statistics say
    ) b
), ancestor AS (
    SELECT run_id, 0 AS depth, run_id AS ancestor_id, NULL::int AS branch, NULL::bigint AS next_sequence
    FROM (SELECT DISTINCT run_id FROM asked) x
    UNION ALL
    SELECT a.run_id, a.depth + 1, c.run_id, c.branch, c.next_sequence
    FROM ancestor a
    JOIN flq_state.run r ON r.run_id = a.ancestor_id
    JOIN flq_state.checkpoint c ON c.run_id = r.forked_from AND c.round = r.forked_from_round
), place AS MATERIALIZED (
    -- where versions are; of most runs there are none
    SELECT a.*
    FROM ancestor a
    WHERE (SELECT true FROM flq_state.client_state s WHERE s.run_id = a.ancestor_id ORDER BY s.node_id LIMIT 1)
)
SELECT k.task_id,
       NOT EXISTS (SELECT FROM flq_state.client_state s
                   WHERE s.run_id = k.run_id AND s.node_id = k.node_id AND s.task_id > k.task_id) AS is_newest,
       found.run_id, k.node_id, found.task_id
FROM asked k
LEFT JOIN LATERAL (
    SELECT v.run_id, v.task_id
    FROM place a
    CROSS JOIN LATERAL (
        SELECT s.run_id, s.task_id
        FROM flq_state.client_state s
        CROSS JOIN LATERAL (
            SELECT b.branch, b.sequence FROM flq_state.batch b WHERE b.batch_id = s.batch_id OFFSET 0
        ) b
        WHERE s.run_id = a.ancestor_id AND s.node_id = k.node_id
          AND s.task_id < CASE WHEN a.depth = 0 THEN k.task_id ELSE 9223372036854775807 END
          AND (a.depth = 0 OR b.sequence < a.next_sequence)
          AND b.branch >= coalesce(a.branch, k.branch)
          AND (b.branch = coalesce(a.branch, k.branch)  -- as nearly always
               OR NOT EXISTS (SELECT FROM flq_state.step x
                              WHERE x.run_id = s.run_id AND x.branch >= coalesce(a.branch, k.branch)
                                AND x.branch < b.branch AND x.sequence <= b.sequence))
        ORDER BY s.task_id DESC
        LIMIT 1
    ) v
    WHERE a.run_id = k.run_id
    ORDER BY a.depth
    LIMIT 1
) found ON true

-- name: needed
-- Those of some versions that something may start from: a task to come, a repetition of the steps since the newest
-- checkpoint, a checkpoint that is kept, or a fork. Of runs that ended long ago none, unless a fork of theirs did not.
WITH RECURSIVE asked AS MATERIALIZED (
    SELECT s.run_id, s.node_id, s.task_id, b.branch, b.sequence
    FROM unnest(%(run_ids)s::bigint[], %(node_ids)s::bigint[], %(task_ids)s::bigint[]) w(run_id, node_id, task_id)
    CROSS JOIN LATERAL (
        SELECT s.run_id, s.node_id, s.task_id, s.batch_id FROM flq_state.client_state s
        WHERE s.run_id = w.run_id AND s.node_id = w.node_id AND s.task_id = w.task_id
        OFFSET 0
    ) s
    CROSS JOIN LATERAL (
        SELECT b.branch, b.sequence FROM flq_state.batch b WHERE b.batch_id = s.batch_id OFFSET 0
    ) b
), fork AS (
    -- what was forked from the runs in question, with what was forked from that
    SELECT f.forked_from AS run_id, f.forked_from_round AS round, f.run_id AS fork_id
    FROM flq_state.run f
    WHERE f.forked_from IN (SELECT run_id FROM asked)
    UNION ALL
    SELECT p.run_id, p.round, f.run_id
    FROM fork p
    JOIN flq_state.run f ON f.forked_from = p.fork_id
), living AS MATERIALIZED (
    SELECT r.run_id, r.branch, r.keep_checkpoints IS NOT DISTINCT FROM 0 AS keeps_all,
           coalesce(r.keep_checkpoints, 3) AS keep,
           coalesce((SELECT c.next_sequence FROM flq_state.checkpoint c
                     WHERE c.run_id = r.run_id AND c.branch = r.branch AND c.first_sequence IS NOT NULL
                     ORDER BY c.round DESC
                     LIMIT 1), 0) AS repeated_from
    FROM flq_state.run r
    WHERE r.run_id IN (SELECT run_id FROM asked UNION SELECT fork_id FROM fork)
      AND (r.finished_at IS NULL OR r.finished_at > clock_timestamp() - make_interval(secs => %(ended)s))
), start AS MATERIALIZED (
    -- where something may start: on the way to which branch, before which step
    SELECT l.run_id, l.branch, 9223372036854775807 AS next_sequence FROM living l
    UNION
    SELECT c.run_id, c.branch, c.next_sequence
    FROM living l
    CROSS JOIN LATERAL (
        -- only the newest few have a state
        SELECT c.run_id, c.branch, c.next_sequence, c.state IS NOT NULL AS is_kept
        FROM flq_state.checkpoint c
        WHERE c.run_id = l.run_id
        ORDER BY c.round DESC
        LIMIT l.keep
    ) c
    WHERE c.is_kept AND NOT l.keeps_all
    UNION
    SELECT c.run_id, c.branch, c.next_sequence
    FROM fork f
    JOIN living l ON l.run_id = f.fork_id
    JOIN flq_state.checkpoint c ON c.run_id = f.run_id AND c.round = f.round
), followed AS MATERIALIZED (
    -- each version with the step of the next one on the same way
    SELECT a.run_id, a.node_id, a.task_id, a.sequence, w.branch, n.sequence AS next_version
    FROM asked a
    JOIN (SELECT DISTINCT run_id, branch FROM start) w ON w.run_id = a.run_id AND w.branch <= a.branch
    LEFT JOIN LATERAL (
        SELECT b.sequence
        FROM flq_state.client_state s
        CROSS JOIN LATERAL (
            SELECT b.branch, b.sequence FROM flq_state.batch b WHERE b.batch_id = s.batch_id OFFSET 0
        ) b
        WHERE s.run_id = a.run_id AND s.node_id = a.node_id AND s.task_id > a.task_id AND b.branch >= w.branch
          AND (b.branch = w.branch
               OR NOT EXISTS (SELECT FROM flq_state.step x
                              WHERE x.run_id = s.run_id AND x.branch >= w.branch AND x.branch < b.branch
                                AND x.sequence <= b.sequence))
        ORDER BY s.task_id
        LIMIT 1
    ) n ON true
    WHERE a.branch = w.branch
       OR NOT EXISTS (SELECT FROM flq_state.step x
                      WHERE x.run_id = a.run_id AND x.branch >= w.branch AND x.branch < a.branch
                        AND x.sequence <= a.sequence)
)
SELECT DISTINCT v.run_id, v.node_id, v.task_id
FROM followed v
WHERE EXISTS (SELECT FROM start p
              WHERE p.run_id = v.run_id AND p.branch = v.branch
                AND p.next_sequence > v.sequence AND (v.next_version IS NULL OR p.next_sequence <= v.next_version))
   OR EXISTS (SELECT FROM living l
              WHERE l.run_id = v.run_id
                AND (l.keeps_all
                     OR (l.branch = v.branch AND v.sequence >= l.repeated_from
                         AND (SELECT count(*) FROM (SELECT FROM flq_state.client_state s
                                                    WHERE s.run_id = v.run_id AND s.node_id = v.node_id
                                                      AND s.task_id > v.task_id
                                                    LIMIT %(since_checkpoint)s) newer) < %(since_checkpoint)s)))
