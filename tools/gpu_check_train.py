"""What the parts of `make gpu-check` that run build/train share: flags, sizes, the run itself."""
import os
import shlex

import gpu_check_parse as parse
from gpu_check_run import ROOT

# Sizes that take seconds with CUDA on the CPU: the same flow, smaller numbers.
TINY = {"n-layer": 1, "n-head": 2, "n-embd": 32, "seq-len": 32}


def words(flags):
    """{"steps": 30, "benchmark": True} as words of a command line."""
    return [word for key, value in flags.items() if value is not False
            for word in ([f"--{key}"] if value is True else [f"--{key}", str(value)])]


def shown(command):
    """Paths relative to the repository, as a person would type them."""
    return [os.path.relpath(word, ROOT) if str(word).startswith(str(ROOT)) else str(word) for word in command]


def gpt2_124m(check, dtype="bf16"):
    """GPT-2 124M on GPT-2's tokens of Shakespeare if both are there, otherwise on characters."""
    bpe = not check.tiny and check.args.data and (check.args.data / "gpt2").is_dir()
    shape = TINY if check.tiny else {"seq-len": 1024}
    return {"model": "gpt2-124m", "data": check.data("gpt2" if bpe else "char"),
            "vocab-size": 128 if check.tiny else 50257, **shape, "dtype": dtype}


def known_flags(check):
    """The text of `train --help`."""
    return check.run([check.program("train"), "--help"], limit=30).text


def train(check, flags):
    """Runs build/train on the GPU: (its result, the numbers that it printed)."""
    command = [check.program("train"), *words({**flags, "device": "cuda"})]
    done = check.run(command, env=check.args.child_env)
    run = parse.train_log(done.text)
    run.update(command=shlex.join(shown(command)), batch_size=flags.get("batch-size"), seconds=done.seconds)
    return done, run


def train_fitting(check, flags, batch_sizes):
    """The same with the largest of these batch sizes that fits the GPU's memory."""
    for batch_size in batch_sizes:
        done, run = train(check, {**flags, "batch-size": batch_size})
        if done.ok or "lower --batch-size" not in done.text:
            break
    return done, run
