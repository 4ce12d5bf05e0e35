#!/usr/bin/env bash
# Copies the headers and sources that a build needs into one folder, for a machine without packages
# and network. Build there with LATHE_DEPS=FOLDER (see cmake/dependencies.cmake).
# usage: tools/carry_deps.sh FOLDER [TEST_DATA]
#   TEST_DATA: a folder with tinyshakespeare.txt and gpt2/, copied to FOLDER/data
# The headers of CUDA's libraries go to FOLDER/cuda/include, because a machine with nvcc may lack
# them.
set -euo pipefail
[[ $# -ge 1 ]] || { echo "usage: tools/carry_deps.sh FOLDER [TEST_DATA]" >&2; exit 2; }
folder=$1

# copy_header NAME INTO FOLDER...: copies from the first folder that has it.
copy_header() {
  local name=$1 into=$2 from
  for from in "${@:3}"; do
    [[ -e $from/$name ]] || continue
    mkdir -p "$into"
    rm -rf "${into:?}/$name"
    cp -rL "$from/$name" "$into/"
    return
  done
  echo "carry_deps: $name is missing in ${*:3}: run tools/setup.sh test, or install the CUDA toolkit" >&2
  exit 2
}

for header in CLI nlohmann fmt xxhash.h utf8proc.h; do
  copy_header "$header" "$folder/include" /usr/include /usr/local/include
done
nvcc=$(readlink -f "$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)")
# Ask nvcc for its toolkit: the nvcc in PATH may be a script that calls the real one.
toolkit=$("$nvcc" --dryrun -x cu -c /dev/null 2>&1 | sed -n 's/^#\$ TOP=//p') || true
for header in cublasLt.h cublas_api.h cuda_profiler_api.h nvtx3 nccl.h; do
  copy_header "$header" "$folder/cuda/include" "$toolkit/include" /usr/include /usr/local/include
done
mkdir -p "$folder/lib" "$folder/googletest"
cp "$(find /usr/lib -name libutf8proc.a | head -n 1)" "$folder/lib/"
cp -r /usr/src/googletest/. "$folder/googletest/"
if [[ -n ${2:-} ]]; then
  mkdir -p "$folder/data/gpt2"
  cp "$2/tinyshakespeare.txt" "$folder/data/"
  cp "$2"/gpt2/* "$folder/data/gpt2/"
fi
du -sh "$folder"
