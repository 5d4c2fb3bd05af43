-- Nothing is left of the topic.
DELETE FROM deleted WHERE topic = $1
