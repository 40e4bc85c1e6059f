-- From now on all that changes what a process holds of a post (services/post/hot.py) is noted, likes too, and all notes
-- since a snapshot are read at once: by transaction alone. user_id is whose posts there are more or fewer of, liker_id who
-- likes more or fewer; 0 for nobody. Kept for two minutes.
ALTER TABLE post_changes ADD COLUMN liker_id bigint NOT NULL DEFAULT 0;
DROP INDEX post_changes_of;
CREATE INDEX post_changes_since ON post_changes (xid) INCLUDE (user_id, post_id, liker_id);
