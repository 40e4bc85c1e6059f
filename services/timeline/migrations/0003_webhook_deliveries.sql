-- Notifications that are to be handed to the operator's webhook.
CREATE TABLE webhook_deliveries (
    event_id bigint      NOT NULL,
    user_id  bigint      NOT NULL,
    kind     smallint    NOT NULL,
    post_id  bigint      NOT NULL,
    actor_id bigint      NOT NULL,
    tries    smallint    NOT NULL DEFAULT 0,
    noted_at timestamptz NOT NULL DEFAULT now(),
    due_at   timestamptz NOT NULL DEFAULT now(),
    -- An event id is unique only within the service that wrote it, which the kind tells.
    PRIMARY KEY (event_id, user_id, kind)
);
CREATE INDEX webhook_deliveries_due ON webhook_deliveries (due_at);
CREATE INDEX webhook_deliveries_noted ON webhook_deliveries (noted_at);
