-- Who signs in with a password.
CREATE TABLE credentials (
    user_id       bigint PRIMARY KEY REFERENCES users (user_id),
    -- Argon2id in the PHC string format: parameters, salt and hash.
    password_hash text        NOT NULL,
    -- When tries would be spread out as they may come (GCRA's theoretical arrival time); a right password sets it back.
    tries_until   timestamptz NOT NULL DEFAULT '-infinity'
);

-- Who signs in elsewhere, by what their issuer calls them.
CREATE TABLE identities (
    issuer  text   NOT NULL,
    subject text   NOT NULL,
    user_id bigint NOT NULL REFERENCES users (user_id),
    PRIMARY KEY (issuer, subject)
);
CREATE INDEX identities_of ON identities (user_id);

CREATE TABLE sessions (
    session_id bigint PRIMARY KEY DEFAULT next_id(),
    user_id    bigint      NOT NULL REFERENCES users (user_id),
    created_at timestamptz NOT NULL GENERATED ALWAYS AS (id_time(session_id)) STORED,
    renewed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    ended_at   timestamptz,
    -- Which refresh token counts. The tokens themselves are stored nowhere: they are made from this with the secret.
    generation integer     NOT NULL DEFAULT 1
);
CREATE INDEX sessions_of ON sessions (user_id, session_id);
CREATE INDEX sessions_renewed ON sessions (renewed_at);
CREATE INDEX sessions_ended ON sessions (ended_at) WHERE ended_at IS NOT NULL;

-- What access tokens are signed with; the newest signs.
CREATE TABLE signing_keys (
    key_id     text PRIMARY KEY,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- A public JWK, as JSON.
    public_key text        NOT NULL,
    -- The private JWK as a JWE, for whoever has the secret.
    sealed_key text        NOT NULL
);
