-- The server is another one than it was, or was promoted: what follows is another history.
UPDATE store SET epoch = $1, system_identifier = now.system_identifier, timeline = now.timeline
FROM (
    SELECT system_identifier,
        ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::integer AS timeline
    FROM pg_control_system()
) AS now
WHERE store.system_identifier <> now.system_identifier OR store.timeline <> now.timeline
