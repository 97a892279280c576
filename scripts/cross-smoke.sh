#!/usr/bin/env bash
# Runs the smoke suite and the article's service with the addon of another platform, which `scripts/cross.sh TARGET` has
# built: `scripts/cross-smoke.sh TARGET`.
set -euo pipefail
cd "$(dirname "$0")/.."

target=${1:?usage: scripts/cross-smoke.sh TARGET}
bash scripts/cross-node.sh "$target" -p '`Node ${process.version}, ${process.arch}, ${process.report.getReport().header.glibcVersionRuntime ?? "musl"}`'
bash scripts/cross-node.sh "$target" __test__/support/smoke.js

export HOST=127.0.0.1 PORT=7397
log=$(mktemp)
bash scripts/cross-node.sh "$target" server.js > "$log" &
server=$!
trap 'kill -KILL "$server" 2> /dev/null || true; rm -f "$log"' EXIT
for _ in $(seq 300); do
  if grep -q 'Server listening' "$log"; then break; fi
  kill -0 "$server"
  sleep 0.2
done
answer=$(curl -fsS -X POST "http://$HOST:$PORT" -H 'Content-Type: text/plain; charset=utf-8' -d 'Jane Doe')
printf '%s\n' "$answer"
[ "$answer" = $'👋 Hello Jane Doe\nkey: hello, value: 👋 Hello World 🌍\nkey: message, value: I 💜 Extism 😍' ]
kill -TERM "$server"
wait "$server"
echo "$target: the smoke suite passed, the service answered and ended"
