-- Each id once. One that was forgotten, but not yet removed, begins anew.
INSERT INTO dedup (topic, id, place, fingerprint, recorded_at)
SELECT * FROM unnest($1::bigint[], $2::text[], $3::bigint[], $4::integer[], $5::bigint[])
ON CONFLICT (topic, id) DO UPDATE
SET place = excluded.place, fingerprint = excluded.fingerprint, recorded_at = excluded.recorded_at
