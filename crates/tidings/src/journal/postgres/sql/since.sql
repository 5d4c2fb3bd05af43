-- The place before the first that was recorded at a time or later. Times ascend with offsets, but
-- offsets have holes: halved by what is held next. What is held up to "low" is older; after "high",
-- it is not.
WITH RECURSIVE topic AS MATERIALIZED (
    SELECT id, floor, tail FROM topics WHERE tenant = $1 AND name = $2
), search (low, high) AS (
    SELECT floor, tail - 1 FROM topic
    UNION ALL
    SELECT
        CASE WHEN next.recorded_at < $3 THEN next.place ELSE s.low END,
        CASE WHEN next.recorded_at < $3 THEN s.high ELSE s.low + (s.high - s.low) / 2 END
    FROM search AS s
    LEFT JOIN LATERAL (
        SELECT place, recorded_at FROM (
            (SELECT place, recorded_at FROM log
             WHERE topic = (SELECT id FROM topic)
                 AND place > s.low + (s.high - s.low) / 2 AND place <= s.high
             ORDER BY place LIMIT 1)
            UNION ALL
            (SELECT place, recorded_at FROM states
             WHERE topic = (SELECT id FROM topic)
                 AND place > s.low + (s.high - s.low) / 2 AND place <= s.high
             ORDER BY place LIMIT 1)
            UNION ALL
            (SELECT place, recorded_at FROM marks
             WHERE topic = (SELECT id FROM topic)
                 AND place > s.low + (s.high - s.low) / 2 AND place <= s.high
             ORDER BY place LIMIT 1)
        ) AS held ORDER BY place LIMIT 1
    ) AS next ON true
    WHERE s.low < s.high
), found AS (
    SELECT low FROM search WHERE low >= high LIMIT 1
), first AS (
    (SELECT place FROM log
     WHERE topic = (SELECT id FROM topic) AND place > (SELECT low FROM found)
     ORDER BY place LIMIT 1)
    UNION ALL
    (SELECT place FROM states
     WHERE topic = (SELECT id FROM topic) AND place > (SELECT low FROM found)
     ORDER BY place LIMIT 1)
    UNION ALL
    (SELECT place FROM marks
     WHERE topic = (SELECT id FROM topic) AND place > (SELECT low FROM found)
     ORDER BY place LIMIT 1)
)
SELECT coalesce((SELECT min(place) - 1 FROM first), (SELECT tail - 1 FROM topic), 0)
