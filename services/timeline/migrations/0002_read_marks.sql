-- Up to which notification people have read theirs.
CREATE TABLE read_marks (
    user_id         bigint PRIMARY KEY,
    notification_id bigint NOT NULL
);
