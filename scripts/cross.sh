#!/usr/bin/env bash
# Builds the addon for another platform with zig as the C compiler and the linker: `scripts/cross.sh TARGET [PROFILE]`. The
# result is extism-host.PLATFORM.node, as `napi build` names it. For Windows and macOS, whose libraries this does not have,
# it checks that the addon's code compiles.
#
# Rust's standard library for TARGET comes from rustup if that has it installed. Otherwise Debian's compiler builds it from
# source, in a root that scripts/cross-root.sh makes. Needs pip, and for that root mmdebstrap and the rights of root.
set -euo pipefail
cd "$(dirname "$0")/.."

target=${1:?usage: scripts/cross.sh TARGET [PROFILE]}
profile=${2:-release}
action=zigbuild
glibc=
case $target in
  # What the binary may ask for of glibc: the oldest that a supported system has.
  x86_64-unknown-linux-gnu) platform=linux-x64-gnu glibc=2.17 ;;
  aarch64-unknown-linux-gnu) platform=linux-arm64-gnu glibc=2.17 ;;
  x86_64-unknown-linux-musl) platform=linux-x64-musl ;;
  aarch64-unknown-linux-musl) platform=linux-arm64-musl ;;
  *-windows-gnu | *-apple-darwin) action=check ;;
  *) echo "unknown target: $target" >&2; exit 2 ;;
esac

tools=$PWD/target/cross/tools
if [ ! -x "$tools/bin/cargo-zigbuild" ]; then
  python3 -m pip install --quiet --root-user-action ignore --target "$tools" ziglang==0.17.1 cargo-zigbuild==0.24.1
fi
export CARGO_ZIGBUILD_ZIG_PATH=$tools/ziglang/zig
export CARGO_ZIGBUILD_CACHE_DIR=$PWD/target/cross/cache ZIG_GLOBAL_CACHE_DIR=$PWD/target/cross/cache/zig
# Apart from the native build, whose compiler may be another.
export CARGO_TARGET_DIR=$PWD/target/cross/build
# Node loads a shared library, which shares Node's libc.
export CARGO_TARGET_X86_64_UNKNOWN_LINUX_MUSL_RUSTFLAGS='-C target-feature=-crt-static'
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_RUSTFLAGS=$CARGO_TARGET_X86_64_UNKNOWN_LINUX_MUSL_RUSTFLAGS

# napi's build script wants to find Node as a library, which only a linker needs: a check does not read it.
mkdir -p "$PWD/target/cross/libnode"
touch "$PWD/target/cross/libnode/libnode.dll"
export LIBNODE_PATH=$PWD/target/cross/libnode

build=("$tools/bin/cargo-zigbuild" "$action" --lib --profile "$profile" --target "$target${glibc:+.$glibc}" --ignore-rust-version --locked)
if rustup target list --installed 2> /dev/null | grep -qx "$target"; then
  "${build[@]}"
else
  # A released compiler takes -Z options with RUSTC_BOOTSTRAP only.
  PACKAGES=cargo,rust-src,rustc bash scripts/cross-root.sh root-build env RUSTC_BOOTSTRAP=1 "${build[@]}" -Zbuild-std=std,panic_abort
fi
if [ "$action" = check ]; then
  echo "$target: the addon's code compiles"
  exit
fi

binary=extism-host.$platform.node
# Not over the old file: a process that has it open goes on with it.
cp "$CARGO_TARGET_DIR/$target/$profile/libextism_host.so" "$binary.new"
mv "$binary.new" "$binary"
needed=$(readelf --version-info --wide "$binary" | { grep -o 'GLIBC_[0-9.]*' || true; } | sort -V | tail -1)
if [ "$(printf '%s\n' "GLIBC_$glibc" "$needed" | sort -V | tail -1)" != "GLIBC_$glibc" ]; then
  echo "$binary needs $needed, which is newer than glibc ${glibc:-not at all}" >&2
  exit 1
fi
echo "$binary: $(stat -c %s "$binary") bytes, needs ${needed:-no glibc}"
