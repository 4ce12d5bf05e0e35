#!/usr/bin/env bash
# Runs clang-tidy on the C++ of kernels, src and tools, using a build's compile database.
# usage: tools/tidy.sh BUILD_DIR [FILE...]   (from `make tidy`; TIDY_FILES="a.cpp b.cu" for only some)
set -euo pipefail
cd "$(dirname "$0")/.."
build=$1
shift
if (($#)); then
  files=("$@")
else
  # What this build compiles; of alternative sources, only the one that it uses. Not what clang
  # cannot parse: kernels, whose execution model needs std::source_location (clang 16), and the
  # CPU's attention, which shuffles GCC's vectors.
  mapfile -t files < <(grep -o '"file": "[^"]*"' "$build/compile_commands.json" | cut -d'"' -f4 |
    sed "s|^$PWD/||" | grep -E '^(kernels|src|tools)/.*\.cpp$' | grep -vE '^kernels/(cpu/attention|cuda_on_cpu/)' | sort -u)
fi
# The commands of the build without its precompiled headers, which are GCC's.
commands=$(mktemp -d)
trap 'rm -rf "$commands"' EXIT
sed -E 's/ -Winvalid-pch -include [^ ]*cmake_pch\.hxx//' "$build/compile_commands.json" >"$commands/compile_commands.json"
# Do not report what only GCC knows.
printf '%s\n' "${files[@]}" |
  xargs -P "${TIDY_JOBS:-$(nproc)}" -n 1 clang-tidy --quiet -p "$commands" --header-filter="^$PWD/(kernels|src|tools)/" \
    --extra-arg=-Wno-unknown-warning-option --extra-arg=-Wno-ignored-optimization-argument \
    --extra-arg=-Wno-unknown-attributes 2> >(grep -vE 'warnings? generated|^Suppressed|^Use -header-filter' >&2)
