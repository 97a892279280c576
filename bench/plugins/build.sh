#!/usr/bin/env bash
# Builds the plugins of bench/compute.js into bench/plugins/built, which is not committed. Skips a plugin whose tools are
# missing, and prints a line about it.
set -uo pipefail
cd "$(dirname "$0")/../.."

built=$PWD/bench/plugins/built
mkdir -p "$built"

build_go() {
  (cd bench/plugins/go && GOOS=wasip1 GOARCH=wasm GOFLAGS= GOWORK=off CGO_ENABLED=0 \
    go build -buildmode=c-shared -trimpath -buildvcs=false -o "$built/go.wasm" .)
}

build_assemblyscript() {
  npx --no-install asc bench/plugins/assemblyscript/compute.ts \
    --use abort=bench/plugins/assemblyscript/compute/abort_ -O3 -o "$built/assemblyscript.wasm"
}

build_rust() {
  (cd bench/plugins/rust && cargo build --release --locked --quiet --target wasm32-unknown-unknown) &&
    cp "bench/plugins/rust/target/wasm32-unknown-unknown/release/compute.wasm" "$built/rust.wasm"
}

build_quickjs() {
  local manifest sources
  manifest=$(cd bench/plugins/quickjs && cargo metadata --format-version 1 --locked |
    grep -o '[^"]*/rquickjs-sys-[^"/]*/Cargo.toml') || return
  sources=${manifest%/Cargo.toml}/quickjs
  clang-14 --target=wasm32-wasi -O2 -w -D_GNU_SOURCE -D_WASI_EMULATED_PROCESS_CLOCKS -D_WASI_EMULATED_SIGNAL \
    -I"$sources" -nostartfiles -Wl,--no-entry -Wl,--strip-debug -Wl,-z,stack-size=1048576 \
    bench/plugins/quickjs/main.c "$sources"/{quickjs,libregexp,libunicode,dtoa}.c -lm -lwasi-emulated-process-clocks \
    -lwasi-emulated-signal -o "$built/quickjs.wasm"
}

for name in go assemblyscript rust quickjs; do
  if output=$("build_$name" 2>&1); then
    echo "built $name"
  else
    echo "not built: $name: $(tail -n 1 <<< "$output")"
  fi
done
