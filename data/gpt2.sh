#!/usr/bin/env bash
# OpenAI's GPT-2 vocabulary, encoder.json and vocab.bpe, in data/gpt2.
# usage: data/gpt2.sh [DIR] [--out DIR]
# DIR holds copies that you have; without it, they are downloaded. Their checksums are checked.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

url=https://openaipublic.blob.core.windows.net/gpt-2/models/124M
names=(encoder.json vocab.bpe)
sums=(196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783
      1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5)
out=$root/data/gpt2
from=

while [[ $# -gt 0 ]]; do
  case $1 in
    -h | --help) sed -n '2,4s/^# //p' "${BASH_SOURCE[0]}"; exit 0 ;;
    --out) [[ $# -ge 2 ]] || fail "--out needs a directory"; out=$2; shift 2 ;;
    -*) fail "unknown flag $1; see --help" ;;
    *) [[ -z $from ]] || fail "one DIR is enough, found a second one: $1"; from=$1; shift ;;
  esac
done

if [[ -n $from ]]; then
  for i in 0 1; do
    readable "$from/${names[i]}"
    verify "$from/${names[i]}" "${sums[i]}"
  done
  mkdir -p "$out" || fail "cannot make the directory $out"
  for name in "${names[@]}"; do
    [[ $from/$name -ef $out/$name ]] || cp "$from/$name" "$out/$name"
  done
else
  for i in 0 1; do download "$url/${names[i]}" "$out/${names[i]}" "${sums[i]}"; done
fi
echo "$out: ${names[*]}"
