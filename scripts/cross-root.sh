#!/usr/bin/env bash
# Runs a command in another root directory: `scripts/cross-root.sh NAME COMMAND...` in target/cross/NAME, which sees this
# repository, Cargo's directory and /tmp at their usual paths. If the root does not exist yet, Debian's packages in PACKAGES
# make it: installed, or with VARIANT=extract only unpacked. Needs root and mmdebstrap.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)

root=$here/target/cross/$1
shift
if [ ! -e "$root.complete" ]; then
  rm -rf "$root"
  mkdir -p "$(dirname "$root")"
  # A mirror's lists may be older than Debian wants them to be; they are signed all the same.
  mmdebstrap --quiet --mode=root --variant="${VARIANT:-apt}" --architectures="${ARCHITECTURE:-amd64}" --include="$PACKAGES" \
    --aptopt='Acquire::Check-Valid-Until "false"' --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    sid "$root"
  # Unpacking alone does not make these links.
  for directory in lib lib64; do
    if [ ! -e "$root/$directory" ]; then ln -s "usr/$directory" "$root/$directory"; fi
  done
  touch "$root.complete"
fi

# The mounts end with the command: they are in a namespace of its own.
export CARGO_HOME=${CARGO_HOME:-$HOME/.cargo} here root
# shellcheck disable=SC2016 # The inner shell expands these.
exec unshare --mount --propagation private bash -euc '
  mkdir -p "$root/proc"
  mount -t proc proc "$root/proc"
  mount --rbind /dev "$root/dev"
  for path in /etc/ssl /tmp "$CARGO_HOME" "$here"; do
    if [ ! -d "$path" ]; then continue; fi
    mkdir -p "$root$path"
    mount --bind "$path" "$root$path"
  done
  cp /etc/resolv.conf /etc/hosts "$root/etc/"
  exec env PATH=/usr/bin:/usr/sbin unshare --root="$root" --wd="$PWD" "$@"
' bash "$@"
