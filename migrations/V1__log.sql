-- The event log: one row an event, numbered from 1 without gaps in commit order.
-- Application code appends through append_batch() only; nobody changes or deletes.

CREATE TABLE log_head (
    one_row boolean PRIMARY KEY DEFAULT true,
    epoch bigint NOT NULL,
    size bigint NOT NULL,
    recorded_at timestamptz NOT NULL,
    CONSTRAINT log_head_is_one_row CHECK (one_row)
) WITH (fillfactor = 10);

COMMENT ON TABLE log_head IS 'The end of the log. Its row lock orders all appends.';
COMMENT ON COLUMN log_head.epoch IS 'Seconds since 1970 at which this log began; a restore that loses events begins a new one.';
COMMENT ON COLUMN log_head.size IS 'The position of the last event.';
COMMENT ON COLUMN log_head.recorded_at IS 'When the last event was recorded; time never goes back in the log.';

INSERT INTO log_head (epoch, size, recorded_at)
VALUES (extract(epoch FROM clock_timestamp())::bigint, 0, clock_timestamp());

CREATE TABLE event (
    position bigint NOT NULL,
    stream_id uuid NOT NULL,
    version integer NOT NULL,
    type smallint NOT NULL,
    schema_version smallint NOT NULL,
    recorded_at timestamptz NOT NULL,
    header bytea NOT NULL,
    body bytea NOT NULL,
    CONSTRAINT event_pkey PRIMARY KEY (position)
) PARTITION BY RANGE (position);

COMMENT ON TABLE event IS 'The log. Immutable: triggers refuse UPDATE, DELETE and TRUNCATE to everyone.';
COMMENT ON COLUMN event.version IS 'The place in its stream, from 1.';
COMMENT ON COLUMN event.type IS 'The code of the event type, see schemas/src/event.rs.';
COMMENT ON COLUMN event.header IS 'Metadata as JSON: actor, correlation, causation, the evidence of a callback.';
COMMENT ON COLUMN event.body IS 'The fact as JSON, in the bytes that were first written.';

CREATE FUNCTION refuse_change() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the event log is append-only: % on % is refused', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'insufficient_privilege';
END
$$;

COMMENT ON FUNCTION refuse_change IS 'Refuses every change of recorded events.';

CREATE TRIGGER event_is_append_only
BEFORE UPDATE OR DELETE OR TRUNCATE ON event
FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
-- Also in a session that takes itself for a replica.
ALTER TABLE event ENABLE ALWAYS TRIGGER event_is_append_only;

-- 2^22 positions a partition: a whole number of Merkle tiles (256^2 leaves), about 3 GB.
CREATE FUNCTION ensure_partitions(upto bigint) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    width CONSTANT bigint := 4194304;
    part bigint;
    name text;
BEGIN
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

COMMENT ON FUNCTION ensure_partitions IS 'Makes the partitions that hold positions up to and including the given one.';

SELECT ensure_partitions(4194304);
