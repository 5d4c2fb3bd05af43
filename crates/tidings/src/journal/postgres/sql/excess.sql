-- The oldest of the log after the floor, a few thousand at most.
SELECT place, recorded_at, octet_length(record)::bigint AS bytes, substr(record, 1, 4) AS head
FROM log WHERE topic = $1 AND place > $2
ORDER BY place LIMIT $3
