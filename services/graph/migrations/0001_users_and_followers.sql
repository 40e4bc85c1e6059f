CREATE TABLE users (
    user_id           bigint PRIMARY KEY DEFAULT next_id(),
    username          text        NOT NULL,
    email             text        NOT NULL,
    created_at        timestamptz NOT NULL GENERATED ALWAYS AS (id_time(user_id)) STORED,
    -- Raised by every change of whom this person follows, in the change's own transaction.
    relations_version bigint      NOT NULL DEFAULT 1
) WITH (fillfactor = 80);
CREATE UNIQUE INDEX users_username ON users (lower(username));
CREATE UNIQUE INDEX users_email ON users (lower(email));

CREATE TABLE followers (
    follower_id  bigint      NOT NULL REFERENCES users (user_id),
    following_id bigint      NOT NULL REFERENCES users (user_id),
    -- Gives listings their order, and the follow its time.
    follow_id    bigint      NOT NULL DEFAULT next_id(),
    created_at   timestamptz NOT NULL GENERATED ALWAYS AS (id_time(follow_id)) STORED,
    PRIMARY KEY (follower_id, following_id),
    CHECK (follower_id <> following_id)
);
CREATE INDEX followers_of ON followers (following_id, follow_id) INCLUDE (follower_id);
CREATE INDEX following_of ON followers (follower_id, follow_id) INCLUDE (following_id);

-- Totals plus pending deltas equal the rows of followers, in every snapshot (runtime/counts.py).
CREATE TABLE user_counts (
    user_id   bigint PRIMARY KEY,
    followers bigint NOT NULL DEFAULT 0,
    following bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 70);
CREATE TABLE user_count_deltas (
    delta_id  bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    user_id   bigint  NOT NULL,
    followers integer NOT NULL DEFAULT 0,
    following integer NOT NULL DEFAULT 0
);
CREATE INDEX user_count_deltas_of ON user_count_deltas (user_id);
