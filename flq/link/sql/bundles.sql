-- name: insert_bundle
-- Stores a bundle unless it is there.
INSERT INTO flq_state.bundle (bundle_hash, data) VALUES (%(bundle_hash)s, %(data)s) ON CONFLICT DO NOTHING

-- name: read_bundle
-- A bundle's bytes.
SELECT data FROM flq_state.bundle WHERE bundle_hash = %(bundle_hash)s
