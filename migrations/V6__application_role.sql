-- The role the server works under: it may append and read, and cannot change what is recorded.
-- Roles belong to the whole cluster, so it may be there already.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'milepost_app') THEN
        CREATE ROLE milepost_app NOLOGIN;
    END IF;
EXCEPTION WHEN duplicate_object OR unique_violation THEN
    NULL;
END
$$;

GRANT SELECT, INSERT ON event TO milepost_app;
GRANT SELECT, UPDATE ON log_head TO milepost_app;
GRANT SELECT, INSERT, UPDATE, DELETE ON queue TO milepost_app;
GRANT SELECT, INSERT, UPDATE, DELETE ON account, session, login_link, api_token TO milepost_app;
GRANT SELECT, INSERT, UPDATE, DELETE ON projection, view_row, poison_event TO milepost_app;
GRANT EXECUTE ON FUNCTION append_batch, ensure_partitions TO milepost_app;

DO $$
BEGIN
    EXECUTE format('GRANT milepost_app TO %I', current_user);
EXCEPTION WHEN OTHERS THEN
    -- A superuser is a member of every role; anyone else who made it may set it.
    RAISE NOTICE 'milepost_app is not granted to %: %', current_user, SQLERRM;
END
$$;
