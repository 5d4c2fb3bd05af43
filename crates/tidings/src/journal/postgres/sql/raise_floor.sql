-- In the commit that removes what is below it, so that no reader sees one without the other.
UPDATE topics SET floor = $2, floor_fingerprint = $3, events = events - $4, bytes = bytes - $5
WHERE id = $1
