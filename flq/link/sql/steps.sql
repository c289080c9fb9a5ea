-- name: recorded_steps
-- The steps of the run's present branch that its next attempt repeats: not those that a checkpoint leaves out. The first
-- one of these is among them, since what was delivered with it may have been delivered before the app went on from there.
WITH left_out AS MATERIALIZED (
    SELECT first_sequence, max(next_sequence) AS next_sequence
    FROM flq_state.checkpoint
    WHERE run_id = %(run_id)s AND first_sequence IS NOT NULL
    GROUP BY first_sequence
)
SELECT s.sequence, s.kind::text, s.delivered
FROM flq_state.run r
JOIN flq_state.step s ON s.run_id = r.run_id AND s.branch = r.branch
WHERE r.run_id = %(run_id)s
  AND NOT EXISTS (SELECT FROM left_out o WHERE o.first_sequence < s.sequence AND s.sequence < o.next_sequence)
ORDER BY s.sequence

-- name: insert_node_lists
-- Keeps lists of nodes that are about to be delivered with a step.
INSERT INTO flq_state.node_list (run_id, list_hash, nodes)
SELECT %(run_id)s, l.list_hash, l.nodes::jsonb
FROM unnest(%(hashes)s::bytea[], %(lists)s::text[]) l(list_hash, nodes)
ORDER BY l.list_hash
ON CONFLICT (run_id, list_hash) DO NOTHING

-- name: read_node_list
-- A list of nodes that was delivered to a run.
SELECT nodes FROM flq_state.node_list WHERE run_id = %(run_id)s AND list_hash = %(list_hash)s

-- name: open_branch
-- What follows was not done by the attempt before: it goes on in a branch of its own, which takes over the steps before it.
-- Lock order: run, batch.
WITH opened AS (
    UPDATE flq_state.run SET branch = branch + 1
    WHERE run_id = %(run_id)s AND attempt_token = %(token)s
    RETURNING run_id, branch
), batches AS (
    UPDATE flq_state.batch b SET branch = o.branch
    FROM opened o
    WHERE b.run_id = o.run_id AND b.branch = o.branch - 1 AND b.sequence < %(sequence)s
), steps AS (
    UPDATE flq_state.step s SET branch = o.branch
    FROM opened o
    WHERE s.run_id = o.run_id AND s.branch = o.branch - 1 AND s.sequence < %(sequence)s
), checkpoints AS (
    UPDATE flq_state.checkpoint c SET branch = o.branch
    FROM opened o
    WHERE c.run_id = o.run_id AND c.branch = o.branch - 1 AND c.next_sequence <= %(sequence)s
)
SELECT branch FROM opened

-- name: batches_of_branch
-- The batches of one branch of a run.
SELECT batch_id FROM flq_state.batch WHERE run_id = %(run_id)s AND branch = %(branch)s
