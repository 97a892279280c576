#!/usr/bin/env bash
# Checks advisories and licences: cargo-deny for Rust (deny.toml), npm for the published packages and their build tools.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! command -v cargo-deny > /dev/null; then cargo install --locked cargo-deny@0.20.2; fi
cargo deny check "$@"
npm audit --omit=dev --workspaces --include-workspace-root
