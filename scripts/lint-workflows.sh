#!/usr/bin/env bash
# Lints .github: actionlint (from the Go module proxy) finds mistakes, zizmor (from PyPI) finds vulnerabilities.
# actionlint uses shellcheck if it is installed.
set -euo pipefail
cd "$(dirname "$0")/.."

tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
GOBIN="$tools" GOFLAGS=-mod=mod go install github.com/rhysd/actionlint/cmd/actionlint@v1.7.12
"$tools/actionlint"
python3 -m venv "$tools/python"
"$tools/python/bin/pip" install -q zizmor==1.32.0
"$tools/python/bin/zizmor" --offline --persona pedantic .github
