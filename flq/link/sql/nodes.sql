-- name: connect_nodes
-- Takes nodes over, or makes them known. The epoch rises only if another process instance hosted the node before, so a
-- repeated call changes nothing. In the order of names, so that two processes with the same nodes cannot deadlock.
INSERT INTO flq_state.node AS n (name, config, labels, process_id, epoch, connected_at)
SELECT w.name, w.config, w.labels, %(process_id)s::uuid, 1, clock_timestamp()
FROM unnest(%(names)s::text[], %(configs)s::jsonb[], %(labels)s::jsonb[]) w(name, config, labels)
ORDER BY w.name
ON CONFLICT (name) DO UPDATE
SET config = excluded.config,
    labels = excluded.labels,
    epoch = n.epoch + (n.process_id IS DISTINCT FROM excluded.process_id)::int,
    process_id = excluded.process_id,
    connected_at = excluded.connected_at
RETURNING node_id, name, epoch

-- name: grid_nodes
-- The nodes that are online and that a run may use: all of them, or those that its selector names by name or label.
SELECT n.node_id, n.name, n.config, n.labels
FROM flq_state.run r
CROSS JOIN flq_state.node n
JOIN flq_state.process p ON p.process_id = n.process_id
WHERE r.run_id = %(run_id)s
  AND p.alive_until > clock_timestamp()
  AND (r.node_selector = '{}'
       OR n.name = ANY (r.node_selector)
       OR EXISTS (SELECT FROM jsonb_each_text(n.labels) l WHERE l.key || '=' || l.value = ANY (r.node_selector)))
ORDER BY n.node_id

-- name: list_nodes
-- Every node that the federation knows.
SELECT node_id, node, online, config, labels, epoch, host, pid, version, tasks_open, tasks_leased, alive_until
FROM flq.nodes
ORDER BY node_id
