-- The Merkle tree over the event log: its hashes in tiles (C2SP tlog-tiles, height 8), the signed
-- checkpoints, and the public keys they are signed with. One process writes here, the one that holds
-- the advisory lock "seal"; nothing of it is on the way of an append.

CREATE TABLE tree_tile (
    level smallint NOT NULL,
    tile_index bigint NOT NULL,
    hashes bytea NOT NULL,
    CONSTRAINT tree_tile_pkey PRIMARY KEY (level, tile_index),
    CONSTRAINT tree_tile_is_whole_hashes
    CHECK (octet_length(hashes) BETWEEN 32 AND 8192 AND octet_length(hashes) % 32 = 0)
);
-- Hashes cannot be compressed.
ALTER TABLE tree_tile ALTER COLUMN hashes SET STORAGE EXTERNAL;

COMMENT ON TABLE tree_tile IS 'Hashes of the Merkle tree, 256 a tile; the last tile of each level grows until it is full.';
COMMENT ON COLUMN tree_tile.level IS '0 holds the hashes of leaves, 1 the roots of full tiles of level 0, and so on.';
COMMENT ON COLUMN tree_tile.tile_index IS 'The place in its level, from 0.';
COMMENT ON COLUMN tree_tile.hashes IS 'SHA-256 as RFC 6962 has it, 32 bytes each.';

CREATE FUNCTION only_extend_tile() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    IF substring(new.hashes FOR octet_length(old.hashes)) IS DISTINCT FROM old.hashes
        OR new.level <> old.level OR new.tile_index <> old.tile_index
    THEN
        RAISE EXCEPTION 'a tile of the Merkle tree only grows'
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN new;
END
$$;

COMMENT ON FUNCTION only_extend_tile IS 'Refuses every change of a tile but further hashes at its end.';

CREATE TRIGGER tree_tile_only_grows
BEFORE UPDATE ON tree_tile
FOR EACH ROW EXECUTE FUNCTION only_extend_tile();

CREATE TABLE checkpoint (
    epoch bigint NOT NULL,
    size bigint NOT NULL,
    root bytea NOT NULL,
    note text NOT NULL,
    sealed_at timestamptz NOT NULL,
    kept boolean NOT NULL,
    CONSTRAINT checkpoint_pkey PRIMARY KEY (epoch, size)
);

COMMENT ON TABLE checkpoint IS 'Signed checkpoints: the latest, and about one a minute of those before it.';
COMMENT ON COLUMN checkpoint.epoch IS 'The epoch of the log that it was signed in; its origin ends with it.';
COMMENT ON COLUMN checkpoint.note IS 'The C2SP signed note, as it was given out.';
COMMENT ON COLUMN checkpoint.kept IS 'Whether it stays when a later one is signed.';

CREATE TABLE sealing_key (
    epoch bigint NOT NULL,
    from_size bigint NOT NULL,
    verifier_key text NOT NULL,
    CONSTRAINT sealing_key_pkey PRIMARY KEY (epoch, from_size)
);

COMMENT ON TABLE sealing_key IS 'The public keys of checkpoints. A key is in force from its size on, until the next one of its epoch.';
COMMENT ON COLUMN sealing_key.verifier_key IS 'The C2SP verifier key: name, key id and public key; the name is the origin.';

GRANT SELECT, INSERT, UPDATE ON tree_tile TO milepost_app;
GRANT SELECT, INSERT, DELETE ON checkpoint TO milepost_app;
GRANT SELECT, INSERT ON sealing_key TO milepost_app;
