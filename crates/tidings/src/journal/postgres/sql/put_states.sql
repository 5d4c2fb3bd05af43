-- Each key once: the last state that the commit gives it.
INSERT INTO states (topic, key, place, recorded_at, expires_at, due_at, data_bytes, record)
SELECT * FROM unnest($1::bigint[], $2::text[], $3::bigint[], $4::bigint[], $5::bigint[],
    $6::bigint[], $7::integer[], $8::bytea[])
ON CONFLICT (topic, key) DO UPDATE
SET place = excluded.place, recorded_at = excluded.recorded_at, expires_at = excluded.expires_at,
    due_at = excluded.due_at, data_bytes = excluded.data_bytes, record = excluded.record
