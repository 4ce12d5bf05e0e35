"""The report of `make gpu-check`: Markdown for people, JSON for programs."""
import json
import os
import re

MARKS = {"passed": "passed", "failed": "FAILED", "timed out": "TIMED OUT", "interrupted": "INTERRUPTED"}


def gpu_name(report):
    known = report["environment"]
    return known["gpu"].get("name") or (known.get("device") or "").split(",")[0] or None


def title(report):
    name = gpu_name(report) or ("CUDA on the CPU" if report["preset"] == "cuda-on-cpu" else "unknown GPU")
    changed = ", files changed since" if report["changed"] else ""
    return f"{name}, commit {report['commit']}{changed}"


def new_path(folder, report):
    """DATE-COMMIT-gpu-NAME.md, with a number where that is taken. Nothing is overwritten."""
    name = (gpu_name(report) or "unknown") if report["preset"] == "gpu" else report["preset"]
    name = re.sub(r"[^a-z0-9]+", "-", name.lower().replace("nvidia", "")).strip("-") or "unknown"
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{report['date'][:10]}-{report['commit']}-gpu-{name}"
    number = 1
    while True:
        path = folder / (f"{stem}.md" if number == 1 else f"{stem}-{number}.md")
        try:
            with open(path, "x", encoding="utf-8"):
                return path
        except FileExistsError:
            number += 1


def write(path, report):
    for target, text in ((path.with_suffix(".json"), json.dumps(report, indent=1) + "\n"),
                         (path, markdown(report))):
        partial = target.with_name(target.name + ".partial")
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, target)


def part_line(name, part):
    seconds = f"{part['seconds']:5.0f} s" if "seconds" in part else "       "
    status = MARKS.get(part["status"], part["status"])
    return f"  {name:<10} {status:<11} {seconds}  {part['summary']}"


def summary(report, path):
    lines = [f"gpu-check: {title(report)}, {report['elapsed_s']:.0f} s of {report['budget_s']:.0f}"]
    lines += [part_line(name, part) for name, part in report["parts"].items()]
    verdict = {0: "every part passed", 1: "FAILED", 3: "not every part was run"}[report["exit_code"]]
    lines.append(f"gpu-check: {verdict}; report: {os.path.relpath(path)}")
    return "\n".join(lines)


# ---- Markdown ------------------------------------------------------------------------------------


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row in rows:
        cells = ["" if cell is None else str(cell).replace("|", "\\|") for cell in row]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def quoted(lines):
    return "\n".join(["```", *lines, "```"])


def number(value, digits=0):
    return "" if value is None else f"{value:,.{digits}f}"


def percent(value):
    return "" if value is None else f"{100 * value:.1f} %"


def environment_section(report):
    known, gpu = report["environment"], report["environment"]["gpu"]
    rows = [("GPU", gpu_name(report))]
    if gpu:
        rows += [("compute capability", gpu.get("compute_capability")),
                 ("memory", f"{gpu.get('memory_mib')} MiB, {gpu.get('memory_used_mib')} in use"),
                 ("driver", gpu.get("driver")),
                 ("SM clock", f"{gpu.get('sm_clock_mhz')} MHz idle, at most {gpu.get('max_sm_clock_mhz')}"),
                 ("memory clock", f"{gpu.get('memory_clock_mhz')} MHz idle, at most {gpu.get('max_memory_clock_mhz')}"),
                 ("power limit", f"{gpu.get('power_limit_w')} W"),
                 ("temperature", f"{gpu.get('temperature_c')} C before")]
    rows += [("nvcc", known["nvcc"]), ("C++ compiler", known["compiler"]),
             ("CMake, ninja", f"{known['cmake']}, {known['ninja'] or 'no ninja'}"),
             ("cuBLASLt, NCCL", f"{known['cublaslt']}, {known['nccl'] or 'no NCCL named'}"),
             ("compute-sanitizer", known["compute_sanitizer"] or "absent"),
             ("CPU", f"{known['cpu']}, {known['cores']} cores"), ("system", known["system"]),
             ("PyTorch", f"{known['torch'] or 'absent'}, Python {known['python']}")]
    return table(("what", "found"), rows)


def build_section(part):
    lines = [f"Configured in {part.get('configure_s', '?')} s, built in {part.get('build_s', '?')} s "
             f"on {part.get('cores', '?')} cores ({part.get('build_cpu_s', '?')} s of CPU time)."]
    lines += [f"- {note}" for note in part.get("notes", [])]
    kernels = part.get("kernels", [])
    spilling = [k for k in kernels if k["spill_stores"] or k["spill_loads"]]
    if kernels:
        hungry = sorted(kernels, key=lambda k: -(k["registers"] or 0))
        lines += ["", f"{len(kernels)} kernels for {', '.join(sorted({k['architecture'] for k in kernels}))}; "
                  f"{len(spilling)} spill registers. Those that spill, then those with the most registers:", ""]
        chosen = spilling + [k for k in hungry if k not in spilling][:12]
        lines.append(table(("kernel", "registers", "stack", "spill stores", "spill loads"),
                           [(f"`{k['kernel']}`", k["registers"], k["stack"], k["spill_stores"], k["spill_loads"])
                            for k in chosen]))
    for what in ("errors", "warnings"):
        if part.get(what):
            lines += ["", f"{len(part[what])} {what}:", "", quoted(part[what][:20])]
    return "\n".join(lines)


def tests_section(part):
    rows, details, told = [], [], 0
    for name, binary in part.get("binaries", {}).items():
        cases = binary["cases"]
        rows.append((name, binary["status"], cases["passed"], len(cases["failed"]), cases["skipped"],
                     number(binary.get("seconds"), 1)))
        for case, output in cases["failed"].items():
            told += 1
            if told > 20:
                continue
            details += ["", f"{name}: `{case}` failed:", "", quoted(output)]
        if binary["status"] != "passed" and not cases["failed"]:
            details += ["", f"{name}: {binary['status']}; its last lines:", "", quoted(binary["end"])]
    if told > 20:
        details += ["", f"and {told - 20} more, in the .json beside this."]
    return "\n".join([table(("program", "result", "passed", "failed", "skipped", "seconds"), rows), *details])


def sanitizer_section(part):
    rows, details = [], []
    for run in sorted(part.get("runs", []), key=lambda run: (run["test"], run["tool"])):
        rows.append((run["test"], run["tool"], run["status"], run["cases"], run.get("errors"),
                     number(run.get("seconds"), 1), f"`{run.get('filter', '')}`"))
        if run["kinds"]:
            details += ["", f"{run['tool']}, {run['test']}:", "",
                        quoted(f"{kind['times']} x {kind['message']}" for kind in run["kinds"][:15])]
    head = ("program", "tool", "result", "cases", "errors", "seconds", "filter")
    return "\n".join([table(head, rows) if rows else "", *details])


def best_torch(row):
    return min(row["torch"], key=lambda variant: variant["median_ms"], default=None)


def comparison(row):
    """One line: ours, theirs, the ratio."""
    ours = min(run["median_ms"] for run in row["lathe"])
    rate = max(run["tokens_per_second"] for run in row["lathe"])
    mfu = max((run["mfu"] for run in row["lathe"] if run["mfu"]), default=None)
    text = f"{row['dtype']}: {ours:.1f} ms a step, {rate:.0f} tokens/s" + (f", MFU {percent(mfu)}" if mfu else "")
    if best := best_torch(row):
        text += f"; PyTorch ({best['variant']}) {best['median_ms']:.1f} ms: lathe is {best['median_ms'] / ours:.2f} times as fast"
    return text


def gpt2_section(part):
    lines = []
    for row in part.get("runs", []):
        rows = [("lathe", number(run["median_ms"], 2), number(min(run["step_ms"]), 1), number(max(run["step_ms"]), 1),
                 number(run["tokens_per_second"]), percent(run["mfu"])) for run in row["lathe"]]
        known = [run for run in row["lathe"] if run["mfu"]]
        for variant in row["torch"]:
            # The same count of FLOPs, so MFU goes as the inverse of the time.
            mfu = known[0]["mfu"] * known[0]["median_ms"] / variant["median_ms"] if known else None
            rows.append((f"PyTorch {variant['torch']}, {variant['variant']}", number(variant["median_ms"], 2),
                         number(variant["min_ms"], 1), number(variant["max_ms"], 1),
                         number(variant["tokens_per_second"]), percent(mfu)))
        if not row["lathe"]:
            continue
        batch = row["lathe"][0]["batch_size"]
        lines += [f"GPT-2 124M, {row['dtype']}, batch {batch}, medians, in this order but lathe's second turn "
                  "(after PyTorch):", "",
                  table(("program", "ms a step", "least", "most", "tokens/s", "MFU"), rows), "",
                  f"- `{row['lathe'][0]['command']}`"]
        lines += [f"- `{row['torch_command']}`"] if "torch_command" in row else []
        lines += [f"- {row['torch_note']}"] if "torch_note" in row else []
        lines += [f"- {comparison(row)}", ""]
    return "\n".join(lines + [gpu_line(part)])


def ranks_section(part):
    lines = []
    if part.get("turns"):
        lines += ["GPT-2 124M, bf16, one rank, medians, in this order:", "",
                  table(("--comm", "ms a step"), [(turn["comm"], number(turn["median_ms"], 2)) for turn in part["turns"]]),
                  "", f"- `{part['turns'][0]['command']}`"]
    return "\n".join(lines)


def gpu_line(part):
    seen = part.get("gpu")
    if not seen:
        return ""
    return (f"Meanwhile, medians: SM clock {seen['sm_clock_mhz']:.0f} MHz, {seen['power_w']:.0f} W; "
            f"at most {seen['temperature_c']:.0f} C.")


def talk_section(part):
    lines = []
    if part.get("rows"):
        names = {"val_loss": "validation", "loss": "train"}
        verdict = {True: "within 0.05", False: "OFF", None: ""}
        rows = [(names[row["kind"]], row["step"], row["published"], number(row["ours"], 4),
                 "" if row["ours"] is None else f"{row['ours'] - row['published']:+.4f}", verdict[row["within"]])
                for row in part["rows"]]
        lines += [table(("loss", "step", "published", "lathe", "difference", "checked"), rows), ""]
    elif part.get("val_loss"):
        lines += ["Validation: " + ", ".join(f"{loss} at step {step}" for step, loss in part["val_loss"].items()), ""]
    if part.get("tokens_per_second"):
        lines.append(f"{number(part['tokens_per_second'])} tokens/s, MFU {percent(part['mfu']) or 'unknown'}, "
                     f"{number(part.get('median_ms'), 1)} ms a step (medians over {len(part['step_ms'])} steps).")
    if part.get("command"):
        lines += ["", f"- `{part['command']}`"]
    return "\n".join(lines + ["", gpu_line(part)])


SECTIONS = {"build": build_section, "tests": tests_section, "sanitizer": sanitizer_section,
            "gpt2": gpt2_section, "ranks": ranks_section, "talk": talk_section}


def markdown(report):
    parts = report["parts"]
    state = "" if report["finished"] else " **The run is not over, or was cut off.**"
    lines = [f"# lathe on {title(report)}", "",
             f"{report['date']}, `{report['command']}`: {report['elapsed_s']:.0f} s "
             f"of {report['budget_s']:.0f}.{state}", "",
             table(("part", "result", "seconds", "summary"),
                   [(name, MARKS.get(part["status"], part["status"]), number(part.get("seconds")), part["summary"])
                    for name, part in parts.items()]), "",
             "## Machine", "", environment_section(report)]
    for name, part in parts.items():
        if part["status"] == "not run" and "runs" not in part:
            continue
        lines += ["", f"## {name}", "", f"{MARKS.get(part['status'], part['status'])}: {part['summary']}", "",
                  SECTIONS[name](part)]
        if "traceback" in part:
            lines += ["", quoted(part["traceback"].splitlines())]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"
