"""What the programs launch: threads, dynamic shared memory and grids, from the real launchers.

build/cuda-on-cpu/list_launches runs the host code of a step at any size and lists what it
enqueues. Two lists, for GPUs that differ by one multiprocessor, show which grids are sized by the number
of multiprocessors: those that differ."""
import functools
import json
import math
import os
import subprocess
from dataclasses import dataclass

import gpu_check_parse as parse
from kernel_report_compile import Problem
from kernel_report_occupancy import limits_of

# The GPU that represents an architecture; other GPUs of it differ only in speed.
MULTIPROCESSORS = {"sm_80": 108, "sm_90a": 132}  # A100, H100 SXM
OTHERWISE = 132


def runs():
    """Arguments of list_launches: every preset, number type and width that has kernels of its own,
    with enough rows to fill any grid."""
    shapes = []
    for model in ("gpt2-124m", "gpt2-350m", "gpt2-774m", "gpt2-1558m", "shakespeare-char"):
        for dtype in ("bf16", "fp32"):
            shapes.append(["--model", model, "--dtype", dtype])
    for dtype in ("bf16", "fp32"):
        shapes.append(["--dropout", "0.1", "--dtype", dtype])
        # LayerNorm has one kernel for each number of channels per thread, with a warp or a block
        # per row; attention has kernels for heads of up to 32, 64, 96 and 128 channels.
        for channels, heads in ((256, 8), (512, 8), (2048, 16), (4096, 32), (6144, 48), (8192, 64),
                                (768, 8), (44, 1), (768, 3), (9216, 72)):
            shapes.append(["--n-embd", str(channels), "--n-head", str(heads), "--dtype", dtype])
        for channels, heads in ((256, 8), (768, 8), (1024, 8)):
            shapes.append(["--n-embd", str(channels), "--n-head", str(heads), "--dtype", dtype,
                           "--dropout", "0.1"])
    shapes.append(["--stochastic-rounding"])
    return [shape + ["--n-layer", "1", "--batch-size", "16", "--seq-len", "1024"] for shape in shapes]


@functools.cache  # most lists have the same kernels
def demangled(names):
    return parse.demangled(names)


def listing(program, arguments, architecture, extra_multiprocessors=0):
    """The lines of list_launches as dictionaries; kernels have a "name", "file.cu: kernel"."""
    count = MULTIPROCESSORS.get(architecture, OTHERWISE) + extra_multiprocessors
    command = [str(program), *arguments, "--multiprocessors", str(count), "--shared-per-block",
               str(limits_of(architecture).shared_per_block)]
    # Without this variable CUDA on the CPU has compute capability 9.0.
    environment = {**os.environ, **({} if architecture == "sm_90a" else {"LATHE_CUDA_FAULT": "a100"})}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        raise Problem(f"{' '.join(command)} failed: {done.stderr.strip()}")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    readable = demangled(tuple(sorted({line["kernel"] for line in lines if "kernel" in line})))
    for line in lines:
        if "kernel" in line:
            line["name"] = f"{line['file']}: {readable[line['kernel']]}"
    return lines


@dataclass
class Use:
    """A kernel's needs: the most over all its launches. If some grids are sized by the number of
    multiprocessors, only the launch that wants the most threads per multiprocessor counts."""
    threads: int = 0
    dynamic: int = 0      # bytes of shared memory
    grid_blocks: int = 0  # per multiprocessor, as the grid assumes; 0: it assumes nothing

    def add(self, threads, dynamic, grid_blocks):
        if grid_blocks == 0 == self.grid_blocks:
            self.threads, self.dynamic = max(self.threads, threads), max(self.dynamic, dynamic)
        elif (threads * grid_blocks, dynamic) > (self.threads * self.grid_blocks, self.dynamic):
            self.threads, self.dynamic, self.grid_blocks = threads, dynamic, grid_blocks


def blocks_of(line):
    return math.prod(line["grid"])


def grid_assumption(line, other, multiprocessors):
    """The blocks per multiprocessor that a grid is sized for, found by comparing the same launch on a GPU
    with one multiprocessor more."""
    if line["name"] != other["name"]:
        raise Problem(f"with one multiprocessor more {line['name']} becomes {other['name']}")
    if blocks_of(line) == blocks_of(other):
        return 0
    return math.ceil(blocks_of(line) / multiprocessors)


def add_run(uses, lines, others):
    run = lines[0]["run"]
    kernels = [line for line in lines if "kernel" in line]
    others = [line for line in others if "kernel" in line]
    if len(kernels) != len(others):
        raise Problem(f"with one multiprocessor more a step has {len(others)} launches instead of "
                      f"{len(kernels)}")
    for line, other in zip(kernels, others):
        use = uses.setdefault(line["name"], Use())
        use.add(math.prod(line["block"]), line["shared"],
                grid_assumption(line, other, run["multiprocessors"]))


def uses_of(program, architecture):
    """{"file.cu: kernel": Use} for everything that the runs launch."""
    uses = {}
    for arguments in runs():
        add_run(uses, listing(program, arguments, architecture),
                listing(program, arguments, architecture, 1))
    return uses
