-- Some rows of a deleted topic: the lock on its row in "deleted" keeps others from them.
DELETE FROM dedup WHERE topic = $1 AND place IN (
    SELECT place FROM dedup WHERE topic = $1 ORDER BY place LIMIT $2
)
