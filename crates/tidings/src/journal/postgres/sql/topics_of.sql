-- Topics of one tenant by name, after one of them.
SELECT
    t.tenant, t.name, t.id, t.incarnation, t.closed, t.tail, t.tail_fingerprint, t.floor, t.floor_fingerprint,
    t.events, t.bytes, t.states, t.written_at, t.has_events, t.properties, t.oldest_at
FROM topics AS t
WHERE t.tenant = $1 AND t.name > $2 AND t.name >= $3 AND t.name <= $4
ORDER BY t.name
LIMIT $5
