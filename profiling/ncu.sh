#!/usr/bin/env bash
# Counts what each kernel of one training step does, with Nsight Compute, into a CSV file that
# profiling/ncu_report.py reads.
#
#   profiling/ncu.sh OUT.csv -- build/train ARGS...
#
# One layer is enough, for all are alike, and step 3 alone: --n-layer 1 --steps 4 --profile 3:4
# --device cuda --eval-interval 0 are added unless ARGS have them. Each kernel is run some eight times.
# The GPU's clock is left as it is in training; counters need the rights that NVIDIA's
# ERR_NVGPUCTRPERM page tells of. NCU names another ncu than that of the PATH.
set -euo pipefail

usage() {
  echo "usage: profiling/ncu.sh OUT.csv -- build/train ARGS..." >&2
  exit 2
}
[[ $# -ge 3 && $2 == -- ]] || usage
out=$1
shift 2
ncu=${NCU:-ncu}
if ! command -v "$ncu" >/dev/null; then
  echo "ncu.sh: $ncu is not found: install NVIDIA Nsight Compute, or name it in NCU" >&2
  exit 2
fi

has() {
  local argument
  for argument in "${command[@]}"; do [[ $argument != "$1" && $argument != "$1="* ]] || return 0; done
  return 1
}
command=("$@")
has --n-layer || command+=(--n-layer 1)
has --profile || command+=(--profile 3:4)
has --steps || command+=(--steps 4)
has --device || command+=(--device cuda)
has --eval-interval || command+=(--eval-interval 0)

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
exec "$ncu" --clock-control none --profile-from-start off --graph-profiling node --metrics "$list" \
  --csv --print-units base --log-file "$out" "${command[@]}"
