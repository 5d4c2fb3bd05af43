-- Current states by offset, as pages are.
WITH topic AS MATERIALIZED (
    SELECT id FROM topics WHERE tenant = $1 AND name = $2
), held AS (
    SELECT place, data_bytes, record FROM states
    WHERE topic = (SELECT id FROM topic) AND place > $3 AND place <= $4
    ORDER BY place LIMIT $5
), page AS (
    SELECT place, record, row_number() OVER earlier AS number,
        sum(data_bytes::bigint) OVER earlier - data_bytes AS before
    FROM held WINDOW earlier AS (ORDER BY place)
)
SELECT place, record FROM page WHERE number <= 2 OR before <= $6::bigint ORDER BY place
