-- Looks at a group on a server that is connected to anew: is it the history that was known? If
-- changes that anybody here saw are not there, or a replica was promoted, the group's epoch is
-- another one from now on, and readers are told.
--
-- KEYS[1]  the group: `<prefix>{<group>}`
-- ARGV     the server's run id, its replication id and the one before that ('-' if none), an epoch to
--          take, and what the caller knew: its epoch ('' if nothing), the changes that it saw, in
--          which run, and whether this server was a master before it saw them
-- Answers  the epoch, the count of changes, and whether this was another history than before
local key = KEYS[1] .. ':g'
local run, replication, replication_before, candidate = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local known, seen, seen_in, was_master = ARGV[5], tonumber(ARGV[6]), ARGV[7], ARGV[8] == '1'

local g = redis.call('HMGET', key, 'epoch', 'count', 'run', 'base', 'replication')
if not g[1] then
  redis.call('HSET', key, 'epoch', candidate, 'count', 0, 'run', run, 'base', 0,
    'replication', replication)
  return { tonumber(candidate), 0, known == '' and 0 or 1 }
end

local epoch, count, lost = g[1], tonumber(g[2]), false
if g[3] ~= run then
  -- A promoted replica says by its earlier replication id whose it was. What it had not received
  -- yet is gone, and nothing here proves that this was nothing.
  -- Nor that all of a group came along that another master of a cluster gave to its master.
  local is_promoted = replication_before ~= '-' and not was_master
  lost = g[5] == replication_before or g[5] == replication or is_promoted or count < seen
  redis.call('HSET', key, 'run', run, 'base', count, 'replication', replication)
elseif seen_in ~= run then
  -- Somebody else looked first: the history goes on from what was there then.
  lost = tonumber(g[4]) < seen
else
  lost = count < seen
end
if lost and (known == '' or known == epoch) then
  epoch = candidate
  redis.call('HSET', key, 'epoch', epoch)
end
return { tonumber(epoch), count, (known ~= '' and known ~= epoch or lost) and 1 or 0 }
