#!/usr/bin/env python3
"""Reports the kernels of a step as Nsight Compute counted them; profiling/ncu.sh writes the CSV.

    profiling/ncu_report.py OUT.csv [--layers N] [--json FILE] [--device NAME]

Reads what `ncu --csv` prints: a line for each metric of each kernel (--page details, and metrics by
name), or a line for each kernel (--page raw), after whatever the program itself printed. `of peak` is the
larger utilisation of memory and tensor cores: from the device's peaks if known, otherwise from ncu's own
percentages. A profile of a model with one layer can represent one with N: kernels of the layers count N
times (--layers)."""
import argparse
import csv
import io

import kernels
import tables

# Factors to the base unit; ncu scales units unless given --print-units base.
SCALES = {"nsecond": 1e-9, "ns": 1e-9, "usecond": 1e-6, "us": 1e-6, "msecond": 1e-3, "ms": 1e-3, "second": 1,
          "s": 1, "byte": 1, "Kbyte": 1e3, "Mbyte": 1e6, "Gbyte": 1e9, "": 1, "%": 1}
TIME, READ, WRITTEN = "gpu__time_duration.sum", "dram__bytes_read.sum", "dram__bytes_write.sum"
TENSOR = ("sm__inst_executed_pipe_tensor", "sm__pipe_tensor_cycles_active")  # by generation of GPU
PERCENT_TENSOR = "pct_of_peak_sustained_active"
MEMORY_PERCENT = ["dram__throughput.avg.pct_of_peak_sustained_elapsed",
                  "gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed"]
WARPS = "sm__warps_active.avg.pct_of_peak_sustained_active"
ISSUE = "smsp__issue_active.avg.pct_of_peak_sustained_active"
REGISTERS = "launch__registers_per_thread"
CONFLICTS = "l1tex__data_bank_conflicts_pipe_lsu.sum"


def value_of(text, unit):
    """A number in its base unit; None for n/a."""
    try:
        return float(text.replace(",", "")) * SCALES.get(unit, 1)
    except ValueError:
        return None


def table_of(text):
    """The lines of the CSV, from its heading on. Other lines before and among them are not ncu's."""
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID",')), None)
    if start is None:
        raise ValueError("has no line that begins with \"ID\": ncu has counted nothing")
    return list(csv.reader(io.StringIO("\n".join(line for line in lines[start:] if line.startswith('"')))))


def read_kernels(text):
    """The kernels in launch order: {"name", "metrics": {name: value}}."""
    rows = table_of(text)
    heading, found = rows[0], {}
    at = {name: i for i, name in enumerate(heading)}
    if "Metric Name" in at:
        for row in rows[1:]:
            if len(row) <= at["Metric Value"] or not row[at["ID"]].isdigit():
                continue
            kernel = found.setdefault(int(row[at["ID"]]), {"name": row[at["Kernel Name"]], "metrics": {}})
            if row[at["Metric Name"]]:
                value = value_of(row[at["Metric Value"]], row[at["Metric Unit"]])
                kernel["metrics"][row[at["Metric Name"]]] = value
    else:
        units = rows[1] if len(rows) > 1 and not rows[1][at["ID"]] else [""] * len(heading)
        for row in rows[1:]:
            if len(row) == len(heading) and row[at["ID"]].isdigit():
                found[int(row[at["ID"]])] = {
                    "name": row[at["Kernel Name"]],
                    "metrics": {n: value_of(row[i], units[i]) for n, i in at.items() if "__" in n}}
    return [found[number] for number in sorted(found)]


def tensor_percent(metrics):
    values = [v for n, v in metrics.items() if n.startswith(TENSOR) and PERCENT_TENSOR in n and v is not None]
    return max(values, default=None)


def memory_percent(metrics, peaks):
    moved = (metrics.get(READ) or 0) + (metrics.get(WRITTEN) or 0)
    if peaks.bytes and metrics.get(TIME) and moved:
        return 100 * moved / metrics[TIME] / peaks.bytes
    return next((metrics[n] for n in MEMORY_PERCENT if metrics.get(n) is not None), None)


def weighted(row, heading, value, seconds):
    """A mean over calls, weighted by their time."""
    if value is not None:
        total, time = row.extra.get(heading, (0, 0))
        row.extra[heading] = (total + value * seconds, time + seconds)


def rows_of(found, classes, layers, steps, peaks):
    rows = {}
    for kernel, kind in zip(found, classes):
        metrics, name = kernel["metrics"], kernels.short_name(kernel["name"])
        seconds = metrics.get(TIME) or 0
        times = (layers if kind in kernels.OF_LAYERS else 1) / steps
        row = rows.setdefault((kind, name), tables.Row(name, kind))
        moved = (metrics.get(READ) or 0) + (metrics.get(WRITTEN) or 0)
        row.add(1e3 * seconds * times, 0, moved * times, times)
        tensor, memory = tensor_percent(metrics), memory_percent(metrics, peaks)
        busiest = max((v for v in (tensor, memory) if v is not None), default=None)
        for heading, value in (("busy", busiest), ("memory", memory), ("tensor", tensor),
                               ("warps", metrics.get(WARPS)), ("issue", metrics.get(ISSUE))):
            weighted(row, heading, value, seconds)
        row.extra["registers"] = metrics.get(REGISTERS)
        if metrics.get(CONFLICTS) is not None:
            row.extra["conflicts"] = row.extra.get("conflicts", 0) + metrics[CONFLICTS] * times
    for row in rows.values():
        for heading, value in row.extra.items():
            if isinstance(value, tuple):  # a weighted percentage
                row.extra[heading] = value[0] / value[1] / 100 if value[1] else None
    return list(rows.values())


def of_classes(rows):
    """A line for each class: the time it takes, and its floor at its kernels' busiest resource."""
    lines = []
    for kind in kernels.CLASSES:
        own = [r for r in rows if r.shape == kind]
        if own:
            ms = sum(r.ms for r in own)
            busy = sum(r.ms * (r.extra.get("busy") or 0) for r in own)
            lines.append([kind, "", tables.number(ms), tables.percent(busy / ms if ms else None)])
    return tables.markdown(["class", "", "ms", "busy"], lines)


def table(rows, total):
    headings = ["kernel", "class", "calls", "ms", "share", "GB", "TB/s", "memory", "tensor", "busy", "warps",
                "issue", "registers", "conflicts"]
    lines = []
    for r in sorted(rows, key=lambda r: -r.ms):
        rate = r.bytes / r.ms / 1e9 if r.ms and r.bytes else None
        e = r.extra
        lines.append([r.name, r.shape, f"{r.calls:g}", tables.number(r.ms), tables.percent(r.ms / total),
                      tables.number(r.bytes / 1e9), tables.number(rate)]
                     + [tables.percent(e.get(h)) for h in ("memory", "tensor", "busy", "warps", "issue")]
                     + [tables.number(e.get("registers"), 0), tables.number(e.get("conflicts"))])
    return tables.markdown(headings, lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv")
    parser.add_argument("--layers", type=int, default=1, metavar="N",
                        help="layers of the model that the profiled one represents")
    tables.add_peak_arguments(parser)
    arguments = parser.parse_args()
    try:
        found = read_kernels(tables.read_text("ncu_report", arguments.csv))
        names = [k["name"] for k in found]
        steps = kernels.steps_of(names)
        classes = []
        for step in steps:
            classes += kernels.classify([names[i] for i in step])
        found = found[steps[0].start:]
    except ValueError as error:
        tables.fail("ncu_report", f"{arguments.csv} {error}")
    peaks = tables.chosen_peaks(arguments, "", "bf16")
    rows = rows_of(found, classes, arguments.layers, len(steps), peaks)
    total = sum(r.ms for r in rows)
    print(f"{len(found)} kernels of {len(steps)} step{'s' if len(steps) > 1 else ''}, "
          f"layers x {arguments.layers}: {total:.3f} ms a step\n")
    print(table(rows, total) + "\n\n" + of_classes(rows))
    if arguments.layers > 1:
        print("\nthe optimizer's kernels are those of the profiled model, which has fewer parameters")
    if arguments.json:
        tables.write_json(arguments.json, {
            "steps": len(steps), "layers": arguments.layers, "ms": total,
            "kernels": [{"kernel": r.name, "class": r.shape, "calls": r.calls, "ms": r.ms, "bytes": r.bytes,
                         **r.extra} for r in sorted(rows, key=lambda r: -r.ms)]})


if __name__ == "__main__":
    main()
