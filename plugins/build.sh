#!/usr/bin/env bash
# Builds the plugins that are committed: the example, and the guest of the tests that is written in C.
# The output depends on nothing but the sources, go.sum and the versions of the tools, which go.mod and
# the head of the C source (as packages of Debian) name: `build.sh --check` tells whether the committed files are what they give.
set -euo pipefail
cd "$(dirname "$0")/.."

go_source=plugins/say-hello
c_source=__test__/guests/greeting.c

build_go() { # output file
  (cd "$go_source" && GOOS=wasip1 GOARCH=wasm GOFLAGS= GOWORK=off CGO_ENABLED=0 \
    go build -buildmode=c-shared -trimpath -buildvcs=false -o "$1" .)
}

build_c() { # output file
  # Without the start files there is no _initialize, and the constructors are the host's to call.
  clang-14 --target=wasm32-wasi -O2 -Wall -Werror -nostartfiles \
    -Wl,--no-entry -Wl,--export=__wasm_call_ctors -Wl,--strip-debug -o "$1" "$c_source"
}

go_version() { go env GOVERSION; }

c_version() {
  dpkg-query --show --showformat='${Package}=${Version} ' \
    clang-14 lld-14 libclang-rt-14-dev-wasm32 wasi-libc | sed 's/ $//'
}

check() { # committed file, the tools that it is built with, build function, version function
  local installed
  installed=$("$4" 2>/dev/null) || installed='not all of that'
  if [ "$installed" != "$2" ]; then
    echo "$1 not checked: it is built with $2, here is $installed"
    return
  fi
  "$3" "$fresh/plugin.wasm"
  cmp "$fresh/plugin.wasm" "$1"
  echo "$1 is what its source gives"
}

if [ "${1:-}" != --check ]; then
  build_go "$PWD/$go_source/say-hello.wasm"
  build_c "${c_source%.c}.wasm"
  exit
fi

fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
check "$go_source/say-hello.wasm" "go$(sed -n 's/^go //p' "$go_source/go.mod")" build_go go_version
check "${c_source%.c}.wasm" "$(sed -n 's/^\/\/ \(clang-14=\)/\1/p' "$c_source")" build_c c_version
