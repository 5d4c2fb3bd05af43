-- What is held after an offset, by offset: of log and states so many each, and no more bytes than
-- a page takes and one event past it, by which the reader knows that there is more.
WITH topic AS MATERIALIZED (
    SELECT id, floor FROM topics WHERE tenant = $1 AND name = $2
), held AS (
    (SELECT place, data_bytes, record FROM log
     WHERE topic = (SELECT id FROM topic) AND place > greatest($3, (SELECT floor FROM topic))
     ORDER BY place LIMIT $4)
    UNION ALL
    (SELECT place, data_bytes, record FROM states
     WHERE topic = (SELECT id FROM topic) AND place > $3
     ORDER BY place LIMIT $4)
), page AS (
    SELECT place, record, row_number() OVER earlier AS number,
        sum(data_bytes::bigint) OVER earlier - data_bytes AS before
    FROM held WINDOW earlier AS (ORDER BY place)
)
SELECT place, record FROM page WHERE number <= $4 AND (number <= 2 OR before <= $5::bigint) ORDER BY place
