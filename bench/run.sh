#!/usr/bin/env bash
# All benchmarks, one after another; bench/README.md says what they measure.
#
#   bash bench/run.sh [--rounds n] [--seconds n]
#
# With RESULTS=directory, the raw results go there as JSON.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! command -v wrk > /dev/null; then
  echo 'The HTTP benchmark needs wrk: apt-get install wrk' >&2
  exit 1
fi
if [ -n "${RESULTS:-}" ]; then mkdir -p "$RESULTS"; fi

for benchmark in http call event-loop scaling; do
  node "bench/$benchmark.js" "$@" ${RESULTS:+--json "$RESULTS/$benchmark.json"}
done
