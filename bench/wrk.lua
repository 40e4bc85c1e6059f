-- What wrk sends and says. Its arguments: a file of requests, one a line: METHOD PATH [BODY], then headers, each after a
-- tab; then "once" where each is to be sent at most once. The answers to the load are one line of JSON.
local ffi = require 'ffi'
ffi.cdef 'struct time { long s, ns; }; int clock_gettime(int clock, struct time *time);'

local lines, at, acknowledged = {}, 0, 0
local threads = {}
-- How long it took until each was answered, in seconds; 0 while not, and without "once".
took = 0

local function now()
  local time = ffi.new 'struct time'
  ffi.C.clock_gettime(1, time)
  return tonumber(time.s) + tonumber(time.ns) / 1e9
end

function setup(thread)
  table.insert(threads, thread)
end

function init(args)
  for line in io.lines(args[1]) do
    local method, path, body, rest = string.match(line, "^(%S+) (%S+) ?([^\t]*)(.*)$")
    local headers = { ["Host"] = wrk.headers["Host"] }
    for name, value in string.gmatch(rest, "\t([^:]+): ([^\t]*)") do
      headers[name] = value
    end
    if body ~= "" then
      headers["Content-Type"] = "application/json"
    end
    lines[#lines + 1] = wrk.format(method, path, headers, body ~= "" and body or nil)
  end
  if args[2] == 'once' then
    local begun = now()
    -- Looking at answers costs wrk more than all else it does.
    response = function(status)
      if status >= 200 and status < 300 then
        acknowledged = acknowledged + 1
        if acknowledged == #lines then
          took = now() - begun
          wrk.thread:stop()
        end
      end
    end
  end
end

function request()
  at = at % #lines + 1
  return lines[at]
end

function done(summary, latency)
  local errors = summary.errors
  local seconds = threads[1]:get 'took'
  io.write(string.format(
    '{"seconds": %.6f, "requests": %d, "p50_ms": %.3f, "p99_ms": %.3f, "max_ms": %.3f, "refused": %d, "dropped": %d, "bytes": %d}\n',
    seconds > 0 and seconds or summary.duration / 1e6, summary.requests, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    latency.max / 1e3, errors.status, errors.connect + errors.read + errors.write + errors.timeout, summary.bytes))
end
