-- When what is right above the floor was recorded; 0: not known, or nothing is there. It is found
-- with the next trim of the topic, and kept from then on.
ALTER TABLE topics ADD COLUMN oldest_at bigint NOT NULL DEFAULT 0;
