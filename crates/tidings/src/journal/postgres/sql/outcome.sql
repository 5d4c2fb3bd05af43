-- What became of a transaction: the answer that was lost.
SELECT pg_xact_status($1::text::xid8)
