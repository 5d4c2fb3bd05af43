-- Where ids were stored first. After the locks: in a snapshot of before them it could be outdated.
SELECT w.number, d.id, d.place, d.fingerprint, d.recorded_at
FROM unnest($3::integer[], $4::text[]) AS w (number, id)
JOIN topics AS t ON t.tenant = ($1::text[])[w.number] AND t.name = ($2::text[])[w.number]
JOIN dedup AS d ON d.topic = t.id AND d.id = w.id
