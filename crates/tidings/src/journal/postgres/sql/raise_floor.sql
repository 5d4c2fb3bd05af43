-- In the commit that removes what is below it, so that no reader sees one without the other.
-- What is right above it then is an event, a state or a mark: whose time it is to be told.
UPDATE topics SET floor = $2::bigint, floor_fingerprint = $3, events = events - $4, bytes = bytes - $5,
    oldest_at = coalesce(
        (SELECT recorded_at FROM log WHERE topic = $1 AND place = $2::bigint + 1),
        (SELECT recorded_at FROM marks WHERE topic = $1 AND place = $2::bigint + 1),
        (SELECT recorded_at FROM states WHERE topic = $1 AND place = $2::bigint + 1),
        0)
WHERE id = $1
