#!/usr/bin/env bash
# All benchmarks, one after another; bench/README.md says what they measure.
#
#   bash bench/run.sh [--rounds n] [--seconds n]
#
# With RESULTS=directory, the raw results go there as JSON, and the plots and tables of
# docs/explanation/performance.md are made from them.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! command -v wrk > /dev/null; then
  echo 'The HTTP benchmarks need wrk: apt-get install wrk' >&2
  exit 1
fi
if [ -n "${RESULTS:-}" ]; then mkdir -p "$RESULTS"; fi

benchmark() {
  node "bench/$1.js" "${@:2}" ${RESULTS:+--json "$RESULTS/$1.json"}
}

benchmark http --half-load "$@"
for name in fastify call host-functions large variants event-loop scaling scaling-http start idle compute; do
  benchmark "$name" "$@"
done

if [ -n "${RESULTS:-}" ]; then node bench/plot.js "$RESULTS"; fi
