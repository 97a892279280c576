#!/usr/bin/env bash
# Builds the plugins that are committed: the examples, and the guest of the tests that is written in C.
# Builds are reproducible: the output depends only on the sources, go.sum, Cargo.lock and the versions of the tools,
# which go.mod, Cargo.toml and the head of the C source name (the last two as packages of Debian). `build.sh --check`
# verifies the committed files.
set -euo pipefail
cd "$(dirname "$0")/.."

go_sources='plugins/say-hello/say-hello.wasm plugins/visits-go/visits.wasm plugins/orders-go/orders.wasm'
rust_sources='plugins/visits-rust/visits.wasm plugins/orders-rust/orders.wasm'
c_sources='__test__/guests/greeting.c plugins/orders-c/orders.c'

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

build_go() { # output file, directory of the source
  (cd "$2" && GOOS=wasip1 GOARCH=wasm GOFLAGS= GOWORK=off CGO_ENABLED=0 \
    go build -buildmode=c-shared -trimpath -buildvcs=false -o "$1" .)
}

build_c() { # output file, source
  # Without the start files there is no _initialize, and the constructors are the host's to call.
  clang-14 --target=wasm32-wasi -O2 -Wall -Werror -nostartfiles \
    -Wl,--no-entry -Wl,--export=__wasm_call_ctors -Wl,--strip-debug -o "$1" "$2"
  chmod 644 "$1" # the linker makes programs
}

build_rust() { # output file, directory of the source
  # Debian has no standard library for WebAssembly, but its source. All plugins share what is built of it.
  local target=$scratch/target
  (cd "$2" &&
    RUSTC_BOOTSTRAP=1 RUSTC=/usr/bin/rustc CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER=wasm-ld-14 \
    RUSTFLAGS="--remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=cargo --remap-path-prefix=$target=target" \
    /usr/bin/cargo build -Zbuild-std=std,panic_abort --release --locked --quiet \
      --target wasm32-unknown-unknown --target-dir "$target")
  install -m 644 "$target/wasm32-unknown-unknown/release/$(sed -n 's/^name = "\(.*\)"/\1/p' "$2/Cargo.toml").wasm" "$1"
}

go_version() { go env GOVERSION; }

c_version() {
  dpkg-query --show --showformat='${Package}=${Version} ' \
    clang-14 lld-14 libclang-rt-14-dev-wasm32 wasi-libc | sed 's/ $//'
}

rust_version() {
  dpkg-query --show --showformat='${Package}=${Version} ' cargo-web lld-14 rust-web-src rustc-web | sed 's/ $//'
}

check() { # committed file, the tools that it is built with, build function, version function, source or its directory
  local installed
  installed=$("$4" 2>/dev/null) || installed='not all of that'
  if [ "$installed" != "$2" ]; then
    echo "$1 not checked: it is built with $2, here is $installed"
    return
  fi
  "$3" "$scratch/plugin.wasm" "${5:-}"
  cmp "$scratch/plugin.wasm" "$1"
  echo "$1 is what its source gives"
}

if [ "${1:-}" != --check ]; then
  for wasm in $go_sources; do build_go "$PWD/$wasm" "${wasm%/*}"; done
  for source in $c_sources; do build_c "${source%.c}.wasm" "$source"; done
  for wasm in $rust_sources; do build_rust "$PWD/$wasm" "${wasm%/*}"; done
  exit
fi

for wasm in $go_sources; do
  check "$wasm" "go$(sed -n 's/^go //p' "${wasm%/*}/go.mod")" build_go go_version "${wasm%/*}"
done
for wasm in $rust_sources; do
  check "$wasm" "$(sed -n 's/^# \(cargo-web=\)/\1/p' "${wasm%/*}/Cargo.toml")" build_rust rust_version "${wasm%/*}"
done
for source in $c_sources; do
  check "${source%.c}.wasm" "$(sed -n 's/^\/\/ \(clang-14=\)/\1/p' "$source")" build_c c_version "$source"
done
