-- name: hold_parent
-- The run that another one comes from, which cannot be pruned meanwhile.
SELECT status FROM flq_state.run WHERE run_id = %(run_id)s FOR SHARE

-- name: derive_run
-- A run with the app, the seed and the settings of another one. Returns nothing if the name is taken, or if the owner has
-- submitted this key before.
INSERT INTO flq_state.run (name, app, bundle_hash, config, seed, owner, idempotency_key, node_selector, min_nodes, priority,
                           weight, wall_time_limit, max_open_tasks, max_bytes, keep_replies, keep_checkpoints,
                           forked_from, forked_from_round, rerun_of)
SELECT %(name)s, app, bundle_hash, %(config)s, seed, %(owner)s, %(idempotency_key)s, node_selector, min_nodes, priority,
       weight, wall_time_limit, max_open_tasks, max_bytes, keep_replies, keep_checkpoints,
       %(forked_from)s::bigint, %(forked_from_round)s::int, %(rerun_of)s::bigint
FROM flq_state.run
WHERE run_id = %(parent)s
ON CONFLICT DO NOTHING
RETURNING run_id

-- name: kept_checkpoint
-- The checkpoint of a round with its state, which cannot be released meanwhile.
SELECT checkpoint_id FROM flq_state.checkpoint
WHERE run_id = %(run_id)s AND round = %(round)s AND state IS NOT NULL
FOR SHARE

-- name: kept_rounds
-- The rounds that a run can be forked from.
SELECT round FROM flq_state.checkpoint WHERE run_id = %(run_id)s AND state IS NOT NULL ORDER BY round

-- name: inherit_checkpoint
-- Gives a forked run the checkpoint that it goes on behind, with references of its own to what that names. No attempt of
-- the run has made it, hence number 0.
WITH made AS (
    INSERT INTO flq_state.checkpoint (run_id, round, branch, attempt, first_sequence, next_sequence, state, metrics)
    SELECT %(run_id)s, round, 0, 0, first_sequence, next_sequence, state, metrics
    FROM flq_state.checkpoint
    WHERE checkpoint_id = %(checkpoint_id)s
    RETURNING checkpoint_id
), referred AS (
    INSERT INTO flq_state.object_ref (object_hash, holder, holder_id, run_id)
    SELECT o.object_hash, 'checkpoint', made.checkpoint_id, %(run_id)s
    FROM made, flq_state.object_ref o
    WHERE o.run_id = %(parent)s AND o.holder = 'checkpoint' AND o.holder_id = %(checkpoint_id)s
    RETURNING object_hash
)
SELECT count(*) FROM referred
