#!/usr/bin/env bash
# Mutation testing of the JavaScript: changes one operator or constant at a time, and tells which changes no test notices.
#
#   scripts/mutate-js.sh [FILES]    the mutants of these files; without any, of lib/ and the packages
#
# SAMPLE=n takes n mutants by chance, SEED=n others; ONLY=id,id takes those that an earlier run named. TESTS_MS=n bounds
# what a mutant may cost, and LEAVE_OUT names tests that cost too much, by a regular expression. The exit code is 1 if less
# than 90 % are noticed. It works on a copy, beside which Stryker, whose mutants these are, is installed.
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
