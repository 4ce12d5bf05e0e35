#!/usr/bin/env python3
"""Makes tests/data/golden from Hugging Face's `tokenizers`, which encodes like OpenAI's encoder.py.

usage: make_tokenizer_golden.py --data DIR            writes tests/data/golden
       make_tokenizer_golden.py --data DIR --check build/prepare [--strings N --seed S]
                                                      compares random text instead, writes nothing
--check also compares a BPE with added tokens, and a character tokenizer; if transformers is installed,
also with its AutoTokenizer (4.57 and 5.24 were tried).
DIR holds gpt2/encoder.json, gpt2/vocab.bpe and tinyshakespeare.txt. The committed files were made
with tokenizers 0.23.3 on Python 3.11.

golden/small/vocab.json, merges.txt   a BPE of 300 merges, trained here on HARD
golden/tokenizer.json                 ids of HARD under GPT-2's vocabulary and under the small one
golden/tinyshakespeare.json           number and FNV-1a hash of the ids of tiny Shakespeare
"""
import argparse
import json
import os
import random
import struct
import subprocess
import tempfile

import tokenizers
from tokenizers import models, pre_tokenizers, trainers

HERE = os.path.dirname(os.path.abspath(__file__))

HARD = [
    "", " ", "  ", "\n", "a", " a", "  a", "a ", "a  ", "\n\n\na\n \n b \t c\r\n", "   \n", "\ta",
    "Hello, world! It's we'll I'd you've they're I'm can't 'sup 'S 'T 'LL ''s '' 'x",
    "x's1've2 're's'll'd 'll 'l 'v 'r ' s",
    "The quick brown fox jumps over the lazy dog. " * 3,
    "0 1 12 123 1234567890 3.14159 1e-5 ½ ² Ⅷ ৩ ४५ ①",
    "<|endoftext|> in text, <|endoftext|><|endoftext|>, <|endoftext", "<|", "|>",
    "naïve café résumé cafe\u0301 n\u0303 Ångström A\u030angstro\u0308m ﬁ ﬀ ß ẞ İ ı",
    "\U0001f600 \U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 "
    "\U0001f3f3\ufe0f\u200d\U0001f308 \U0001f1e9\U0001f1ea\U0001f44d\U0001f3fd ❤\ufe0f",
    "你好，世界。今天天气很好！ 日本語のテキスト、カタカナ。 한국어 문장입니다. 𠮷野家",
    "שלום עולם! مرحبا بالعالم، كيف حالك؟ \u202bRTL\u202c \u200f\u200e",
    "हिन्दी में पाठ ภาษาไทย தமிழ் ქართული Ελληνικά Русский язык Ὀδυσσεύς",
    "\x00 a\x00b \x01\x02\x1b[31m \x7f \x1c\x1d\x1e\x1f a\x1cb", "\x00", "a\u0085b \u0085 c\u0085",
    "\u00a0a\u00a0 \u00a0b \u1680\u2000\u2003\u2009\u200a\u2028\u2029\u202f\u205f\u3000x\u200bz\ufeff",
    "a\u3000\u3000b \u3000 c", "e\u0301\u0302\u0303\u0304\u0305 Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L̠ͨͧͩ͘G",
    "\ufffd \ufffe \uffff \U0010ffff \ue000 \U000e0001 \ud7ff", "ǅ ʰ ª º ٠ _ __ a_b __init__(self)",
    "def f(x):\n    return x ** 2  # square\n\n\tif (a!=b) {c->d;} /* e */ $%^&*()[]{}",
    "https://example.org/a?b=c&d=%20#e user@example.org C:\\dir\\file.txt 1,000,000.00€ £5 ¥6",
    "a" * 300, " " * 300, "ab" * 200, "é" * 100, "=" * 257, "\n" * 65, "1" * 100, "aA" * 50 + "!" * 50,
    "supercalifragilisticexpialidocious antidisestablishmentarianism pneumonoultramicroscopic",
    "   leading and trailing   ", "tabs\t\tand \t mixed \n\t ends\t",
    "Ⓐ ⓩ 🅰 Ⅻ ↉ 〇 ㊿ 𝟘𝟙 𝒜𝓑 𐍈 𒀀 𐐷 ꙮ ﷽ ﷺ",
]


def bpe(vocab, merges):
    tokenizer = tokenizers.Tokenizer(models.BPE.from_file(vocab, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


def train_small(directory):
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=556, show_progress=False, min_frequency=1,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.train_from_iterator(HARD, trainer)
    os.makedirs(directory, exist_ok=True)
    tokenizer.model.save(directory)


def fnv1a(ids):
    value = 0xCBF29CE484222325
    for byte in struct.pack(f"<{len(ids)}H", *ids):
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return value


def random_text(rng):
    """Words of few classes with many switches between them, and sometimes any code point."""
    pools = ["abcstdmrevl'", "'s't're've'm'll'd", " \n\t\r\u00a0\u0085\u2003\u3000\x1c", "0123٣½Ⅷ",
             ".,!?-_'\"<|>", "éßñøЖя日本한ا", "\u0301\u200d\ufe0f\U0001f600\U0001f468", "The of and "]
    text = ""
    while len(text) < rng.randrange(1, 120):
        if rng.random() < 0.05:
            # Any, if `tokenizers` knows Unicode 16.0, as lathe does.
            c = rng.choice([rng.randrange(0x250), rng.randrange(0x400, 0x530),
                            rng.randrange(0xd800), rng.randrange(0xe000, 0x110000)])
            text += chr(c)
        else:
            pool = rng.choice(pools)
            text += "".join(rng.choice(pool) for _ in range(rng.randrange(1, 6)))
    return text


def prepared(prepare, documents, *flags):
    """The tokens that prepare writes for the documents, and the text of its tokenizer.json."""
    with tempfile.TemporaryDirectory() as folder:
        source = os.path.join(folder, "documents.jsonl")
        with open(source, "w", encoding="utf-8") as f:
            f.writelines(json.dumps({"text": d}) + "\n" for d in documents)
        out = os.path.join(folder, "out")
        subprocess.run([prepare, *flags, "--input", source, "--jsonl-key", "text",
                        "--val-fraction", "0", "--out", out], check=True)
        with open(os.path.join(out, "train_000000.bin"), "rb") as f:
            data = f.read()[1024:]
        with open(os.path.join(out, "tokenizer.json"), encoding="utf-8") as f:
            return list(struct.unpack(f"<{len(data) // 2}H", data)), f.read()


def compare(what, ids, expected):
    if ids != expected:
        at = next((i for i, (a, b) in enumerate(zip(ids, expected)) if a != b), "the end")
        raise SystemExit(f"{what} differs at token {at}")
    print(f"{what}: {len(ids)} tokens, the same")


def check_added_tokens(prepare, documents):
    """The small BPE with added tokens; special ones are text in data."""
    small = os.path.join(HERE, "golden", "small")
    file = json.loads(bpe(os.path.join(small, "vocab.json"),
                          os.path.join(small, "merges.txt")).to_str())
    size = len(file["model"]["vocab"])
    tokens = [("<|endoftext|>", True, False), ("  ", False, True), ("    ", False, True),
              ("the", False, False), ("'r", False, True), ("<|e", False, True)]
    file["added_tokens"] = [
        {"id": size + i, "content": content, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": normalized, "special": special}
        for i, (content, special, normalized) in enumerate(tokens)]
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(file))
    tokenizer.encode_special_tokens = True
    expected = []
    for i, document in enumerate(documents):
        expected += ([size] if i else []) + tokenizer.encode(document).ids
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "added.json")
        with open(path, "w", encoding="utf-8") as f:
            json.dump(file, f)
        ids, text = prepared(prepare, documents, "--tokenizer", path)
    compare("a BPE with added tokens", ids, expected)
    assert json.loads(text)["added_tokens"] == file["added_tokens"], "its added tokens"


def check_characters(prepare, documents):
    text = "".join(documents)
    ids, file = prepared(prepare, [text], "--tokenizer", "char")
    saved = tokenizers.Tokenizer.from_str(file)
    assert saved.decode(ids) == text, "the saved characters"
    compare("characters", ids, saved.encode(text).ids)
    try:
        from transformers import AutoTokenizer
    except ImportError:
        print("AutoTokenizer: transformers is not installed")
        return
    with tempfile.TemporaryDirectory() as folder:
        with open(os.path.join(folder, "tokenizer.json"), "w", encoding="utf-8") as f:
            f.write(file)
        with open(os.path.join(folder, "tokenizer_config.json"), "w", encoding="utf-8") as f:
            json.dump({"tokenizer_class": "PreTrainedTokenizerFast",
                       "clean_up_tokenization_spaces": False}, f)
        auto = AutoTokenizer.from_pretrained(folder)
        assert len(auto) == len(set(text)), len(auto)
        assert auto.decode(ids) == text, "the characters by AutoTokenizer"
        compare("characters by AutoTokenizer", ids, auto(text)["input_ids"])
        auto.save_pretrained(os.path.join(folder, "again"))
        again, _ = prepared(prepare, [text], "--tokenizer", os.path.join(folder, "again"))
        compare("characters that AutoTokenizer saved", again, ids)


def check(prepare, tokenizer, vocab_dir, strings, seed):
    """Encodes random documents with prepare and compares with `tokenizers`."""
    rng = random.Random(seed)
    documents = HARD[1:] + [random_text(rng) for _ in range(strings)]
    expected = []
    for i, document in enumerate(documents):
        expected += ([50256] if i else []) + tokenizer.encode(document).ids
    ids, file = prepared(prepare, documents, "--tokenizer", "gpt2", "--vocab-dir", vocab_dir)
    compare("GPT-2's BPE", ids, expected)
    saved = tokenizers.Tokenizer.from_str(file)
    text = random_text(rng)
    assert saved.encode(text).ids == tokenizer.encode(text).ids, "the saved tokenizer.json"
    assert saved.encode("a<|endoftext|>b").ids == [64, 50256, 65], "its special token"
    assert saved.decode(saved.encode(text).ids) == text
    check_added_tokens(prepare, documents)
    check_characters(prepare, documents)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--check", metavar="PREPARE")
    parser.add_argument("--strings", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    vocab_dir = os.path.join(args.data, "gpt2")
    gpt2 = bpe(os.path.join(vocab_dir, "encoder.json"), os.path.join(vocab_dir, "vocab.bpe"))
    if args.check:
        return check(args.check, gpt2, vocab_dir, args.strings, args.seed)

    golden = os.path.join(HERE, "golden")
    train_small(os.path.join(golden, "small"))
    small = bpe(os.path.join(golden, "small", "vocab.json"),
                os.path.join(golden, "small", "merges.txt"))
    cases = [{"text": t, "gpt2": gpt2.encode(t).ids, "small": small.encode(t).ids} for t in HARD]
    with open(os.path.join(golden, "tokenizer.json"), "w") as f:
        f.write("[\n" + ",\n".join(json.dumps(c, separators=(",", ":")) for c in cases) + "\n]\n")
    text = open(os.path.join(args.data, "tinyshakespeare.txt"), encoding="utf-8").read()
    ids = gpt2.encode(text).ids
    with open(os.path.join(golden, "tinyshakespeare.json"), "w") as f:
        json.dump({"tokens": len(ids), "fnv1a": f"{fnv1a(ids):016x}"}, f)
        f.write("\n")


if __name__ == "__main__":
    main()
