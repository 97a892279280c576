#!/usr/bin/env bash
# Runs the steps of the Dockerfile without Docker, each stage in a fresh root of Debian bookworm, with Node from npm. It needs root,
# mmdebstrap, redis-server and a build in this directory (`npm run build`), because it skips the build of the addon. The last stage
# runs like in a cluster: as process 1, unprivileged, with read-only files, and without a shell.
set -euo pipefail
cd "$(dirname "$0")/.."

# The second part runs in its own network namespace, so that it does not conflict with ports of this machine.
if [ "${1-}" = --run ]; then
  image=$2
  trap 'kill $(jobs -p) 2> /dev/null || true' EXIT
  ip link set lo up
  redis-server --port 6379 --bind 127.0.0.1 --save '' --daemonize no > /dev/null &
  read -ra command < <(sed -n 's/^CMD //p' Dockerfile | node -p 'JSON.parse(require("fs").readFileSync(0)).join(" ")')
  read -ra health < <(sed -n 's/^HEALTHCHECK .* CMD //p' Dockerfile | node -p 'JSON.parse(require("fs").readFileSync(0)).join(" ")')
  env=(env --chdir=/app -i STORE_URL=redis://127.0.0.1:6379)
  while read -ra variables; do env+=("${variables[@]:1}"); done < <(sed -n '/^FROM .*distroless/,$p' Dockerfile | grep '^ENV ')
  inside=(setpriv --no-new-privs chroot --userspec=65532:65532 "$image" "${env[@]}")
  start=$(date +%s%N)
  unshare --mount --pid --fork bash -c 'mount --bind -o ro "$0" "$0" && mount -t proc proc "$0/proc" && exec "$@"' \
    "$image" "${inside[@]}" /nodejs/bin/node "${command[@]}" > /dev/null &
  container=$!
  for _ in $(seq 100); do "${inside[@]}" "${health[@]}" && break; kill -0 "$container"; done
  echo "healthy after $(( ($(date +%s%N) - start) / 1000000 )) ms, with plugins compiled ahead of time"
  curl -fsS -X POST http://127.0.0.1:7070/visit -d Jane
  echo
  kill -TERM "$(pgrep -P "$container")"
  wait "$container"
  echo 'the server exited with 0'
  exit
fi

scratch=$(mktemp -d)
chmod 755 "$scratch"
trap 'rm -rf "$scratch"' EXIT
build=$scratch/build
image=$scratch/image
root() { mmdebstrap --quiet --mode=root "$@"; }

echo 'FROM node:24-bookworm'
root --variant=minbase --include=ca-certificates bookworm "$build"
npm install --no-audit --no-fund --force --prefix "$scratch/tools" "node-linux-$(node -p process.arch)@24" npm@11 > /dev/null 2>&1
cp "$scratch"/tools/node_modules/node-linux-*/bin/node "$build/usr/local/bin/"
mkdir -p "$build/usr/local/lib/node_modules"
cp -r "$scratch/tools/node_modules/npm" "$build/usr/local/lib/node_modules/"
ln -s ../lib/node_modules/npm/bin/npm-cli.js "$build/usr/local/bin/npm"
# The certificate authorities and the registry of this machine.
cp /etc/ssl/certs/ca-certificates.crt "$build/etc/ssl/certs/"
npm_config_registry=$(npm config get registry)
export npm_config_registry NODE_EXTRA_CA_CERTS=/etc/ssl/certs/ca-certificates.crt
git ls-files -z plugins deploy | xargs -0 cp --parents -t "$(mkdir -p "$build/src" && echo "$build/src")"
node scripts/pack.js "$build/tmp" > /dev/null 2>&1

# The commands of the Dockerfile after the build.
steps=$(sed -e ':a' -e '/\\$/N; s/\\\n//; ta' Dockerfile | awk '
  /^WORKDIR \/app/ { on = 1 }
  /^FROM .*distroless/ { exit }
  on && sub(/^WORKDIR /, "mkdir -p /app; cd ") || on && sub(/^ENV /, "export ") || on && sub(/^RUN /, "")')
echo "$steps"
chroot "$build" /bin/bash -euo pipefail -c "$steps"

echo 'FROM distroless'
root --variant=extract --include=libc6,libstdc++6,libgcc-s1 bookworm "$image"
mkdir -p "$image/nodejs/bin" "$image/usr/bin" "$image/proc"
cp "$build/usr/local/bin/node" "$image/nodejs/bin/"
# `env` sets the environment, like a container engine would.
cp /usr/bin/env "$image/usr/bin/"
cp -r "$build/app" "$image/app"
chown -R 65532:65532 "$image/app"
unshare --net bash "$0" --run "$image"
