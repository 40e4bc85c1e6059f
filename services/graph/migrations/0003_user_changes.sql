-- Who changed in a way that others see, so that callers may keep what they know of all the rest. Versions are
-- consecutive, from 2 on (1: nobody yet), and become visible in their order: the only row of user_version is locked
-- until the transaction ends.
CREATE TABLE user_version (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    version  bigint  NOT NULL
);

CREATE TABLE user_changes (
    version bigint PRIMARY KEY,
    user_id bigint NOT NULL
);

CREATE FUNCTION note_user_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    WITH next AS (
        INSERT INTO user_version (version) VALUES (2)
        ON CONFLICT (only_row) DO UPDATE SET version = user_version.version + 1 RETURNING version
    )
    INSERT INTO user_changes (version, user_id) SELECT version, NEW.user_id FROM next;
    RETURN NULL;
END
$$;
CREATE TRIGGER users_changed AFTER UPDATE OF username, private, erased_at ON users
    FOR EACH ROW
    WHEN ((OLD.username, OLD.private, OLD.erased_at) IS DISTINCT FROM (NEW.username, NEW.private, NEW.erased_at))
    EXECUTE FUNCTION note_user_change();
