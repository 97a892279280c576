-- The article's request for wrk, and its results as one line of JSON.
--
-- An argument is how many milliseconds a connection pauses, on average, before each request.

wrk.method = "POST"
wrk.body = "Jane Doe"
wrk.headers["Content-Type"] = "text/plain; charset=utf-8"

function init(arguments)
  local pause = tonumber(arguments[1])
  if pause == nil then return end
  math.randomseed(os.time())
  -- At random, so that connections do not send in step; wrk takes whole milliseconds.
  function delay()
    return math.floor(2 * pause * math.random() + math.random())
  end
end

function done(summary, latency, requests)
  local errors = summary.errors
  print(string.format(
    '\nRESULT {"requestsPerSecond": %.1f, "p50": %.3f, "p99": %.3f, "notOk": %d, "socketErrors": %d}',
    summary.requests / summary.duration * 1e6,
    latency:percentile(50) / 1e3,
    latency:percentile(99) / 1e3,
    errors.status,
    errors.connect + errors.read + errors.write + errors.timeout
  ))
end
