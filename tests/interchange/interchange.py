#!/usr/bin/env python3
"""Moves models from lathe to transformers and back, and compares the losses.

usage: PYTHON tests/interchange/interchange.py [--build build] [--keep DIR]

PYTHON is an interpreter that has torch, transformers, tokenizers and safetensors, for instance

    python3 -m venv oracle && oracle/bin/pip install torch transformers tokenizers safetensors
    oracle/bin/python tests/interchange/interchange.py

If LATHE_ORACLE_PYTHON=oracle/bin/python is set, any python3 starts that interpreter, as ctest's
interchange_test does. If a package is missing, it prints that and exits with 77. Needs no network and
takes a minute or two. Written for torch 2.15, tokenizers 0.23 or 0.22, and transformers 5.24 or 4.57.

A loss of lathe may differ from PyTorch's in double by 8 ulp or twice as much as PyTorch's in fp32 does.
"""
import argparse
import importlib.util
import json
import os
import pathlib
import shutil
import struct
import subprocess
import sys
import tempfile

PACKAGES = ["torch", "transformers", "tokenizers", "safetensors"]
SIZES = {"n-layer": 2, "n-head": 2, "n-embd": 32, "seq-len": 32, "batch-size": 4}
ADAMW = {"lr": 1e-3, "weight-decay": 0.1, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "grad-clip": 1.0}
STEPS = 20  # of each continuation


def skip(reason):
    print(f"interchange: skipped, {reason}")
    sys.exit(77)


class Checks:
    """Counts checks that passed and failed."""

    def __init__(self):
        self.passed = self.failed = 0

    def that(self, condition, what, detail=""):
        self.passed += bool(condition)
        self.failed += not condition
        print(f"{'ok  ' if condition else 'FAIL'} {what}{': ' + str(detail) if detail != '' else ''}")

    def equal(self, found, expected, what):
        self.that(found == expected, what, "" if found == expected else f"{found!r}, not {expected!r}")

    def close(self, lathe, double, single, what):
        """Compares lists of losses: lathe's, PyTorch's in double and in fp32."""
        error = max(abs(a - b) for a, b in zip(lathe, double, strict=True))
        own = max(abs(a - b) for a, b in zip(single, double, strict=True))
        ulp = max(float(numpy.spacing(numpy.float32(loss))) for loss in double)
        self.that(error <= max(2 * own, 8 * ulp), what,
                  f"loss {lathe[-1]:.7f}, off by {error:.1e}, PyTorch in fp32 by {own:.1e}")


class Lathe:
    """The programs of a build, and a folder for their files."""

    def __init__(self, build, work):
        self.build, self.work = build, work

    def run(self, program, flags, expect=0):
        command = [str(self.build / program)]
        for name, value in flags.items():
            command += [f"--{name}"] + ([] if value is None else [str(value)])
        result = subprocess.run(command, capture_output=True, text=True)
        if expect is not None and result.returncode != expect:
            raise SystemExit(f"{' '.join(command)}\nended with {result.returncode}\n{result.stdout}{result.stderr}")
        return result

    def prepare(self, name, tokenizer):
        data = self.work / f"{name}-data"
        self.run("prepare", {"tokenizer": tokenizer, "input": self.work / "stories.txt", "out": data,
                             "val-fraction": 0.1})
        return data

    def train(self, data, out, flags, expect=0):
        """Runs a training; returns its last checkpoint and its metrics."""
        flags = {"model": "shakespeare-cpu", "data": data, "out": out, "threads": 1, "warmup-steps": 0,
                 **SIZES, **flags}
        result = self.run("train", flags, expect)
        if expect != 0:
            return result
        steps = sorted(path for path in out.iterdir() if path.name.startswith("step-"))
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        return steps[-1], lines

    def validation_loss(self, weights, data):
        """The validation loss of a model directory, with all digits."""
        out = pathlib.Path(tempfile.mkdtemp(dir=self.work))
        _, lines = self.train(data, out, {"init": weights, "steps": 1, "eval-interval": 1, "eval-batches": 0})
        return next(line["val_loss"] for line in lines if "val_loss" in line and line["step"] == 0)

    def refusal(self, weights, data):
        """The messages, one sentence each, with which --init and sample refuse a directory."""
        out = self.work / "refused"
        said = self.train(data, out, {"init": weights, "steps": 1}, expect=2).stderr
        if out.exists():
            raise SystemExit(f"{out} was made although {weights} was refused")
        sampled = self.run("sample", {"checkpoint": weights, "tokens": 1}, expect=2).stderr
        return said.removeprefix("train: "), sampled.removeprefix("sample: ")


def tokens_of(data, split):
    """The tokens of a data directory's shards, which have llm.c's format."""
    tokens = []
    for path in sorted(data.glob(f"{split}_*.bin")):
        tokens.append(numpy.frombuffer(path.read_bytes()[1024:], dtype="<u2").astype(numpy.int64))
    return torch.from_numpy(numpy.concatenate(tokens))


def write_shard(path, tokens):
    header = struct.pack("<256i", 20240520, 1, len(tokens), *[0] * 253)
    path.write_bytes(header + numpy.asarray(tokens, dtype="<u2").tobytes())


def opened(path, dtype=None):
    """Opens a model directory in transformers; no weight may be missing or unexpected."""
    model, info = transformers.GPT2LMHeadModel.from_pretrained(path, output_loading_info=True)
    odd = {key: list(value) for key, value in info.items() if value}
    if odd:
        raise SystemExit(f"transformers opens {path} with {odd}")
    return model.to(dtype or torch.float64).eval()


def loss_of(model, inputs, targets):
    logits = model(inputs).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")


def validation_loss(model, tokens):
    """Disjoint windows from the first token on. Each token except the first is a target once."""
    length, targets = SIZES["seq-len"], len(tokens) - 1
    whole = targets // length * length
    with torch.no_grad():
        total = loss_of(model, tokens[:whole].view(-1, length), tokens[1:whole + 1].view(-1, length))
        if whole < targets:
            total += loss_of(model, tokens[None, whole:-1], tokens[None, whole + 1:])
    return total.item() / targets


def optimizer_of(model):
    """AdamW like lathe's: matrices and embeddings decay, biases and LayerNorms do not."""
    decayed = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    return torch.optim.AdamW(
        [{"params": decayed, "weight_decay": ADAMW["weight-decay"]}, {"params": others, "weight_decay": 0.0}],
        lr=ADAMW["lr"], betas=(ADAMW["beta1"], ADAMW["beta2"]), eps=ADAMW["eps"])


def train_in_torch(model, windows):
    """Takes one step on each window; returns the loss before each."""
    optimizer, losses = optimizer_of(model), []
    for window in windows:
        optimizer.zero_grad()
        loss = loss_of(model, window[None, :-1], window[None, 1:]) / (len(window) - 1)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), ADAMW["grad-clip"])
        optimizer.step()
        losses.append(loss.item())
    return losses


def train_bpe(work, name, special):
    """Trains a byte-level BPE on the stories, as users of tokenizers do."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.train([str(work / "stories.txt")], tokenizers.trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()))
    path = work / f"{name}.json"
    tokenizer.save(str(path))
    return path


class Case:
    """One model: exported by lathe, opened, continued and saved by transformers, imported again."""

    def __init__(self, lathe, checks, name, tokenizer, flags, end_of_text):
        self.lathe, self.checks, self.name, self.end_of_text = lathe, checks, name, end_of_text
        self.data = lathe.prepare(name, tokenizer)
        self.checkpoint, lines = lathe.train(self.data, lathe.work / f"{name}-run", {
            "steps": 60, "eval-interval": 60, "eval-batches": 0, "lr": 3e-3, **flags})
        self.validation = tokens_of(self.data, "val")
        self.exported_loss = [line["val_loss"] for line in lines if "val_loss" in line][-1]

    def compare(self, directory, lathe_loss, what):
        self.checks.close([lathe_loss], [validation_loss(opened(directory), self.validation)],
                          [validation_loss(opened(directory, torch.float32), self.validation)],
                          f"{self.name}: {what}")

    def check_export(self):
        self.compare(self.checkpoint, self.exported_loss, "an export has the same loss in transformers")
        model = opened(self.checkpoint)
        ids = [model.config.bos_token_id, model.config.eos_token_id]
        self.checks.equal(ids, [self.end_of_text] * 2, f"{self.name}: bos and eos ids")
        with torch.no_grad():
            made = model.generate(self.validation[None, :4], attention_mask=torch.ones(1, 4), max_new_tokens=8,
                                  do_sample=False, pad_token_id=0)
        self.checks.that(int(made.max()) < model.config.vocab_size, f"{self.name}: generate() runs")

    def check_tokenizer(self, directory, what):
        if json.loads((directory / "tokenizer.json").read_text()).get("type") == "char":
            print(f"---- {self.name}: tokenizer.json has lathe's own format, which AutoTokenizer cannot open")
            return
        tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
        vocabulary = json.loads((self.checkpoint / "config.json").read_text())["vocab_size"]
        self.checks.equal(len(tokenizer), vocabulary, f"{self.name}: tokens of {what}")
        self.checks.equal(tokenizer.eos_token_id, self.end_of_text, f"{self.name}: its eos_token_id")
        text = (self.lathe.work / "stories.txt").read_text()[:20000]
        ids = tokens_of(self.data, "train")[:4000].tolist()
        if self.end_of_text is not None:
            ids = [i for i in ids if i != self.end_of_text]
        decoded = tokenizer.decode(ids)
        self.checks.that(text.startswith(decoded[:2000]), f"{self.name}: its text is the input's")
        self.checks.equal(tokenizer(decoded)["input_ids"], ids, f"{self.name}: its ids are prepare's")

    def check_continuation(self):
        """Trains on in transformers, saves, imports; then takes the same steps in lathe and in PyTorch."""
        length = SIZES["seq-len"]
        train = tokens_of(self.data, "train")
        model = opened(self.checkpoint, torch.float32).train()
        model.config.resid_pdrop = model.config.embd_pdrop = model.config.attn_pdrop = 0.0
        before = validation_loss(opened(self.checkpoint), self.validation)
        train_in_torch(model, [train[i * length:(i + 1) * length + 1] for i in range(STEPS)])
        saved = self.lathe.work / f"{self.name}-continued"
        model.save_pretrained(saved)
        shutil.copy(self.checkpoint / "tokenizer.json", saved)
        biases = [p for name, p in model.named_parameters() if name.endswith(".bias")]
        self.checks.that(all(p.abs().max() > 0 for p in biases), f"{self.name}: transformers trains biases")
        loss = self.lathe.validation_loss(saved, self.data)
        self.checks.that(abs(loss - before) > 1e-3, f"{self.name}: the continuation changed the loss",
                         f"{before:.4f}, now {loss:.4f}")
        self.compare(saved, loss, "a continuation by transformers, imported again")
        self.lathe.run("sample", {"checkpoint": saved, "tokens": 20, "prompt": "The"})

        # Data of a single window, so that both train on the same tokens in each step.
        one = self.lathe.work / f"{self.name}-one"
        shutil.copytree(self.data, one)
        for path in one.glob("train_*.bin"):
            path.unlink()
        write_shard(one / "train_000000.bin", train[:length + 1].numpy())
        out = self.lathe.work / f"{self.name}-both"
        checkpoint, lines = self.lathe.train(one, out, {
            **ADAMW, "init": saved, "steps": STEPS, "batch-size": 1, "schedule": "constant",
            "eval-interval": STEPS, "eval-batches": 0})
        losses = [line["loss"] for line in lines if "loss" in line]
        windows = [train[:length + 1]] * STEPS
        self.checks.close(losses, train_in_torch(opened(saved).train(), windows),
                          train_in_torch(opened(saved, torch.float32).train(), windows),
                          f"{self.name}: {STEPS} steps in lathe and in PyTorch")
        self.compare(checkpoint, [line["val_loss"] for line in lines if "val_loss" in line][-1],
                     "what lathe made of it, exported again")


def check_files(lathe, checks, case):
    """Files of other programs: lathe reads them correctly, or refuses them and names the file."""
    model = opened(case.checkpoint, torch.float32)
    names = iter(range(100))

    def directory(save, tokenizer=True):
        path = lathe.work / f"files-{next(names)}"
        model.save_pretrained(path)
        save(path)
        if tokenizer:
            shutil.copy(case.checkpoint / "tokenizer.json", path)
        return path

    def tensors(path, change):
        file = path / "model.safetensors"
        values = safetensors.torch.load_file(file)
        change(values)
        safetensors.torch.save_file(values, file, metadata={"format": "pt"})

    def refused(path, *parts):
        for said in lathe.refusal(path, case.data):
            whole = said.count("\n") == 1 and all(part in said for part in parts)
            checks.that(whole, f"refused with {parts[0]}", "" if whole else said)

    same = directory(lambda path: None)
    loss = lathe.validation_loss(same, case.data)
    checks.equal(loss, case.exported_loss, "saved unchanged, the loss has the same bits")

    def add_one(values):
        values["transformer.h.1.mlp.c_fc.bias"] += 1
    biased = directory(lambda path: tensors(path, add_one))
    checks.equal(json.loads((biased / "config.json").read_text())["lathe_bias"], False, "transformers keeps lathe_bias")
    moved = lathe.validation_loss(biased, case.data)
    checks.that(abs(moved - loss) > 1e-3, "one bias more changes the loss", f"{loss:.4f}, now {moved:.4f}")
    case.compare(biased, moved, "a bias where the export had none")

    def head(values):
        values["lm_head.weight"] = values["transformer.wte.weight"].clone()
    checks.equal(lathe.validation_loss(directory(lambda path: tensors(path, head)), case.data), loss,
                 "a head that is the embedding")

    def other_head(values):
        head(values)
        values["lm_head.weight"][3, 5] += 1
    refused(directory(lambda path: tensors(path, other_head)), "lm_head.weight differs from transformer.wte.weight")

    def alone(path):  # saves tied tensors once, under the first name
        safetensors.torch.save_model(model, str(path / "model.safetensors"), metadata={"format": "pt"})
    only_head = directory(alone)
    names_in_file = safetensors.torch.load_file(only_head / "model.safetensors").keys()
    checks.that("lm_head.weight" in names_in_file and "transformer.wte.weight" not in names_in_file,
                "save_model() keeps the head alone")
    checks.equal(lathe.validation_loss(only_head, case.data), loss, "a head in place of the embedding")

    def shards(path):
        (path / "model.safetensors").unlink()
        model.save_pretrained(path, max_shard_size="20KB")
    refused(directory(shards), "model.safetensors.index.json", "max_shard_size")

    def pickled(path):
        (path / "model.safetensors").unlink()
        torch.save(model.state_dict(), path / "pytorch_model.bin")
    refused(directory(pickled), "pytorch_model.bin", "save_pretrained")

    def nan(values):
        values["transformer.h.0.attn.c_attn.weight"][0, 7] = float("nan")
    refused(directory(lambda path: tensors(path, nan)), "tensor transformer.h.0.attn.c_attn.weight is nan at element 7")

    def half(path):
        opened(case.checkpoint, torch.bfloat16).save_pretrained(path)
    narrow = directory(half)
    case.compare(narrow, lathe.validation_loss(narrow, case.data), "weights saved in bf16")

    over = lathe.work / "over" / case.checkpoint.name
    shutil.copytree(case.checkpoint, over)
    with torch.no_grad():
        model.transformer.ln_f.weight[0] += 0.5
    model.save_pretrained(over)
    refused(over, "was saved over by transformers", "manifest.json")
    said = lathe.train(case.data, lathe.work / "resumed", {"resume": over, "steps": 61}, expect=2).stderr
    checks.that("was saved over by transformers" in said, "resume says so, too", said.strip())
    (over / "manifest.json").unlink()
    case.compare(over, lathe.validation_loss(over, case.data), "a save over a checkpoint, without its manifest")


def run(lathe, checks):
    lathe.run("corpus", {"bytes": 40000, "out": lathe.work / "stories.txt"})
    plain = train_bpe(lathe.work, "bpe", [])
    ended = train_bpe(lathe.work, "ended", ["<|endoftext|>"])
    end = tokenizers.Tokenizer.from_file(str(ended)).token_to_id("<|endoftext|>")
    cases = [Case(lathe, checks, "characters", "char", {}, None),
             Case(lathe, checks, "bpe", plain, {"bias": "true", "gelu": "tanh", "init-std": 0.05}, None),
             Case(lathe, checks, "bpe with end-of-text", ended, {"gelu": "tanh"}, end)]
    for case in cases:
        case.check_export()
        case.check_tokenizer(case.checkpoint, "AutoTokenizer")
        case.check_continuation()
    check_files(lathe, checks, cases[0])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=pathlib.Path,
                        default=pathlib.Path(__file__).resolve().parents[2] / "build")
    parser.add_argument("--keep", type=pathlib.Path, help="an empty or new folder to work in and to keep")
    options = parser.parse_args()
    python = os.environ.pop("LATHE_ORACLE_PYTHON", "")
    if python:
        os.execv(python, [python, *sys.argv])
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        skip(f"{sys.executable} lacks {', '.join(missing)}; set LATHE_ORACLE_PYTHON to one that has them")
    programs = [name for name in ["train", "sample", "prepare", "corpus"] if not (options.build / name).exists()]
    if programs:
        skip(f"{options.build} lacks {', '.join(programs)}; run make, or name another --build")

    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", TOKENIZERS_PARALLELISM="false")
    global numpy, safetensors, tokenizers, torch, transformers
    import numpy
    import safetensors.torch
    import tokenizers
    import torch
    import transformers
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(", ".join(f"{p.__name__} {p.__version__}" for p in [torch, transformers, tokenizers, safetensors]))
    checks = Checks()
    if options.keep:
        options.keep.mkdir(parents=True, exist_ok=True)
        run(Lathe(options.build, options.keep.resolve()), checks)
    else:
        with tempfile.TemporaryDirectory() as work:
            run(Lathe(options.build, pathlib.Path(work)), checks)
    print(f"{checks.passed} passed, {checks.failed} failed")
    return 1 if checks.failed else 0


if __name__ == "__main__":
    sys.exit(main())
