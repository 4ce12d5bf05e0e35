#!/usr/bin/env bash
# The recipes in data/ and the tool `corpus`: what they call, and one sentence for each mistake. A
# recorder that writes down its arguments replaces `prepare`. A script that copies a file of this
# test replaces curl, so that downloads are tested without a network.
# usage: recipes_test.sh REPOSITORY CORPUS_TOOL
set -uo pipefail
repository=$1 corpus=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failures=0

mkdir -p "$work/bin"
printf '#!/bin/sh\nprintf "%%s " "$@" > "%s/called"\n' "$work" > "$work/prepare"
printf '#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\necho "$3" > "%s/url"\ncp "%s/remote" "$2" 2>/dev/null\n' \
  "$work" "$work" > "$work/bin/curl"
chmod +x "$work/prepare" "$work/bin/curl"
export LATHE_PREPARE=$work/prepare PATH=$work/bin:$PATH

# expect CODE PATTERN COMMAND...: the exit code, and the whole output matches the pattern.
expect() {
  local code=$1 pattern=$2 output found
  shift 2
  rm -f "$work/called"
  output=$("$@" 2>&1)
  found=$?
  if [[ $found != "$code" ]] || ! grep -qE -- "$pattern" <<<"$output" ||
     { [[ $code == 2 ]] && { [[ $(wc -l <<<"$output") != 1 ]] || [[ -e $work/called ]]; }; }; then
    echo "FAILED: $*"
    echo "  expected exit $code and '$pattern', found exit $found and: $output"
    failures=$((failures + 1))
  fi
}

# expect_called ARGUMENTS: what the recipe passed to prepare.
expect_called() {
  local found
  found=$(cat "$work/called" 2>/dev/null)
  [[ $found == "$1 " ]] ||
    { echo "FAILED: prepare was called with '$found', expected '$1'"; failures=$((failures + 1)); }
}

expect_that() { "$@" || { echo "FAILED: $*"; failures=$((failures + 1)); }; }

echo "some text" > "$work/some text.txt"
echo "other text" > "$work/other.txt"
sum=$(sha256sum "$work/some text.txt" | cut -d' ' -f1)
text=$repository/data/text.sh

expect 0 '' "$text" --out "$work/out" "$work/some text.txt" "$work/other.txt"
expect_called "--tokenizer char --input $work/some text.txt $work/other.txt --out $work/out --val-fraction 0.1"
expect 0 '' "$text" --tokenizer gpt2 --vocab-dir "$work" --val-fraction 0.05 --out o --sha256 "$sum" "$work/some text.txt"
expect_called "--tokenizer gpt2 --vocab-dir $work --input $work/some text.txt --out o --val-fraction 0.05"
expect 0 '' "$text" --document-join '</s>' --out o "$work/some text.txt" "$work/other.txt"
expect_called "--tokenizer char --input $work/some text.txt $work/other.txt --out o --val-fraction 0.1 --document-join </s>"
expect 2 'vocabulary is not in .*data/gpt2.sh' "$text" --tokenizer gpt2 --vocab-dir "$work/absent" --out o "$work/other.txt"
expect 0 'usage' "$text" --help
expect 2 'has the SHA-256 .* expected' "$text" --out o --sha256 "${sum//[0-4]/5}" "$work/some text.txt"
expect 2 'cannot read .*absent.txt' "$text" --out o "$work/absent.txt"
expect 2 'cannot read' "$text" --out o "$work"
expect 2 '--out DIR' "$text" "$work/other.txt"
expect 2 'at least one FILE' "$text" --out o
expect 2 'unknown flag --tokeniser' "$text" --tokeniser char
expect 2 '--out needs a value' "$text" --out
expect 2 'needs --sha256' "$text" --out o --url https://example.org/a.txt
expect 2 'found both' "$text" --out o --url https://example.org/a.txt --sha256 "$sum" "$work/other.txt"

cp "$work/some text.txt" "$work/remote"
expect 0 '' "$text" --out "$work/web" --url "https://example.org/books/a.txt?raw=1" --sha256 "$sum"
expect_called "--tokenizer char --input $work/web/a.txt --out $work/web --val-fraction 0.1"
expect_that grep -qx 'https://example.org/books/a.txt?raw=1' "$work/url"
expect_that cmp "$work/web/a.txt" "$work/remote"
rm "$work/remote"  # an existing file is not downloaded again, but checked again
expect 0 '' "$text" --out "$work/web" --url https://example.org/a.txt --sha256 "$sum"
echo damage >> "$work/web/a.txt"
expect 2 'expected' "$text" --out "$work/web" --url https://example.org/a.txt --sha256 "$sum"
expect 2 'cannot download' "$text" --out "$work/web2" --url https://example.org/a.txt --sha256 "$sum"
cp "$work/other.txt" "$work/remote"
expect 2 'came with the SHA-256' "$text" --out "$work/web2" --url https://example.org/a.txt --sha256 "$sum"
expect_that test ! -e "$work/web2/a.txt" -a ! -e "$work/web2/a.txt.partial"

shakespeare=$repository/data/shakespeare.sh
expect 2 'has the SHA-256 .* expected 86c4e6aa' "$shakespeare" "$work/other.txt"
expect 2 'cannot read' "$shakespeare" "$work/absent.txt"
expect 2 'came with the SHA-256' "$shakespeare" --out "$work/shakespeare"
expect 2 'a second one' "$shakespeare" a b
expect_that grep -q '^https://raw.githubusercontent.com/karpathy/char-rnn/' "$work/url"

gpt2=$repository/data/gpt2.sh
expect 2 'cannot read .*encoder.json' "$gpt2" "$work"
expect 2 'came with the SHA-256' "$gpt2" --out "$work/gpt2"
cp "$work/other.txt" "$work/encoder.json"
expect 2 'expected 19613966' "$gpt2" "$work"

if [[ -n ${LATHE_TEST_DATA:-} ]]; then
  expect 0 '' "$shakespeare" "$LATHE_TEST_DATA/tinyshakespeare.txt" --out "$work/s"
  expect_called "--tokenizer char --input $LATHE_TEST_DATA/tinyshakespeare.txt --out $work/s"
  cp "$LATHE_TEST_DATA/tinyshakespeare.txt" "$work/remote"
  expect 0 '' "$shakespeare" --out "$work/s"
  expect_called "--tokenizer char --input $work/s/input.txt --out $work/s"
  expect 0 'encoder.json vocab.bpe' "$gpt2" "$LATHE_TEST_DATA/gpt2" --out "$work/gpt2"
  expect_that cmp "$LATHE_TEST_DATA/gpt2/vocab.bpe" "$work/gpt2/vocab.bpe"
else
  echo "SKIPPED the files of tiny Shakespeare and GPT-2: LATHE_TEST_DATA is not set"
fi
LATHE_PREPARE=$work/absent expect 2 'build it first' "$text" --out o "$work/other.txt"

expect 0 '^\{"nats_per_character":0\.[0-9]+,"bits' "$corpus" --entropy
expect 0 'nats = .* bits per character' "$corpus" --bytes 30000 --seed 5 --out "$work/c/a.txt"
expect_that grep -q '"nats_per_character": 0\.' "$work/c/entropy.json"
expect_that grep -q "\"characters\": $(stat -c %s "$work/c/a.txt")" "$work/c/entropy.json"
expect 0 '' "$corpus" --bytes 30000 --seed 5 --out "$work/d/b.txt"
expect_that cmp "$work/c/a.txt" "$work/d/b.txt"
expect 0 '' "$corpus" --bytes 30000 --seed 6 --out "$work/d/b.txt"
cmp -s "$work/c/a.txt" "$work/d/b.txt" && { echo "FAILED: two seeds, one text"; failures=1; }
expect 2 '--out' "$corpus"
expect 2 'is a directory' "$corpus" --out "$work"
expect 2 'cannot make its directory' "$corpus" --out "$work/other.txt/a.txt"
expect 2 '--bytes' "$corpus" --bytes 0 --out "$work/e.txt"
expect 2 '--bytes' "$corpus" --bytes -7 --out "$work/e.txt"
expect 2 '--colour' "$corpus" --colour
full_disk() { (trap '' XFSZ; ulimit -f 8; "$@"); }  # a file may grow to 8 KiB, then writes fail
expect 1 'cannot write .*File too large' full_disk "$corpus" --bytes 30000 --out "$work/c/a.txt"
expect_that test "$(stat -c %s "$work/c/a.txt")" -ge 30000 -a ! -e "$work/c/a.txt.partial"

[[ $failures == 0 ]] || { echo "$failures failed"; exit 1; }
