-- The table of a view's rows is made with its indexes, and filled in the order of its keys: so each row
-- goes to where the last one went, on as many processors as there are fillers. Made afterwards, the
-- indexes took one processor a sixth of a rebuild. A tenth of the usual sample tells the planner what it
-- needs to know of them: that keys are unique, and that there are a handful of labels.

CREATE OR REPLACE FUNCTION create_view_table(projection text, generation integer) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    name text := view_table(projection, generation);
BEGIN
    EXECUTE format(
        'CREATE TABLE %I (key uuid NOT NULL, position bigint NOT NULL, label text NOT NULL, '
        'state bytea NOT NULL, CONSTRAINT %I PRIMARY KEY (key)) '
        'WITH (fillfactor = 70, toast_tuple_target = 8160)',
        name, name || '_pkey'
    );
    EXECUTE format('CREATE INDEX %I ON %I (label, key)', name || '_label', name);
    EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I TO milepost_app', name);
END
$$;
COMMENT ON FUNCTION create_view_table IS 'Makes the table of a generation, with its indexes.';

CREATE FUNCTION analyze_view_table(projection text, generation integer) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path FROM CURRENT SET default_statistics_target = 10 AS $$
BEGIN
    EXECUTE format('ANALYZE %I', view_table(projection, generation));
END
$$;
COMMENT ON FUNCTION analyze_view_table IS 'Tells the planner what a generation''s table holds, once it is filled.';

COMMENT ON FUNCTION index_view_table IS 'For code of before, which filled a table first: makes the indexes it has not.';
GRANT EXECUTE ON FUNCTION analyze_view_table TO milepost_app;
