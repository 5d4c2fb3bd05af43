-- The last lock of whoever deletes a topic: nobody creates one with its slot's old count.
SELECT pg_advisory_xact_lock($1, $2)
