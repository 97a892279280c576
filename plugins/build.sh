#!/usr/bin/env bash
# Builds the plugins that are committed: the examples, and the guest of the tests that is written in C.
# Builds are reproducible: the output depends only on the sources, go.sum, Cargo.lock and the versions of the tools,
# which go.mod, Cargo.toml and the head of the C source name (the last two as packages of Debian). `build.sh --check`
# verifies the committed files.
set -euo pipefail
cd "$(dirname "$0")/.."

go_sources='plugins/say-hello/say-hello.wasm plugins/visits-go/visits.wasm'
rust_source=plugins/visits-rust
c_source=__test__/guests/greeting.c

build_go() { # output file, directory of the source
  (cd "$2" && GOOS=wasip1 GOARCH=wasm GOFLAGS= GOWORK=off CGO_ENABLED=0 \
    go build -buildmode=c-shared -trimpath -buildvcs=false -o "$1" .)
}

build_c() { # output file
  # Without the start files there is no _initialize, and the constructors are the host's to call.
  clang-14 --target=wasm32-wasi -O2 -Wall -Werror -nostartfiles \
    -Wl,--no-entry -Wl,--export=__wasm_call_ctors -Wl,--strip-debug -o "$1" "$c_source"
  chmod 644 "$1" # the linker makes programs
}

build_rust() { # output file
  # Debian has no standard library for WebAssembly, but its source.
  local target
  target=$(mktemp -d)
  (cd "$rust_source" &&
    RUSTC_BOOTSTRAP=1 RUSTC=/usr/bin/rustc CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER=wasm-ld-14 \
    RUSTFLAGS="--remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=cargo --remap-path-prefix=$target=target" \
    /usr/bin/cargo build -Zbuild-std=std,panic_abort --release --locked --quiet \
      --target wasm32-unknown-unknown --target-dir "$target")
  install -m 644 "$target/wasm32-unknown-unknown/release/visits.wasm" "$1"
  rm -rf "$target"
}

go_version() { go env GOVERSION; }

c_version() {
  dpkg-query --show --showformat='${Package}=${Version} ' \
    clang-14 lld-14 libclang-rt-14-dev-wasm32 wasi-libc | sed 's/ $//'
}

rust_version() {
  dpkg-query --show --showformat='${Package}=${Version} ' cargo-web lld-14 rust-web-src rustc-web | sed 's/ $//'
}

check() { # committed file, the tools that it is built with, build function, version function, directory of the source
  local installed
  installed=$("$4" 2>/dev/null) || installed='not all of that'
  if [ "$installed" != "$2" ]; then
    echo "$1 not checked: it is built with $2, here is $installed"
    return
  fi
  "$3" "$fresh/plugin.wasm" "${5:-}"
  cmp "$fresh/plugin.wasm" "$1"
  echo "$1 is what its source gives"
}

if [ "${1:-}" != --check ]; then
  for wasm in $go_sources; do build_go "$PWD/$wasm" "${wasm%/*}"; done
  build_c "${c_source%.c}.wasm"
  build_rust "$PWD/$rust_source/visits.wasm"
  exit
fi

fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
for wasm in $go_sources; do
  check "$wasm" "go$(sed -n 's/^go //p' "${wasm%/*}/go.mod")" build_go go_version "${wasm%/*}"
done
check "$rust_source/visits.wasm" "$(sed -n 's/^# \(cargo-web=\)/\1/p' "$rust_source/Cargo.toml")" build_rust rust_version
check "${c_source%.c}.wasm" "$(sed -n 's/^\/\/ \(clang-14=\)/\1/p' "$c_source")" build_c c_version
