CREATE TABLE posts (
    post_id        bigint      NOT NULL DEFAULT next_id(),
    user_id        bigint      NOT NULL,
    content        text        NOT NULL,
    media_url      text        NOT NULL DEFAULT '',
    created_at     timestamptz NOT NULL GENERATED ALWAYS AS (id_time(post_id)) STORED,
    -- The original that a plain share repeats; the post's own id for every other post.
    original_id    bigint      NOT NULL,
    -- The original of a plain share or a quote.
    shared_post_id bigint,
    -- A deleted post stays as an empty row, so that deleting it again is no error.
    deleted_at     timestamptz,
    -- Whether upkeep has cleared away what hung on the deleted post.
    swept          boolean     NOT NULL DEFAULT false,
    PRIMARY KEY (post_id)
) PARTITION BY RANGE (post_id);

-- One partition a month (UTC), made ahead by services/post/upkeep.py.
CREATE FUNCTION make_post_partitions(months_ahead integer) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    month timestamp;
    made integer := 0;
BEGIN
    -- One maker at a time; the other then finds them made.
    PERFORM pg_advisory_xact_lock(hashtextextended('make_post_partitions', 0));
    -- Attaching keeps writes to likes, comments and shares waiting for a moment; it is given up where that takes long.
    PERFORM set_config('lock_timeout', '500ms', true);
    FOR month IN
        SELECT generate_series(date_trunc('month', now() AT TIME ZONE 'UTC'),
                               date_trunc('month', now() AT TIME ZONE 'UTC') + make_interval(months => months_ahead),
                               interval '1 month')
    LOOP
        IF to_regclass(format('posts_%s', to_char(month, 'YYYY_MM'))) IS NULL THEN
            -- Made and then attached: `PARTITION OF` would stop all readers and writers while it waits for its lock.
            EXECUTE format('CREATE TABLE posts_%s (LIKE posts INCLUDING ALL)', to_char(month, 'YYYY_MM'));
            EXECUTE format('ALTER TABLE posts ATTACH PARTITION posts_%s FOR VALUES FROM (%s) TO (%s)',
                           to_char(month, 'YYYY_MM'),
                           id_at(month AT TIME ZONE 'UTC'),
                           id_at((month + interval '1 month') AT TIME ZONE 'UTC'));
            made := made + 1;
        END IF;
    END LOOP;
    RETURN made;
END
$$;
SELECT make_post_partitions(3);

CREATE INDEX posts_of ON posts (user_id, post_id) INCLUDE (original_id) WHERE deleted_at IS NULL;
-- What an original's count of shares counts, and what goes with it when it is deleted.
CREATE INDEX posts_sharing ON posts (shared_post_id) WHERE shared_post_id IS NOT NULL AND deleted_at IS NULL;
-- What upkeep still has to clear away.
CREATE INDEX posts_deleted ON posts (deleted_at) WHERE deleted_at IS NOT NULL AND NOT swept;

CREATE TABLE likes (
    like_id    bigint      NOT NULL DEFAULT next_id(),
    user_id    bigint      NOT NULL,
    post_id    bigint      NOT NULL REFERENCES posts (post_id),
    -- The post's author: what a person likes of whom is asked on every ranked read.
    author_id  bigint      NOT NULL,
    created_at timestamptz NOT NULL GENERATED ALWAYS AS (id_time(like_id)) STORED,
    PRIMARY KEY (like_id),
    UNIQUE (post_id, user_id)
);
CREATE INDEX likes_by ON likes (user_id, like_id) INCLUDE (author_id);

CREATE TABLE comments (
    comment_id bigint      NOT NULL DEFAULT next_id(),
    post_id    bigint      NOT NULL REFERENCES posts (post_id),
    user_id    bigint      NOT NULL,
    author_id  bigint      NOT NULL,
    content    text        NOT NULL,
    created_at timestamptz NOT NULL GENERATED ALWAYS AS (id_time(comment_id)) STORED,
    -- As with posts: a deleted comment stays as an empty row.
    deleted_at timestamptz,
    PRIMARY KEY (comment_id)
);
CREATE INDEX comments_under ON comments (post_id, comment_id);
CREATE INDEX comments_by ON comments (user_id, comment_id) INCLUDE (author_id) WHERE deleted_at IS NULL;

-- Plain shares: one per person and original. The share is a row of posts too, under share_id.
CREATE TABLE shares (
    share_id   bigint      NOT NULL,
    user_id    bigint      NOT NULL,
    post_id    bigint      NOT NULL REFERENCES posts (post_id),
    author_id  bigint      NOT NULL,
    created_at timestamptz NOT NULL GENERATED ALWAYS AS (id_time(share_id)) STORED,
    PRIMARY KEY (post_id, user_id),
    FOREIGN KEY (share_id) REFERENCES posts (post_id)
);
CREATE INDEX shares_by ON shares (user_id, share_id) INCLUDE (author_id);

-- Totals plus pending deltas equal the rows of likes, comments and posts (shares and quotes), in every snapshot.
CREATE TABLE post_counts (
    post_id  bigint PRIMARY KEY,
    likes    bigint      NOT NULL DEFAULT 0,
    comments bigint      NOT NULL DEFAULT 0,
    shares   bigint      NOT NULL DEFAULT 0,
    -- Recent engagement, decayed to heat_at (runtime/counts.py).
    heat     real        NOT NULL DEFAULT 0,
    heat_at  timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 70);
CREATE TABLE post_count_deltas (
    delta_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    post_id  bigint  NOT NULL,
    likes    integer NOT NULL DEFAULT 0,
    comments integer NOT NULL DEFAULT 0,
    shares   integer NOT NULL DEFAULT 0
);
CREATE INDEX post_count_deltas_of ON post_count_deltas (post_id);
