-- name: record_event
-- Appends to a run's history.
INSERT INTO flq_state.run_event (run_id, event, actor, reason, details)
VALUES (%(run_id)s, %(event)s, %(actor)s, %(reason)s, %(details)s)

-- name: list_events
-- A run's history.
SELECT at, event, actor, reason FROM flq_state.run_event WHERE run_id = %(run_id)s ORDER BY event_id
