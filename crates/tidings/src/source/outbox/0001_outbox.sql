-- The outbox: events that applications enqueue in transactions of their own. It needs no journal
-- in this database.
--
-- A row gets its place when its transaction commits, by a trigger that is deferred until then. The
-- trigger first takes a lock of each topic that the transaction has events for, by ascending number,
-- and the commit lets them go after it became visible: so places of a topic ascend in the order of
-- commits, nobody waits for another's whole transaction, and no two wait for each other.

CREATE SEQUENCE outbox_places;

CREATE TABLE outbox (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- NULL until the commit.
    place bigint,
    transaction bigint NOT NULL DEFAULT pg_current_xact_id()::text::bigint,
    -- Who drains a topic drains all of it: 16 parts, so that nodes share the work.
    shard integer NOT NULL,
    lock integer NOT NULL,
    tenant text NOT NULL,
    topic text NOT NULL,
    type text NOT NULL,
    event_id text NOT NULL,
    class text,
    key text,
    data jsonb,
    source text,
    subject text,
    happened_at timestamptz,
    expires_at timestamptz,
    due_at timestamptz,
    ends boolean NOT NULL,
    closes boolean NOT NULL,
    enqueued_at timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 60, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);
CREATE INDEX outbox_by_place ON outbox (shard, place) WHERE place IS NOT NULL;
CREATE INDEX outbox_open ON outbox (transaction) WHERE place IS NULL;

-- Events that can never be published, for a person to look at.
CREATE TABLE outbox_dead (
    id bigint PRIMARY KEY,
    tenant text NOT NULL,
    topic text NOT NULL,
    type text NOT NULL,
    event_id text NOT NULL,
    data jsonb,
    code text NOT NULL,
    reason text NOT NULL,
    enqueued_at timestamptz NOT NULL,
    died_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Enqueues an event: it is published if, and only if, the calling transaction commits. Returns the
-- event's id. Enqueued again under the same id, it is published once.
CREATE FUNCTION enqueue(
    topic text,
    type text,
    data jsonb DEFAULT NULL,
    tenant text DEFAULT 'default',
    key text DEFAULT NULL,
    class text DEFAULT NULL,
    id text DEFAULT NULL,
    source text DEFAULT NULL,
    subject text DEFAULT NULL,
    happened_at timestamptz DEFAULT NULL,
    expires_at timestamptz DEFAULT NULL,
    due_at timestamptz DEFAULT NULL,
    ends boolean DEFAULT false,
    closes boolean DEFAULT false
) RETURNS text LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path FROM CURRENT AS $$
    INSERT INTO outbox (shard, lock, tenant, topic, type, event_id, class, key, data, source,
        subject, happened_at, expires_at, due_at, ends, closes)
    VALUES (hashtext($4 || ' ' || $1) & 15, hashtext($4 || ' ' || $1), $4, $1, $2,
        coalesce($7, gen_random_uuid()::text), $6, $5, $3, $8, $9, $10, $11, $12, $13, $14)
    RETURNING event_id
$$;

CREATE FUNCTION outbox_place() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
    SET search_path FROM CURRENT AS $$
DECLARE
    own bigint := pg_current_xact_id()::text::bigint;
    found_id bigint;
    topic_lock integer;
BEGIN
    -- The first row's turn places all rows of the transaction.
    IF NOT EXISTS (SELECT FROM outbox AS o WHERE o.id = NEW.id AND o.place IS NULL) THEN
        RETURN NULL;
    END IF;
    FOR topic_lock IN
        SELECT DISTINCT o.lock FROM outbox AS o
        WHERE o.transaction = own AND o.place IS NULL ORDER BY o.lock
    LOOP
        PERFORM pg_advisory_xact_lock('outbox'::regclass::oid::integer, topic_lock);
    END LOOP;
    FOR found_id IN
        SELECT o.id FROM outbox AS o
        WHERE o.transaction = own AND o.place IS NULL ORDER BY o.id
    LOOP
        UPDATE outbox AS o SET place = nextval('outbox_places') WHERE o.id = found_id;
    END LOOP;
    RETURN NULL;
END
$$;

CREATE CONSTRAINT TRIGGER outbox_place AFTER INSERT ON outbox
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION outbox_place();

-- Whoever may use it is told so: GRANT USAGE ON SCHEMA … and GRANT EXECUTE ON FUNCTION ….enqueue.
REVOKE EXECUTE ON FUNCTION enqueue FROM PUBLIC;
REVOKE EXECUTE ON FUNCTION outbox_place FROM PUBLIC;
