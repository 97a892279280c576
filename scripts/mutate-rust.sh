#!/usr/bin/env bash
# Mutation testing of the Rust code that guests reach: makes one change at a time, and reports mutants that survive all tests.
#
#   scripts/mutate-rust.sh [FILES]    mutates these files; by default host functions, kernel, plugins and stores
#
# SHARD=k/n tests every n-th mutant, from the k-th. If a mutant survives `cargo test`, it is built into the addon for the
# related tests in __test__. It exits with 1 if less than 85 % are killed. It works on a copy, but uses CARGO_TARGET_DIR if
# it is set.
set -euo pipefail
cd "$(dirname "$0")/.."

copy=${MUTATION_DIR:-$(mktemp -d)}
[ -n "${MUTATION_DIR:-}" ] || trap 'rm -rf "$copy"' EXIT
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$copy/target} PATH=$copy/tools/bin:$PATH
profile=${PROFILE:-checks}
# No optimization, because each mutant recompiles this crate (but no other).
cargo=(--ignore-rust-version "--config=profile.$profile.package.extism-host.opt-level=0")

[ $# -gt 0 ] || set -- 'src/host/**' 'src/kernel/**' 'src/plugin/**' 'src/store/**'
command -v cargo-mutants > /dev/null || cargo install --locked --root "$copy/tools" cargo-mutants@27.1.0
rm -rf "$copy/mutants.out"
mkdir -p "$copy/tree"
git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents -t "$copy/tree"
[ -e "$copy/tree/node_modules" ] || cp -a node_modules "$copy/tree"
addon=$(basename ./*.node)
cd "$copy/tree"

# Linking the addon, too, would double the time per mutant.
sed -i '/^crate-type/s/"cdylib", //' Cargo.toml
cargo mutants --in-place --no-shuffle --sharding round-robin --shard "${SHARD:-0/1}" --output "$copy" --profile "$profile" \
  "${cargo[@]/#/--cargo-arg=}" --minimum-test-timeout 120 "${@/#/--file=}" -- \
  --lib --test attacks --test calls --test kernel_fuzz --test link --test plugin --test pool --test restore || true
sed -i '/^crate-type/s/\[/["cdylib", /' Cargo.toml

# Prints the tests of __test__ that are related to a file.
tests() {
  case $1 in
    src/host/http*) echo http ;;
    src/host/store*) echo store-access stores.test redb.test ;;
    src/host/output*) echo wasi ;;
    src/host/*) echo call.test create-plugin logging host-functions sdk-parity resources hostile-guests ;;
    src/kernel/*) echo call.test hostile-guests host-functions resources ;;
    src/plugin/compile_cache/* | src/plugin/compilation.rs | src/plugin/load.rs) echo start create-plugin sources ;;
    src/plugin/link/* | src/plugin/manifest.rs) echo sources create-plugin sdk-parity ;;
    src/plugin/reference.rs) echo runtime-extism ;;
    src/plugin/snapshot.rs | src/plugin/pristine.rs | src/plugin/page.rs) echo snapshot isolation wasi ;;
    src/plugin/wasi.rs) echo wasi ;;
    src/plugin/*) echo call.test lifecycle recycling priority queue-bytes fastify-operation cancellation ;;
    src/store/redb*) echo redb.test stores.test store-access ;;
    src/store/redis*) echo redis ;;
    src/store/*) echo memory-store stores.test redb.test ;;
  esac
}

missed() {
  # shellcheck disable=SC2016
  node -p 'JSON.parse(fs.readFileSync(0)).outcomes.filter(({ summary }) => summary === "MissedMutant")
    .map(({ scenario, diff_path }) => `${scenario.Mutant.name}\t${diff_path}`).join("\n")' < "$copy/mutants.out/outcomes.json"
}

survivors=0
while IFS=$'\t' read -r mutant difference; do
  [ -n "$mutant" ] || continue
  patch -sp0 < "$copy/mutants.out/$difference"
  # With a test, so that the dependencies have the features which the tests need: else all are compiled again.
  cargo build --quiet --lib --test pool --profile "$profile" "${cargo[@]}" 2> /dev/null
  cp "$CARGO_TARGET_DIR/$profile/libextism_host.so" "$addon"
  # shellcheck disable=SC2046
  if timeout 600 npx jest --bail $(tests "$mutant") > /dev/null 2>&1; then
    survivors=$((survivors + 1))
    echo "survived: $mutant"
  fi
  patch -sRp0 < "$copy/mutants.out/$difference"
done < <(missed)

count() { cat "${@/#/$copy/mutants.out/}" | wc -l; }
all=$(count caught.txt missed.txt timeout.txt)
echo "$((all - survivors)) of $all noticed: $((100 * (all - survivors) / all)) % ($(count unviable.txt) do not compile)"
[ $((100 * (all - survivors))) -ge $((85 * all)) ]
