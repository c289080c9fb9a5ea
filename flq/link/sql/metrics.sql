-- name: record_metrics
-- Named numbers of a round. The newest value counts.
INSERT INTO flq_state.round_metric AS m (run_id, round, name, node_id, value)
SELECT %(run_id)s, %(round)s, w.name, %(node_id)s, w.value
FROM unnest(%(names)s::text[], %(values)s::float8[]) w(name, value)
ORDER BY w.name
ON CONFLICT (run_id, round, name, node_id) DO UPDATE
SET value = excluded.value, recorded_at = excluded.recorded_at
