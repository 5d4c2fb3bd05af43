-- Rows that can never be published, with the reason.
INSERT INTO outbox_dead (id, tenant, topic, type, event_id, data, code, reason, enqueued_at)
SELECT o.id, o.tenant, o.topic, o.type, o.event_id, o.data, w.code, w.reason, o.enqueued_at
FROM unnest($1::bigint[], $2::text[], $3::text[]) AS w (id, code, reason)
JOIN outbox AS o ON o.id = w.id
