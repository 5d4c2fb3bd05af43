-- Describes topics of one group, and finds places in the first of them.
--
-- KEYS     topics
-- ARGV     run, slot, what: `describe`, and the slots of the topics; `latest`, before which offset, how many; `since`, a time
-- Answers  the heads; or the first head, an offset, and how many events are still to be passed over

-- Events that one call passes over: a server does nothing else meanwhile.
local STEPS_MAX = 1000
local CHUNK = 64

local epoch, count = look()
if not epoch then
  return NOT_LOOKED_AT
end
local what = ARGV[3]
if what == 'describe' then
  local heads = {}
  for at, topic in ipairs(KEYS) do
    slot = ARGV[3 + at]
    heads[at] = answer_of(epoch, count, head_of(topic))
  end
  return heads
end

local h = head_of(base)

-- The offset before the last so many events that are held, from the floor on.
local function latest(before, many)
  local log, states, log_at, state_at = {}, {}, 1, 1
  local log_before, state_before = before, before
  for _ = 1, math.min(many, STEPS_MAX) do
    if log_at > #log and log_before > h.floor + 1 then
      log, log_at = redis.call('XREVRANGE', base .. ':l', id_of(log_before - 1),
        id_of(h.floor + 1), 'COUNT', CHUNK), 1
      log_before = log[1] and offset_of(log[#log][1]) or 0
    end
    if state_at > #states and state_before > h.floor + 1 then
      states, state_at = redis.call('ZREVRANGEBYSCORE', base .. ':p',
        string.format('(%.0f', state_before), string.format('(%.0f', h.floor), 'WITHSCORES',
        'LIMIT', 0, CHUNK), 1
      state_before = states[1] and tonumber(states[#states]) or 0
    end
    local of_log = log[log_at] and offset_of(log[log_at][1]) or 0
    local of_state = states[state_at] and tonumber(states[state_at + 1]) or 0
    if of_log == 0 and of_state == 0 then
      return h.floor, 0
    elseif of_log > of_state then
      before, log_at = of_log, log_at + 1
    else
      before, state_at = of_state, state_at + 2
    end
    many = many - 1
  end
  return before - 1, many
end

-- The lowest number in [low, high) of which `holds`, which then holds of all higher ones; or high.
local function first(low, high, holds)
  while low < high do
    local middle = math.floor((low + high) / 2)
    if holds(middle) then
      high = middle
    else
      low = middle + 1
    end
  end
  return low
end

-- The offset before the first event that was recorded at or after a time. Times ascend with offsets.
local function since(time)
  local function entry_from(offset)
    return redis.call('XRANGE', base .. ':l', id_of(offset), '+', 'COUNT', 1)[1]
  end
  local from = first(h.floor + 1, h.tail, function(offset)
    local entry = entry_from(offset)
    return not entry or time_of(entry[2][2]) >= time
  end)
  local entry = from < h.tail and entry_from(from)
  local found = entry and offset_of(entry[1]) or h.tail

  local function of_rank(rank)
    local key = redis.call('ZRANGE', base .. ':p', rank, rank)[1]
    return state_of(redis.call('HGET', base .. ':s', key))
  end
  local states = redis.call('ZCARD', base .. ':p')
  local rank = first(0, states, function(rank)
    local offset, record = of_rank(rank)
    return offset > h.floor and time_of(record) >= time
  end)
  if rank < states then
    found = math.min(found, (of_rank(rank)))
  end

  local function mark_of(rank)
    local offset, _, at = struct.unpack(MARK, redis.call('ZRANGE', base .. ':m', rank, rank)[1])
    return offset, at
  end
  local marks = redis.call('ZCARD', base .. ':m')
  rank = first(0, marks, function(rank)
    local _, at = mark_of(rank)
    return at >= time
  end)
  if rank < marks then
    found = math.min(found, (mark_of(rank)))
  end
  return found - 1
end

h.properties = false
local head = answer_of(epoch, count, h)
if h.exists == 0 then
  return { head, 0, 0 }
elseif what == 'since' then
  return { head, since(tonumber(ARGV[4])), 0 }
end
return { head, latest(math.min(h.tail, tonumber(ARGV[4])), tonumber(ARGV[5])) }
