-- All of a commit at once.
INSERT INTO log (topic, place, recorded_at, data_bytes, record)
SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::integer[], $5::bytea[])
