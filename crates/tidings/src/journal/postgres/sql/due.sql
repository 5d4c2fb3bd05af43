-- States whose time has come, earliest first; those of deleted topics are no more.
SELECT t.tenant, t.name, s.place, s.record
FROM states AS s JOIN topics AS t ON t.id = s.topic
WHERE s.due_at <= $1
ORDER BY s.due_at, s.topic, s.place
LIMIT $2
