#!/usr/bin/env python3
"""Reports the operations of a step with the kernel times of Nsight Systems; profiling/nsys.sh writes the CSVs.

    profiling/nsys_report.py PREFIX [--json FILE] [--device NAME] [--dtype bf16|fp32]

Reads PREFIX_cuda_gpu_kern_sum.csv (all kernels) and PREFIX_nvtx_kern_sum.csv (kernels by NVTX range)
as `nsys stats --format csv` writes them. lathe's ranges nest (phase, layer, operation, part), and
nsys lists a kernel under every range that contains it. So the first table has only operations, which do
not nest, and the second their parts. FLOPs and bytes come from the ranges' names."""
import argparse
import csv
import io
import re

import tables

# "lathe:linear_backward 65536x768x3072 (618.48 GFLOP, 0.51 GB)": domain, name, sizes, cost.
RANGE = re.compile(r"^(?:[^:]*:)?(?P<name>.+?)(?: (?P<shape>\d+(?:x\d+)*))?"
                   r" \((?P<flops>[-+.\de]+) GFLOP, (?P<bytes>[-+.\de]+) GB\)$")
# The operations of kernels/ops.h that training uses; parts have names of another form.
OPERATION = re.compile(r"^(?:[a-z]+_[a-z_]+|adamw|cast)$")
PHASE = re.compile(r"^(?:[^:]*:)?optimizer$")                      # once a step


def table_of(text, wanted):
    """The lines of the CSV below the heading with these columns, as dictionaries."""
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if all(column in line for column in wanted)), None)
    if start is None:
        raise ValueError(f"has no line with the columns {', '.join(wanted)}")
    body = []
    for line in lines[start:]:
        if not line.strip():
            break
        body.append(line)
    return list(csv.DictReader(io.StringIO("\n".join(body))))


def integer(text):
    return int(float(text.replace(",", "")))


def ranges_of(rows):
    """By range: calls, nanoseconds of its kernels, number of kernels."""
    found = {}
    for row in rows:
        entry = found.setdefault(row["NVTX Range"], {"calls": {}, "ns": 0, "kernels": 0})
        entry["calls"][(row["PID"], row["TID"])] = integer(row["NVTX Inst"])
        entry["ns"] += integer(row["Total Time (ns)"])
        entry["kernels"] += integer(row["Kern Inst"])
    return {name: {**entry, "calls": sum(entry["calls"].values())} for name, entry in found.items()}


def rows_of(ranges, steps):
    """Operations, and parts, per step."""
    operations, parts = {}, {}
    for text, entry in ranges.items():
        match = RANGE.match(text)
        if not match:
            continue
        name, shape = match["name"], match["shape"] or ""
        rows = operations if OPERATION.match(name) else parts
        row = rows.setdefault((name, shape), tables.Row(name, shape))
        calls = entry["calls"] / steps
        row.add(entry["ns"] / 1e6 / steps, calls * float(match["flops"]) * 1e9,
                calls * float(match["bytes"]) * 1e9, calls)
        row.extra["kernels"] = row.extra.get("kernels", 0) + entry["kernels"] / steps
    return list(operations.values()), list(parts.values())


def read_reports(prefix):
    """Lines of both CSV files."""
    read = []
    for report, columns in {
            "cuda_gpu_kern_sum": ["Total Time (ns)", "Instances", "Name"],
            "nvtx_kern_sum": ["NVTX Range", "NVTX Inst", "Kern Inst", "Total Time (ns)"]}.items():
        path = f"{prefix}_{report}.csv"
        try:
            read.append(table_of(tables.read_text("nsys_report", path), columns))
        except ValueError as error:
            tables.fail("nsys_report", f"{path} {error}")
    return read


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prefix")
    parser.add_argument("--dtype", default="bf16", choices=["bf16", "fp32"])
    tables.add_peak_arguments(parser)
    arguments = parser.parse_args()
    all_kernels, by_range = read_reports(arguments.prefix)
    ranges = ranges_of(by_range)
    steps = next((entry["calls"] for name, entry in ranges.items() if PHASE.match(name)), 0)
    if not steps:
        tables.fail("nsys_report", f"{arguments.prefix}_nvtx_kern_sum.csv has no range of lathe's: "
                    "give train --profile A:B")
    peaks = tables.chosen_peaks(arguments, "", arguments.dtype)
    operations, parts = rows_of(ranges, steps)
    all_ms = sum(integer(row["Total Time (ns)"]) for row in all_kernels) / 1e6 / steps
    own_ms = sum(row.ms for row in operations)
    extra = [("kernels", lambda value: f"{value:g}")]
    print(f"{steps} step{'s' if steps > 1 else ''}; a step:\n")
    print(tables.rate_table(operations, all_ms, peaks, extra))
    if parts:
        print("\nparts of these:\n\n" + tables.rate_table(parts, all_ms, peaks, extra))
    print(f"\nkernels {all_ms:.3f} ms a step, of which {own_ms:.3f} in operations, "
          f"{all_ms - own_ms:.3f} in none")
    if arguments.json:
        tables.write_json(arguments.json, {
            "steps": steps, "kernels_ms": all_ms, "operations_ms": own_ms,
            "operations": [tables.measures(r, all_ms, peaks) for r in operations],
            "parts": [tables.measures(r, all_ms, peaks) for r in parts]})


if __name__ == "__main__":
    main()
