ALTER TABLE users
    -- Whether only followers see the posts, and follows are requests first.
    ADD COLUMN private   boolean NOT NULL DEFAULT false,
    -- An erased person stays as an empty row, so that nothing can be written for them any more.
    ADD COLUMN erased_at timestamptz,
    -- Whether upkeep has cleared away what hung on the erased person.
    ADD COLUMN swept     boolean NOT NULL DEFAULT false;
-- relations_version is raised by every change of whom this person follows, blocks or mutes, and of who blocks them.
DROP INDEX users_username;
DROP INDEX users_email;
CREATE UNIQUE INDEX users_username ON users (lower(username)) WHERE erased_at IS NULL;
CREATE UNIQUE INDEX users_email ON users (lower(email)) WHERE erased_at IS NULL;
CREATE INDEX users_erased ON users (erased_at) WHERE erased_at IS NOT NULL AND NOT swept;

-- Who asked to follow a private account. An accepted request becomes a row of followers.
CREATE TABLE follow_requests (
    follower_id       bigint      NOT NULL REFERENCES users (user_id),
    following_id      bigint      NOT NULL REFERENCES users (user_id),
    follow_request_id bigint      NOT NULL DEFAULT next_id(),
    created_at        timestamptz NOT NULL GENERATED ALWAYS AS (id_time(follow_request_id)) STORED,
    PRIMARY KEY (follower_id, following_id),
    CHECK (follower_id <> following_id)
);
CREATE INDEX follow_requests_of ON follow_requests (following_id, follow_request_id) INCLUDE (follower_id);

CREATE TABLE blocks (
    user_id    bigint      NOT NULL REFERENCES users (user_id),
    target_id  bigint      NOT NULL REFERENCES users (user_id),
    block_id   bigint      NOT NULL DEFAULT next_id(),
    created_at timestamptz NOT NULL GENERATED ALWAYS AS (id_time(block_id)) STORED,
    PRIMARY KEY (user_id, target_id),
    CHECK (user_id <> target_id)
);
CREATE INDEX blocks_by ON blocks (user_id, block_id) INCLUDE (target_id);
CREATE INDEX blocks_of ON blocks (target_id) INCLUDE (user_id);

CREATE TABLE mutes (
    user_id    bigint      NOT NULL REFERENCES users (user_id),
    target_id  bigint      NOT NULL REFERENCES users (user_id),
    mute_id    bigint      NOT NULL DEFAULT next_id(),
    created_at timestamptz NOT NULL GENERATED ALWAYS AS (id_time(mute_id)) STORED,
    PRIMARY KEY (user_id, target_id),
    CHECK (user_id <> target_id)
);
CREATE INDEX mutes_by ON mutes (user_id, mute_id) INCLUDE (target_id);
CREATE INDEX mutes_of ON mutes (target_id);
