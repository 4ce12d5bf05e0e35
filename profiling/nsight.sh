# Shared by ncu.sh and nsys.sh, which source it.

# begin TOOL PRODUCT OUT -- COMMAND...: sets `tool`, `out` and `command`, or prints a message and
# exits with 2. A variable with the tool's name in capitals names a program other than the one in
# PATH.
begin() {
  local name=$1 product=$2
  shift 2
  if [[ $# -lt 3 || $2 != -- ]]; then
    echo "usage: profiling/$name.sh OUT -- build/train ARGS..." >&2
    exit 2
  fi
  out=$1
  command=("${@:3}")
  local variable=${name^^}
  tool=${!variable:-$name}
  if ! command -v "$tool" >/dev/null; then
    echo "$name.sh: $tool is not found: install NVIDIA $product, or name it in $variable" >&2
    exit 2
  fi
}

# Adds --FLAG VALUE to `command` unless it has the flag.
default() {
  local argument
  for argument in "${command[@]}"; do [[ $argument != "$1" && $argument != "$1="* ]] || return 0; done
  command+=("$1" "$2")
}
