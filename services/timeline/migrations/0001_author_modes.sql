-- Authors whose posts are not simply pushed. An author without a row is in mode push.
CREATE TABLE author_modes (
    author_id   bigint      PRIMARY KEY,
    -- both: pushed and pulled, on the way to `target`. pull: pulled at read time, not pushed.
    mode        text        NOT NULL CHECK (mode IN ('both', 'pull')),
    target      text        NOT NULL CHECK (target IN ('push', 'pull')),
    since       timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- Until then one worker is at work on the way to push.
    lease_until timestamptz NOT NULL DEFAULT '-infinity',
    CHECK (mode = 'both' OR target = 'pull')
);
CREATE INDEX author_modes_on_the_way ON author_modes (since) WHERE mode = 'both';

-- At most one row: what all replicas go by.
CREATE TABLE fanout_state (
    only_row         boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    -- Set by the operator at run time; NULL for FEEDMESH_PUSH_MAX_FOLLOWERS.
    max_followers    bigint,
    -- The limit that all authors were last looked at with.
    reconciled_limit bigint,
    -- Raised by every change of author_modes, in its transaction: who knows it knows the modes.
    modes_version    bigint  NOT NULL DEFAULT 1
);
