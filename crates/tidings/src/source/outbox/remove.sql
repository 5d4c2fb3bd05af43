-- What was published or buried, in the transaction that has its part.
DELETE FROM outbox WHERE id = ANY ($1::bigint[])
