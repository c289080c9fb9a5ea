-- name: server_version
-- The server's major version, and flq's schema if it is there.
SELECT current_setting('server_version_num')::int / 10000, to_regnamespace('flq_state') IS NOT NULL

-- name: make_reader
-- The role that the views are granted to. Roles belong to the cluster: a dump of one database does not have them.
DO $$
BEGIN
    CREATE ROLE flq_reader NOLOGIN;
EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
END
$$

-- name: restore_timeouts
-- What was restored is as large as it is.
SELECT set_config('statement_timeout', '0', true), set_config('idle_in_transaction_session_timeout', '0', true)

-- name: settle_results
-- Transaction ids are the cluster's that was dumped. Where they lie ahead of this one's they would look like those of
-- transactions to come, and be read again and again: they become the oldest one there is.
UPDATE flq_state.result SET xid = '3' WHERE xid >= pg_current_xact_id()

-- name: settle_logs
-- Likewise.
UPDATE flq_state.log_line SET xid = '3' WHERE xid >= pg_current_xact_id()

-- name: settle_events
-- Likewise.
UPDATE flq_state.run_event SET xid = '3' WHERE xid >= pg_current_xact_id()

-- name: settle_processes
-- No process instance of then is one of this federation: the nodes are offline until their SuperNodes connect.
UPDATE flq_state.process SET alive_until = '-infinity' WHERE alive_until > '-infinity'
