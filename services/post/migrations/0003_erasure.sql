-- Who was erased: what is theirs goes in bounded steps (services/post/eraser.py), and what transactions under way still
-- wrote goes too. The row stays, as the promise that nothing comes back.
CREATE TABLE erased_users (
    user_id   bigint      PRIMARY KEY,
    erased_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    done      boolean     NOT NULL DEFAULT false
);
CREATE INDEX erased_users_open ON erased_users (erased_at) WHERE NOT done;
-- Whose the empty rows are that deleted posts and comments leave behind.
CREATE INDEX posts_deleted_by ON posts (user_id) WHERE deleted_at IS NOT NULL;
CREATE INDEX comments_deleted_by ON comments (user_id) WHERE deleted_at IS NOT NULL;
