#!/usr/bin/env python3
"""Where the time of a traced step went, compared with the most that the device could do.

    build/train ... --trace t.json
    profiling/roofline.py t.json [--json FILE] [--svg FILE] [--device NAME] [--rank N]

A row for each operation at each shape; an operation of several kernels has a row for each of its
parts instead. `of peak` is the share of the limiting rate: FLOP/s or bytes/s, whichever would take
longer. `floor` is the least time at that rate. A device that is not in tables.py has rates but no shares,
unless --peak-flops and --peak-bytes are given."""
import argparse
import json
from pathlib import Path

import tables


def of_category(trace, rank, category):
    return [e for e in trace["traceEvents"]
            if e.get("ph") == "X" and e.get("cat") == category and e["pid"] == rank]


def split(operations, parts):
    """Pairs of an operation and its parts. Each part begins within its operation."""
    pairs = []
    parts = sorted(parts, key=lambda e: e["ts"])
    for operation in sorted(operations, key=lambda e: e["ts"]):
        end = operation["ts"] + operation["dur"]
        own = [p for p in parts if operation["ts"] - 1e-3 <= p["ts"] < end]
        pairs.append((operation, own))
        parts = parts[len(own):]
    return pairs


def rows_of(pairs):
    """Sums of calls by name, part and shape."""
    rows = {}
    for operation, parts in pairs:
        for event in parts or [operation]:
            name = operation["name"] + (": " + event["name"] if parts else "")
            shape = event["args"]["shape"]
            row = rows.setdefault((name, shape), tables.Row(name, shape))
            row.add(event["dur"] / 1e3, event["args"]["flops"], event["args"]["bytes"])
    return list(rows.values())


def summary(trace, rank, peaks):
    """Times of the step in ms. Gaps: the device had nothing to do and did not wait for a rank."""
    operations = of_category(trace, rank, "operation")
    waits = of_category(trace, rank, "wait")
    whole = operations + waits + of_category(trace, rank, "phase")
    step = max(e["ts"] + e["dur"] for e in whole) - min(e["ts"] for e in whole)
    busy = sum(e["dur"] for e in operations)
    waiting = sum(e["dur"] for e in waits)
    floors = [peaks.floor_ms(e["args"]["flops"], e["args"]["bytes"]) for e in operations]
    return {"step_ms": step / 1e3, "operations_ms": busy / 1e3, "waits_ms": waiting / 1e3,
            "gaps_ms": (step - busy - waiting) / 1e3,
            "floor_ms": None if None in floors else sum(floors)}


def headline(about):
    shape = "batch {batch_size} x {micro_steps} x T {seq_len}".format(**about)
    ranks = f", {about['ranks']} ranks" if about["ranks"] > 1 else ""
    tf32 = " (TF32)" if about.get("tf32") and about["dtype"] == "fp32" else ""
    return ("{model}, {layers} layers, ".format(**about)
            + f"{shape}, {about['dtype']}{tf32}{ranks}, step {about['step']}")


def closing(times, rows, peaks):
    lines = ["step {step_ms:.3f} ms = operations {operations_ms:.3f} + waits for ranks {waits_ms:.3f} "
             "+ gaps {gaps_ms:.3f}".format(**times)]
    if times["floor_ms"] is None:
        return lines + ["this device's peaks are not known: no shares, no floors (--peak-flops, --peak-bytes)"]
    parts = sum(peaks.floor_ms(r.flops, r.bytes) for r in rows)
    share = times["floor_ms"] / times["step_ms"]
    return lines + [f"floor: {times['floor_ms']:.3f} ms for the operations ({100 * share:.1f} % of the step), "
                    f"{parts:.3f} ms for the rows above, which also count what parts pass to each other"]


def read_trace(path):
    try:
        trace = json.loads(tables.read_text("roofline", path))
        about = trace["otherData"]
    except (ValueError, KeyError, TypeError):
        return tables.fail("roofline", f"{path} is not a trace with costs: write one with build/train --trace")
    return trace, about


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace")
    parser.add_argument("--svg", metavar="FILE", help="a picture: time and floor of each row")
    parser.add_argument("--rank", type=int, default=0, metavar="N", help="the rank to show (default 0)")
    tables.add_peak_arguments(parser)
    arguments = parser.parse_args()
    trace, about = read_trace(arguments.trace)
    operations = of_category(trace, arguments.rank, "operation")
    if not operations:
        tables.fail("roofline", f"{arguments.trace} has no operations of rank {arguments.rank}")
    device = arguments.device or about["device"]
    peaks = tables.chosen_peaks(arguments, about["device"], about["dtype"], about.get("tf32", False))
    rows = rows_of(split(operations, of_category(trace, arguments.rank, "part")))
    times = summary(trace, arguments.rank, peaks)
    print(f"{headline(about)}; {device}")
    if peaks.flops and peaks.bytes:
        print(f"peaks: {peaks.flops / 1e12:g} TFLOP/s, {peaks.bytes / 1e12:g} TB/s")
    print("\n" + tables.rate_table(rows, times["step_ms"], peaks) + "\n")
    print("\n".join(closing(times, rows, peaks)))
    if arguments.json:
        tables.write_json(arguments.json, {
            "about": about, "device": device, "peak_flops": peaks.flops, "peak_bytes": peaks.bytes, **times,
            "rows": [tables.measures(r, times["step_ms"], peaks) for r in sorted(rows, key=lambda r: -r.ms)]})
    if arguments.svg:
        picture = tables.bars_svg(rows, times["step_ms"], peaks, f"{headline(about)}; {device}")
        Path(arguments.svg).write_text(picture)


if __name__ == "__main__":
    main()
