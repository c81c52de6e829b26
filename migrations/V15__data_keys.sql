-- The keys that personal texts are sealed under before they are stored: one for each subject, itself
-- sealed under a master key that is not in the database.

CREATE TABLE data_key (
    stream_id uuid NOT NULL,
    wrapped bytea,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    erased_at timestamptz,
    CONSTRAINT data_key_pkey PRIMARY KEY (stream_id),
    CONSTRAINT data_key_is_there_or_erased CHECK ((wrapped IS NULL) = (erased_at IS NOT NULL))
);

COMMENT ON TABLE data_key IS 'The key of each subject, wrapped. Its row outlives the key: nothing is sealed for an erased subject again.';
COMMENT ON COLUMN data_key.stream_id IS 'The subject: the stream of an agent or a node; else the stream itself.';
COMMENT ON COLUMN data_key.wrapped IS 'Nonce, key and tag under a master key (AES-256-GCM); null once erased.';
COMMENT ON COLUMN data_key.erased_at IS 'When PersonalDataErased was recorded.';

-- The event and the end of its key are one transaction: neither is ever there without the other.
CREATE FUNCTION erase_data_key() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    INSERT INTO data_key AS k (stream_id, wrapped, created_at, erased_at)
    VALUES (NEW.stream_id, NULL, NEW.recorded_at, NEW.recorded_at)
    ON CONFLICT (stream_id) DO UPDATE SET wrapped = NULL, erased_at = excluded.erased_at
    WHERE k.erased_at IS NULL;
    RETURN NULL;
END
$$;

COMMENT ON FUNCTION erase_data_key IS 'Destroys the key of the stream of a PersonalDataErased.';

-- 120 is PersonalDataErased, see schemas/src/event.rs. Of other events Postgres looks at the type
-- and no further.
CREATE TRIGGER event_erases_data_key
AFTER INSERT ON event
FOR EACH ROW WHEN (NEW.type = 120)
EXECUTE FUNCTION erase_data_key();

-- The server makes keys and reads them; it ends one by recording the event, and in no other way.
GRANT SELECT, INSERT ON data_key TO milepost_app;
