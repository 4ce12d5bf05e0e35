#!/usr/bin/env bash
# Installs the packages that a build needs. If none is missing, prints nothing and takes milliseconds.
# usage: tools/setup.sh build|cuda-on-cpu|gpu|test|tidy|bench|fuzz
# If installing is not allowed (neither root nor sudo, or LATHE_NO_INSTALL=1), prints the missing
# packages in one line and continues: CMake knows which of them are optional.
set -euo pipefail

packages="g++ cmake ninja-build libfmt-dev libcli11-dev nlohmann-json3-dev libxxhash-dev
          libutf8proc-dev libdnnl-dev libopenmpi-dev openmpi-bin"
case "${1:-build}" in
  build) ;;
  cuda-on-cpu) packages+=" libboost-context-dev" ;;
  gpu) packages+=" libgtest-dev" ;;
  test) packages+=" libgtest-dev libgmock-dev libboost-context-dev clang libclang-rt-14-dev clang-format iproute2" ;;
  tidy) packages+=" libboost-context-dev clang-tidy" ;;
  bench) packages+=" libbenchmark-dev" ;;
  fuzz) packages+=" clang libclang-rt-14-dev" ;;
  *) echo "setup.sh: unknown part '$1'; one of build, cuda-on-cpu, gpu, test, tidy, bench, fuzz" >&2; exit 2 ;;
esac

# LATHE_DEPS replaces the system's packages.
[[ -n "${LATHE_DEPS:-}" ]] && exit 0

if ! command -v dpkg-query >/dev/null; then
  missing=""
  for tool in g++ cmake ninja; do command -v $tool >/dev/null || missing+=" $tool"; done
  [[ -z $missing ]] || { echo "setup: this is not Debian; please install:$missing" >&2; exit 2; }
  exit 0
fi

installed=$(dpkg-query -W -f '${db:Status-Abbrev} ${Package}\n' 2>/dev/null | awk '$1 == "ii" {print $2}')
missing=""
for package in $packages; do
  grep -qx "$package" <<<"$installed" || missing+=" $package"
done
[[ -z $missing ]] && exit 0

as_root=""
if [[ $(id -u) != 0 ]]; then
  if command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    as_root="sudo"
  else
    LATHE_NO_INSTALL=1
  fi
fi
if [[ -n "${LATHE_NO_INSTALL:-}" ]]; then
  echo "setup: missing packages, please install them: apt-get install$missing" >&2
  exit 0
fi
echo "setup: installing$missing"
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
if ! { $as_root apt-get install -y -qq --no-install-recommends $missing ||
       { $as_root apt-get update -qq &&
         $as_root apt-get install -y -qq --no-install-recommends $missing; }; } >"$log" 2>&1; then
  tail -n 5 "$log" >&2
  echo "setup: could not install$missing (full log: $log)" >&2
  exit 2
fi
rm -f "$log"
