-- What changed of posts that a process may hold in memory for half a second (services/post/hot.py), and who is to see that
-- at once all the same: 0 stands for everyone. By transactions and not by time, a read can tell what it has not seen: all
-- of a transaction below its snapshot's xmin it has. Likes are not here, as their ids tell when they came. Kept for ten
-- minutes.
CREATE TABLE post_changes (
    user_id    bigint      NOT NULL,
    xid        xid8        NOT NULL DEFAULT pg_current_xact_id(),
    post_id    bigint      NOT NULL,
    changed_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX post_changes_of ON post_changes (user_id, xid) INCLUDE (post_id);
CREATE INDEX post_changes_at ON post_changes USING brin (changed_at);
