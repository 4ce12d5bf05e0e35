#!/usr/bin/env bash
# Any text, from files or from a URL with its checksum, tokenized into train and val shards.
# usage: data/text.sh --out DIR [options] FILE...
#        data/text.sh --out DIR [options] --url URL --sha256 SUM
# options: --tokenizer char|gpt2|FILE, --vocab-dir DIR (for gpt2; default: where data/gpt2.sh puts it),
#          --val-fraction F, --document-join TEXT (between the files, if the tokenizer has no end-of-text)
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

out= tokenizer=char vocab_dir=$root/data/gpt2 fraction=0.1 url= sha256=
files=() join=()

while [[ $# -gt 0 ]]; do
  case $1 in
    -h | --help) sed -n '2,6s/^# //p' "${BASH_SOURCE[0]}"; exit 0 ;;
    --out | --tokenizer | --vocab-dir | --val-fraction | --document-join | --url | --sha256)
      [[ $# -ge 2 ]] || fail "$1 needs a value"
      case $1 in
        --out) out=$2 ;;
        --tokenizer) tokenizer=$2 ;;
        --vocab-dir) vocab_dir=$2 ;;
        --val-fraction) fraction=$2 ;;
        --document-join) join=(--document-join "$2") ;;
        --url) url=$2 ;;
        --sha256) sha256=$2 ;;
      esac
      shift 2 ;;
    -*) fail "unknown flag $1; see --help" ;;
    *) files+=("$1"); shift ;;
  esac
done

vocabulary=()
if [[ $tokenizer == gpt2 ]]; then
  [[ -d $vocab_dir ]] || fail "GPT-2's vocabulary is not in $vocab_dir: fetch it with data/gpt2.sh, or name its directory with --vocab-dir"
  vocabulary=(--vocab-dir "$vocab_dir")
fi
[[ -n $out ]] || fail "name the directory for the shards with --out DIR"
if [[ -n $url ]]; then
  [[ ${#files[@]} == 0 ]] || fail "give either FILE or --url, found both"
  [[ $sha256 =~ ^[0-9a-f]{64}$ ]] || fail "--url needs --sha256 with 64 hexadecimal digits"
  name=$(basename "${url%%[?#]*}")
  files=("$out/$name")
  download "$url" "${files[0]}" "$sha256"
else
  [[ ${#files[@]} -gt 0 ]] || fail "give at least one FILE, or --url URL --sha256 SUM"
  readable "${files[@]}"
  if [[ -n $sha256 ]]; then
    [[ ${#files[@]} == 1 ]] || fail "--sha256 is for one file, found ${#files[@]}"
    verify "${files[0]}" "$sha256"
  fi
fi
run_prepare --tokenizer "$tokenizer" "${vocabulary[@]}" --input "${files[@]}" --out "$out" --val-fraction "$fraction" "${join[@]}"
