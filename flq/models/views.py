"""The views for people, in schema `flq`. In each of them `run` is the run's name, times are timestamptz.

They are made anew by a migration whenever one of them changes. Role `flq_reader` may read these and nothing else.
"""

from __future__ import annotations

RUNS = """
SELECT r.name AS run, r.app, r.owner, r.status, r.outcome, r.reason, r.attempt,
       r.rounds_planned,
       (SELECT count(*) FROM flq_state.checkpoint c WHERE c.run_id = r.run_id AND c.round > 0) AS rounds_done,
       open.tasks_open, ended.results_ok, ended.results_error,
       r.stop_requested_at, r.priority, r.config, r.node_selector, r.seed, r.bundle_hash,
       r.created_at, r.starting_at, r.running_at, r.finished_at,
       coalesce(r.finished_at, clock_timestamp()) - r.created_at AS duration,
       parent.name AS forked_from, r.forked_from_round, r.run_id
FROM flq_state.run r
LEFT JOIN flq_state.run parent ON parent.run_id = r.forked_from
CROSS JOIN LATERAL (
    SELECT count(t.task_id) AS tasks_open
    FROM flq_state.batch b JOIN flq_state.task t ON t.batch_id = b.batch_id
    WHERE b.run_id = r.run_id AND r.status <> 'finished'
) open
CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE s.status = 'ok') AS results_ok,
           count(*) FILTER (WHERE s.status <> 'ok') AS results_error
    FROM flq_state.batch b JOIN flq_state.result s ON s.batch_id = b.batch_id
    WHERE b.run_id = r.run_id
) ended
"""

ATTEMPTS = """
SELECT r.name AS run, a.attempt, a.status, p.host, a.pid, a.job_id, a.publications, a.exit_code, a.error,
       a.published_at, a.claimed_at, a.ended_at, a.ended_at - a.claimed_at AS duration, a.lease_until, a.run_id
FROM flq_state.run_attempt a
JOIN flq_state.run r ON r.run_id = a.run_id
LEFT JOIN flq_state.process p ON p.process_id = a.process_id
"""

ROUNDS = """
SELECT r.name AS run, step.round,
       CASE WHEN c.round IS NOT NULL THEN 'committed'
            WHEN r.status = 'finished' AND r.pruned_at IS NULL AND sent.tasks IS DISTINCT FROM ended.done
                THEN 'cut'
            WHEN r.status = 'finished' THEN 'done'
            ELSE 'running' END AS status,
       coalesce(sent.nodes, 0) AS nodes,
       coalesce(c.committed_at, ended.last_at, measured.last_at) - sent.begun_at AS duration,
       coalesce(measured.metrics, '{}'::jsonb) AS metrics,
       coalesce(sent.tasks, 0) AS tasks, coalesce(ended.done, 0) AS done, coalesce(ended.errors, 0) AS errors,
       sent.begun_at, c.committed_at, r.run_id
FROM (
    SELECT run_id, round FROM flq_state.batch WHERE round >= 1
    UNION SELECT run_id, round FROM flq_state.checkpoint WHERE round >= 1
    UNION SELECT run_id, round FROM flq_state.round_metric WHERE round >= 1
) step
JOIN flq_state.run r ON r.run_id = step.run_id
LEFT JOIN flq_state.checkpoint c ON c.run_id = step.run_id AND c.round = step.round
LEFT JOIN LATERAL (
    SELECT sum(b.tasks) AS tasks, max(b.tasks) AS nodes, min(b.created_at) AS begun_at
    FROM flq_state.batch b WHERE b.run_id = step.run_id AND b.round = step.round
) sent ON true
LEFT JOIN LATERAL (
    SELECT count(*) AS done, count(*) FILTER (WHERE s.status <> 'ok') AS errors, max(s.ended_at) AS last_at
    FROM flq_state.batch b JOIN flq_state.result s ON s.batch_id = b.batch_id
    WHERE b.run_id = step.run_id AND b.round = step.round
) ended ON true
LEFT JOIN LATERAL (
    SELECT jsonb_object_agg(m.name, m.value ORDER BY m.name) AS metrics, max(m.recorded_at) AS last_at
    FROM flq_state.round_metric m
    WHERE m.run_id = step.run_id AND m.round = step.round AND m.node_id IS NULL
) measured ON true
"""

TASKS = """
SELECT r.name AS run, b.round, b.kind, n.name AS node,
       CASE WHEN t.lease_until > clock_timestamp() THEN 'leased' ELSE 'queued' END AS status,
       t.attempt, NULL::smallint AS error_code, NULL::text AS error_text, '{}'::jsonb AS metrics,
       b.created_at, t.claimed_at, NULL::timestamptz AS started_at, NULL::timestamptz AS ended_at,
       b.deadline, t.task_id, t.batch_id, t.run_id, t.node_id
FROM flq_state.task t
JOIN flq_state.batch b ON b.batch_id = t.batch_id
JOIN flq_state.run r ON r.run_id = t.run_id
JOIN flq_state.node n ON n.node_id = t.node_id
UNION ALL
SELECT r.name, b.round, b.kind, n.name, s.status::text, s.attempt, s.error_code, s.error_text, s.metrics,
       b.created_at, s.claimed_at, s.started_at, s.ended_at, b.deadline, s.task_id, s.batch_id, s.run_id, s.node_id
FROM flq_state.result s
JOIN flq_state.batch b ON b.batch_id = s.batch_id
JOIN flq_state.run r ON r.run_id = s.run_id
JOIN flq_state.node n ON n.node_id = s.node_id
"""

NODES = """
SELECT n.name AS node, n.node_id,
       coalesce(p.alive_until > clock_timestamp(), false) AS online,
       n.config, n.labels, n.epoch, p.host, p.pid, p.version,
       open.tasks_open, open.tasks_leased,
       nullif(p.alive_until, '-infinity') AS alive_until, n.connected_at, n.created_at
FROM flq_state.node n
LEFT JOIN flq_state.process p ON p.process_id = n.process_id
CROSS JOIN LATERAL (
    SELECT count(*) AS tasks_open, count(*) FILTER (WHERE t.lease_until > clock_timestamp()) AS tasks_leased
    FROM flq_state.task t WHERE t.node_id = n.node_id
) open
"""

METRICS = """
SELECT r.name AS run, m.round, m.name, m.value, n.name AS node, m.recorded_at
FROM flq_state.round_metric m
JOIN flq_state.run r ON r.run_id = m.run_id
LEFT JOIN flq_state.node n ON n.node_id = m.node_id
"""

LOGS = """
SELECT r.name AS run, l.at, l.source, l.level, l.text, l.line_id
FROM flq_state.log_line l
JOIN flq_state.run r ON r.run_id = l.run_id
"""

EVENTS = """
SELECT r.name AS run, e.at, e.event, e.actor, e.reason, e.details, e.event_id
FROM flq_state.run_event e
JOIN flq_state.run r ON r.run_id = e.run_id
"""

WAITING = """
SELECT r.name AS run, r.status,
       coalesce(r.running_at, r.starting_at, r.created_at) AS since,
       CASE
           WHEN r.stop_requested_at IS NOT NULL THEN 'a stop was requested; its SuperExec has not confirmed it yet'
           WHEN r.status = 'pending' AND alive.superexecs = 0 THEN 'no SuperExec is alive'
           WHEN r.status = 'pending' AND alive.superlinks = 0 THEN 'no SuperLink is alive to dispatch it'
           WHEN r.status = 'pending' AND busy.attempts >= alive.slots
               THEN format('all %s SuperExec slots are taken', alive.slots)
           WHEN r.status = 'pending' THEN 'it waits for the next dispatch'
           WHEN a.status = 'published' THEN coalesce(delay.reason, 'no SuperExec has taken its job yet')
           WHEN r.status = 'starting' THEN 'its ServerApp is starting'
           WHEN open.offline > 0 THEN format('%s of %s open tasks are for nodes that are offline: %s',
                                             open.offline, open.tasks, open.offline_nodes)
           WHEN open.tasks > open.leased THEN format('%s of %s open tasks wait for a free slot of their nodes',
                                                     open.tasks - open.leased, open.tasks)
           WHEN open.tasks > 0 THEN format('%s tasks are being worked on by their nodes', open.tasks)
           ELSE format('its ServerApp is computing, or waits for nodes: %s that it may use are online', usable.nodes)
       END AS reason,
       r.run_id
FROM flq_state.run r
LEFT JOIN flq_state.run_attempt a ON a.run_id = r.run_id AND a.attempt = r.attempt
CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE p.kind = 'superexec') AS superexecs,
           count(*) FILTER (WHERE p.kind = 'superlink') AS superlinks,
           coalesce(sum(p.slots) FILTER (WHERE p.kind = 'superexec'), 0) AS slots
    FROM flq_state.process p WHERE p.alive_until > clock_timestamp()
) alive
CROSS JOIN LATERAL (
    SELECT count(*) AS attempts FROM flq_state.run_attempt o WHERE o.status <> 'ended'
) busy
CROSS JOIN LATERAL (
    SELECT count(*) AS tasks,
           count(*) FILTER (WHERE t.lease_until > clock_timestamp()) AS leased,
           count(*) FILTER (WHERE p.alive_until IS NULL OR p.alive_until <= clock_timestamp()) AS offline,
           string_agg(n.name, ', ' ORDER BY n.node_id)
               FILTER (WHERE p.alive_until IS NULL OR p.alive_until <= clock_timestamp()) AS offline_nodes
    FROM flq_state.batch b
    JOIN flq_state.task t ON t.batch_id = b.batch_id
    JOIN flq_state.node n ON n.node_id = t.node_id
    LEFT JOIN flq_state.process p ON p.process_id = n.process_id
    WHERE b.run_id = r.run_id
) open
CROSS JOIN LATERAL (
    SELECT count(*) AS nodes
    FROM flq_state.node n JOIN flq_state.process p ON p.process_id = n.process_id
    WHERE p.alive_until > clock_timestamp()
      AND (r.node_selector = '{}'
           OR n.name = ANY (r.node_selector)
           OR EXISTS (SELECT FROM jsonb_each_text(n.labels) l WHERE l.key || '=' || l.value = ANY (r.node_selector)))
) usable
LEFT JOIN LATERAL (
    SELECT e.reason FROM flq_state.run_event e
    WHERE e.run_id = r.run_id AND e.event = 'delayed' AND e.at >= a.published_at
    ORDER BY e.event_id DESC LIMIT 1
) delay ON a.status = 'published'
WHERE r.status <> 'finished'
"""

MAINTENANCE = """
SELECT m.name AS sweep, m.at, m.duration, m.done, m.error
FROM flq_state.maintenance_run m
"""

VIEWS: dict[str, str] = {
    "runs": RUNS,
    "attempts": ATTEMPTS,
    "rounds": ROUNDS,
    "tasks": TASKS,
    "nodes": NODES,
    "metrics": METRICS,
    "logs": LOGS,
    "events": EVENTS,
    "waiting": WAITING,
    "maintenance": MAINTENANCE,
}
"""Every view's name and its SELECT."""
