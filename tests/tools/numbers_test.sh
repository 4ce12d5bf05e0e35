#!/usr/bin/env bash
# Flags that take a fractional number: every program refuses what is not a finite number in range,
# in one sentence that names the flag and the value.
# usage: numbers_test.sh TRAIN SAMPLE PREPARE PLOT COMMTEST
set -uo pipefail
train=$1 sample=$2 prepare=$3 plot=$4 commtest=$5
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failures=0
echo '{"step": 1, "loss": 4.0}' >"$work/metrics.jsonl"
echo 'A text.' >"$work/text"

refused() {  # refused FLAG VALUE COMMAND...
  local flag=$1 value=$2 output found
  shift 2
  output=$("$@" "$flag" "$value" 2>&1 </dev/null)
  found=$?
  if [[ $found != 2 || $(wc -l <<<"$output") != 1 || $output != *"$flag"* ||
        ${output,,} != *"${value,,}"* ]]; then
    echo "FAILED: $* $flag $value: exit $found, $output"
    failures=$((failures + 1))
  fi
}

for value in nan NaN -nan inf -inf x; do
  for flag in --lr --min-lr --dropout --init-std --weight-decay --beta1 --beta2 --eps --grad-clip; do
    refused $flag $value "$train" --model shakespeare-cpu --dry-run
  done
  for flag in --temperature --top-p; do refused $flag $value "$sample" --checkpoint "$work"; done
  refused --val-fraction $value "$prepare" --tokenizer char --input "$work/text" --out "$work/data"
  refused --floor $value "$plot" "$work"
  refused --comm-timeout $value "$commtest" --device cpu
done
for value in 0 -1 1e13; do refused --comm-timeout $value "$commtest" --device cpu; done
[[ ! -e $work/data ]] || { echo "FAILED: prepare wrote something"; failures=$((failures + 1)); }
exit $((failures > 0))
