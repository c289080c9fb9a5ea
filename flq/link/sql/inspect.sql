-- name: read_only
-- For a query of a person: it may read the views and nothing else, and not for ever.
SET TRANSACTION READ ONLY

-- name: as_reader
-- Likewise.
SET LOCAL ROLE flq_reader

-- name: reader_settings
-- Names of the views need no schema; a query ends after a minute.
SELECT set_config('search_path', 'flq, pg_catalog', true), set_config('statement_timeout', '60s', true)
