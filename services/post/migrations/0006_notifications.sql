-- What concerns people (store.acts_of): read by whom it concerns, newest first.
CREATE INDEX likes_of ON likes (author_id, like_id) INCLUDE (user_id, post_id);
CREATE INDEX comments_of ON comments (author_id, comment_id) INCLUDE (user_id, post_id) WHERE deleted_at IS NULL;
CREATE INDEX shares_of ON shares (author_id, share_id) INCLUDE (user_id, post_id);

-- Whom a post or comment mentions, and whose post a quote is of. No foreign keys: what is left of a deleted post concerns
-- nobody, as nobody may see it, and goes with its author's or reader's account at the latest.
CREATE TABLE mentions (
    mention_id bigint  NOT NULL DEFAULT next_id() PRIMARY KEY,
    user_id    bigint  NOT NULL,
    actor_id   bigint  NOT NULL,
    post_id    bigint  NOT NULL,
    -- 0 where the post itself mentions.
    comment_id bigint  NOT NULL DEFAULT 0,
    is_quote   boolean NOT NULL DEFAULT false
);
CREATE INDEX mentions_of ON mentions (user_id, mention_id) INCLUDE (actor_id, post_id, comment_id, is_quote);
CREATE INDEX mentions_by ON mentions (actor_id);
CREATE INDEX mentions_in ON mentions (post_id, comment_id);
