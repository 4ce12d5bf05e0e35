#!/usr/bin/env python3
"""Writes src/data/unicode_classes.inc: which code points are letters, numbers and white space.

usage: make_unicode_classes.py            writes the table
       make_unicode_classes.py --check    compares it with tiktoken's and `tokenizers`' classes

Needs `pip install unicodedata2==16.0.0`, and for --check tiktoken and tokenizers; the committed table
was made on Python 3.11 and checked against tiktoken 0.14.0 and tokenizers 0.23.3. Both know Unicode
16.0. For another version change VERSION and the package, check, and change the counts in
tests/data/tokenizer_test.cpp.
"""
import argparse
import os

import unicodedata2

VERSION = "16.0.0"
LETTER, NUMBER, SPACE, OTHER = range(4)  # CharClass in pretokenizer.h
CODE_POINTS = 0x110000
SURROGATES = range(0xD800, 0xE000)


def unicode_class(c):
    category = unicodedata2.category(chr(c))
    if category[0] == "L":
        return LETTER
    if category[0] == "N":
        return NUMBER
    # White_Space: the separators and six controls.
    return SPACE if category[0] == "Z" or 0x09 <= c <= 0x0D or c == 0x85 else OTHER


def write_table(classes):
    starts = [c for c in range(CODE_POINTS) if c == 0 or classes[c] != classes[c - 1]]
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "unicode_classes.inc")
    with open(path, "w", encoding="ascii") as f:
        f.write(f"// Made by make_unicode_classes.py from Unicode {VERSION}.\n")
        for i in range(0, len(starts), 12):
            f.write(" ".join(f"0x{4 * c + classes[c]:x}," for c in starts[i:i + 12]) + "\n")
    print(f"{path}: {len(starts)} runs")


def check(classes):
    import tiktoken
    from tokenizers import pre_tokenizers
    bytes_only = {bytes([b]): b for b in range(256)}

    def matcher(expression):
        return tiktoken.Encoding("x", pat_str=expression, mergeable_ranks=bytes_only, special_tokens={})
    matchers = [(LETTER, matcher(r"\p{L}")), (NUMBER, matcher(r"\p{N}")), (SPACE, matcher(r"\s"))]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)

    def joins(text):
        return len(byte_level.pre_tokenize_str(text)) == 1
    for c in range(CODE_POINTS):
        if c in SURROGATES:
            continue
        a = next((kind for kind, m in matchers if m.encode_ordinary(chr(c))), OTHER)
        b = next((kind for kind, before in ((LETTER, "a"), (NUMBER, "1"), (OTHER, "!"))
                  if joins(before + chr(c))), SPACE)
        if not a == b == classes[c]:
            raise SystemExit(f"U+{c:04X}: tiktoken {a}, tokenizers {b}, the table {classes[c]}")
    print("all code points: the same")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    assert unicodedata2.unidata_version == VERSION, unicodedata2.unidata_version
    classes = [unicode_class(c) for c in range(CODE_POINTS)]
    counts = [classes.count(kind) for kind in (LETTER, NUMBER, SPACE)]
    value = 0xCBF29CE484222325  # FNV-1a over the classes, a byte each
    for kind in classes:
        value = (value ^ kind) * 0x100000001B3 % 2**64
    print(f"letters {counts[0]}, numbers {counts[1]}, white space {counts[2]}, FNV-1a {value:016x}")
    return check(classes) if args.check else write_table(classes)


if __name__ == "__main__":
    main()
