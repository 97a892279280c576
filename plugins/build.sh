#!/usr/bin/env bash
# Builds the example plugins. The output depends on nothing but the sources, go.sum and the version
# of Go that go.mod names: `build.sh --check` tells whether the committed files are what they give.
set -euo pipefail
cd "$(dirname "$0")"

build() { # directory, output file
  (cd "$1" && GOOS=wasip1 GOARCH=wasm GOFLAGS= GOWORK=off CGO_ENABLED=0 \
    go build -buildmode=c-shared -trimpath -buildvcs=false -o "$2" .)
}

if [ "${1:-}" != --check ]; then
  build say-hello say-hello.wasm
  exit
fi

pinned="go$(sed -n 's/^go //p' say-hello/go.mod)"
installed=$(command -v go >/dev/null && go env GOVERSION || echo 'no Go')
if [ "$installed" != "$pinned" ]; then
  echo "plugins not checked: they are built with $pinned, here is $installed"
  exit
fi
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
build say-hello "$fresh/say-hello.wasm"
cmp "$fresh/say-hello.wasm" say-hello/say-hello.wasm
echo "plugins/say-hello/say-hello.wasm is what its source gives"
