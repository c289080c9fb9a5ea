-- name: record_event
-- Appends to a run's history.
INSERT INTO flq_state.run_event (run_id, event, actor, reason, details)
VALUES (%(run_id)s, %(event)s, %(actor)s, %(reason)s, %(details)s)

-- name: confirm_stopped
-- A SuperNode says that nothing of a run works for these nodes any more. Of a run that has ended by itself nobody wants to
-- know; a repeated call adds nothing.
INSERT INTO flq_state.run_event (run_id, event, actor, details)
SELECT r.run_id, 'stopped on node', n.name, jsonb_build_object('node_id', n.node_id::text)
FROM unnest(%(run_ids)s::bigint[], %(node_ids)s::bigint[]) w(run_id, node_id)
JOIN flq_state.node n ON n.node_id = w.node_id AND n.process_id = %(process_id)s::uuid
JOIN flq_state.run r ON r.run_id = w.run_id AND (r.stop_requested_at IS NOT NULL OR r.outcome = 'stopped')
WHERE NOT EXISTS (
    SELECT FROM flq_state.run_event e
    WHERE e.run_id = r.run_id AND e.event = 'stopped on node' AND e.actor = n.name
      AND e.at >= coalesce(r.stop_requested_at, r.finished_at)
)
ORDER BY r.run_id, n.node_id

-- name: list_events
-- A run's history.
SELECT at, event, actor, reason FROM flq_state.run_event WHERE run_id = %(run_id)s ORDER BY event_id
