-- All of a commit at once.
INSERT INTO marks (topic, place, fingerprint, recorded_at)
SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::integer[], $4::bigint[])
