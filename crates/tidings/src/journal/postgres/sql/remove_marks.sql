-- Some rows of a deleted topic: the lock on its row in "deleted" keeps others from them.
DELETE FROM marks WHERE topic = $1 AND place IN (
    SELECT place FROM marks WHERE topic = $1 ORDER BY place LIMIT $2
)
