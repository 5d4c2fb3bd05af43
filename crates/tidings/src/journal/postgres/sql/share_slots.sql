-- Keeps others from deleting topics of these slots (ascending) until a topic that is created with
-- a slot's count is committed: else it could get an epoch that it had before.
SELECT pg_advisory_xact_lock_shared($1, slot) FROM unnest($2::integer[]) AS slot
