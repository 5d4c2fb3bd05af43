-- Reads a page of what follows an offset, in the order of offsets, and one event more if there is
-- one, by which the caller sees that the page is full.
--
-- ARGV     run, slot, what (`all` or `states`), after, until, prefix of keys, events, bytes of data
-- Answers  the head, the fingerprints at `after` and `until`, and offsets and records in turns
local what, after, last, prefix = ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6]
local events_max, bytes_max = math.max(1, tonumber(ARGV[7])), tonumber(ARGV[8])

-- Keys with a prefix that are looked up one by one; where there are more, all are gone through in
-- the order of offsets.
local FEW = 64
-- Events that are fetched at once.
local CHUNK = 64

local epoch, count = look()
if not epoch then
  return NOT_LOOKED_AT
end
local h = head_of(base)

local function known(offset)
  if offset == h.floor then
    return h.floor_print
  elseif offset == h.tail - 1 then
    return h.print
  elseif offset >= h.tail then
    return false
  end
  local entry = redis.call('XRANGE', base .. ':l', id_of(offset), id_of(offset))[1]
  if entry then
    return print_of(entry[2][2])
  end
  local mark = redis.call('ZRANGEBYSCORE', base .. ':m', offset, offset)[1]
  if mark then
    local _, print = struct.unpack(MARK, mark)
    return print
  end
  local key = redis.call('ZRANGEBYSCORE', base .. ':p', offset, offset)[1]
  if key then
    local _, record = state_of(redis.call('HGET', base .. ':s', key))
    return print_of(record)
  end
  return false
end

local function chunk()
  return math.min(CHUNK, events_max + 1)
end

-- Each of these gives the next offset and record, or nothing.
local function log_after(from)
  local page, at = {}, 1
  return function()
    if at > #page then
      if from >= h.tail - 1 then
        return nil
      end
      page, at = redis.call('XRANGE', base .. ':l', id_of(from + 1), '+', 'COUNT', chunk()), 1
      if #page == 0 then
        from = h.tail
        return nil
      end
      from = offset_of(page[#page][1])
    end
    local entry = page[at]
    at = at + 1
    return offset_of(entry[1]), entry[2][2]
  end
end

local function states_after(from)
  local page, at = {}, 1
  return function()
    while at > #page do
      if from >= h.tail - 1 or from >= last then
        return nil
      end
      local keys = redis.call('ZRANGEBYSCORE', base .. ':p', string.format('(%.0f', from), '+inf',
        'WITHSCORES', 'LIMIT', 0, chunk())
      if #keys == 0 then
        from = h.tail
        return nil
      end
      from = tonumber(keys[#keys])
      local wanted = {}
      for n = 1, #keys, 2 do
        if string.sub(keys[n], 1, #prefix) == prefix and tonumber(keys[n + 1]) <= last then
          wanted[#wanted + 1] = keys[n]
        end
      end
      page, at = {}, 1
      if #wanted > 0 then
        page = redis.call('HMGET', base .. ':s', unpack(wanted))
      end
    end
    at = at + 1
    return state_of(page[at - 1])
  end
end

local function states_of_few(keys)
  local found, at = {}, 0
  for _, key in ipairs(keys) do
    local offset, record = state_of(redis.call('HGET', base .. ':s', key))
    if offset > after and offset <= last then
      found[#found + 1] = { offset, record }
    end
  end
  table.sort(found, function(one, other) return one[1] < other[1] end)
  return function()
    at = at + 1
    if found[at] then
      return found[at][1], found[at][2]
    end
  end
end

-- Bytes of the data in a record, which comes after eight fields.
local function data_of(record)
  local at, length = 15, nil
  for _ = 1, 9 do
    length = struct.unpack('>I4', record, at)
    at = at + 4
    if length == 4294967295 then
      length = 0
    end
    at = at + length
  end
  return length
end

local next_state
if prefix ~= '' then
  local few = redis.call('ZRANGEBYLEX', base .. ':k', '[' .. prefix, '(' .. prefix .. '\255',
    'LIMIT', 0, FEW + 1)
  if #few <= FEW then
    next_state = states_of_few(few)
  end
end
next_state = next_state or states_after(after)
local next_log = what == 'all' and log_after(after) or function() end

-- Records are larger than their data: only once they are too many are they looked into.
local found, records, data, exact = {}, 0, 0, false
local log_offset, log_record = next_log()
local state_offset, state_record = next_state()
while log_offset or state_offset do
  local offset, record
  if log_offset and not (state_offset and state_offset < log_offset) then
    offset, record = log_offset, log_record
    log_offset, log_record = next_log()
  else
    offset, record = state_offset, state_record
    state_offset, state_record = next_state()
  end
  found[#found + 1] = offset
  found[#found + 1] = record
  records = records + #record
  if exact then
    data = data + data_of(record)
  elseif records > bytes_max then
    exact = true
    for at = 2, #found, 2 do
      data = data + data_of(found[at])
    end
  end
  local events = #found / 2
  if events > events_max or events > 1 and data > bytes_max then
    break
  end
end
h.properties = false
return { answer_of(epoch, count, h), known(after), known(last), found }
