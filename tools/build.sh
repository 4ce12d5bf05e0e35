#!/usr/bin/env bash
# Configures a preset of CMakePresets.json if needed, then builds it; prints the log only if it
# fails.
# usage: tools/build.sh PRESET [TARGET...]
set -euo pipefail
cd "$(dirname "$0")/.."
preset=$1
shift
directory=build
[[ $preset == release ]] || directory=build/$preset
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if [[ ! -f $directory/build.ninja ]]; then
  if ! cmake --preset "$preset" >"$log" 2>&1; then
    cat "$log" >&2
    exit 1
  fi
  grep -E '^-- lathe:' "$log" || true  # what is missing, and what replaces it
fi
targets=()
for target in "$@"; do targets+=(--target "$target"); done
if [[ -t 1 ]]; then
  exec cmake --build "$directory" "${targets[@]}"
fi
echo "building $directory"
cmake --build "$directory" "${targets[@]}" >"$log" 2>&1 || { cat "$log" >&2; exit 1; }
