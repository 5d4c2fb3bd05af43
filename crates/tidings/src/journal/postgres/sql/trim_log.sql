-- What was counted in the same transaction.
DELETE FROM log WHERE topic = $1 AND place <= $2
