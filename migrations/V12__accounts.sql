-- Roles, expiry and revocation; what slows down guessing; and events of all that.
--
-- Whoever was here before could do everything, and still can: they become admins. Code of before
-- goes on; an account or a token that it makes meanwhile may only look.

ALTER TABLE account ADD COLUMN role text NOT NULL DEFAULT 'admin';
ALTER TABLE account ALTER COLUMN role SET DEFAULT 'viewer';
ALTER TABLE account ADD COLUMN disabled_at timestamptz;
ALTER TABLE account ADD CONSTRAINT account_role_known
    CHECK (role IN ('viewer', 'operator', 'auditor', 'admin'));
COMMENT ON COLUMN account.email IS 'Here and nowhere else: events name the account by its id.';
COMMENT ON COLUMN account.disabled_at IS 'Since when it may not log in.';

ALTER TABLE session ADD COLUMN id uuid NOT NULL DEFAULT gen_random_uuid();
ALTER TABLE session ADD COLUMN last_used_at timestamptz;
ALTER TABLE session ADD COLUMN address text;
ALTER TABLE session ADD COLUMN user_agent text;
CREATE UNIQUE INDEX session_id ON session (id);
CREATE INDEX session_account ON session (account_id);
COMMENT ON COLUMN session.id IS 'What people and events call it; the cookie holds another secret.';
COMMENT ON COLUMN session.last_used_at IS 'Written at most once a minute.';
COMMENT ON COLUMN session.address IS 'Where it was begun from. Goes with the session.';

ALTER TABLE api_token ADD COLUMN id uuid NOT NULL DEFAULT gen_random_uuid();
ALTER TABLE api_token ADD COLUMN role text NOT NULL DEFAULT 'admin';
ALTER TABLE api_token ALTER COLUMN role SET DEFAULT 'viewer';
ALTER TABLE api_token ADD COLUMN scopes text[] NOT NULL DEFAULT '{}';
ALTER TABLE api_token ADD COLUMN expires_at timestamptz;
ALTER TABLE api_token ADD COLUMN last_used_at timestamptz;
ALTER TABLE api_token ADD CONSTRAINT api_token_role_known
    CHECK (role IN ('viewer', 'operator', 'auditor', 'admin'));
CREATE UNIQUE INDEX api_token_id ON api_token (id);
COMMENT ON COLUMN api_token.scopes IS 'The rights it is narrowed to; empty where it may do all that its role may.';
COMMENT ON COLUMN api_token.last_used_at IS 'Written at most once a minute.';

-- A number that grows with every change of who may come in. Each process looks at it four times a
-- second; only when it has grown are the credentials of open streams looked at again.
CREATE TABLE access_change (
    one_row boolean PRIMARY KEY DEFAULT true,
    version bigint NOT NULL,
    CONSTRAINT access_change_is_one_row CHECK (one_row)
) WITH (fillfactor = 10);
COMMENT ON TABLE access_change IS 'Grows with every change of who may come in. Its row lock orders those changes.';
INSERT INTO access_change (version) VALUES (1);

CREATE FUNCTION note_access_change() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    UPDATE access_change SET version = version + 1 WHERE one_row;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION note_access_change IS 'Tells every process that somebody may come in, or may not any more.';

-- A row at a time: the statement that clears sessions away finds none most of the time.
CREATE TRIGGER account_changes AFTER INSERT OR DELETE OR UPDATE OF email, role, disabled_at ON account
FOR EACH ROW EXECUTE FUNCTION note_access_change();
CREATE TRIGGER session_ends AFTER DELETE OR UPDATE OF expires_at ON session
FOR EACH ROW EXECUTE FUNCTION note_access_change();
CREATE TRIGGER api_token_ends
AFTER DELETE OR UPDATE OF token_sha256, role, scopes, expires_at ON api_token
FOR EACH ROW EXECUTE FUNCTION note_access_change();

CREATE TABLE log_in_failure (
    key bytea NOT NULL,
    failures integer NOT NULL,
    last_at timestamptz NOT NULL,
    CONSTRAINT log_in_failure_pkey PRIMARY KEY (key)
);
CREATE INDEX log_in_failure_last_at ON log_in_failure (last_at);
COMMENT ON TABLE log_in_failure IS 'How often log-ins failed of late: by account, by address, and by both. Bounded.';
COMMENT ON COLUMN log_in_failure.key IS 'SHA-256 of what is counted: no address of anybody stands here.';

-- Appends one event to the end of its stream: the last statement of a transaction that changes
-- accounts, so that the change and its event are there together or not at all.
CREATE FUNCTION append_event(
    stream uuid,
    type smallint,
    schema_version smallint,
    header bytea,
    body bytea
) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    known integer;
    appended record;
BEGIN
    -- The lock that orders all appends: nobody extends the stream between the look and the write.
    PERFORM FROM log_head AS h WHERE h.one_row FOR UPDATE;
    SELECT coalesce(max(e.version), 0) INTO known FROM event AS e WHERE e.stream_id = stream;
    SELECT * INTO appended FROM append_batch(
        -1, ARRAY[stream], ARRAY[known], 1,
        ARRAY[stream], ARRAY[known + 1], ARRAY[type], ARRAY[schema_version],
        ARRAY[header], ARRAY[body], NULL, 'accounts'
    );
    IF appended.stale_streams IS NOT NULL THEN
        RAISE EXCEPTION 'stream % moved on under the lock', stream;
    END IF;
    RETURN appended.base + 1;
END
$$;
COMMENT ON FUNCTION append_event IS 'Appends one event to the end of its stream, within a transaction that changes accounts.';

GRANT SELECT, UPDATE ON access_change TO milepost_app;
GRANT SELECT, INSERT, UPDATE, DELETE ON log_in_failure TO milepost_app;
GRANT EXECUTE ON FUNCTION append_event, note_access_change TO milepost_app;
