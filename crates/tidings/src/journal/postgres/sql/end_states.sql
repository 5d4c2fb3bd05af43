-- Keys that have no state any more.
DELETE FROM states AS s USING unnest($1::bigint[], $2::text[]) AS w (topic, key)
WHERE s.topic = w.topic AND s.key = w.key
