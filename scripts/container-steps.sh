#!/usr/bin/env bash
# Runs the steps of the Dockerfile on this machine, without Docker, from the build in this directory: packs and installs the packages,
# compiles the plugins, and starts the server as the image does, as a user without rights and with files that it cannot change. Needs
# root, and redis-server.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD

app=$(mktemp -d)
trap 'kill $(jobs -p) 2> /dev/null || true; rm -rf "$app"' EXIT
chmod 755 "$app"
node scripts/pack.js "$app" > /dev/null 2>&1
cd "$app"
npm init -y > /dev/null
npm install --no-audit --no-fund --omit=dev ./extism-host-binding-*.tgz ./extism-host-[0-9]*.tgz ./extism-host-fastify-*.tgz ./extism-host-cli-*.tgz > /dev/null 2>&1
mkdir plugins
cp "$root/plugins/say-hello/say-hello.wasm" "$root/plugins/visits-rust/visits.wasm" plugins/
export PORT=7398
sed "s/port: 7070/port: $PORT/" "$root/deploy/extism-host.yaml" > extism-host.yaml
cp "$root/deploy/healthcheck.js" .
export EXTISM_HOST_CACHE_DIR=$app/compiled
install -d -m 700 compiled
STORE_URL=memory: node_modules/.bin/extism-host compile --config extism-host.yaml
chown -R 65532:65532 "$app"
chmod -R a-w "$app"

redis-server --port 7399 --bind 127.0.0.1 --save '' --daemonize no > /dev/null &
start=$(date +%s%N)
STORE_URL=redis://127.0.0.1:7399 setpriv --reuid 65532 --regid 65532 --clear-groups --no-new-privs --bounding-set -all \
  node node_modules/@extism-host/cli/bin/extism-host.js serve --config extism-host.yaml > /dev/null &
server=$!
for _ in $(seq 200); do node healthcheck.js && break; kill -0 "$server"; done
echo "ready after $(( ($(date +%s%N) - start) / 1000000 )) ms, with the compiled plugins of the image"
curl -fsS -X POST "http://127.0.0.1:$PORT/visit" -d Jane
echo
kill -TERM "$server"
wait "$server"
echo 'it ended with 0'
