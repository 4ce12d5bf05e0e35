#!/usr/bin/env bash
# clang-tidy over the C++ that kernels, src, tools and data consist of, by the compile database of a build.
# usage: tools/tidy.sh BUILD_DIR [FILE...]   (from `make tidy`; TIDY_FILES="a.cpp b.cu" for some only)
set -euo pipefail
cd "$(dirname "$0")/.."
build=$1
shift
if (($#)); then
  files=("$@")
else
  # What this build compiles: of sources that take each other's place, one. Not what clang cannot
  # parse: kernels, whose model of execution needs std::source_location (clang 16), and the CPU's
  # attention, which shuffles GCC's vectors.
  mapfile -t files < <(grep -o '"file": "[^"]*"' "$build/compile_commands.json" | cut -d'"' -f4 |
    sed "s|^$PWD/||" | grep -E '^(kernels|src|tools|data)/.*\.cpp$' | grep -v '^kernels/cpu/attention' | sort -u)
fi
# The commands of the build without its precompiled headers, which are GCC's.
commands=$(mktemp -d)
trap 'rm -rf "$commands"' EXIT
sed -E 's/ -Winvalid-pch -include [^ ]*cmake_pch\.hxx//' "$build/compile_commands.json" >"$commands/compile_commands.json"
# What only GCC knows is no finding.
printf '%s\n' "${files[@]}" |
  xargs -P "${TIDY_JOBS:-$(nproc)}" -n 1 clang-tidy --quiet -p "$commands" --header-filter="^$PWD/(kernels|src|tools|data)/" \
    --extra-arg=-Wno-unknown-warning-option --extra-arg=-Wno-ignored-optimization-argument \
    --extra-arg=-Wno-unknown-attributes 2> >(grep -vE 'warnings? generated|^Suppressed|^Use -header-filter' >&2)
