"""Writes the report's two files, and lists what differs between two reports."""
import json

import step_model

COMPILED = ("registers", "spills", "stack", "static", "most_threads", "least_blocks")
LAUNCHED = ("threads", "dynamic", "grid_blocks")
WORKED_OUT = ("blocks", "limit")
TITLES = {"static": "static shared bytes", "dynamic": "dynamic shared bytes",
          "most_threads": "threads of __launch_bounds__", "least_blocks": "blocks of __launch_bounds__",
          "grid_blocks": "blocks that the grid assumes", "blocks": "blocks of a multiprocessor"}


def assumed(kernel):
    """Blocks per multiprocessor that __launch_bounds__ or the grid counts on."""
    return max(kernel["least_blocks"] or 0, kernel["grid_blocks"])


def problems(kernels):
    """One sentence for each kernel that spills or does not run as its launcher assumes."""
    found = []
    for architecture, of_architecture in kernels.items():
        for name, kernel in of_architecture.items():
            where = f"{architecture} {name}"
            if kernel["spills"]:
                found.append(f"{where} spills registers: {kernel['spills']} bytes")
            if kernel["most_threads"] and kernel["threads"] > kernel["most_threads"]:
                found.append(f"{where} is launched with {kernel['threads']} threads; "
                             f"__launch_bounds__ allows {kernel['most_threads']}")
            if kernel["blocks"] < max(1, assumed(kernel)):
                found.append(f"{where}: {kernel['blocks']} of {max(1, assumed(kernel))} assumed blocks fit "
                             f"a multiprocessor; the limit is {kernel['limit']} ({kernel['registers']} "
                             f"registers x {kernel['threads']} threads, "
                             f"{kernel['static'] + kernel['dynamic']} bytes of shared memory)")
    return found


def differences(before, after, fields=COMPILED + LAUNCHED + WORKED_OUT):
    """What changed from one {architecture: {name: kernel}} to another, one line each."""
    found = []
    for architecture in after:
        old, new = before.get(architecture, {}), after[architecture]
        for name in sorted(set(old) | set(new)):
            where = f"{architecture} {name}"
            if name not in new:
                found.append(f"{where}: gone")
            elif name not in old:
                found.append(f"{where}: new")
            else:
                found += [f"{where}: {TITLES.get(field, field)} {old[name][field]} -> {new[name][field]}"
                          for field in fields if old[name][field] != new[name][field]]
    return found


def step_differences(before, after):
    """What changed in the predicted steps, {name: {"total": ms, "operation: launch": ms}}, one line each."""
    found = []
    for name in after:
        old, new = before.get(name, {}), after[name]
        for part in sorted(set(old) | set(new), key=lambda part: (part != "total", part)):
            if old.get(part) != new.get(part):
                ms = [f"{value[part]:.2f}" if part in value else "none" for value in (old, new)]
                found.append(f"PREDICTED {name}, {part}: {ms[0]} -> {ms[1]} ms")
    return found


def step_numbers(step):
    """Milliseconds of a step_model.Step; a part that occurs with several shapes is added up."""
    numbers = {"total": step.us / 1e3}
    for row in step.rows:
        part = f"{row.operation}: {row.what}"
        numbers[part] = numbers.get(part, 0) + row.us / 1e3
    return {part: round(ms, 3) for part, ms in numbers.items()}


def to_json(value, depth=0):
    """Nested objects as JSON with one member per line, down to the third level, so that differences are
    easy to read: one kernel per line."""
    if depth == 3 or not isinstance(value, dict):
        return json.dumps(value)
    members = ",\n".join(f"{json.dumps(key)}: {to_json(of, depth + 1)}" for key, of in value.items())
    return f"{{\n{members}\n}}" + ("" if depth else "\n")


KERNEL_HEAD = ("| kernel | registers | spills | shared (static + dynamic) | threads | blocks | warps | "
               "limit | assumed | instructions |\n|---|--:|--:|--:|--:|--:|--:|---|--:|---|")


def kernel_row(name, kernel, files):
    file, short = name.split(": ", 1)
    threads = kernel["threads"] or kernel["most_threads"] or 1024
    wanted = assumed(kernel) or ""
    if wanted and kernel["blocks"] < wanted:
        wanted = f"**{wanted}**"
    cells = [name.replace("attention::", "") + ("" if kernel["threads"] else " (not launched)"),
             kernel["registers"], kernel["spills"], f"{kernel['static']} + {kernel['dynamic']}", threads,
             kernel["blocks"], kernel["blocks"] * -(-threads // 32), kernel["limit"], wanted,
             files[file]["kernels"].get(short, "no disassembler")]
    return "| " + " | ".join(map(str, cells)) + " |"


INTRODUCTION = """# Kernels, as compiled and as launched

`make kernel-report` writes this page and prints what a change did to it; it needs no GPU. Registers,
spills and static shared memory come from the compiler (nvcc {nvcc}). Threads and dynamic shared memory
come from the real launchers, over all presets, both number types and many widths; the launch that takes
most counts. If none of these launches a kernel, it is assumed to have as many threads as it may. *Blocks*
and *warps* are what fits a multiprocessor at once, *limit* is what keeps them from being more, *assumed* is
what `__launch_bounds__` or the size of a grid counts on: fewer is an error. *Instructions* are counted in
the code, not as often as they run; LDG.128 is a load of 128 bits. Shared memory and spills are in bytes.
"""


def to_markdown(report, steps):
    """`steps`: {name: step_model.Step}."""
    text = [INTRODUCTION.format(nvcc=report["nvcc"])]
    if found := problems(report["kernels"]):
        text.append("## Problems\n\n" + "\n".join(f"- {line}" for line in found) + "\n")
    for architecture, kernels in report["kernels"].items():
        files = report["instructions"][architecture]
        rows = [kernel_row(name, kernels[name], files) for name in sorted(kernels)]
        text.append(f"## {architecture}\n\n{KERNEL_HEAD}\n" + "\n".join(rows) + "\n")
    text.append("## Predicted steps\n\nPREDICTED for one H100 SXM, bf16, not measured: "
                "`tools/step_model.py` explains how. The floor is the larger of bytes at "
                f"{step_model.FLOOR_BYTES / 1e12} TB/s and FLOPs at {step_model.FLOOR_FLOPS / 1e12:.0f} "
                "TFLOP/s.\n")
    for name, step in steps.items():
        text.append(f"### {name}\n\n{step_model.summary(step)}\n\n{step_model.markdown(step)}\n")
    return "\n".join(text)
