#!/usr/bin/env bash
# Builds the programs and the CUDA tests to run on another machine, and packs them into one file of
# a few MB. `make gpu-check` finds it there by itself as deps/binaries.tar.xz.
# usage: tools/carry_binaries.sh [FILE [CMAKE_ARGUMENT...]]
# They need an x86-64 CPU with AVX2, a GPU of compute capability 8.x or 9.0, its driver and
# libcublasLt. Of the system's libraries they need only libc, libm, libstdc++, libgcc_s and libgomp.
set -euo pipefail
cd "$(dirname "$0")/.."
file=${1:-deps/binaries.tar.xz}
folder=build/carry
if [[ ! -d ${LATHE_DEPS:-} ]]; then
  LATHE_DEPS=$PWD/build/carry-deps
  tools/carry_deps.sh "$LATHE_DEPS" >/dev/null
fi
mkdir -p "$folder"
cmake --preset gpu -B "$folder" -DLATHE_DEPS="$LATHE_DEPS" -DLATHE_MPI=OFF -DLATHE_ONEDNN=OFF \
  -DLATHE_MARCH=x86-64-v3 -DLATHE_CUDA_ARCHITECTURES="80-real;90a-real" \
  -DCMAKE_CUDA_FLAGS=-Xptxas=-v "${@:2}" >"$folder/configure.log" 2>&1 || { cat "$folder/configure.log" >&2; exit 1; }
echo "building $folder"
# The log keeps the registers of all kernels, including those that an earlier call compiled.
cmake --build "$folder" --target train sample prepare corpus bench_device cuda_tests >>"$folder/compile.log" 2>&1 ||
  { grep -E 'error|FAILED' "$folder/compile.log" | tail -n 20 >&2; exit 1; }
python3 tools/gpu_check_archive.py "$folder" "$file"
