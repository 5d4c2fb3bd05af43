-- The topic is gone with this; its rows are removed later, and nobody finds them by its id.
WITH gone AS (DELETE FROM topics WHERE id = $1), later AS (INSERT INTO deleted VALUES ($1))
INSERT INTO deletions AS d (tenant, slot, count) VALUES ($2, $3, 1)
ON CONFLICT (tenant, slot) DO UPDATE SET count = d.count + 1
