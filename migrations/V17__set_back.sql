-- append_batch refuses a log that was set back. Its arguments are those of V8; what V3 and V8 say of
-- them holds. A log that is smaller than its caller has seen it, under this very lock or in what its
-- machine has signed, is an older one that was restored: what is appended over it gets positions that
-- were given before, so nothing is, until `milepost log new-epoch` has said that events are lost.
-- append_event, which knows of no size, passes -1.
CREATE OR REPLACE FUNCTION append_batch(
    known_size bigint,
    heads uuid[],
    head_versions integer[],
    uncertain integer,
    streams uuid[],
    versions integer[],
    types smallint[],
    schema_versions smallint[],
    headers bytea[],
    bodies bytea[],
    queue_rows jsonb,
    writer text,
    OUT epoch bigint,
    OUT base bigint,
    OUT recorded_at timestamptz,
    OUT stale_streams uuid[],
    OUT stale_versions integer[],
    OUT refused_jobs uuid[]
)
LANGUAGE plpgsql AS $$
DECLARE
    checked integer;
    added integer := cardinality(streams);
BEGIN
    UPDATE log_head AS h
    SET size = h.size + added, recorded_at = greatest(h.recorded_at, clock_timestamp())
    WHERE h.one_row
    RETURNING h.epoch, h.size - added, h.recorded_at
    INTO epoch, base, recorded_at;

    IF base < known_size THEN
        RAISE EXCEPTION 'the log was set back: it ends at position %, and was known to reach %',
            base, known_size
            USING ERRCODE = 'MP001';
    END IF;

    checked := CASE WHEN base = known_size THEN uncertain ELSE cardinality(heads) END;
    IF checked > 0 THEN
        SELECT array_agg(c.stream), array_agg(c.actual)
        INTO stale_streams, stale_versions
        FROM (
            SELECT
                b.stream,
                b.believed,
                coalesce((
                    SELECT e.version FROM event AS e
                    WHERE e.stream_id = b.stream ORDER BY e.version DESC LIMIT 1
                ), 0) AS actual
            FROM unnest(heads[1:checked], head_versions[1:checked]) AS b (stream, believed)
        ) AS c
        WHERE c.actual <> c.believed;
        IF stale_streams IS NOT NULL THEN
            UPDATE log_head AS h SET size = base WHERE h.one_row;
            RETURN;
        END IF;
    END IF;

    IF queue_rows IS NOT NULL THEN
        SELECT array_agg(r.job_id)
        INTO refused_jobs
        FROM jsonb_to_recordset(queue_rows)
            AS r (job_id uuid, agent_id uuid, node_id uuid, state text)
        WHERE r.state <> 'ended' AND (
            EXISTS (SELECT FROM queue AS q WHERE q.agent_id = r.agent_id AND q.job_id <> r.job_id)
            OR EXISTS (SELECT FROM queue AS q WHERE q.node_id = r.node_id AND q.job_id <> r.job_id)
        );
        IF refused_jobs IS NOT NULL THEN
            UPDATE log_head AS h SET size = base WHERE h.one_row;
            RETURN;
        END IF;
        DELETE FROM queue AS q
        USING jsonb_to_recordset(queue_rows) AS r (job_id uuid, state text)
        WHERE q.job_id = r.job_id AND r.state = 'ended';
        INSERT INTO queue AS q
            (job_id, job_type, agent_id, node_id, state, due_at, priority, claim)
        SELECT
            r.job_id, r.job_type, r.agent_id, r.node_id, r.state, r.due_at,
            coalesce(r.priority, 0), base + r.claim_ordinal
        FROM jsonb_to_recordset(queue_rows)
            AS r (
                job_id uuid, job_type text, agent_id uuid, node_id uuid, state text,
                due_at timestamptz, priority smallint, claim_ordinal integer
            )
        WHERE r.state <> 'ended'
        ON CONFLICT (job_id) DO UPDATE SET
            state = excluded.state,
            due_at = excluded.due_at,
            priority = excluded.priority,
            claim = coalesce(excluded.claim, q.claim);
    END IF;

    INSERT INTO event
        (position, stream_id, version, type, schema_version, recorded_at, header, body)
    SELECT
        base + n.ordinal, n.stream_id, n.version, n.type, n.schema_version,
        append_batch.recorded_at, n.header, n.body
    FROM unnest(streams, versions, types, schema_versions, headers, bodies)
        WITH ORDINALITY
        AS n (stream_id, version, type, schema_version, header, body, ordinal);

    IF writer IS NOT NULL THEN
        PERFORM pg_notify('milepost_log', (base + added) || ' ' || writer);
    END IF;
END
$$;

COMMENT ON FUNCTION append_batch IS 'Appends a batch of events, all or none, under the lock on the head.';
