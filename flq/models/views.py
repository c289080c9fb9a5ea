"""The views for people, in schema `flq`. In each of them `run` is the run's name, times are timestamptz.

They are made anew by a migration whenever one of them changes. Role `flq_reader` may read these and nothing else.
"""

from __future__ import annotations

RUNS = """
SELECT r.name AS run, r.app, r.owner, r.status, r.outcome, r.reason, r.attempt,
       r.rounds_planned,
       greatest(0, (SELECT max(c.round) FROM flq_state.checkpoint c WHERE c.run_id = r.run_id),
                (SELECT max(b.round) FROM flq_state.batch b WHERE b.run_id = r.run_id)
                - (r.outcome IS DISTINCT FROM 'completed')::int) AS rounds_done,
       open.tasks_open, ended.results_ok, ended.results_error,
       r.stop_requested_at, r.priority, r.config, r.node_selector, r.seed, r.bundle_hash,
       r.created_at, r.starting_at, r.running_at, r.finished_at,
       coalesce(r.finished_at, clock_timestamp()) - r.created_at AS duration,
       r.active_time + CASE WHEN r.attempt_token = 0 THEN interval '0' ELSE
           least(clock_timestamp(), CASE WHEN a.claimed_at IS NOT NULL THEN a.lease_until END) - r.starting_at
       END AS active_time,
       r.wall_time_limit, r.keep_checkpoints, r.keep_replies,
       parent.name AS forked_from, r.forked_from_round, repeated.name AS rerun_of, r.run_id
FROM flq_state.run r
LEFT JOIN flq_state.run parent ON parent.run_id = r.forked_from
LEFT JOIN flq_state.run repeated ON repeated.run_id = r.rerun_of
LEFT JOIN flq_state.run_attempt a ON a.run_id = r.run_id AND a.attempt = r.attempt
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
    UNION SELECT k.run_id, k.round FROM flq_state.checkpoint k JOIN flq_state.run f ON f.run_id = k.run_id
    WHERE k.round > coalesce(f.forked_from_round, 0)
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

SUPEREXECS = """
SELECT p.process_id, p.host, p.pid, p.version,
       p.alive_until > clock_timestamp() AS online,
       CASE WHEN p.alive_until > clock_timestamp() THEN p.jobs_missed < 3 END AS consuming,
       p.slots,
       (SELECT count(*) FROM flq_state.run_attempt a
        WHERE a.process_id = p.process_id AND a.status <> 'ended') AS slots_taken,
       p.consumed_at, p.jobs_missed, p.consumer_restarts,
       nullif(p.alive_until, '-infinity') AS alive_until, p.started_at
FROM flq_state.process p
WHERE p.kind = 'superexec'
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
       CASE r.status WHEN 'running' THEN r.running_at WHEN 'starting' THEN r.starting_at ELSE
           (SELECT max(e.at) FROM flq_state.run_event e
            WHERE e.run_id = r.run_id AND e.event IN ('submitted', 'requeued', 'resumed'))
       END AS since,
       c.cause, c.reason, c.place, r.run_id
FROM flq_state.run r
LEFT JOIN flq_state.run_attempt a ON a.run_id = r.run_id AND a.attempt = r.attempt
LEFT JOIN flq_state.process holder ON holder.process_id = a.process_id
CROSS JOIN LATERAL (
    SELECT clock_timestamp() AS at,
           r.status = 'pending' AS pending,
           r.status = 'starting' AND a.status = 'published' AS published,
           r.status <> 'pending' AND a.status = 'claimed' AND a.lease_until < clock_timestamp() AS abandoned,
           r.status = 'pending' AND coalesce(r.not_before > clock_timestamp(), false) AS held_back
) now
CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE p.kind = 'superexec' AND p.alive_until > now.at) AS superexecs,
           count(*) FILTER (WHERE p.kind = 'superexec' AND p.alive_until > now.at AND p.jobs_missed >= 3) AS deaf,
           count(*) FILTER (WHERE p.kind = 'superlink' AND p.alive_until > now.at) AS superlinks,
           coalesce(sum(p.slots) FILTER (WHERE p.kind = 'superexec' AND p.alive_until > now.at), 0) AS slots,
           max(p.alive_until) FILTER (WHERE p.kind = 'superexec' AND isfinite(p.alive_until)) AS superexec_seen,
           max(p.alive_until) FILTER (WHERE p.kind = 'superlink' AND isfinite(p.alive_until)) AS superlink_seen
    FROM flq_state.process p
) alive
CROSS JOIN LATERAL (
    SELECT count(*) AS attempts, flq_state.first_names(array_agg(o.name ORDER BY o.run_id)) AS runs
    FROM flq_state.run_attempt b JOIN flq_state.run o ON o.run_id = b.run_id
    WHERE b.status <> 'ended'
) busy
CROSS JOIN LATERAL (
    SELECT count(*) AS tasks, min(x.deadline) AS deadline,
           count(*) FILTER (WHERE NOT x.online) AS offline,
           flq_state.first_names(array_agg(DISTINCT x.offline_node ORDER BY x.offline_node)
                                 FILTER (WHERE NOT x.online)) AS offline_nodes,
           count(*) FILTER (WHERE x.online AND NOT x.leased) AS queued,
           flq_state.first_names(array_agg(DISTINCT x.node ORDER BY x.node)
                                 FILTER (WHERE x.online AND NOT x.leased)) AS queued_nodes,
           count(*) FILTER (WHERE x.online AND x.leased) AS leased,
           flq_state.first_names(array_agg(DISTINCT x.node ORDER BY x.node)
                                 FILTER (WHERE x.online AND x.leased)) AS leased_nodes,
           min(x.claimed_at) FILTER (WHERE x.online AND x.leased) AS claimed_at
    FROM (
        SELECT n.name AS node, b.deadline, t.claimed_at,
               n.name || CASE WHEN isfinite(p.alive_until) THEN
                   format(' (for %s s)', ceil(extract(epoch FROM now.at - p.alive_until))) ELSE '' END AS offline_node,
               t.lease_until > now.at AS leased,
               coalesce(p.alive_until > now.at, false) AS online
        FROM flq_state.batch b
        JOIN flq_state.task t ON t.batch_id = b.batch_id
        JOIN flq_state.node n ON n.node_id = t.node_id
        LEFT JOIN flq_state.process p ON p.process_id = n.process_id
        WHERE b.run_id = r.run_id
    ) x
) open
CROSS JOIN LATERAL (
    SELECT count(*) AS known, count(*) FILTER (WHERE p.alive_until > now.at) AS nodes
    FROM flq_state.node n LEFT JOIN flq_state.process p ON p.process_id = n.process_id
    WHERE r.node_selector = '{}'
       OR n.name = ANY (r.node_selector)
       OR EXISTS (SELECT FROM jsonb_each_text(n.labels) l WHERE l.key || '=' || l.value = ANY (r.node_selector))
) usable
LEFT JOIN LATERAL (
    SELECT e.reason FROM flq_state.run_event e
    WHERE e.run_id = r.run_id AND e.event = 'delayed' AND e.at >= r.starting_at
    ORDER BY e.event_id DESC LIMIT 1
) delay ON now.published AND a.publications = 0
LEFT JOIN LATERAL (
    SELECT e.reason FROM flq_state.run_event e
    WHERE e.run_id = r.run_id AND e.event = 'over quota'
      AND e.at >= r.running_at
      AND NOT EXISTS (SELECT FROM flq_state.batch b WHERE b.run_id = r.run_id AND b.created_at > e.at)
    ORDER BY e.event_id DESC LIMIT 1
) quota ON r.status = 'running'
CROSS JOIN LATERAL (
    VALUES
    (1, 'stop', r.stop_requested_at IS NOT NULL AND NOT now.abandoned,
     format('a stop was requested %s s ago; the SuperExec on %s has not confirmed yet that its ServerApp has ended',
            ceil(extract(epoch FROM now.at - r.stop_requested_at)), holder.host)),
    (2, 'no_superexec', (now.pending OR now.published) AND alive.superexecs = 0,
     'no SuperExec is alive' || coalesce(
         '; the last one went ' || ceil(extract(epoch FROM now.at - alive.superexec_seen)) || ' s ago', '')),
    (3, 'no_superlink', (now.pending OR now.published) AND alive.superlinks = 0,
     'no SuperLink is alive to dispatch it' || coalesce(
         '; the last one went ' || ceil(extract(epoch FROM now.at - alive.superlink_seen)) || ' s ago', '')),
    (4, 'back_off', now.held_back,
     format('attempt %s has ended early: %s; the next one begins in %s s', r.attempt,
            split_part(coalesce(a.error, 'nobody knows why'), chr(10), 1),
            ceil(extract(epoch FROM r.not_before - now.at)))),
    (5, 'slots', now.pending AND alive.superexecs > 0 AND busy.attempts >= alive.slots,
     format('all %s SuperExec slots are taken, by %s', alive.slots, busy.runs)),
    (6, 'dispatch', now.pending AND NOT now.held_back AND alive.superlinks > 0 AND busy.attempts < alive.slots,
     'it waits for the next dispatch'),
    (7, 'broker', now.published AND a.publications = 0,
     coalesce(delay.reason, 'its job has not been published yet')),
    (8, 'job', now.published AND a.publications > 0 AND alive.superexecs > 0,
     format('no SuperExec has taken its job yet; published %s times, the last time %s s ago', a.publications,
            ceil(extract(epoch FROM now.at - a.published_at)))
     || CASE WHEN alive.deaf > 0 THEN format('; %s of %s SuperExecs take no jobs from the broker', alive.deaf,
                                             alive.superexecs) ELSE '' END),
    (9, 'lease', now.abandoned,
     format('its SuperExec on %s has not renewed its lease for %s s: another attempt follows', holder.host,
            ceil(extract(epoch FROM now.at - a.lease_until)))),
    (10, 'starting', r.status = 'starting' AND a.status = 'claimed' AND NOT now.abandoned,
     format('its ServerApp is starting on %s', holder.host)),
    (11, 'quota', quota.reason IS NOT NULL, quota.reason),
    (12, 'offline', open.offline > 0,
     format('%s of %s open tasks are for nodes that are offline: %s', open.offline, open.tasks, open.offline_nodes)),
    (13, 'queued', open.queued > 0,
     format('%s of %s open tasks wait for a free slot of their nodes: %s', open.queued, open.tasks, open.queued_nodes)),
    (14, 'working', open.leased > 0,
     format('%s of %s open tasks are being worked on, the longest for %s s: by %s', open.leased, open.tasks,
            ceil(extract(epoch FROM now.at - open.claimed_at)), open.leased_nodes)),
    (15, 'deadline', open.tasks > 0,
     format('what is open of them in %s s ends then, at its deadline',
            greatest(0, ceil(extract(epoch FROM open.deadline - now.at))))),
    (16, 'no_node', r.status = 'running' AND open.tasks = 0 AND usable.nodes = 0,
     format('no node that it may use is online; %s are known', usable.known)),
    (17, 'few_nodes', r.status = 'running' AND open.tasks = 0 AND usable.nodes > 0 AND usable.nodes < r.min_nodes,
     format('%s nodes that it may use are online, and it was started for %s', usable.nodes, r.min_nodes)),
    (18, 'serverapp', r.status = 'running' AND open.tasks = 0 AND usable.nodes >= greatest(r.min_nodes, 1),
     format('its ServerApp is computing, or waits for nodes: %s that it may use are online', usable.nodes))
) c(place, cause, holds, reason)
WHERE r.status <> 'finished' AND c.holds
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
    "superexecs": SUPEREXECS,
    "metrics": METRICS,
    "logs": LOGS,
    "events": EVENTS,
    "waiting": WAITING,
    "maintenance": MAINTENANCE,
}
"""Every view's name and its SELECT."""
