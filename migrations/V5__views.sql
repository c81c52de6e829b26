-- What the log means, kept ready: state and checkpoint change in one transaction.

CREATE TABLE projection (
    name text NOT NULL,
    version smallint NOT NULL,
    position bigint NOT NULL DEFAULT 0,
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT projection_pkey PRIMARY KEY (name, version)
);
COMMENT ON TABLE projection IS 'How far each version of each view has folded the log.';

CREATE TABLE view_row (
    projection text NOT NULL,
    version smallint NOT NULL,
    key uuid NOT NULL,
    position bigint NOT NULL,
    label text NOT NULL,
    state bytea NOT NULL,
    CONSTRAINT view_row_pkey PRIMARY KEY (projection, version, key)
) WITH (fillfactor = 70);
COMMENT ON TABLE view_row IS 'One row of state a key of each view.';
COMMENT ON COLUMN view_row.position IS 'The last event folded into this row.';
COMMENT ON COLUMN view_row.label IS 'What lists count and filter by: a status.';
COMMENT ON COLUMN view_row.state IS 'The fold''s state as JSON.';
CREATE INDEX view_row_label ON view_row (projection, version, label, key);

CREATE TABLE poison_event (
    projection text NOT NULL,
    version smallint NOT NULL,
    position bigint NOT NULL,
    stream_id uuid NOT NULL,
    error text NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT poison_event_pkey PRIMARY KEY (projection, version, stream_id)
);
COMMENT ON TABLE poison_event IS 'Streams a view has stopped folding, and the event it stopped at.';
