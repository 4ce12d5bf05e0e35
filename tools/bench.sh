#!/usr/bin/env bash
# Benchmarks operations and whole steps against what this machine can do. Also writes the table to
# profiling/results/DATE-COMMIT-cpu.md.  usage: tools/bench.sh   (from `make bench`)
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p profiling/results
result=profiling/results/$(date +%F)-$(git rev-parse --short HEAD 2>/dev/null || echo unknown)-cpu.md
min_time=${LATHE_BENCH_SECONDS:-0.2}
{
  echo "# lathe on $(awk -F': ' '/model name/ { print $2; exit }' /proc/cpuinfo), $(nproc) cores"
  echo
  echo "$(date +%F), commit $(git rev-parse --short HEAD 2>/dev/null || echo unknown), \`make bench\`; load before: $(cut -d' ' -f1-3 /proc/loadavg)."
  echo
  echo "## Whole steps"
  for arguments in "--model gpt2-124m --batch-size 4 --seq-len 64 --steps 7" \
                   "--model shakespeare-cpu --batch-size 12 --seq-len 64 --steps 100"; do
    for dtype in fp32 bf16; do
      echo
      echo "\`build/step_profile $arguments --dtype $dtype\` (medians):"
      echo '```'
      build/step_profile $arguments --dtype $dtype
      echo '```'
    done
  done
  echo
  echo "## Operations"
  for arguments in "--batch-size 4 --seq-len 64" \
                   "--batch-size 12 --seq-len 64 --n-embd 128 --n-head 4 --vocab-size 65"; do
    for dtype in fp32 bf16; do
      echo
      echo "\`build/bench_device --device cpu $arguments --dtype $dtype\`:"
      echo '```'
      build/bench_device --device cpu $arguments --dtype $dtype
      echo '```'
    done
  done
  for bench in bench_matmul bench_attention; do
    echo
    echo "## $bench"
    echo '```'
    build/$bench --benchmark_min_time="$min_time" --benchmark_color=false 2>/dev/null
    echo '```'
  done
} | tee "$result"
echo "written to $result"
