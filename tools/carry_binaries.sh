#!/usr/bin/env bash
# Builds the programs and the CUDA tests to run on another machine, and packs them into one file of a
# few MB, for `make gpu-check` there: it finds deps/binaries.tar.xz by itself.
# usage: tools/carry_binaries.sh [FILE [CMAKE_ARGUMENT...]]
# They need an x86-64 CPU with AVX2, a GPU of compute capability 8.x or 9.0, the GPU's driver,
# libcublasLt, and of the system's libraries only libc, libm, libstdc++, libgcc_s and libgomp.
set -euo pipefail
cd "$(dirname "$0")/.."
file=${1:-deps/binaries.tar.xz}
folder=build/carry
[[ -d ${LATHE_DEPS:-} ]] || { LATHE_DEPS=$PWD/build/carry-deps && tools/carry_deps.sh "$LATHE_DEPS" >/dev/null; }
mkdir -p "$folder"
cmake --preset gpu -B "$folder" -DLATHE_DEPS="$LATHE_DEPS" -DLATHE_MPI=OFF -DLATHE_ONEDNN=OFF \
  -DLATHE_MARCH=x86-64-v3 -DLATHE_CUDA_ARCHITECTURES="80-real;90a-real" \
  -DCMAKE_CUDA_FLAGS=-Xptxas=-v "${@:2}" >"$folder/configure.log" || { cat "$folder/configure.log" >&2; exit 1; }
# What the compilers said of every file, also of those that an earlier call compiled.
cmake --build "$folder" --target train sample prepare corpus cuda_tests | tee -a "$folder/compile.log" |
  grep -E 'error|FAILED' || [[ ${PIPESTATUS[0]} == 0 ]] || exit 1
python3 tools/gpu_check_archive.py "$folder" "$file"
