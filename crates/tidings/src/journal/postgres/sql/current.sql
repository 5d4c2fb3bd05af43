-- The current states of keys. After the locks: in a snapshot of before them it could be outdated.
SELECT w.number, s.key, s.place, s.recorded_at, s.record
FROM unnest($3::integer[], $4::text[]) AS w (number, key)
JOIN topics AS t ON t.tenant = ($1::text[])[w.number] AND t.name = ($2::text[])[w.number]
JOIN states AS s ON s.topic = t.id AND s.key = w.key
