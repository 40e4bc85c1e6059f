#!lua name=feedmesh_limits_VERSION
-- Rate limits, on the server: many decisions in one call. gateway/limits.py calls it and says what a limit is. VERSION is a
-- hash of this text, so that two releases run side by side.
--
-- GCRA, the generic cell rate algorithm, as virtual scheduling (ITU-T I.371, annex A). A key holds its theoretical arrival
-- time in µs: when the whole quota is there again. All times are the server's, so gateways need not agree on theirs.

-- The kinds of requests that arguments from the second on describe: how many keys, and of each key the µs from one request
-- to the next and the quota.
local function described(args)
  local kinds, at = {}, 2
  while at <= #args do
    local kind = {}
    for each = 1, tonumber(args[at]) do
      kind[each] = {tonumber(args[at + 2 * each - 1]), tonumber(args[at + 2 * each])}
    end
    kinds[#kinds + 1] = kind
    at = at + 1 + 2 * #kind
  end
  return kinds
end

-- Of each request: which of its keys allows the least (from 1); how many requests that one still allows, this one included,
-- 0 where it is refused; in how many µs that is to be one more. Where one key refuses, none is charged.
local function decided(keys, args, now)
  local call, floor, max, min = redis.call, math.floor, math.max, math.min
  local kinds, of_requests = described(args), args[1]
  local arrivals, charged, answer = {}, {}, {}
  for at, arrival in ipairs(call('MGET', unpack(keys))) do
    arrivals[keys[at]] = tonumber(arrival or now)
  end
  local first = 0
  for request = 1, #of_requests do
    local kind = kinds[of_requests:byte(request)]
    local which, least, longest
    local later = {}
    for each, limit in ipairs(kind) do
      local interval, quota = limit[1], limit[2]
      local full = now + interval * quota
      -- Never further ahead than a quota that is used up: a clock may go back, and a quota be lowered.
      local arrival = max(now, min(full, arrivals[keys[first + each]]))
      local allowed = floor((full - arrival) / interval)
      local wait = (allowed + 1) * interval - (full - arrival)
      if each == 1 or allowed < least or allowed == least and wait > longest then
        which, least, longest = each, allowed, wait
      end
      later[each] = arrival + interval
    end
    if least > 0 then
      for each, arrival in ipairs(later) do
        local key = keys[first + each]
        arrivals[key], charged[key] = arrival, true
      end
    end
    local place = 3 * request
    answer[place - 2], answer[place - 1], answer[place] = which, least, longest
    first = first + #kind
  end
  for key in pairs(charged) do
    -- From then on it says what no key says.
    call('SET', key, arrivals[key], 'PX', math.ceil((arrivals[key] - now) / 1000) + 1)
  end
  return answer
end

-- decide KEYS(…) ARGV(a byte for each request, the number of its kind from 1; then the kinds: see described).
local function decide(keys, args)
  local time = redis.call('TIME')
  return decided(keys, args, tonumber(time[1]) * 1000000 + tonumber(time[2]))
end

redis.register_function('decide_VERSION', decide)
