-- Parts that have events to publish.
SELECT DISTINCT shard FROM outbox WHERE place IS NOT NULL ORDER BY shard
