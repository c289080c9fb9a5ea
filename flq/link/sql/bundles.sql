-- name: insert_bundle
-- Stores a bundle unless it is there.
INSERT INTO flq_state.bundle (bundle_hash, data) VALUES (%(bundle_hash)s, %(data)s) ON CONFLICT DO NOTHING

-- name: hold_bundle
-- Locks a bundle against `flq prune` until the run that has it is recorded.
SELECT bundle_hash FROM flq_state.bundle WHERE bundle_hash = %(bundle_hash)s FOR KEY SHARE

-- name: read_bundle
-- A bundle's bytes.
SELECT data FROM flq_state.bundle WHERE bundle_hash = %(bundle_hash)s
