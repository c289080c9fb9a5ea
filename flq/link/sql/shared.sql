-- name: read_setting
-- A setting of the federation.
SELECT value FROM flq_state.setting WHERE name = %(name)s

-- name: write_setting
-- Sets a setting.
INSERT INTO flq_state.setting (name, value) VALUES (%(name)s, %(value)s)
ON CONFLICT (name) DO UPDATE SET value = excluded.value, changed_at = excluded.changed_at

-- name: delete_setting
-- Takes a setting away.
DELETE FROM flq_state.setting WHERE name = %(name)s
