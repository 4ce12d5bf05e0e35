# Functions that the recipes share. They read it with `source`; it is not run by itself.
# LATHE_PREPARE: the prepare program to use instead of the one in build/.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
prepare=${LATHE_PREPARE:-$root/build/prepare}

# Reports a user's mistake in one sentence and exits with code 2.
fail() { echo "$(basename "$0"): $1" >&2; exit 2; }

# checksum FILE: its SHA-256.
checksum() {
  local tool=(sha256sum)
  command -v sha256sum >/dev/null || tool=(shasum -a 256)
  "${tool[@]}" "$1" | cut -d' ' -f1
}

# verify FILE SHA256
verify() {
  local found
  found=$(checksum "$1")
  [[ $found == "$2" ]] || fail "$1 has the SHA-256 $found, expected $2; remove it or get it again"
}

# download URL FILE SHA256: creates FILE only if the download is complete and its checksum is right. If
# FILE exists already, checks and keeps it.
download() {
  local url=$1 file=$2 sha256=$3 found
  if [[ -e $file ]]; then verify "$file" "$sha256"; return; fi
  mkdir -p "$(dirname "$file")" || fail "cannot make the directory of $file"
  local fetch
  if command -v curl >/dev/null; then fetch=(curl -fsL --retry 2 --connect-timeout 20 -o)
  elif command -v wget >/dev/null; then fetch=(wget -q -T 20 -t 3 -O)
  else fail "neither curl nor wget is installed; fetch $url by hand and give the file"; fi
  "${fetch[@]}" "$file.partial" "$url" ||
    { rm -f "$file.partial"; fail "cannot download $url; fetch it by hand and give the file"; }
  found=$(checksum "$file.partial")
  [[ $found == "$sha256" ]] ||
    { rm -f "$file.partial"; fail "$url came with the SHA-256 $found, expected $sha256"; }
  mv "$file.partial" "$file"
}

# readable FILE...
readable() {
  local file
  for file in "$@"; do
    [[ -f $file && -r $file ]] || fail "cannot read $file; give the path of a text file"
  done
}

# run_prepare ARGUMENTS...
run_prepare() {
  [[ -x $prepare ]] || fail "$prepare does not exist; build it first with: make"
  "$prepare" "$@"
}
