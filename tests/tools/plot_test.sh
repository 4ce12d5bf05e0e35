#!/usr/bin/env bash
# The program `plot`: files, exit codes, and one sentence for each mistake.
# usage: plot_test.sh PLOT_TOOL
set -uo pipefail
plot=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failures=0

expect() {  # expect CODE PATTERN COMMAND...
  local code=$1 pattern=$2 output found
  shift 2
  output=$("$@" 2>&1)
  found=$?
  if [[ $found != "$code" ]] || ! grep -qE -- "$pattern" <<<"$output" ||
     { [[ $code == 2 ]] && [[ $(wc -l <<<"$output") != 1 ]]; }; then
    echo "FAILED: $*"
    echo "  expected exit $code and '$pattern', found exit $found and: $output"
    failures=$((failures + 1))
  fi
}
expect_that() { "$@" || { echo "FAILED: $*"; failures=$((failures + 1)); }; }

mkdir "$work/run"
for step in 1 2 3 4; do
  echo "{\"step\": $step, \"loss\": 4.$((9 - step)), \"val_loss\": 4.5, \"lr\": 0.001}"
done > "$work/run/metrics.jsonl"
echo '{"step": 5, "lo' >> "$work/run/metrics.jsonl"

expect 0 'loss.svg' "$plot" "$work/run" --floor 0.3 --title 'A run'
expect_that grep -q '<svg' "$work/run/loss.svg"
expect_that grep -q '>A run<' "$work/run/loss.svg"
expect 0 'a.svg' "$plot" "$work/run/metrics.jsonl" --out "$work/a.svg"
expect_that grep -q '</svg>' "$work/a.svg"
rm "$work/run/loss.svg"
expect 0 'validation 4.500' "$plot" "$work/run" --terminal
expect_that test ! -e "$work/run/loss.svg"
expect 0 'usage|Usage' "$plot" --help
expect 2 'cannot read .*absent' "$plot" "$work/absent"
expect 2 'cannot read .*metrics.jsonl' "$plot" "$work"
expect 2 'RUN_DIR is required' "$plot"
expect 2 '--florr' "$plot" "$work/run" --florr 3
expect 2 '--floor' "$plot" "$work/run" --floor low
echo '{"nats_per_character": 0.25}' > "$work/entropy.json"
expect 0 'entropy of the text 0.250' "$plot" "$work/run" --terminal --floor "$work/entropy.json"
echo '{"nats_per_character": "low"}' > "$work/entropy.json"
expect 2 '--floor .*entropy.json' "$plot" "$work/run" --floor "$work/entropy.json"
expect 2 '--floor 3x' "$plot" "$work/run" --floor 3x
expect 2 '--floor nan' "$plot" "$work/run" --floor nan
expect 2 '--floor 0x1p-3' "$plot" "$work/run" --floor 0x1p-3
expect 2 '--title does nothing with --terminal' "$plot" "$work/run" --terminal --title A
expect 2 'cannot create' "$plot" "$work/run" --out "$work/no/such/a.svg"
expect 2 'cannot' "$plot" "$work/run" --out "$work/run"
echo '{"step": 1, "lr": 0.1}' > "$work/run/metrics.jsonl"
expect 2 'holds no loss' "$plot" "$work/run"

[[ $failures == 0 ]] || { echo "$failures failed"; exit 1; }
