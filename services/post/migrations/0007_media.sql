-- Images and videos, one row for each person who uploaded it: the objects are named by content, and kept for as long as any
-- row names them (services/post/media.py).
CREATE TABLE media (
    upload_id   bigint   NOT NULL DEFAULT next_id() PRIMARY KEY,
    media_id    text     NOT NULL,
    user_id     bigint   NOT NULL,
    -- The largest, which posts show.
    size        text     NOT NULL,
    width       integer  NOT NULL,
    height      integer  NOT NULL,
    duration_ms bigint   NOT NULL,
    bytes       bigint   NOT NULL,
    -- When it is looked whether a post of theirs shows it; null while one is known to.
    due_at      timestamptz DEFAULT now() + interval '24 hours',
    UNIQUE (media_id, user_id)
);
CREATE INDEX media_by ON media (user_id, upload_id);
CREATE INDEX media_due ON media (due_at) WHERE due_at IS NOT NULL;
-- Media whose objects may be named by no row any more.
CREATE TABLE media_left (
    media_id text        NOT NULL PRIMARY KEY,
    left_at  timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX media_left_at ON media_left (left_at);
-- Which posts show a media.
CREATE INDEX posts_showing ON posts (media_url, user_id) WHERE media_url LIKE '/media/%';
