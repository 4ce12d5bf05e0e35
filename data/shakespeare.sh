#!/usr/bin/env bash
# Tiny Shakespeare (1.1 MB of plays, 65 characters), tokenized by character, in data/shakespeare.
# usage: data/shakespeare.sh [FILE] [--out DIR]
# FILE is a copy that you have; without it, the text is downloaded. Its checksum is checked.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

url=https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt
sha256=86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed
out=$root/data/shakespeare
file=

while [[ $# -gt 0 ]]; do
  case $1 in
    -h | --help) sed -n '2,4s/^# //p' "${BASH_SOURCE[0]}"; exit 0 ;;
    --out) [[ $# -ge 2 ]] || fail "--out needs a directory"; out=$2; shift 2 ;;
    -*) fail "unknown flag $1; see --help" ;;
    *) [[ -z $file ]] || fail "one FILE is enough, found a second one: $1"; file=$1; shift ;;
  esac
done

if [[ -n $file ]]; then
  readable "$file"
  verify "$file" "$sha256"
else
  file=$out/input.txt
  download "$url" "$file" "$sha256"
fi
run_prepare --tokenizer char --input "$file" --out "$out"
