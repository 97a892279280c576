#!/usr/bin/env bash
# Mutation testing of the JavaScript: changes one operator or constant at a time, and reports mutants that survive all tests.
#
#   scripts/mutate-js.sh [FILES]    mutates these files; by default lib/ and the packages
#
# SAMPLE=n tests n random mutants, SEED=n chooses others, and ONLY=id,id tests those that an earlier run reported. TESTS_MS=n
# limits the time per mutant, and LEAVE_OUT is a regular expression of tests to skip because they are too slow. It exits with
# 1 if less than 90 % are killed. It works on a copy, and installs Stryker, which generates the mutants, next to that.
set -euo pipefail
cd "$(dirname "$0")/.."

copy=${MUTATION_DIR:-$(mktemp -d)}
[ -n "${MUTATION_DIR:-}" ] || trap 'rm -rf "$copy"' EXIT
mkdir -p "$copy/tree" "$copy/stryker"

git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents -t "$copy/tree" 2> /dev/null || true
cp ./*.node "$copy/tree"
[ -e "$copy/tree/node_modules" ] || cp -a node_modules "$copy/tree"
[ -e "$copy/stryker/node_modules" ] ||
  npm install --silent --prefix "$copy/stryker" @stryker-mutator/core@9.6.1 @stryker-mutator/instrumenter@9.6.1 typed-inject@5.0.0

[ $# -gt 0 ] || set -- lib/*.js packages/*/lib/*.js
node scripts/mutate-js.js "$copy" "$@"
