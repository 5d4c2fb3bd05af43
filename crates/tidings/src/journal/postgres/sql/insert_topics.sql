-- Fails if somebody else created one of them meanwhile; then everything is done anew.
INSERT INTO topics (id, tenant, name, incarnation, closed, tail, tail_fingerprint, floor,
    floor_fingerprint, events, bytes, states, written_at, has_events, properties, oldest_at)
SELECT * FROM unnest($1::bigint[], $2::text[], $3::text[], $4::integer[], $5::boolean[],
    $6::bigint[], $7::integer[], $8::bigint[], $9::integer[], $10::bigint[], $11::bigint[],
    $12::bigint[], $13::bigint[], $14::boolean[], $15::text[], $16::bigint[])
