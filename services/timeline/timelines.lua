#!lua name=feedmesh_timelines_VERSION
-- Timelines, on the server: each function is one step that nobody sees half done. services/timeline/timelines.py calls
-- them and says what a timeline is; VERSION there is a hash of this text, so that two releases run side by side.
--
-- A list holds members (21 bytes, in no order, perhaps twice) and, as its last element, the tail: four integers of 7
-- bytes: floor, epoch, horizon, incarnation. With the floor NOTHING it covers nothing: somebody is building it.

local MEMBER, TAIL, NOTHING = 21, 28, 2 ^ 53 - 1
local SLICE = 1000 -- arguments of one command: Lua's stack has room for some thousands

-- Integers are compared as numbers: Lua compares strings by the server's locale.
local function number(text, at)
  local a, b, c, d, e, f, g = string.byte(text, at, at + 6)
  return (((((a * 256 + b) * 256 + c) * 256 + d) * 256 + e) * 256 + f) * 256 + g
end

local function bytes(value)
  local digits = {}
  for at = 7, 1, -1 do
    digits[at] = value % 256
    value = math.floor(value / 256)
  end
  return string.char(unpack(digits))
end

local function tail_of(key)
  local text = redis.call('LINDEX', key, -1)
  if not text then
    return nil
  end
  return { floor = number(text, 1), epoch = number(text, 8), horizon = number(text, 15), incarnation = number(text, 22) }
end

local function members_in(blob)
  local found = {}
  for at = 1, #blob, MEMBER do
    found[#found + 1] = string.sub(blob, at, at + MEMBER - 1)
  end
  return found
end

local function append(key, elements)
  for at = 1, #elements, SLICE do
    redis.call('RPUSH', key, unpack(elements, at, math.min(at + SLICE - 1, #elements)))
  end
end

-- Writes the list anew: the newest `cap` of the members above the floor, each once, newest first. What is cut off raises
-- the floor, in the same call. Keeps the time to live.
local function rewrite(key, members, tail, cap)
  local by_id, ids = {}, {}
  for _, member in ipairs(members) do
    local id = number(member, 1)
    if id > tail.floor and not by_id[id] then
      by_id[id] = member
      ids[#ids + 1] = id
    end
  end
  table.sort(ids, function(a, b) return a > b end)
  if #ids > cap then
    tail.floor = ids[cap + 1]
  end
  local elements = {}
  for at = 1, math.min(#ids, cap) do
    elements[at] = by_id[ids[at]]
  end
  elements[#elements + 1] = bytes(tail.floor) .. bytes(tail.epoch) .. bytes(tail.horizon) .. bytes(tail.incarnation)
  local left = redis.call('PTTL', key)
  redis.call('DEL', key)
  append(key, elements)
  if left > 0 then
    redis.call('PEXPIRE', key, left)
  end
end

-- Bounds a list that may have become too long.
local function trim(key, length, cap, slack)
  if length <= cap + slack + 1 then
    return
  end
  local tail = tail_of(key)
  if tail.floor < NOTHING then
    local members = redis.call('LRANGE', key, 0, -2)
    rewrite(key, members, tail, cap)
  elseif length > 3 * cap then
    -- Cutting would leave a hole that nobody knows of: whoever builds it finds it gone.
    redis.call('DEL', key)
  end
end

-- read KEYS(1) ARGV(ttl in seconds): the whole list as one string, tail included, and its life renewed, but with 0; nil
-- without.
local function read(keys, args)
  local key, ttl = keys[1], tonumber(args[1])
  local elements = redis.call('LRANGE', key, 0, -1)
  if #elements == 0 then
    return nil
  end
  -- Not at every read: each would be a write for the replicas.
  if ttl > 0 and redis.call('TTL', key) < ttl * 0.99 then
    redis.call('EXPIRE', key, ttl)
  end
  return table.concat(elements)
end

-- create KEYS(1) ARGV(epoch, incarnation, replaced, ttl): an empty list that covers nothing, unless there is one of this
-- epoch or a later one that is not the incarnation to be replaced. Gives the tail of the one that there is now.
local function create(keys, args)
  local key, epoch, replaced = keys[1], number(args[1], 1), number(args[3], 1)
  local tail = tail_of(key)
  if not tail or tail.epoch < epoch or tail.incarnation == replaced then
    redis.call('DEL', key)
    redis.call('RPUSH', key, bytes(NOTHING) .. args[1] .. bytes(0) .. args[2])
    redis.call('EXPIRE', key, tonumber(args[4]))
  end
  return redis.call('LINDEX', key, -1)
end

-- fill KEYS(1) ARGV(incarnation, members, floor, horizon, ttl, cap): completes the list that `create` made with what was
-- read since, and lets it cover all above the floor. 1, or 0 where that list is gone or was completed by another.
local function fill(keys, args)
  local key = keys[1]
  local tail = tail_of(key)
  if not tail or tail.incarnation ~= number(args[1], 1) or tail.floor < NOTHING then
    return 0
  end
  local members = redis.call('LRANGE', key, 0, -2)
  for _, member in ipairs(members_in(args[2])) do
    members[#members + 1] = member
  end
  tail.floor, tail.horizon = number(args[3], 1), number(args[4], 1)
  rewrite(key, members, tail, tonumber(args[6]))
  redis.call('EXPIRE', key, tonumber(args[5]))
  return 1
end

-- merge KEYS(…) ARGV(incarnation or 0 for any, members, down_to, horizon, cap): adds an author's posts to lists that are
-- there. `down_to` is the id above which these are all that the author wrote. How many lists it found.
local function merge(keys, args)
  local incarnation, down_to, horizon, cap = number(args[1], 1), number(args[3], 1), number(args[4], 1), tonumber(args[5])
  local added, found = members_in(args[2]), 0
  for _, key in ipairs(keys) do
    local tail = tail_of(key)
    if tail and (incarnation == 0 or tail.incarnation == incarnation) then
      found = found + 1
      if tail.floor < NOTHING then
        local members = redis.call('LRANGE', key, 0, -2)
        for _, member in ipairs(added) do
          members[#members + 1] = member
        end
        tail.floor = math.max(tail.floor, down_to)
        tail.horizon = math.max(tail.horizon, horizon)
        rewrite(key, members, tail, cap)
      elseif down_to > 0 then
        -- Its builder does not know of this floor and is to begin again.
        redis.call('DEL', key)
      elseif #added > 0 then
        trim(key, redis.call('LPUSH', key, unpack(added)), cap, 0)
      end
    end
  end
  return found
end

-- push KEYS(…) ARGV(members, cap, slack): adds posts to those of the lists that are there. How many they are.
local function push(keys, args)
  local added, cap, slack = members_in(args[1]), tonumber(args[2]), tonumber(args[3])
  local found = 0
  for _, key in ipairs(keys) do
    local length = redis.call('LPUSHX', key, unpack(added))
    if length > 0 then
      found = found + 1
      trim(key, length, cap, slack)
    end
  end
  return found
end

-- mend KEYS(1) ARGV(incarnation, removed, added, cap, slack): takes members out of a list and puts others in, and leaves
-- all else as it is. 1, or 0 where that list is gone.
local function mend(keys, args)
  local key = keys[1]
  local tail = tail_of(key)
  if not tail or tail.incarnation ~= number(args[1], 1) then
    return 0
  end
  for _, member in ipairs(members_in(args[2])) do
    redis.call('LREM', key, 0, member)
  end
  local added = members_in(args[3])
  if #added > 0 then
    trim(key, redis.call('LPUSH', key, unpack(added)), tonumber(args[4]), tonumber(args[5]))
  end
  return 1
end

-- Reading must go on when memory is full: it may renew a life, and needs no memory for that.
redis.register_function { function_name = 'read_VERSION', callback = read, flags = { 'allow-oom' } }
redis.register_function('create_VERSION', create)
redis.register_function('fill_VERSION', fill)
redis.register_function('merge_VERSION', merge)
redis.register_function('push_VERSION', push)
redis.register_function('mend_VERSION', mend)
