-- The place before the last so many that are held above the floor; the floor if they are fewer.
WITH topic AS MATERIALIZED (
    SELECT id, floor FROM topics WHERE tenant = $1 AND name = $2
), held AS (
    (SELECT place FROM log
     WHERE topic = (SELECT id FROM topic) AND place > (SELECT floor FROM topic)
     ORDER BY place DESC LIMIT $3)
    UNION ALL
    (SELECT place FROM states
     WHERE topic = (SELECT id FROM topic) AND place > (SELECT floor FROM topic)
     ORDER BY place DESC LIMIT $3)
)
SELECT coalesce(
    (SELECT place - 1 FROM held ORDER BY place DESC OFFSET $3 - 1 LIMIT 1),
    (SELECT floor FROM topic),
    0)
