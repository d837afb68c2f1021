-- Posts one fixed body, read from the file BODY with the content type CTYPE; prints one line of JSON at the end.
-- With THINK, each connection waits for a random time before each request, so many milliseconds on average.
local file = assert(io.open(os.getenv("BODY"), "rb"))
wrk.method = "POST"
wrk.body = file:read("*a")
file:close()
wrk.headers["Content-Type"] = os.getenv("CTYPE")

local think = tonumber(os.getenv("THINK"))
if think then
  -- A service may close a connection that says nothing for long.
  function delay() return think * math.min(-math.log(1 - math.random()), 4) end
end

local threads = {}
function setup(thread) table.insert(threads, thread) end
function init(args) accepted, refused, others = 0, 0, 0 end
function response(status, headers)
  if status == 200 then
    accepted = accepted + 1
  elseif (status == 429 or status == 503) and headers["retry-after"] then
    refused = refused + 1
  else
    others = others + 1
  end
end
function done(summary, latency)
  local function total(name)
    local sum = 0
    for _, thread in ipairs(threads) do sum = sum + thread:get(name) end
    return sum
  end
  local errors, seconds = summary.errors, summary.duration / 1e6
  local accepted, refused, others = total("accepted"), total("refused"), total("others")
  -- The slowest answers are those of requests that were let in.
  local among = math.max(accepted, 1) / math.max(accepted + refused + others, 1)
  io.write(string.format(
    'RESULT {"rate":%.3f,"refused":%.3f,"errors":%d,"p50":%.3f,"p99":%.3f}\n',
    accepted / seconds, refused / seconds,
    others + errors.connect + errors.read + errors.write + errors.timeout,
    latency:percentile(100 - 50 * among) / 1e3, latency:percentile(100 - among) / 1e3))
end
