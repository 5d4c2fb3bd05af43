-- Locks the rows of topics by ascending id, whoever asks, so that no two wait for each other. What
-- is read is what the lock found, and stays so until the commit.
SELECT
    w.number, t.id, t.incarnation, t.closed, t.tail, t.tail_fingerprint, t.floor, t.floor_fingerprint,
    t.events, t.bytes, t.states, t.written_at, t.has_events, t.properties, t.oldest_at
FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS w (tenant, name, number)
JOIN topics AS t ON t.tenant = w.tenant AND t.name = w.name
ORDER BY t.id
FOR NO KEY UPDATE OF t
