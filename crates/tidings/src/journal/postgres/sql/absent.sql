-- What topics that are not there begin with. After their slots are shared.
SELECT w.number, t.id IS NOT NULL AS is_present, coalesce(d.count, 0) AS count,
    nextval('topic_ids') AS id
FROM unnest($1::text[], $2::text[], $3::integer[]) WITH ORDINALITY
    AS w (tenant, name, slot, number)
LEFT JOIN topics AS t ON t.tenant = w.tenant AND t.name = w.name
LEFT JOIN deletions AS d ON d.tenant = w.tenant AND d.slot = w.slot
