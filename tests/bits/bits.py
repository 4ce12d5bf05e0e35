#!/usr/bin/env python3
"""Short runs whose losses, gradient norms and weights must not change by a bit.

    bits.py check  --build-dir build [--cuda-build-dir build/cuda-on-cpu] [--quick]
    bits.py record --build-dir build [--cuda-build-dir build/cuda-on-cpu]

`record` stores the results of the runs in recorded.json, `check` compares with them. Bits depend on
the compiler, the vector instructions of the CPU and oneDNN, so the file has an entry for each
combination of these. `check` exits with 77 (skipped) if this machine has no entry. A change that
changes bits on purpose records them again, and its commit says why.

A configuration is one run, or a run and its continuation. Losses and norms come from metrics.jsonl,
digests from the files of the last checkpoint.
"""

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

RECORDED = Path(__file__).with_name("recorded.json")

# Flags of every configuration, which its own flags override. Each rank has one thread.
BASE = {
    "model": "shakespeare-cpu", "n-layer": 3, "n-head": 2, "n-embd": 32, "seq-len": 16,
    "batch-size": 2, "total-batch-size": 384, "steps": 8, "warmup-steps": 3, "lr-decay-steps": 8,
    "eval-interval": 4, "eval-batches": 12, "grad-clip": 0.5, "bucket-mb": 0, "threads": 1,
    "dropout": 0.0, "log-interval": 1, "device": "cpu",
}  # fmt: skip


class Configuration:
    def __init__(self, ranks=1, quick=False, resume_at=0, resume_flags=None, **flags):
        self.ranks = ranks
        self.quick = quick  # runs with --quick
        self.resume_at = resume_at  # steps of the first run; 0: only one run
        self.resume_flags = resume_flags or {}
        self.flags = {name.replace("_", "-"): value for name, value in flags.items()}


def configurations():
    on_cuda = {"device": "cuda", "deterministic": True}
    all_at_once = {"dtype": "bf16", "dropout": 0.1, "stochastic_rounding": True, "bias": "true"}
    return {
        "cpu fp32": Configuration(quick=True),
        "cpu fp32 dropout": Configuration(quick=True, dropout=0.2, bias="true", gelu="tanh"),
        "cpu fp32 one micro-step": Configuration(batch_size=24, sampling="sequential"),
        "cpu fp32 recompute gelu": Configuration(quick=True, recompute="gelu", dropout=0.1),
        "cpu fp32 recompute layernorm": Configuration(quick=True, recompute="layernorm"),
        "cpu fp32 recompute block": Configuration(quick=True, recompute="block", dropout=0.1),
        "cpu fp32 resume": Configuration(quick=True, resume_at=5, dropout=0.1),
        "cpu bf16": Configuration(quick=True, dtype="bf16"),
        "cpu bf16 all at once": Configuration(quick=True, recompute="block", **all_at_once),
        "cpu bf16 resume": Configuration(resume_at=3, **all_at_once),
        "cpu 2 ranks": Configuration(ranks=2, dropout=0.1),
        "cpu 2 ranks ZeRO-1": Configuration(ranks=2, zero_stage=1, dropout=0.1),
        "cpu 3 ranks sequential": Configuration(ranks=3, sampling="sequential", bucket_mb=16),
        "cpu 3 ranks ZeRO-1 bf16": Configuration(ranks=3, zero_stage=1, **all_at_once),
        "cpu 4 ranks bf16": Configuration(ranks=4, dtype="bf16", reduce_dtype="bf16"),
        "cpu 4 ranks ZeRO-1 bf16": Configuration(
            ranks=4, zero_stage=1, dtype="bf16", reduce_dtype="bf16", recompute="block"
        ),
        "cpu 2 ranks ZeRO-2": Configuration(ranks=2, zero_stage=2, dropout=0.1),
        "cpu 4 ranks ZeRO-3 bf16": Configuration(
            ranks=4, zero_stage=3, recompute="layernorm", **all_at_once
        ),
        "cpu 4 ranks ZeRO-1 resumes stage 0": Configuration(
            ranks=4, resume_at=4, resume_flags={"zero-stage": 1}, dropout=0.1
        ),
        "cuda fp32": Configuration(quick=True, **on_cuda, dropout=0.1),
        "cuda bf16": Configuration(**on_cuda, **all_at_once),
        "cuda bf16 recompute layernorm": Configuration(
            **on_cuda, dtype="bf16", recompute="layernorm"
        ),
        "cuda bf16 recompute block": Configuration(
            quick=True, **on_cuda, dtype="bf16", recompute="block", dropout=0.1
        ),
        "cuda fp32 resume": Configuration(**on_cuda, resume_at=4, sampling="sequential"),
        "cuda 2 ranks bf16": Configuration(ranks=2, **on_cuda, comm="mpi", **all_at_once),
        "cuda 2 ranks ZeRO-1": Configuration(
            ranks=2, **on_cuda, comm="mpi", zero_stage=1, reduce_dtype="bf16", dropout=0.1
        ),
        "cuda 2 ranks ZeRO-3": Configuration(
            ranks=2, **on_cuda, comm="mpi", zero_stage=3, dtype="bf16", dropout=0.1
        ),
    }


def machine(train, data):
    """The combination that bits depend on: compiler, the CPU's vector instructions, and oneDNN."""
    compiler = subprocess.run(["c++", "-dumpfullversion"], capture_output=True, text=True)
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    kinds = ("amx_bf16", "avx512_bf16", "avx512f", "avx2")
    kind = next((k for k in kinds if k in flags), "plain")
    banner = run([train, "--dry-run", "--model", BASE["model"], "--device", "cpu", "--data", data])
    library = re.search(r"oneDNN [\d.]*\d|no oneDNN", banner)
    return f"gcc {compiler.stdout.strip()}, {kind}, {library.group() if library else 'no oneDNN'}"


def run(command):
    # Lets Open MPI run as root, with more ranks than cores and any rank on any core.
    environment = dict(
        os.environ,
        OMP_NUM_THREADS="1",
        OMP_WAIT_POLICY="passive",
        OMPI_ALLOW_RUN_AS_ROOT="1",
        OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
        OMPI_MCA_rmaps_base_oversubscribe="1",
        OMPI_MCA_hwloc_base_binding_policy="none",
        OMPI_MCA_mpi_yield_when_idle="1",
        LATHE_CUDA_PATIENCE="60",
    )
    result = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, env=environment
    )
    if result.returncode != 0:
        sys.exit(f"bits.py: {' '.join(map(str, command))}\n{result.stdout}{result.stderr}")
    return result.stdout


def arguments(flags):
    result = []
    for name, value in flags.items():
        result += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return result


def bits_of(out):
    """The losses, norms and digests of the run in `out`."""
    bits = {"loss": [], "grad_norm": [], "val_loss": [], "files": {}}
    for line in (out / "metrics.jsonl").read_text().splitlines():
        values = json.loads(line)
        for name in ("loss", "grad_norm", "val_loss"):
            if name in values:
                bits[name].append(values[name])
    for file in sorted(max(out.glob("step-*")).glob("*.safetensors")):
        bits["files"][file.name] = hashlib.sha256(file.read_bytes()).hexdigest()[:32]
    return bits


def measure(configuration, train, data, out):
    flags = {**BASE, **configuration.flags, "data": data, "out": out}
    if not flags["dropout"]:
        del flags["dropout"]
    mpirun = ["mpirun", "-n", configuration.ranks] if configuration.ranks > 1 else []
    if configuration.resume_at:
        first = {**flags, "steps": configuration.resume_at}
        run(mpirun + [train] + arguments(first))
    run(mpirun + [train] + arguments({**flags, **configuration.resume_flags}))
    return bits_of(out)


def differences(found, recorded):
    """The differences, one line each."""
    lines = []
    for name in ("loss", "grad_norm", "val_loss"):
        for step, (a, b) in enumerate(zip(found[name], recorded[name])):
            if a != b:
                lines.append(f"{name} {step} is {a!r}, recorded {b!r}")
                break
        if len(found[name]) != len(recorded[name]):
            lines.append(f"{len(found[name])} {name}s, recorded {len(recorded[name])}")
    for file in sorted(set(found["files"]) | set(recorded["files"])):
        if found["files"].get(file) != recorded["files"].get(file):
            lines.append(f"{file} differs")
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=("check", "record"))
    parser.add_argument("--build-dir", type=Path, required=True, help="programs of the CPU device")
    parser.add_argument("--cuda-build-dir", type=Path, help="programs of the CUDA device")
    parser.add_argument("--quick", action="store_true", help="only what is cheap")
    parser.add_argument("--only", default="", help="configurations with this text in their name")
    options = parser.parse_args()

    recorded = json.loads(RECORDED.read_text()) if RECORDED.exists() else {}
    failed, results = 0, {}
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        build = options.build_dir
        run([build / "corpus", "--bytes", 20000, "--out", scratch / "stories.txt"])
        run(
            [build / "prepare", "--tokenizer", "char", "--input", scratch / "stories.txt"]
            + ["--val-fraction", 0.2, "--out", scratch / "data"]
        )
        here = machine(build / "train", scratch / "data")
        if options.action == "check" and here not in recorded:
            print(f"bits.py: skipped: only {', '.join(recorded)} are recorded, and this is {here}")
            sys.exit(77)
        for number, (name, configuration) in enumerate(configurations().items()):
            cuda = configuration.flags.get("device") == "cuda"
            if options.only not in name or (options.quick and not configuration.quick):
                continue
            if cuda and not options.cuda_build_dir:
                continue
            train = (options.cuda_build_dir if cuda else build) / "train"
            results[name] = measure(configuration, train, scratch / "data", scratch / str(number))
            if options.action == "record":
                print(f"recorded   {name}")
                continue
            lines = differences(results[name], recorded[here][name])
            print(f"{'DIFFERENT' if lines else 'equal':<10} {name}")
            for line in lines:
                print(f"           {line}")
            failed += bool(lines)
    if not results:
        sys.exit("bits.py: no configuration has run")
    if options.action == "record":
        recorded.setdefault(here, {}).update(results)
        RECORDED.write_text(json.dumps(recorded, indent=1) + "\n")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
