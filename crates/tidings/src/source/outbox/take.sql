-- Whoever takes a part has it alone until its transaction ends.
SELECT pg_try_advisory_xact_lock('outbox_dead'::regclass::oid::integer, $1)
