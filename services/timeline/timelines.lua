#!lua name=feedmesh_timelines_VERSION
-- Timelines, on the server: each function is one step that nobody sees half done. services/timeline/timelines.py calls
-- them and says what a timeline is; VERSION there is a hash of this text, so that two releases run side by side.
--
-- A list is one string of records of 21 bytes. The first two are its head, six integers of 7 bytes: floor, epoch, horizon;
-- incarnation, bound, count. Then come `count` members, oldest first, each once, and room for more. What is newer than
-- `bound` goes to the end. With the floor NOTHING a list covers nothing: somebody is building it. All members of another
-- are above its floor.

local RECORD, HEAD, NOTHING = 21, 42, 2 ^ 53 - 1
local BOUND_AT = 28 -- in the head, from 0
local NEAR = 8 -- members at the end among which a push looks for its place at first
local WHILE_BUILT = 3 -- times `cap`: what a list may hold that covers nothing

-- Integers are compared as numbers: Lua compares strings by the server's locale.
local function number(text, at)
  return (struct.unpack('>I7', text, at))
end

local function bytes(value)
  return struct.pack('>I7', value)
end

local function head_in(text)
  local floor, epoch, horizon, incarnation, _, count = struct.unpack('>I7I7I7I7I7I7', text)
  return { floor = floor, epoch = epoch, horizon = horizon, incarnation = incarnation, count = count }
end

-- A list's head and its members; nil without.
local function load(key)
  local text = redis.call('GET', key)
  if not text then
    return nil
  end
  local head = head_in(text)
  return head, string.sub(text, HEAD + 1, HEAD + head.count * RECORD)
end

-- How many of the first `count` members have an id below this one. Looks from the newest on, in growing steps.
local function older(members, count, id)
  local low, high, step = count, count, 1
  while low > 0 and number(members, (low - 1) * RECORD + 1) >= id do
    high = low - 1
    low = math.max(0, low - step)
    step = step * 2
  end
  while low < high do
    local middle = math.ceil((low + high) / 2)
    if number(members, (middle - 1) * RECORD + 1) < id then
      low = middle
    else
      high = middle - 1
    end
  end
  return low
end

-- The members of both, each once, oldest first as they are.
local function united(members, added)
  local left = #members / RECORD
  local pieces, place = {}, 2 * #added / RECORD + 1
  for at = #added - RECORD + 1, 1, -RECORD do
    local id = number(added, at)
    local below = older(members, left, id)
    pieces[place] = string.sub(members, below * RECORD + 1, left * RECORD)
    local same = below < left and number(members, below * RECORD + 1) == id
    pieces[place - 1] = same and '' or string.sub(added, at, at + RECORD - 1)
    place, left = place - 2, below
  end
  pieces[1] = string.sub(members, 1, left * RECORD)
  return table.concat(pieces)
end

-- Writes a list: of the members those above the floor, and where they are more than a list may hold, the newest `cap`.
-- What is cut off raises the floor, in the same call. Of one that covers nothing nothing is cut: that would leave a hole
-- that nobody knows of. It is given up, and whoever builds it finds it gone. Keeps the time to live.
local function store(key, head, members, cap, slack)
  local count, cut = #members / RECORD, 0
  if head.floor == NOTHING then
    if count > WHILE_BUILT * cap then
      redis.call('DEL', key)
      return
    end
  else
    cut = older(members, count, head.floor + 1)
    if count - cut > cap + slack then
      cut = count - cap
      head.floor = number(members, (cut - 1) * RECORD + 1)
    end
  end
  members, count = string.sub(members, cut * RECORD + 1), count - cut
  local bound = head.floor < NOTHING and head.floor or 0
  if count > 0 then
    bound = number(members, (count - 1) * RECORD + 1)
  end
  -- A string that has to grow doubles, so one that is half full has all its room from the beginning.
  local room = count > cap / 2 and math.max(0, cap + slack - count) or 0
  local text = struct.pack('>I7I7I7I7I7I7', head.floor, head.epoch, head.horizon, head.incarnation, bound, count)
  redis.call('SET', key, text .. members .. string.rep('\0', room * RECORD), 'KEEPTTL')
end

-- read KEYS(1) ARGV(ttl in seconds, newest, known): a list's head and its newest members, or with 0 all of them; nil
-- without. Where the head is the known one the caller has the members: then only the head. Its life is renewed, but with a
-- ttl of 0.
local function read(keys, args)
  local key, ttl, newest = keys[1], tonumber(args[1]), tonumber(args[2])
  local head = redis.call('GETRANGE', key, 0, HEAD - 1)
  if head == '' then
    return nil
  end
  -- Not at every read: each would be a write for the replicas.
  if ttl > 0 and redis.call('TTL', key) < ttl * 0.99 then
    redis.call('EXPIRE', key, ttl)
  end
  if head == args[3] then
    return head
  end
  local count = number(head, 36)
  local first = newest > 0 and math.max(0, count - newest) or 0
  return head .. redis.call('GETRANGE', key, HEAD + first * RECORD, HEAD + count * RECORD - 1)
end

-- create KEYS(1) ARGV(epoch, incarnation, replaced, ttl): an empty list that covers nothing, unless there is one of this
-- epoch or a later one that is not the incarnation to be replaced. Gives the head of the one that there is now.
local function create(keys, args)
  local key, epoch, replaced = keys[1], number(args[1], 1), number(args[3], 1)
  local text = redis.call('GETRANGE', key, 0, HEAD - 1)
  local head = text ~= '' and head_in(text)
  if not head or head.epoch < epoch or head.incarnation == replaced then
    text = bytes(NOTHING) .. args[1] .. bytes(0) .. args[2] .. struct.pack('>I7I7', 0, 0)
    redis.call('SET', key, text, 'EX', tonumber(args[4]))
  end
  return text
end

-- fill KEYS(1) ARGV(incarnation, members, floor, horizon, ttl, cap, slack): completes the list that `create` made with what
-- was read since, and lets it cover all above the floor. 1, or 0 where that list is gone or was completed by another.
local function fill(keys, args)
  local key = keys[1]
  local head, members = load(key)
  if not head or head.incarnation ~= number(args[1], 1) or head.floor < NOTHING then
    return 0
  end
  head.floor, head.horizon = number(args[3], 1), number(args[4], 1)
  store(key, head, united(members, args[2]), tonumber(args[6]), tonumber(args[7]))
  redis.call('EXPIRE', key, tonumber(args[5]))
  return 1
end

-- merge KEYS(…) ARGV(incarnation or 0 for any, members, down_to, horizon, cap, slack): adds an author's posts to lists that
-- are there. `down_to` is the id above which these are all that the author wrote. How many lists it found.
local function merge(keys, args)
  local incarnation, added, down_to, horizon = number(args[1], 1), args[2], number(args[3], 1), number(args[4], 1)
  local found = 0
  for _, key in ipairs(keys) do
    local head, members = load(key)
    if head and (incarnation == 0 or head.incarnation == incarnation) then
      found = found + 1
      if head.floor == NOTHING and down_to > 0 then
        -- Its builder does not know of this floor and is to begin again.
        redis.call('DEL', key)
      else
        if head.floor < NOTHING then
          head.floor, head.horizon = math.max(head.floor, down_to), math.max(head.horizon, horizon)
        end
        store(key, head, united(members, added), tonumber(args[5]), tonumber(args[6]))
      end
    end
  end
  return found
end

-- Adds members, the oldest of which has this id, that do not all belong to the end: events of several partitions, or for
-- the second time, come in another order. Their places are near the end, so that is looked at in growing steps.
local function insert(key, count, added, oldest, cap, slack)
  local first, near = count, nil
  repeat
    first = math.max(0, count - NEAR * (count - first + 1))
    near = redis.call('GETRANGE', key, HEAD + first * RECORD, HEAD + count * RECORD - 1)
    if first == 0 then
      local head, members = load(key)
      store(key, head, united(members, added), cap, slack)
      return
    end
  until number(near, 1) < oldest
  local both = united(near, added)
  count = first + #both / RECORD
  redis.call('SETRANGE', key, HEAD + first * RECORD, both)
  redis.call('SETRANGE', key, BOUND_AT, string.sub(both, -RECORD, 6 - RECORD) .. bytes(count))
end

-- push KEYS(…) ARGV(cap, slack, then for each run of keys: how many they are, members): adds posts to those of the lists
-- that are there. How many members found a list.
local function push(keys, args)
  local call, pack, unpack = redis.call, struct.pack, struct.unpack
  local cap, slack = tonumber(args[1]), tonumber(args[2])
  local found, at = 0, 0
  for run = 3, #args, 2 do
    local added = args[run + 1]
    local many, oldest, newest = #added / RECORD, number(added, 1), number(added, #added - RECORD + 1)
    for index = at + 1, at + tonumber(args[run]) do
      local key = keys[index]
      local head = call('GETRANGE', key, BOUND_AT, HEAD - 1)
      if head ~= '' then
        found = found + many
        local bound, count = unpack('>I7I7', head)
        if count + many > cap + slack then
          local whole, members = load(key)
          store(key, whole, united(members, added), cap, slack)
        elseif bound < oldest then
          call('SETRANGE', key, HEAD + count * RECORD, added)
          call('SETRANGE', key, BOUND_AT, pack('>I7I7', newest, count + many))
        else
          insert(key, count, added, oldest, cap, slack)
        end
      end
    end
    at = at + tonumber(args[run])
  end
  return found
end

-- mend KEYS(1) ARGV(incarnation, removed, added, cap, slack, another incarnation): takes members out of a list and puts
-- others in, and leaves all else as it is but for its incarnation: otherwise a list whose head is the same is the same,
-- as members go only where the floor rises. 1, or 0 where that list is gone.
local function mend(keys, args)
  local key, removed = keys[1], args[2]
  local head, members = load(key)
  if not head or head.incarnation ~= number(args[1], 1) then
    return 0
  end
  for at = 1, #removed, RECORD do
    local place = older(members, #members / RECORD, number(removed, at)) * RECORD
    if string.sub(members, place + 1, place + RECORD) == string.sub(removed, at, at + RECORD - 1) then
      members = string.sub(members, 1, place) .. string.sub(members, place + RECORD + 1)
    end
  end
  head.incarnation = number(args[6], 1)
  store(key, head, united(members, args[3]), tonumber(args[4]), tonumber(args[5]))
  return 1
end

-- Reading must go on when memory is full: it may renew a life, and needs no memory for that.
redis.register_function { function_name = 'read_VERSION', callback = read, flags = { 'allow-oom' } }
redis.register_function('create_VERSION', create)
redis.register_function('fill_VERSION', fill)
redis.register_function('merge_VERSION', merge)
redis.register_function('push_VERSION', push)
redis.register_function('mend_VERSION', mend)
