-- The rows are locked by the same transaction. Nothing that an index holds is changed.
UPDATE topics AS t
SET closed = w.closed, tail = w.tail, tail_fingerprint = w.tail_fingerprint, events = w.events,
    bytes = w.bytes, states = w.states, written_at = w.written_at, has_events = w.has_events,
    properties = coalesce(w.properties, t.properties), oldest_at = w.oldest_at
FROM unnest($1::bigint[], $2::boolean[], $3::bigint[], $4::integer[], $5::bigint[], $6::bigint[],
    $7::bigint[], $8::bigint[], $9::boolean[], $10::text[], $11::bigint[])
    AS w (id, closed, tail, tail_fingerprint, events, bytes, states, written_at, has_events,
        properties, oldest_at)
WHERE t.id = w.id
