#!/usr/bin/env bash
# Times the kernels of some training steps, and what the host did meanwhile, with Nsight Systems.
# Writes OUT.nsys-rep for its viewer, and the CSV files for profiling/nsys_report.py.
#
#   profiling/nsys.sh OUT -- build/train ARGS...
#
# Adds --steps 8 --profile 5:8 --device cuda --eval-interval 0 unless ARGS have them. NSYS names an
# nsys other than the one in PATH.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/nsight.sh"

begin nsys "Nsight Systems" "$@"
default --profile 5:8
default --steps 8
default --device cuda
default --eval-interval 0

"$tool" profile --trace=cuda,nvtx,cublas --capture-range=cudaProfilerApi --capture-range-end=stop \
  --cuda-graph-trace=node --force-overwrite=true --output="$out" "${command[@]}"
"$tool" stats --report=cuda_gpu_kern_sum,nvtx_kern_sum --format=csv --force-export=true \
  --force-overwrite=true --output="$out" "$out.nsys-rep"
