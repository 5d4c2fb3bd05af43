-- Ids that are recognised no more: neither by count nor by time. A few thousand at most.
DELETE FROM dedup WHERE topic = $1 AND id IN (
    SELECT id FROM dedup WHERE topic = $1 AND place < $2 AND recorded_at <= $3
    ORDER BY place LIMIT $4
)
