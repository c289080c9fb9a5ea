-- Has a table analyzed each time it has doubled, not at each tenth more: hot statements go by key whatever the statistics
-- are, and after each analysis every session plans its statements anew.
CREATE FUNCTION flq_state.analyze_when_doubled(name text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('ALTER TABLE flq_state.%I SET (autovacuum_analyze_scale_factor = 1,'
                   ' autovacuum_analyze_threshold = 10000)', name);
END
$$;

-- Makes the partitions that are or will soon be written to, and returns the names of the new ones. Attached, not
-- created in place: that locks the parent against other partition work only, not against reads and writes.
CREATE FUNCTION flq_state.make_partitions() RETURNS SETOF text LANGUAGE plpgsql AS $$
DECLARE
    batches_each CONSTANT bigint := 1000000;
    days_ahead CONSTANT int := 7;
    block bigint := (SELECT coalesce(max(batch_id), 0) / batches_each FROM flq_state.batch);
    today date := (clock_timestamp() AT TIME ZONE 'UTC')::date;
    part record;
BEGIN
    FOR part IN
        SELECT 'result' AS parent, format('result_p%s', to_char(n, 'FM000000')) AS name,
               (n * batches_each)::text AS low, ((n + 1) * batches_each)::text AS high
        FROM generate_series(block, block + 1) n
        UNION ALL
        SELECT 'log_line', format('log_line_p%s', to_char(day, 'YYYYMMDD')),
               day::text || ' 00:00:00+00', (day + 1)::text || ' 00:00:00+00'
        FROM (SELECT today + n AS day FROM generate_series(-1, days_ahead) n) days
    LOOP
        CONTINUE WHEN to_regclass(format('flq_state.%I', part.name)) IS NOT NULL;
        EXECUTE format('CREATE TABLE flq_state.%I (LIKE flq_state.%I'
                       ' INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING INDEXES)', part.name, part.parent);
        PERFORM flq_state.analyze_when_doubled(part.name);
        EXECUTE format('ALTER TABLE flq_state.%I ATTACH PARTITION flq_state.%I FOR VALUES FROM (%L) TO (%L)',
                       part.parent, part.name, part.low, part.high);
        RETURN NEXT part.name;
    END LOOP;
END
$$;

-- The first five of some names, and how many more there are: for sentences.
CREATE FUNCTION flq_state.first_names(names text[]) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT array_to_string(names[1:5], ', ')
           || CASE WHEN cardinality(names) > 5 THEN format(' and %s more', cardinality(names) - 5) ELSE '' END
$$;
