-- Ids of 53 bits that sort by time: 41 bits of milliseconds since 2024-01-01 UTC, 12 bits of a sequence. They fit a
-- number of JSON and a double, need no leases, and carry their creation time. The sequence wraps, and a clock may step
-- back: an id can repeat, so a unique violation on a primary key is tried again (runtime/postgres.py).
CREATE SEQUENCE id_sequence MINVALUE 0 MAXVALUE 4095 CYCLE;

CREATE FUNCTION next_id() RETURNS bigint LANGUAGE sql VOLATILE AS $$
    SELECT ((floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint - 1704067200000) << 12) | nextval('id_sequence')
$$;

-- When an id was made.
CREATE FUNCTION id_time(id bigint) RETURNS timestamptz LANGUAGE sql IMMUTABLE STRICT AS $$
    SELECT to_timestamp(((id >> 12) + 1704067200000) / 1000.0)
$$;

-- The lowest id that can be made at a time.
CREATE FUNCTION id_at(at timestamptz) RETURNS bigint LANGUAGE sql IMMUTABLE STRICT AS $$
    SELECT (floor(extract(epoch FROM at) * 1000)::bigint - 1704067200000) << 12
$$;
