-- The oldest marks after a place, a few thousand at most.
SELECT place, recorded_at, fingerprint
FROM marks WHERE topic = $1 AND place > $2
ORDER BY place LIMIT $3
