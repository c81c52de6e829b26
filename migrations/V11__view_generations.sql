-- The rows of a view in generations: a table each, so that a new one is filled beside the one that
-- is read, and takes its place in one transaction. Code of before goes on with the tables of V5,
-- under a lock of its own; they are dropped once no such code is left.

CREATE TABLE view_generation (
    projection text NOT NULL,
    generation integer NOT NULL,
    version smallint NOT NULL,
    state text NOT NULL,
    position bigint NOT NULL DEFAULT 0,
    order_position bigint,
    events_per_second double precision NOT NULL DEFAULT 0,
    progress jsonb,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT view_generation_pkey PRIMARY KEY (projection, generation),
    CONSTRAINT view_generation_state_known
    CHECK (state IN ('filling', 'active', 'former', 'dropped'))
);
CREATE UNIQUE INDEX view_generation_active
ON view_generation (projection, version) WHERE state = 'active';

COMMENT ON TABLE view_generation IS 'The generations of each view''s rows, and how far each has folded the log.';
COMMENT ON COLUMN view_generation.version IS 'The version of the fold that made the rows.';
COMMENT ON COLUMN view_generation.state IS 'filling: not read yet; active: read, one a version; former: kept to go back to; dropped: its table is gone.';
COMMENT ON COLUMN view_generation.position IS 'The last event folded.';
COMMENT ON COLUMN view_generation.order_position IS 'The order that made it active, so that none is carried out twice.';
COMMENT ON COLUMN view_generation.progress IS 'What a rebuild or a verification has come to, while it lasts.';

CREATE TABLE view_poison (
    projection text NOT NULL,
    generation integer NOT NULL,
    stream_id uuid NOT NULL,
    position bigint NOT NULL,
    error text NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT view_poison_pkey PRIMARY KEY (projection, generation, stream_id)
);
COMMENT ON TABLE view_poison IS 'Streams a generation has stopped folding, and the event it stopped at.';

CREATE FUNCTION view_table(projection text, generation integer) RETURNS text
LANGUAGE plpgsql IMMUTABLE STRICT AS $$
BEGIN
    IF projection !~ '^[a-z_]{1,40}$' THEN
        RAISE EXCEPTION '% is no name of a projection', projection;
    END IF;
    RETURN format('view_%s_%s', projection, generation);
END
$$;
COMMENT ON FUNCTION view_table IS 'The name of the table that holds a generation''s rows.';

-- Rows of a few kilobytes stay in their pages, uncompressed: they are rewritten all the time.
CREATE FUNCTION create_view_table(projection text, generation integer) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    name text := view_table(projection, generation);
BEGIN
    EXECUTE format(
        'CREATE TABLE %I (key uuid NOT NULL, position bigint NOT NULL, label text NOT NULL, '
        'state bytea NOT NULL) WITH (fillfactor = 70, toast_tuple_target = 8160)',
        name
    );
    EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I TO milepost_app', name);
END
$$;
COMMENT ON FUNCTION create_view_table IS 'Makes the table of a generation, without indexes: it is filled first.';

CREATE FUNCTION index_view_table(projection text, generation integer) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    name text := view_table(projection, generation);
BEGIN
    -- Two fillers may come here at once.
    EXECUTE format('LOCK TABLE %I IN SHARE UPDATE EXCLUSIVE MODE', name);
    IF to_regclass(quote_ident(name || '_pkey')) IS NULL THEN
        EXECUTE format('ALTER TABLE %I ADD CONSTRAINT %I PRIMARY KEY (key)', name, name || '_pkey');
        EXECUTE format('CREATE INDEX %I ON %I (label, key)', name || '_label', name);
    END IF;
    EXECUTE format('ANALYZE %I', name);
END
$$;
COMMENT ON FUNCTION index_view_table IS 'Makes the indexes of a generation''s table, where it has none.';

CREATE FUNCTION drop_view_table(projection text, generation integer) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    EXECUTE format('DROP TABLE IF EXISTS %I', view_table(projection, generation));
END
$$;
COMMENT ON FUNCTION drop_view_table IS 'Drops the table of a generation.';

GRANT SELECT, INSERT, UPDATE, DELETE ON view_generation, view_poison TO milepost_app;
GRANT EXECUTE ON FUNCTION
view_table, create_view_table, index_view_table, drop_view_table TO milepost_app;

-- What was folded so far is the first generation. The locks are taken in the order in which code of
-- before takes its own, and hold it up for as long as the copy lasts.
LOCK TABLE poison_event, view_row, projection IN SHARE MODE;
DO $$
DECLARE
    folded record;
BEGIN
    FOR folded IN
        SELECT DISTINCT ON (p.name) p.name, p.version, p.position
        FROM projection AS p ORDER BY p.name, p.version DESC
    LOOP
        PERFORM create_view_table(folded.name, 1);
        EXECUTE format(
            'INSERT INTO %I (key, position, label, state) SELECT key, position, label, state '
            'FROM view_row WHERE projection = $1 AND version = $2', view_table(folded.name, 1)
        ) USING folded.name, folded.version;
        PERFORM index_view_table(folded.name, 1);
        INSERT INTO view_generation (projection, generation, version, state, position)
        VALUES (folded.name, 1, folded.version, 'active', folded.position);
        INSERT INTO view_poison (projection, generation, stream_id, position, error, recorded_at)
        SELECT e.projection, 1, e.stream_id, e.position, e.error, e.recorded_at
        FROM poison_event AS e
        WHERE e.projection = folded.name AND e.version = folded.version;
    END LOOP;
END
$$;
