-- Appends a batch, whole or not at all: dense offsets in the order in which this script ran, which
-- is the order of the announcements too.
--
-- ARGV     run, slot, now, whether to close, states at most, dedup window (ms), dedup events,
--          name in listings, events; then of each event: flags, checksum, body, and as the flags
--          say key, id, if_offset, the owner that the topic must have, the properties that it
--          would get, their owner, expires_at, due_at
-- Answers  the head, and of each event its offset, or why it has none

local DELETE, DEDUP, IF_OFFSET, CLOSE, OWNER, PROPERTIES, OWNED, ENDS, EXPIRES, DUE, KEY =
  1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024
local DUPLICATE, CLOSED, NOT_OWNER, STATES_FULL, CONFLICT = 1, 2, 3, 4, 5

local band, bxor, rshift = bit.band, bit.bxor, bit.rshift

-- CRC-32C of half a byte.
local HALF = { [0] = 0x00000000, 0x105ec76f, 0x20bd8ede, 0x30e349b1, 0x417b1dbc, 0x5125dad3,
  0x61c69362, 0x7198540d, 0x82f63b78, 0x92a8fc17, 0xa24bb5a6, 0xb21572c9, 0xc38d26c4, 0xd3d3e1ab,
  0xe330a81a, 0xf36e6f75 }

-- The checksum of a body and its offset, of that of the body and eight zero bytes: what the offset
-- changes of it does not depend on the body.
local function place(sum, offset)
  local change, shift = 0, 1
  while shift * 256 <= offset do
    shift = shift * 256
  end
  while shift >= 1 do
    local byte = math.floor(offset / shift) % 256
    change = bxor(rshift(change, 4), HALF[band(bxor(change, byte), 15)])
    change = bxor(rshift(change, 4), HALF[band(bxor(change, rshift(byte, 4)), 15)])
    shift = shift / 256
  end
  return bxor(sum, change) % 4294967296
end

local epoch, count = look()
if not epoch then
  return NOT_LOOKED_AT
end
local h = head_of(base)
local now, closes, states_max = tonumber(ARGV[3]), ARGV[4] == '1', tonumber(ARGV[5])
local window, window_events, name = tonumber(ARGV[6]), tonumber(ARGV[7]), ARGV[8]
if h.has_events == 1 and h.written_at > now then
  -- The bodies have to be made with this time: the caller comes back.
  return { h.written_at }
end

local function recognised(seen)
  local offset, _, at = struct.unpack(MARK, seen)
  return math.max(0, now - at) < window or h.tail - offset <= window_events
end

-- Ids leave the window in the order in which they came, a few more than come in.
local function forget_ids(many)
  for _ = 1, many do
    local id = redis.call('LINDEX', base .. ':o', 0)
    if not id then
      return
    end
    local seen = redis.call('HGET', base .. ':i', id)
    if seen and recognised(seen) then
      return
    end
    redis.call('LPOP', base .. ':o')
    redis.call('HDEL', base .. ':i', id)
  end
end

local function index_due(key, expires, due)
  local member = name .. '\0' .. key
  if expires then
    redis.call('ZADD', group .. ':e', expires, member)
  end
  if due then
    redis.call('ZADD', group .. ':d', due, member)
  end
end

local function supersede(key, value)
  local offset, record = state_of(value)
  if offset > h.floor then
    local mark = struct.pack(MARK, offset, print_of(record), time_of(record))
    redis.call('ZADD', base .. ':m', offset, mark)
  end
  if string.byte(value, 9) == 1 then
    local member = name .. '\0' .. key
    redis.call('ZREM', group .. ':e', member)
    redis.call('ZREM', group .. ':d', member)
  end
  h.states = h.states - 1
end

local outcomes, stored, was_closed, existed = {}, 0, h.closed, h.exists
local changes, at = {}, 10
for event = 1, tonumber(ARGV[9]) do
  local flags, sum, body = tonumber(ARGV[at]), tonumber(ARGV[at + 1]), ARGV[at + 2]
  at = at + 3
  local function given(flag)
    if band(flags, flag) ~= 0 then
      at = at + 1
      return ARGV[at - 1]
    end
    return false
  end
  local key, id, if_offset = given(KEY), given(DEDUP), given(IF_OFFSET)
  local must_be, properties, owned = given(OWNER), given(PROPERTIES), given(OWNED)
  local expires, due = given(EXPIRES), given(DUE)
  local deletes = band(flags, DELETE) ~= 0

  local owner = owned
  if h.exists == 1 then
    owner = h.owner
  end
  local outcome, current
  if must_be and must_be ~= owner then
    outcome = { NOT_OWNER }
  end
  if not outcome and id then
    local seen = redis.call('HGET', base .. ':i', id)
    if seen and recognised(seen) then
      local offset, print = struct.unpack(MARK, seen)
      outcome = { DUPLICATE, offset, print }
    end
  end
  if not outcome and h.closed == 1 and band(flags, ENDS) == 0 then
    outcome = { CLOSED }
  end
  if not outcome and key then
    current = redis.call('HGET', base .. ':s', key)
  end
  if not outcome and if_offset then
    local offset = current and state_of(current) or 0
    if offset ~= tonumber(if_offset) then
      outcome = { CONFLICT, current }
    end
  end
  if not outcome and key and not deletes and not current and h.states >= states_max then
    outcome = { STATES_FULL }
  end

  if not outcome then
    if h.exists == 0 then
      h.exists, h.properties, h.owner = 1, properties, owned
    end
    local offset = h.tail
    local print = place(sum, offset)
    local record = struct.pack('>I4', print) .. body
    if current then
      supersede(key, current)
    end
    if key and not deletes then
      local high = math.floor(offset / 4294967296)
      local timed = (expires or due) and 1 or 0
      local place = struct.pack('>I4I4I1', high, offset % 4294967296, timed)
      redis.call('HSET', base .. ':s', key, place .. record)
      redis.call('ZADD', base .. ':p', offset, key)
      if not current then
        redis.call('ZADD', base .. ':k', 0, key)
      end
      index_due(key, expires, due)
      h.states = h.states + 1
    else
      if current then
        redis.call('HDEL', base .. ':s', key)
        redis.call('ZREM', base .. ':p', key)
        redis.call('ZREM', base .. ':k', key)
      end
      redis.call('XADD', base .. ':l', id_of(offset), 'r', record)
      h.events = h.events + 1
      h.bytes = h.bytes + #record
    end
    if offset == h.floor + 1 then
      h.oldest_at = now
    end
    h.tail, h.print, h.written_at, h.has_events = offset + 1, print, now, 1
    if id then
      forget_ids(3)
      redis.call('HSET', base .. ':i', id, struct.pack(MARK, offset, print, now))
      redis.call('RPUSH', base .. ':o', id)
    end
    stored = stored + 1
    outcome = offset
  end
  local refused = type(outcome) == 'table' and outcome[1] ~= DUPLICATE
  if band(flags, CLOSE) ~= 0 and not refused then
    h.closed = 1
  end
  outcomes[event] = outcome
end
if closes then
  h.closed = 1
end

if stored > 0 or h.closed ~= was_closed then
  if existed == 0 then
    if h.has_events == 0 then
      h.written_at = now
    end
    h.exists = 1
    redis.call('HSET', base .. ':h', 'incarnation', h.incarnation, 'floor', 0, 'floor_print', 0)
    if h.properties then
      redis.call('HSET', base .. ':h', 'properties', h.properties)
    end
    if h.owner then
      redis.call('HSET', base .. ':h', 'owner', h.owner)
    end
    redis.call('ZADD', group .. ':t', 0, name)
  end
  redis.call('HSET', base .. ':h', 'tail', h.tail, 'print', h.print, 'events', h.events,
    'bytes', h.bytes, 'states', h.states, 'written_at', h.written_at, 'has_events', h.has_events,
    'closed', h.closed, 'oldest_at', h.oldest_at)
  count = redis.call('HINCRBY', group .. ':g', 'count', 1)
  announce(epoch, h)
end
h.properties = false
return { answer_of(epoch, count, h), outcomes }
