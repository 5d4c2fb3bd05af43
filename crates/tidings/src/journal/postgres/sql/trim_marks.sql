-- Marks are kept as long as the log of their time.
DELETE FROM marks WHERE topic = $1 AND place <= $2
