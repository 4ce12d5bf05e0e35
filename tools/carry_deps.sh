#!/usr/bin/env bash
# Copies the headers and sources that a build needs into one folder, for a machine that has no
# packages and no network: build there with LATHE_DEPS=FOLDER (see cmake/dependencies.cmake).
# usage: tools/carry_deps.sh FOLDER [TEST_DATA]
#   TEST_DATA: a folder with tinyshakespeare.txt and gpt2/, to be carried as FOLDER/data
set -euo pipefail
[[ $# -ge 1 ]] || { echo "usage: tools/carry_deps.sh FOLDER [TEST_DATA]" >&2; exit 2; }
folder=$1
mkdir -p "$folder/include" "$folder/lib"
for header in CLI nlohmann fmt xxhash.h utf8proc.h; do
  [[ -e /usr/include/$header ]] || { echo "carry_deps: /usr/include/$header is missing: run tools/setup.sh test" >&2; exit 2; }
  cp -r "/usr/include/$header" "$folder/include/"
done
cp "$(find /usr/lib -name libutf8proc.a | head -n 1)" "$folder/lib/"
mkdir -p "$folder/googletest"
cp -r /usr/src/googletest/. "$folder/googletest/"
if [[ -n ${2:-} ]]; then
  mkdir -p "$folder/data/gpt2"
  cp "$2/tinyshakespeare.txt" "$folder/data/"
  cp "$2"/gpt2/* "$folder/data/gpt2/"
fi
du -sh "$folder"
