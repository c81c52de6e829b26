-- Who may come in. Secrets are kept as SHA-256 (random tokens) or Argon2id (passwords).

CREATE TABLE account (
    id uuid NOT NULL,
    email text NOT NULL,
    password_hash text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT account_pkey PRIMARY KEY (id)
);
CREATE UNIQUE INDEX account_email ON account (lower(email));
COMMENT ON TABLE account IS 'People who may log in.';

CREATE TABLE session (
    token_sha256 bytea NOT NULL,
    account_id uuid NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    CONSTRAINT session_pkey PRIMARY KEY (token_sha256),
    CONSTRAINT session_account_fkey FOREIGN KEY (account_id) REFERENCES account (id)
);
CREATE INDEX session_expires_at ON session (expires_at);
COMMENT ON TABLE session IS 'Browsers that are logged in; a log-out deletes the row.';

CREATE TABLE login_link (
    token_sha256 bytea NOT NULL,
    account_id uuid NOT NULL,
    expires_at timestamptz NOT NULL,
    CONSTRAINT login_link_pkey PRIMARY KEY (token_sha256),
    CONSTRAINT login_link_account_fkey FOREIGN KEY (account_id) REFERENCES account (id)
);
COMMENT ON TABLE login_link IS 'Links that log in once; using one deletes the row.';

CREATE TABLE api_token (
    token_sha256 bytea NOT NULL,
    name text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT api_token_pkey PRIMARY KEY (token_sha256),
    CONSTRAINT api_token_name UNIQUE (name)
);
COMMENT ON TABLE api_token IS 'Programs that may call the API; deleting the row revokes.';
