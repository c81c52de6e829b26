-- Partitions are attached. CREATE TABLE … PARTITION OF locks the whole log against everybody, and so
-- waits for whoever reads it: a pg_dump would have stopped all appends until its end. A table of its
-- own that is attached waits for no reader.

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
        -- What attaching takes anyway. Of two that make it at once, the second finds it there.
        LOCK TABLE event IN SHARE UPDATE EXCLUSIVE MODE;
        CONTINUE WHEN to_regclass(quote_ident(name)) IS NOT NULL;
        EXECUTE format(
            'CREATE TABLE %I (LIKE event INCLUDING DEFAULTS INCLUDING STORAGE)', name
        );
        EXECUTE format(
            'ALTER TABLE %I ADD CONSTRAINT %I PRIMARY KEY (position)', name, name || '_pkey'
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
        EXECUTE format(
            'ALTER TABLE event ATTACH PARTITION %I FOR VALUES FROM (%s) TO (%s)',
            name, part * width, (part + 1) * width
        );
    END LOOP;
END
$$;

CREATE OR REPLACE FUNCTION prepare_partitions(added bigint) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    width bigint;
    needed bigint;
BEGIN
    SELECT l.partition_width, (h.size + added) / l.partition_width
    INTO STRICT width, needed
    FROM log_layout AS l CROSS JOIN log_head AS h;
    PERFORM ensure_partitions(needed * width);
    BEGIN
        -- Nothing waits for the one behind: it is tried again with the next batch.
        PERFORM set_config('lock_timeout', '10ms', true);
        PERFORM ensure_partitions((needed + 1) * width);
    EXCEPTION
        WHEN lock_not_available THEN
            RETURN needed * width;
        WHEN OTHERS THEN
            RAISE WARNING 'partition % of the log cannot be made: %', needed + 1, SQLERRM;
            RETURN needed * width;
    END;
    RETURN (needed + 1) * width;
END
$$;

COMMENT ON FUNCTION prepare_partitions IS 'Makes the partitions for so many further events, and the one behind them if nothing holds that up; returns the first position of the last one that is there.';
