-- By this number an answer to COMMIT that was lost is found again.
SELECT pg_current_xact_id()::text
