-- Answers of writes that carried an idempotency key, written in the write's own transaction. Kept for a day.
CREATE TABLE idempotency_keys (
    actor_id    bigint      NOT NULL,
    key         text        NOT NULL,
    -- SHA-256 over the method's request type and the request without its key.
    fingerprint bytea       NOT NULL,
    -- The response message, serialized.
    response    bytea       NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (actor_id, key)
);
CREATE INDEX idempotency_keys_by_age ON idempotency_keys (created_at);
