#!/usr/bin/env bash
# Times the kernels of some training steps, and what the host did meanwhile, with Nsight Systems:
# OUT.nsys-rep for its viewer, and the CSV files that profiling/nsys_report.py reads.
#
#   profiling/nsys.sh OUT -- build/train ARGS...
#
# --steps 8 --profile 5:8 --device cuda --eval-interval 0 are added unless ARGS have them. NSYS names
# another nsys than that of the PATH.
set -euo pipefail

usage() {
  echo "usage: profiling/nsys.sh OUT -- build/train ARGS..." >&2
  exit 2
}
[[ $# -ge 3 && $2 == -- ]] || usage
out=$1
shift 2
nsys=${NSYS:-nsys}
if ! command -v "$nsys" >/dev/null; then
  echo "nsys.sh: $nsys is not found: install NVIDIA Nsight Systems, or name it in NSYS" >&2
  exit 2
fi

has() {
  local argument
  for argument in "${command[@]}"; do [[ $argument != "$1" && $argument != "$1="* ]] || return 0; done
  return 1
}
command=("$@")
has --profile || command+=(--profile 5:8)
has --steps || command+=(--steps 8)
has --device || command+=(--device cuda)
has --eval-interval || command+=(--eval-interval 0)

"$nsys" profile --trace=cuda,nvtx,cublas --capture-range=cudaProfilerApi --capture-range-end=stop \
  --cuda-graph-trace=node --force-overwrite=true --output="$out" "${command[@]}"
"$nsys" stats --report=cuda_gpu_kern_sum,nvtx_kern_sum --format=csv --force-export=true \
  --force-overwrite=true --output="$out" "$out.nsys-rep"
