-- The journal: what is stored once, and where. Every name is within the schema that search_path names.
--
-- Names, keys and ids compare as bytes (COLLATE "C"), so that their order is the same on every
-- server and equals the hub's. "place" is an offset, a word that SQL keeps for itself. Times are
-- milliseconds since the Unix epoch; fingerprints and epochs are 32 bits, read as signed.

-- Which history this is, and of which server: one row.
CREATE TABLE store (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    epoch integer NOT NULL,
    system_identifier bigint NOT NULL,
    timeline integer NOT NULL
);

CREATE SEQUENCE topic_ids;

-- The heads. A row is locked by whoever changes anything of its topic, until that is committed: so
-- commit order is offset order. Half of each page stays free, so that an update needs no new entry
-- in an index and its old row is gone with the next look at the page, without any vacuum.
CREATE TABLE topics (
    id bigint PRIMARY KEY,
    tenant text COLLATE "C" NOT NULL,
    name text COLLATE "C" NOT NULL,
    incarnation integer NOT NULL,
    closed boolean NOT NULL,
    tail bigint NOT NULL,
    tail_fingerprint integer NOT NULL,
    floor bigint NOT NULL,
    floor_fingerprint integer NOT NULL,
    events bigint NOT NULL,
    bytes bigint NOT NULL,
    states bigint NOT NULL,
    written_at bigint NOT NULL,
    has_events boolean NOT NULL,
    properties text NOT NULL,
    UNIQUE (tenant, name)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05);

-- How often topics of a slot were deleted; 2^20 slots a tenant, so that this is bounded.
CREATE TABLE deletions (
    tenant text COLLATE "C" NOT NULL,
    slot integer NOT NULL,
    count bigint NOT NULL,
    PRIMARY KEY (tenant, slot)
);

-- Log events and tombstones. Rows are added at the end and removed from the front, never updated.
-- Eight parts by topic, so that each vacuum passes over an eighth; one in fifty rows removed makes
-- a part be vacuumed, which gives the space to the next rows. Records are not compressed: their
-- first bytes are read alone, and the processor is what is short.
CREATE TABLE log (
    topic bigint NOT NULL,
    place bigint NOT NULL,
    recorded_at bigint NOT NULL,
    data_bytes integer NOT NULL,
    record bytea NOT NULL,
    PRIMARY KEY (topic, place)
) PARTITION BY HASH (topic);
ALTER TABLE log ALTER COLUMN record SET STORAGE EXTERNAL;

-- The newest state of each key.
CREATE TABLE states (
    topic bigint NOT NULL,
    key text COLLATE "C" NOT NULL,
    place bigint NOT NULL,
    recorded_at bigint NOT NULL,
    expires_at bigint,
    due_at bigint,
    data_bytes integer NOT NULL,
    record bytea NOT NULL,
    PRIMARY KEY (topic, key)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05);
ALTER TABLE states ALTER COLUMN record SET STORAGE EXTERNAL;
CREATE UNIQUE INDEX states_by_place ON states (topic, place);
CREATE INDEX states_by_expiry ON states (expires_at, topic, place) WHERE expires_at IS NOT NULL;
CREATE INDEX states_by_due ON states (due_at, topic, place) WHERE due_at IS NOT NULL;

-- What superseded states leave behind, as long as the log of their time is kept.
CREATE TABLE marks (
    topic bigint NOT NULL,
    place bigint NOT NULL,
    fingerprint integer NOT NULL,
    recorded_at bigint NOT NULL,
    PRIMARY KEY (topic, place)
) WITH (autovacuum_vacuum_scale_factor = 0.02);

-- Where event ids that publishers chose were stored first.
CREATE TABLE dedup (
    topic bigint NOT NULL,
    id text COLLATE "C" NOT NULL,
    place bigint NOT NULL,
    fingerprint integer NOT NULL,
    recorded_at bigint NOT NULL,
    PRIMARY KEY (topic, id)
) PARTITION BY HASH (topic);
CREATE INDEX dedup_by_place ON dedup (topic, place);

-- Deleted topics whose rows are still to be removed, in small steps.
CREATE TABLE deleted (
    topic bigint PRIMARY KEY
);

DO $$
BEGIN
    FOR part IN 0..7 LOOP
        EXECUTE format(
            'CREATE TABLE log_%s PARTITION OF log FOR VALUES WITH (MODULUS 8, REMAINDER %s)
             WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.2)',
            part, part);
        EXECUTE format(
            'CREATE TABLE dedup_%s PARTITION OF dedup FOR VALUES WITH (MODULUS 8, REMAINDER %s)
             WITH (autovacuum_vacuum_scale_factor = 0.05)',
            part, part);
    END LOOP;
END
$$;

-- The first history: its epoch is drawn when the first connection sees that the server is not this.
INSERT INTO store (epoch, system_identifier, timeline) VALUES (0, 0, 0);
