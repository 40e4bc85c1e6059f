-- Events, written in the transaction of what they tell (runtime/outbox.py). A smaller id can commit later than a larger
-- one, so what is to be published is marked on the row: a remembered high-water mark would skip it.
CREATE TABLE outbox (
    event_id      bigint PRIMARY KEY DEFAULT next_id(),
    -- Events with the same key are published to the same partition.
    partition_key bigint NOT NULL,
    -- feedmesh.event.v1.Event without its event_id, serialized.
    event         bytea  NOT NULL,
    -- Rows stay for a while after this: what a Redis lost is published again from them.
    published_at  timestamptz
);
CREATE INDEX outbox_pending ON outbox (event_id) WHERE published_at IS NULL;

-- What this service knows of the Redis that it fills (runtime/epochs.py), by the name of what it keeps there.
CREATE TABLE redis_epochs (
    name       text   PRIMARY KEY,
    -- Tells this mesh's data from another's in the same Redis.
    mesh       uuid   NOT NULL DEFAULT gen_random_uuid(),
    -- Raised whenever Redis may have lost something.
    epoch      bigint NOT NULL DEFAULT 0,
    -- The run of the Redis server that the epoch began with: a restarted or replaced server has another.
    run_id     text   NOT NULL DEFAULT '',
    -- The outbox's events above redo_after and up to redo_to are still to be published again; NULL for none.
    redo_after bigint,
    redo_to    bigint
);
