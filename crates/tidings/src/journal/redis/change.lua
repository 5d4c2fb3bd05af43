-- Changes a topic otherwise than by appending: its properties, its floor, its end.
--
-- ARGV     run, slot, what, and
--   `set`     name in listings, now, whether to close, properties, their owner or '', and the owner
--             that the topic must have, if it must
--   `trim`    cutoff, events and bytes that are kept, each '' for any
--   `delete`  name in listings, and what must be: nothing; `owned`, by whom; or `unchanged`, and the
--             epoch, incarnation, tail, fingerprint and properties ('' if none) that were seen
-- Answers  the head, and what became of it

-- Events that one call trims: a server does nothing else meanwhile.
local TRIMMED_MAX = 1000
local CHUNK = 128
-- Members that one command removes.
local REMOVED_MAX = 512

local DONE, NOT_OWNER, CHANGED, NOT_THERE, MORE = 0, 1, 2, 3, 4

local epoch, count = look()
if not epoch then
  return NOT_LOOKED_AT
end
local h = head_of(base)

local function counted()
  count = redis.call('HINCRBY', group .. ':g', 'count', 1)
end

local function set(name, now, closes, properties, owner, must_be)
  local of = owner ~= '' and owner
  if h.exists == 1 then
    of = h.owner
  end
  if must_be and must_be ~= of then
    return NOT_OWNER
  end
  if closes == '1' then
    h.closed = 1
  end
  if h.exists == 0 then
    h.exists, h.written_at = 1, tonumber(now)
    redis.call('HSET', base .. ':h', 'incarnation', h.incarnation, 'tail', 1, 'print', 0,
      'floor', 0, 'floor_print', 0, 'events', 0, 'bytes', 0, 'states', 0, 'written_at', now,
      'has_events', 0)
    redis.call('ZADD', group .. ':t', 0, name)
  end
  h.properties = properties
  redis.call('HSET', base .. ':h', 'properties', properties, 'closed', h.closed)
  if owner == '' then
    redis.call('HDEL', base .. ':h', 'owner')
  else
    redis.call('HSET', base .. ':h', 'owner', owner)
  end
  counted()
  say('changed')
  return DONE
end

-- When what is right above the floor was recorded: an event, a mark or a state; 0 if nothing is.
local function oldest_at()
  local first = h.floor + 1
  local entry = redis.call('XRANGE', base .. ':l', id_of(first), id_of(first))[1]
  if entry then
    return time_of(entry[2][2])
  end
  local mark = redis.call('ZRANGEBYSCORE', base .. ':m', first, first)[1]
  if mark then
    local _, _, at = struct.unpack(MARK, mark)
    return at
  end
  local key = redis.call('ZRANGEBYSCORE', base .. ':p', first, first)[1]
  local state = key and redis.call('HGET', base .. ':s', key)
  if state then
    local _, record = state_of(state)
    return time_of(record)
  end
  return 0
end

local function trim(cutoff, events_max, bytes_max)
  local function is_old(at)
    return cutoff and at < cutoff
  end
  local floor, removed, result = h.floor, 0, DONE
  local from = h.floor
  local fits = h.exists == 0
  while not fits do
    local page = redis.call('XRANGE', base .. ':l', id_of(from + 1), '+', 'COUNT', CHUNK)
    fits = #page < CHUNK
    for _, entry in ipairs(page) do
      local record = entry[2][2]
      local too_many = events_max and h.events > events_max
      local too_big = bytes_max and h.bytes > bytes_max
      if not (too_many or too_big or is_old(time_of(record))) then
        fits = true
        break
      end
      from = offset_of(entry[1])
      h.floor, h.floor_print = from, print_of(record)
      h.events, h.bytes = h.events - 1, h.bytes - #record
      removed = removed + 1
    end
    if not fits and removed >= TRIMMED_MAX then
      result = MORE
      break
    end
  end
  if removed > 0 then
    redis.call('XTRIM', base .. ':l', 'MINID', id_of(h.floor + 1))
  end
  -- Times ascend with offsets, so no older event is left before an old mark.
  while result == DONE and cutoff do
    local marks = redis.call('ZRANGEBYSCORE', base .. ':m', string.format('(%.0f', h.floor), '+inf',
      'LIMIT', 0, CHUNK)
    local some = false
    for _, mark in ipairs(marks) do
      local offset, print, at = struct.unpack(MARK, mark)
      if not is_old(at) then
        some = false
        break
      end
      h.floor, h.floor_print, some = offset, print, true
      removed = removed + 1
    end
    if some and removed >= TRIMMED_MAX then
      result = MORE
    elseif not some then
      break
    end
  end
  if h.floor > floor then
    redis.call('ZREMRANGEBYSCORE', base .. ':m', '-inf', h.floor)
    redis.call('HSET', base .. ':h', 'floor', h.floor, 'floor_print', h.floor_print,
      'events', h.events, 'bytes', h.bytes)
    counted()
  end
  local oldest = h.exists == 1 and oldest_at() or 0
  if oldest ~= h.oldest_at then
    h.oldest_at = oldest
    redis.call('HSET', base .. ':h', 'oldest_at', oldest)
  end
  return result
end

local function delete(name, condition, ...)
  local seen = { ... }
  if condition == 'owned' and seen[1] ~= h.owner then
    return NOT_OWNER
  elseif condition == 'unchanged' then
    local same = tonumber(seen[1]) == epoch and tonumber(seen[2]) == h.incarnation
      and tonumber(seen[3]) == h.tail and tonumber(seen[4]) == h.print
      and seen[5] == (h.properties or '')
    if not same then
      return CHANGED
    end
  end
  if h.exists == 0 then
    return NOT_THERE
  end
  local cursor = '0'
  repeat
    local page = redis.call('HSCAN', base .. ':s', cursor, 'COUNT', REMOVED_MAX / 2)
    cursor = page[1]
    local members = {}
    for at = 1, #page[2], 2 do
      if string.byte(page[2][at + 1], 9) == 1 then
        members[#members + 1] = name .. '\0' .. page[2][at]
      end
      if #members == REMOVED_MAX or at + 2 > #page[2] and #members > 0 then
        redis.call('ZREM', group .. ':e', unpack(members))
        redis.call('ZREM', group .. ':d', unpack(members))
        members = {}
      end
    end
  until cursor == '0'
  for _, kind in ipairs({ 'h', 'l', 's', 'p', 'k', 'm', 'i', 'o' }) do
    redis.call('UNLINK', base .. ':' .. kind)
  end
  redis.call('ZREM', group .. ':t', name)
  redis.call('HINCRBY', group .. ':x', slot, 1)
  counted()
  h = head_of(base)
  say('changed')
  return DONE
end

local what, result = ARGV[3], nil
if what == 'set' then
  result = set(unpack(ARGV, 4))
elseif what == 'trim' then
  result = trim(tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]))
else
  result = delete(unpack(ARGV, 4))
end
return { answer_of(epoch, count, h), result }
