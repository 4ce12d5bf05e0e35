#!/usr/bin/env bash
# Empties a directory, then runs a command.  usage: in_empty.sh DIRECTORY COMMAND [ARGUMENT...]
set -euo pipefail
rm -rf "$1"
mkdir -p "$1"
shift
exec "$@"
