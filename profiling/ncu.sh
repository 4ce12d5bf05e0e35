#!/usr/bin/env bash
# Counts what each kernel of one training step does, with Nsight Compute, and writes a CSV file for
# profiling/ncu_report.py.
#
#   profiling/ncu.sh OUT.csv -- build/train ARGS...
#
# One layer is enough, because all are alike, and so is step 3: adds --n-layer 1 --steps 4 --profile
# 3:4 --device cuda --eval-interval 0 unless ARGS have them. Each kernel runs some eight times. The
# GPU's clock stays as in training. Counters need the rights that NVIDIA's ERR_NVGPUCTRPERM page
# describes. NCU names an ncu other than the one in PATH.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/nsight.sh"

begin ncu "Nsight Compute" "$@"
default --n-layer 1
default --profile 3:4
default --steps 4
default --device cuda
default --eval-interval 0

metrics=(
  gpu__time_duration.sum
  dram__bytes_read.sum
  dram__bytes_write.sum
  dram__throughput.avg.pct_of_peak_sustained_elapsed
  sm__inst_executed_pipe_tensor.avg.pct_of_peak_sustained_active  # each generation has one of these
  sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active
  sm__warps_active.avg.pct_of_peak_sustained_active
  smsp__issue_active.avg.pct_of_peak_sustained_active
  launch__registers_per_thread
  l1tex__data_bank_conflicts_pipe_lsu.sum
)
list=$(IFS=,; echo "${metrics[*]}")
exec "$tool" --clock-control none --profile-from-start off --graph-profiling node --metrics "$list" \
  --csv --print-units base --log-file "$out" "${command[@]}"
