-- Retention: whole partitions leave the database for files. What remains in the place of one is a
-- partition of the same range that holds the streams that are still needed, and of every other the
-- last event: no stream ever looks empty, so no version is ever given twice.

CREATE TABLE log_layout (
    one_row boolean PRIMARY KEY DEFAULT true,
    partition_width bigint NOT NULL,
    CONSTRAINT log_layout_is_one_row CHECK (one_row),
    CONSTRAINT log_layout_width_bounded CHECK (partition_width BETWEEN 256 AND 1073741824)
);
COMMENT ON TABLE log_layout IS 'How the log is laid out; set before its first event, if at all.';
COMMENT ON COLUMN log_layout.partition_width IS 'Positions of a partition of event.';
INSERT INTO log_layout (partition_width) VALUES (4194304);

CREATE TABLE archived_range (
    first_position bigint NOT NULL,
    last_position bigint NOT NULL,
    partition_name text NOT NULL,
    location text NOT NULL,
    kept_events bigint NOT NULL,
    kept_root bytea NOT NULL,
    archived_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT archived_range_pkey PRIMARY KEY (first_position),
    CONSTRAINT archived_range_is_one CHECK (first_position <= last_position)
);
COMMENT ON TABLE archived_range IS 'Ranges of positions whose events are in an archive. They begin the log and have no gap; the last of them ends at the floor.';
COMMENT ON COLUMN archived_range.location IS 'Where the archive was written, as the operator named it.';
COMMENT ON COLUMN archived_range.kept_events IS 'Events of the range that are still here.';
COMMENT ON COLUMN archived_range.kept_root IS 'The Merkle root over the leaves of those, by position.';

-- 2^22 positions a partition unless the layout says otherwise: about 3 GB.
CREATE OR REPLACE FUNCTION ensure_partitions(upto bigint) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    width bigint;
    part bigint;
    name text;
BEGIN
    SELECT l.partition_width INTO STRICT width FROM log_layout AS l;
    FOR part IN 0 .. upto / width LOOP
        name := format('event_%s', lpad(part::text, 6, '0'));
        CONTINUE WHEN to_regclass(quote_ident(name)) IS NOT NULL;
        EXECUTE format(
            'CREATE TABLE %I PARTITION OF event FOR VALUES FROM (%s) TO (%s)',
            name, part * width, (part + 1) * width
        );
        -- A unique constraint cannot span partitions; within one it backs append_batch's check.
        EXECUTE format(
            'CREATE UNIQUE INDEX %I ON %I (stream_id, version)', name || '_stream_version', name
        );
        EXECUTE format(
            'CREATE TRIGGER event_is_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON %I '
            'FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()',
            name
        );
        EXECUTE format('ALTER TABLE %I ENABLE ALWAYS TRIGGER event_is_append_only', name);
    END LOOP;
END
$$;

CREATE FUNCTION prepare_partitions(added bigint) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    next_begins bigint;
BEGIN
    SELECT ((h.size + added) / l.partition_width + 1) * l.partition_width
    INTO STRICT next_begins
    FROM log_layout AS l CROSS JOIN log_head AS h;
    PERFORM ensure_partitions(next_begins);
    RETURN next_begins;
END
$$;

COMMENT ON FUNCTION prepare_partitions IS 'Makes the partitions for so many further events, and the one behind them, whose first position it returns.';

CREATE FUNCTION set_partition_width(width bigint) RETURNS void
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    part regclass;
BEGIN
    IF EXISTS (SELECT FROM log_head AS h WHERE h.size > 0) THEN
        RAISE EXCEPTION 'the width of partitions is set before the first event'
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    UPDATE log_layout SET partition_width = width;
    FOR part IN SELECT i.inhrelid FROM pg_inherits AS i WHERE i.inhparent = 'event'::regclass LOOP
        EXECUTE format('DROP TABLE %s', part);
    END LOOP;
    PERFORM ensure_partitions(width);
END
$$;

COMMENT ON FUNCTION set_partition_width IS 'Sets the width of partitions in a database without events.';

REVOKE EXECUTE ON FUNCTION set_partition_width FROM public;
GRANT EXECUTE ON FUNCTION prepare_partitions TO milepost_app;
GRANT SELECT ON log_layout, archived_range TO milepost_app;
