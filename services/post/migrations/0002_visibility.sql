-- Who may see the post, as the number of feedmesh.post.v1.Visibility. That the author's account may be private, and who
-- is kept away by a block, the graph knows.
ALTER TABLE posts ADD COLUMN visibility smallint NOT NULL DEFAULT 1;
