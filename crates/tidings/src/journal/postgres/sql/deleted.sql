-- One deleted topic whose rows nobody else is removing.
SELECT topic FROM deleted ORDER BY topic LIMIT 1 FOR UPDATE SKIP LOCKED
