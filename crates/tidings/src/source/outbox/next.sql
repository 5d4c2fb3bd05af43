-- The next events of a part, in the order of their commits. After the part is taken: what somebody
-- else has just published is not there any more.
SELECT id, tenant, topic, type, event_id, class, key, data::text, source, subject,
    (extract(epoch FROM happened_at) * 1000)::bigint, (extract(epoch FROM expires_at) * 1000)::bigint,
    (extract(epoch FROM due_at) * 1000)::bigint, ends, closes
FROM outbox WHERE shard = $1 AND place IS NOT NULL
ORDER BY place LIMIT $2
