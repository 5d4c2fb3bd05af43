-- Before every script: what a topic is. All keys of a call have one hash tag, that of the group.
--
-- KEYS[1]  what the keys of the topic begin with: `<prefix>{<group>}:<tenant>/<topic>`
-- ARGV[1]  the run of the server that the caller looked at before it sent anything
-- ARGV[2]  the field of the count of deletions that the topic is in
local base, run, slot = KEYS[1], ARGV[1], ARGV[2]
local group = string.match(base, '^[^}]*}')

-- The group's epoch and count of changes; nothing if nobody looked at this server since it was
-- started, promoted or flushed.
local function look()
  local g = redis.call('HMGET', group .. ':g', 'epoch', 'count', 'run')
  if g[3] == run then
    return tonumber(g[1]), tonumber(g[2])
  end
end

local NOT_LOOKED_AT = redis.error_reply('ADOPT nobody looked at this server yet')

local FIELDS = { 'tail', 'print', 'floor', 'floor_print', 'events', 'bytes', 'states', 'written_at',
  'has_events', 'closed', 'incarnation', 'oldest_at', 'properties', 'owner' }

-- The head of a topic: numbers, and `properties` and `owner`, which are false where there are none.
local function head_of(topic)
  local h = redis.call('HMGET', topic .. ':h', unpack(FIELDS))
  if not h[1] then
    local deletions = redis.call('HGET', group .. ':x', slot)
    return { exists = 0, tail = 1, print = 0, floor = 0, floor_print = 0, events = 0, bytes = 0,
      states = 0, written_at = 0, has_events = 0, closed = 0, oldest_at = 0,
      incarnation = tonumber(deletions or 0), properties = false, owner = false }
  end
  -- Topics of earlier versions do not say how old they are.
  local head = { exists = 1, oldest_at = tonumber(h[12] or 0), properties = h[13], owner = h[14] }
  for at = 1, 11 do
    head[FIELDS[at]] = tonumber(h[at])
  end
  return head
end

-- A head as scripts answer it.
local function answer_of(epoch, count, h)
  return { epoch, count, h.exists, h.incarnation, h.closed, h.tail, h.print, h.floor, h.floor_print,
    h.events, h.bytes, h.states, h.written_at, h.oldest_at, h.properties }
end

-- What is stored as a record begins with its fingerprint, and has its time at the seventh byte.
local function print_of(record)
  return (struct.unpack('>I4', record))
end

local function time_of(record)
  local high, low = struct.unpack('>I4I4', record, 7)
  return high * 4294967296 + low
end

-- A state is stored as its offset, whether it is in the due indexes, and its record.
local function state_of(value)
  local high, low = struct.unpack('>I4I4', value)
  return high * 4294967296 + low, string.sub(value, 10)
end

-- A mark is what a superseded state leaves behind: offset, fingerprint, time.
local MARK = '>dI4d'

local function id_of(offset)
  return string.format('%.0f-0', offset)
end

local function offset_of(id)
  return tonumber(string.sub(id, 1, -3))
end

-- Says something of the topic to whoever listens, as `bus/message.rs` has it.
local function say(...)
  local tenant, name = string.match(base, '}:([^/]*)/(.*)$')
  local words = table.concat({ '1', ... }, ' ')
  redis.call('PUBLISH', base .. ':a', table.concat({ words, tenant, name }, ' '))
end

-- Says where the topic ends. The epoch is that of `topic_epoch`, whose product is taken in halves:
-- numbers are exact up to 2^53 only.
local function announce(epoch, h)
  local product = h.incarnation * 0x9e37 % 65536 * 65536 + h.incarnation * 0x79b1
  local of_topic = bit.bxor(epoch, product % 4294967296) % 4294967296
  say('advanced', string.format('%.0f %.0f %.0f', of_topic, h.tail - 1, h.print))
end
