// What k6 sends: requests of a file, each begun at its time, whatever has become of those before.
import http from 'k6/http'
import exec from 'k6/execution'
import { SharedArray } from 'k6/data'

const lines = new SharedArray('requests', () => open(__ENV.REQUESTS).trim().split('\n'))

export const options = {
  discardResponseBodies: true,
  systemTags: ['status', 'error_code'],
  summaryTrendStats: ['med', 'p(99)', 'max', 'count'],
  scenarios: {
    load: {
      executor: 'constant-arrival-rate',
      rate: Number(__ENV.RATE),
      timeUnit: '1s',
      duration: `${__ENV.SECONDS}s`,
      preAllocatedVUs: Number(__ENV.AT_ONCE),
      gracefulStop: '10s',
    },
  },
}

export default function () {
  const [line, ...rest] = lines[exec.scenario.iterationInTest % lines.length].split('\t')
  const [method, path] = line.split(' ', 2)
  const body = line.slice(method.length + path.length + 2)
  const headers = Object.fromEntries(rest.map((each) => each.split(': ', 2)))
  if (body) headers['Content-Type'] = 'application/json'
  http.request(method, __ENV.BASE + path, body || null, { headers })
}

export function handleSummary(data) {
  const of = (name) => (data.metrics[name] ? data.metrics[name].values : {})
  // From the moment when the request was due to begin until its answer was whole, the wait for a connection included.
  const took = of('iteration_duration')
  return {
    stdout: JSON.stringify({
      seconds: data.state.testRunDurationMs / 1000,
      requests: took.count,
      p50_ms: took.med,
      p99_ms: took['p(99)'],
      max_ms: took.max,
      refused: of('http_req_failed').passes || 0,
      dropped: of('dropped_iterations').count || 0,
      bytes: of('data_received').count,
    }) + '\n',
  }
}
