#!/usr/bin/env bash
# Runs every harness for a while, from the committed seeds and the inputs that earlier runs found. An
# input that fails stays in build/fuzz/corpus/HARNESS. usage: tests/fuzz/run.sh [SECONDS each]
set -euo pipefail
cd "$(dirname "$0")/../.."
cmake --preset fuzz >/dev/null
cmake --build build/fuzz --target fuzz_targets
for harness in build/fuzz/harnesses/*; do
  name=$(basename "$harness")
  found=build/fuzz/corpus/$name
  seeds=tests/fuzz/corpus/$name
  mkdir -p "$found"
  [[ -d $seeds ]] || seeds=""
  "$harness" -max_total_time="${1:-60}" -print_final_stats=1 -artifact_prefix="$found/" "$found" $seeds
done
