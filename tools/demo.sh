#!/usr/bin/env bash
# From nothing to a trained model in a minute or two, offline. Writes the embedded corpus, trains a
# small character model on it, draws the loss, prints how close it came to the corpus's entropy, and
# samples from the model.  usage: tools/demo.sh   (from `make demo`, after the build)
set -euo pipefail
cd "$(dirname "$0")/.."
demo=build/demo
# bf16 if the CPU has tiles for it: twice as many steps in the same time.
dtype=fp32 steps=2000
if grep -q amx_bf16 /proc/cpuinfo 2>/dev/null; then dtype=bf16 steps=4000; fi
steps=${LATHE_DEMO_STEPS:-$steps}
rm -rf "$demo"
mkdir -p "$demo"

build/corpus --out "$demo/stories.txt"
build/prepare --tokenizer char --input "$demo/stories.txt" --out "$demo/data" --val-fraction 0.05
build/train --model shakespeare-cpu --data "$demo/data" --dtype "$dtype" --steps "$steps" \
  --eval-interval 500 --log-interval 200 --out "$demo/run"
build/plot "$demo/run" --terminal --floor "$demo/entropy.json"
build/plot "$demo/run" --floor "$demo/entropy.json" --out "$demo/run/loss.svg" --title "make demo"

number() { grep -o "\"$1\": *[0-9.]*" "$2" | tail -n 1 | grep -o '[0-9.]*$'; }
floor=$(number nats_per_character "$demo/entropy.json")
loss=$(number val_loss "$demo/run/metrics.jsonl")
awk -v l="$loss" -v f="$floor" 'BEGIN {
  printf "validation loss %.4f nats per character; the corpus has an entropy of %.4f: %.4f above what can be reached\n", l, f, l - f }'
echo "the curve is in $demo/run/loss.svg; the model writes:"
build/sample --checkpoint "$(ls -d "$demo"/run/step-*[0-9] | tail -n 1)" --tokens 400 --temperature 0.8
