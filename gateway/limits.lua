#!lua name=feedmesh_limits_VERSION
-- Rate limits, on the server: many decisions in one call. gateway/limits.py calls it and says what a limit is. VERSION is a
-- hash of this text, so that two releases run side by side.
--
-- GCRA, the generic cell rate algorithm, as virtual scheduling (ITU-T I.371, annex A). A key holds its theoretical arrival
-- time in µs: when the whole quota is there again. All times are the server's, so gateways need not agree on theirs.

-- Of each request: which of its keys allows the least (from 1); how many requests that one still allows, this one included,
-- 0 where it is refused; in how many µs that is to be one more. Where one key refuses, none is charged.
local function decided(keys, args, now)
  local call, floor, max, min = redis.call, math.floor, math.max, math.min
  local charged, answer = {}, {}
  local first, at = 0, 1
  while at <= #args do
    local count = tonumber(args[at])
    local which, least, longest
    local later = {}
    for each = 1, count do
      local key = keys[first + each]
      local interval, quota = tonumber(args[at + 2 * each - 1]), tonumber(args[at + 2 * each])
      local full = now + interval * quota
      -- Never further ahead than a quota that is used up: a clock may go back, and a quota be lowered.
      local arrival = max(now, min(full, charged[key] or tonumber(call('GET', key) or now)))
      local allowed = floor((full - arrival) / interval)
      local wait = (allowed + 1) * interval - (full - arrival)
      if each == 1 or allowed < least or allowed == least and wait > longest then
        which, least, longest = each, allowed, wait
      end
      later[each] = arrival + interval
    end
    if least > 0 then
      for each = 1, count do
        charged[keys[first + each]] = later[each]
      end
    end
    local place = #answer
    answer[place + 1], answer[place + 2], answer[place + 3] = which, least, longest
    first, at = first + count, at + 1 + 2 * count
  end
  for key, arrival in pairs(charged) do
    -- From then on it says what no key says.
    call('SET', key, arrival, 'PX', math.ceil((arrival - now) / 1000) + 1)
  end
  return answer
end

-- decide KEYS(…) ARGV(for each request: how many keys; for each of them: µs from one request to the next, quota).
local function decide(keys, args)
  local time = redis.call('TIME')
  return decided(keys, args, tonumber(time[1]) * 1000000 + tonumber(time[2]))
end

redis.register_function('decide_VERSION', decide)
