-- One row always: the topic's, or what it begins with.
SELECT
    coalesce(t.incarnation::bigint, d.count, 0) AS begun, t.id, t.incarnation, t.closed, t.tail, t.tail_fingerprint, t.floor, t.floor_fingerprint,
    t.events, t.bytes, t.states, t.written_at, t.has_events, t.properties, t.oldest_at
FROM (VALUES (1)) AS one
LEFT JOIN topics AS t ON t.tenant = $1 AND t.name = $2
LEFT JOIN deletions AS d ON d.tenant = $1 AND d.slot = $3
