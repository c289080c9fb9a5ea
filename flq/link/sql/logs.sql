-- name: append_logs
-- Appends lines to the logs of runs. A crash may lose the last moment of them, so it does not wait for the disk.
INSERT INTO flq_state.log_line (run_id, at, source, level, text)
SELECT w.run_id, w.at, w.source, w.level, w.text
FROM unnest(%(run_ids)s::bigint[], %(ats)s::timestamptz[], %(sources)s::text[], %(levels)s::text[], %(texts)s::text[])
     w(run_id, at, source, level, text)
CROSS JOIN (SELECT set_config('synchronous_commit', 'off', true)) late

-- name: read_logs
-- Lines of a run by transactions from `xmin` on. A full page says so by its number of rows.
SELECT look.xmin, l.line_id, l.at, l.source, l.level, l.text, l.xid::text::bigint
FROM (SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS xmin) look
LEFT JOIN LATERAL (
    SELECT line_id, at, source, level, text, xid
    FROM flq_state.log_line
    WHERE run_id = %(run_id)s AND xid >= %(xmin)s::text::xid8 AND line_id <> ALL (%(seen)s::bigint[])
    ORDER BY xid, line_id
    LIMIT %(limit)s
) l ON true
