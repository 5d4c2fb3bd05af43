-- The fingerprints at two offsets, as far as they are known: a record begins with its own.
WITH topic AS MATERIALIZED (
    SELECT id FROM topics WHERE tenant = $1 AND name = $2
)
SELECT place, substr(record, 1, 4) AS head, NULL::integer AS fingerprint FROM log
WHERE topic = (SELECT id FROM topic) AND place IN ($3, $4)
UNION ALL
SELECT place, substr(record, 1, 4), NULL FROM states
WHERE topic = (SELECT id FROM topic) AND place IN ($3, $4)
UNION ALL
SELECT place, NULL, fingerprint FROM marks
WHERE topic = (SELECT id FROM topic) AND place IN ($3, $4)
