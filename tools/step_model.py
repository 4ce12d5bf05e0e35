#!/usr/bin/env python3
"""How long a training step should take on one H100 SXM: the sum over everything that it launches.
PREDICTED, not measured.

usage: tools/step_model.py [--model NAME] [--batch-size N] [--seq-len N] [--list-launches PROGRAM]
                           [--report FILE]

The launches are the real ones (tools/list_launches.cpp), so sizes, chunks of logits and fusion
follow the code. Bytes and FLOPs of a kernel follow its formula (MODELS), those of a whole operation its
OpCost. The share of the GPU's peak that a kernel reaches was measured on an H200, in a step of 64
sequences (profiling/results/2026-11-27-ca6fb59-gpu-h200.md; flash_*: 2026-11-27-fcdbf01-gpu-h200.md). It
is a guess for kernels that did not run there, and on GPUs whose arithmetic and memory are in another
proportion. MODELS and the constants above it hold all these shares."""
import argparse
import json
import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import kernel_report_launches as launches
from kernel_report_compile import Problem

ROOT = Path(__file__).resolve().parent.parent
ARCHITECTURE = "sm_90a"

# NVIDIA's data sheet for the H100 SXM.
PEAK_BYTES, PEAK_FLOPS = 3.35e12, 989.4e12
# What is known to be reached: copies of large arrays, and bf16 products of 8192 x 8192 x 8192.
FLOOR_BYTES, FLOOR_FLOPS = 3.0e12, 800e12

# A product on tensor cores: the share of the peak that cuBLASLt reaches for large layers of GPT-2,
# fitted to the sum of a step's products; less if whole waves of tiles do not fill the GPU.
PRODUCT_SHARE = 0.785
TILE = (128, 256)
# The share of that if there are fewer tiles than multiprocessors: the sum over k is split and added
# up afterwards.
SPLIT_SHARE = 0.85
# The share of the shorter of arithmetic and memory traffic that the longer does not hide.
NOT_HIDDEN = 0.1
# For a kernel that MODELS does not know; the table marks it.
UNKNOWN_US = 6.0
PRODUCT_MEMORY_SHARE = 0.9
# The share of a kernel's usual speed if fewer of its blocks fit than its grid assumes: the last
# wave runs half empty, and fewer loads are in flight.
STARVED = 0.73
# From the end of one kernel in a graph to the start of the next.
GAP_US = 1.1


@dataclass
class Launch:
    """A kernel or a product, and where it occurs."""
    line: dict            # from list_launches
    op: dict              # the operation's line
    product: dict | None  # the last product before it in the operation
    run: dict

    @property
    def size(self):  # bytes of an activation
        return 2 if self.run["dtype"] == "bf16" else 4

    @property
    def rows(self):
        return self.run["B"] * self.run["T"]

    @property
    def activations(self):  # bytes of [N, C]
        return self.rows * self.run["C"] * self.size


def op_bytes(launch):
    return launch.op["bytes"]


def result_of_product(times):
    """`times` passes over the output of the product before it."""
    def count(launch):
        m, n, _ = launch.product["product"]
        return times * m * n * launch.size
    return count


def summed_bytes(launch):
    """Bytes of dy [N, O], the second operand of the weight gradient."""
    _, columns, rows = launch.product["product"]
    return rows * columns * launch.size


def logits_bytes(passes):
    """fp32 logits are read `passes` times, their gradient is written once."""
    def count(launch):
        m, n, _ = launch.product["product"]
        return m * n * (4 * passes + launch.size)
    return count


# The share of a batch's tokens that have their own rows in dwte: text repeats its words.
DISTINCT_TOKENS = 0.25


def token_sum_bytes(launch):
    rows = min(DISTINCT_TOKENS * launch.rows, launch.run["V"])
    return launch.activations + 8 * rows * launch.run["C"]


def position_sum_bytes(launch):
    return launch.activations + 4 * launch.run["T"] * launch.run["C"]


def statistics_bytes(launch):
    return 2 * launch.activations + 12 * launch.rows * launch.run["H"]


def causal_products(count):
    """FLOPs of `count` products over the causal half of the scores."""
    return lambda launch: count * launch.rows * launch.run["T"] * launch.run["C"]


def nothing(_):
    return 0.0


@dataclass(frozen=True)
class Model:
    """For kernels whose "operation/file.cu: kernel" matches `pattern`. The time is the longest of: bytes
    and FLOPs, each at its share of the peak, and `least_us`."""
    pattern: str
    why: str
    bytes: Callable = nothing
    share: float = 1.0        # of PEAK_BYTES
    floor_bytes: Callable | None = None  # if fewer would be enough
    flops: Callable = nothing
    floor_flops: Callable | None = None
    flops_share: float = 1.0  # of PEAK_FLOPS
    least_us: float = 2.0


# The first match counts.
MODELS = [
    Model(r"embedding.cu: forward_kernel", "whole rows of 1.5 KB, at random places", op_bytes, 0.85),
    Model(r"layernorm.cu: forward", "16 bytes a load, 36 warps; loads wait for stores in between",
          op_bytes, 0.72),
    Model(r"layernorm.cu: backward", "two rows ahead by cp.async, 18 warps; a barrier a row", op_bytes,
          0.53),
    Model(r"add_partials_kernel", "a few MB, one wave", least_us=6),
    Model(r"flash_forward_kernel", "mma.sync with 8 warps a multiprocessor: exponentials and products "
          "take turns", flops=causal_products(2), flops_share=0.188),
    Model(r"warpgroup_forward_kernel", "three warpgroups a multiprocessor, one multiplies while another "
          "takes exponentials", flops=causal_products(2), flops_share=0.276),
    Model(r"attention::statistics_kernel", "a streaming kernel", statistics_bytes, 0.57),
    Model(r"flash_backward_kernel<\d+, true", "dk, dv: 4 products, of which the model asks for 2.5",
          flops=causal_products(4), floor_flops=causal_products(2.5), flops_share=0.168),
    Model(r"flash_backward_kernel<\d+, false", "dq: 3 products, of which the model asks for 1.5",
          flops=causal_products(3), floor_flops=causal_products(1.5), flops_share=0.168),
    Model(r"warpgroup_backward_kernel<true", "dk, dv, as above", flops=causal_products(4),
          floor_flops=causal_products(2.5), flops_share=0.338),
    Model(r"warpgroup_backward_kernel<false", "dq, as above", flops=causal_products(3),
          floor_flops=causal_products(1.5), flops_share=0.338),
    Model(r"gelu.cu: backward_(sums_)?kernel", "both loads before the arithmetic",
          result_of_product(3), 0.77),
    Model(r"gelu.cu: forward_kernel", "16 bytes a load, all warps", result_of_product(2), 0.81),
    Model(r"column_sums.cu: column_sums_kernel<\w+, 1>", "what blocks left", least_us=6),
    Model(r"column_sums.cu: column_sums_kernel", "four loads of 16 bytes under way", summed_bytes, 0.83),
    Model(r"resident_rows_kernel", "a logit is read once, and the next row while this one is written",
          logits_bytes(1), 0.84),
    Model(r"streamed_rows_kernel", "the second pass over a row finds it in L2 only partly",
          logits_bytes(2), 0.84, logits_bytes(1)),
    Model(r"add_losses_kernel", "one block", least_us=9),
    Model(r"(count_digits|scan_counts|place_rows)_kernel", "a few MB, all multiprocessors",
          least_us=4),
    Model(r"embedding.cu: sum_tokens_kernel", "16 bytes a load, 16 warps; rows of dwte at random "
          "places", token_sum_bytes, 0.5),
    Model(r"embedding.cu: sum_borders_kernel", "few stretches have borders", least_us=6),
    Model(r"embedding.cu: sum_positions_kernel", "rows of a batch are far apart", position_sum_bytes,
          0.5),
    Model(r"global_norm.cu: square_sum_kernel", "22 integer instructions an element", op_bytes, 0.42),
    Model(r"global_norm.cu: clip_scale_kernel", "one thread", least_us=6),
    Model(r"adamw.cu: adamw_kernel", "16 bytes a load, 40 warps", op_bytes, 0.73),
    Model(r"begin_step_kernel|count_update_kernel", "one thread", least_us=2),
]


@dataclass
class Time:
    us: float
    floor_us: float
    known: bool = True


def product_time(line, run):
    m, n, k = line["product"]
    size = {"bf16": 2, "fp32": 4}
    bytes_moved = size[line["in"]] * (m * k + k * n) + size[line["out"]] * m * n * (1 + line["adds"])
    flops = 2 * m * n * k
    tiles = math.ceil(m / TILE[0]) * math.ceil(n / TILE[1])
    count = run["multiprocessors"]
    filled = tiles / (math.ceil(tiles / count) * count) if tiles >= count else SPLIT_SHARE
    arithmetic = flops / (PEAK_FLOPS * PRODUCT_SHARE * filled)
    memory = bytes_moved / (PEAK_BYTES * PRODUCT_MEMORY_SHARE)
    seconds = max(arithmetic, memory) + NOT_HIDDEN * min(arithmetic, memory)
    return Time(1e6 * seconds, 1e6 * max(flops / FLOOR_FLOPS, bytes_moved / FLOOR_BYTES))


def kernel_time(launch, starved):
    """`starved`: names of kernels of which fewer blocks fit than their grids assume."""
    name = launch.line["name"]
    model = next((m for m in MODELS if re.search(m.pattern, f"{launch.op['op']}/{name}")), None)
    if model is None:
        return Time(UNKNOWN_US, 0.0, known=False)
    share = model.share * (STARVED if name in starved else 1)
    us = 1e6 * max(model.bytes(launch) / (PEAK_BYTES * share),
                   model.flops(launch) / (PEAK_FLOPS * model.flops_share))
    floor = 1e6 * max((model.floor_bytes or model.bytes)(launch) / FLOOR_BYTES,
                      (model.floor_flops or model.flops)(launch) / FLOOR_FLOPS)
    return Time(max(us, model.least_us), floor)


# ---- the step ----------------------------------------------------------------------------------


@dataclass
class Row:
    """All launches in a step that do the same thing in the same operation."""
    operation: str
    what: str
    calls: int = 0
    us: float = 0.0
    floor_us: float = 0.0
    known: bool = True


@dataclass
class Step:
    run: dict
    rows: list
    launches: int = 0

    @property
    def gaps_us(self):
        return GAP_US * self.launches

    @property
    def us(self):
        return sum(row.us for row in self.rows) + self.gaps_us

    @property
    def floor_us(self):
        return sum(row.floor_us for row in self.rows)

    @property
    def tokens_per_second(self):
        return 1e6 * self.run["B"] * self.run["T"] / self.us

    @property
    def mfu(self):
        return self.tokens_per_second * self.run["flops_per_token"] / PEAK_FLOPS

    @property
    def unknown(self):
        return [row.what for row in self.rows if not row.known]


def description(line):
    if "product" in line:
        m, n, k = line["product"]
        return f"product {m} x {n} x {k}" + (", added" if line["adds"] else "")
    return line["name"].split(": ")[1].removeprefix("attention::")


def predict(lines, starved=frozenset()):
    """The Step described by the output of list_launches."""
    run = lines[0]["run"]
    if run["dtype"] != "bf16":
        raise Problem("the model knows only bf16 products")
    rows, step, phase, op, product = {}, Step(run, []), None, None, None
    for line in lines[1:]:
        phase = line.get("phase", phase)
        if "op" in line:
            op, product = line, None
        if phase != "step" or ("kernel" not in line and "product" not in line):
            continue
        if "product" in line:
            product, time = line, product_time(line, run)
        else:
            time = kernel_time(Launch(line, op, product, run), starved)
        key = (op["op"], description(line))
        row = rows.setdefault(key, Row(*key))
        row.calls, row.us, row.floor_us = row.calls + 1, row.us + time.us, row.floor_us + time.floor_us
        row.known &= time.known
        step.launches += 1
    step.rows = list(rows.values())
    return step


def markdown(step):
    """The table of a step."""
    text = ["| operation | launch | calls | predicted ms | floor ms | share |", "|---|---|--:|--:|--:|--:|"]
    for row in step.rows:
        predicted = f"{row.us / 1e3:.2f}" + ("" if row.known else " (no model)")
        text.append(f"| {row.operation} | {row.what} | {row.calls} | {predicted} | "
                    f"{row.floor_us / 1e3:.2f} | {row.us / step.us:.1%} |")
    text.append(f"| between launches | {GAP_US} us each | {step.launches} | {step.gaps_us / 1e3:.2f} | | "
                f"{step.gaps_us / step.us:.1%} |")
    return "\n".join(text)


def summary(step):
    return (f"{step.us / 1e3:.1f} ms a step (floor {step.floor_us / 1e3:.1f}), "
            f"{step.tokens_per_second:,.0f} tokens/s, MFU {step.mfu:.1%}")


def starved_kernels(kernels):
    """From a report's {architecture: {name: kernel}}: the kernels of which fewer blocks fit than their
    grids assume."""
    return {name for name, kernel in kernels.get(ARCHITECTURE, {}).items()
            if kernel["blocks"] < kernel["grid_blocks"]}


def arguments():
    parser = argparse.ArgumentParser(description="PREDICTED time of a training step on an H100 SXM")
    parser.add_argument("--model", default="gpt2-124m")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seq-len", type=int, default=1024)
    parser.add_argument("--list-launches", type=Path,
                        default=ROOT / "build/cuda-on-cpu/list_launches")
    parser.add_argument("--report", type=Path, default=ROOT / "profiling/kernel-report.json")
    return parser.parse_args()


def main():
    args = arguments()
    lines = launches.listing(args.list_launches, ["--model", args.model, "--batch-size",
                                                  str(args.batch_size), "--seq-len",
                                                  str(args.seq_len)], ARCHITECTURE)
    starved = starved_kernels(json.loads(args.report.read_text(encoding="utf-8"))["kernels"])
    step = predict(lines, starved)
    print(markdown(step))
    print(f"\nPREDICTED: {summary(step)}")


if __name__ == "__main__":
    try:
        main()
    except Problem as problem:
        sys.exit(f"step_model: {problem}")
