"""The sections of gpu-check's report, in Markdown: one function for each part."""


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


def environment(known, name):
    gpu = known["gpu"]
    rows = [("GPU", name)]
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
             ("compute-sanitizer", known["compute_sanitizer"] or "absent"), ("ncu", known["ncu"] or "absent"),
             ("CPU", f"{known['cpu']}, {known['cores']} cores"), ("system", known["system"]),
             ("PyTorch", f"{known['torch'] or 'absent'}, Python {known['python']}")]
    return table(("what", "found"), rows)


def build_section(part):
    if "carried" in part:
        carried = part["carried"]
        lines = [f"Binaries of commit {carried['commit']} from `{part['archive']}`: code for "
                 f"{', '.join(carried['architectures']) or 'the CPU'}, -march={carried['march']}, "
                 f"by {carried['compiler']}, nvcc {carried['nvcc']}."]
    else:
        lines = [f"Carried binaries were not used: {part['unfit']}.", ""] if "unfit" in part else []
        lines += [f"Configured in {part.get('configure_s', '?')} s, built in {part.get('build_s', '?')} s "
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
    rows, details, failures = [], [], 0
    for name, binary in part.get("binaries", {}).items():
        cases = binary["cases"]
        rows.append((name, binary["status"], cases["passed"], len(cases["failed"]), cases["skipped"],
                     number(binary.get("seconds"), 1)))
        for case, output in cases["failed"].items():
            failures += 1
            if failures > 20:
                continue
            details += ["", f"{name}: `{case}` failed:", "", quoted(output)]
        if binary["status"] != "passed" and not cases["failed"]:
            details += ["", f"{name}: {binary['status']}; its last lines:", "", quoted(binary["end"])]
    if failures > 20:
        details += ["", f"and {failures - 20} more in the .json beside this file."]
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


def steps_section(part):
    rows = [(run["batch_size"], number(run["median_ms"], 2), number(run["predicted_ms"], 1),
             number(min(run["step_ms"], default=None), 1), number(max(run["step_ms"], default=None), 1),
             number(run["tokens_per_second"]), percent(run["mfu"])) for run in part.get("runs", [])]
    head = ("batch", "ms a step", "predicted", "least", "most", "tokens/s", "MFU")
    lines = ["GPT-2 124M, T 1024, bf16, medians:", "", table(head, rows), ""]
    lines += [f"- `{run['command']}`" for run in part.get("runs", [])]
    if "trace" in part:
        lines += [f"- `{part['traced_command']}`: one step in detail, in `{part['trace']}`"]
    return "\n".join(lines + ["", gpu_line(part)])


def printed_table(part):
    """What a script printed, and its command if known."""
    return "\n".join([*([f"- `{part['command']}`", ""] if "command" in part else []), *part.get("table", [])])


def best_torch(row):
    return min(row["torch"], key=lambda variant: variant["median_ms"], default=None)


def comparison(row):
    """One line: ours, PyTorch's, the ratio."""
    ours = min(run["median_ms"] for run in row["lathe"])
    rate = max(run["tokens_per_second"] for run in row["lathe"])
    mfu = max((run["mfu"] for run in row["lathe"] if run["mfu"]), default=None)
    text = f"{row['dtype']}: {ours:.1f} ms a step, {rate:.0f} tokens/s" + (f", MFU {percent(mfu)}" if mfu else "")
    if best := best_torch(row):
        text += f"; PyTorch ({best['variant']}) {best['median_ms']:.1f} ms: lathe is {best['median_ms'] / ours:.2f} times as fast"
    return text


def torch_section(part):
    row = part.get("comparison", {})
    if not row.get("lathe"):
        return ""
    rows = [("lathe", number(run["median_ms"], 2), number(min(run["step_ms"]), 1), number(max(run["step_ms"]), 1),
             number(run["tokens_per_second"]), percent(run["mfu"])) for run in row["lathe"]]
    known = [run for run in row["lathe"] if run["mfu"]]
    for variant in row["torch"]:
        # The FLOP count is the same, so MFU is inversely proportional to the time.
        mfu = known[0]["mfu"] * known[0]["median_ms"] / variant["median_ms"] if known else None
        rows.append((f"PyTorch {variant['torch']}, {variant['variant']}", number(variant["median_ms"], 2),
                     number(variant["min_ms"], 1), number(variant["max_ms"], 1),
                     number(variant["tokens_per_second"]), percent(mfu)))
    lines = [f"GPT-2 124M, {row['dtype']}, batch {row['lathe'][0]['batch_size']}, medians, in this order except lathe's "
             "second turn (after PyTorch):", "",
             table(("program", "ms a step", "least", "most", "tokens/s", "MFU"), rows), "",
             f"- `{row['lathe'][0]['command']}`"]
    lines += [f"- `{row['torch_command']}`"] if "torch_command" in row else []
    lines += [f"- {row['torch_note']}"] if "torch_note" in row else []
    return "\n".join(lines + [f"- {comparison(row)}", "", gpu_line(part)])


def ab_section(part):
    variants = part.get("variants", [])
    if not variants:
        return ""
    base = min(variants[0]["ms"], default=None)
    rows = [(row["flags"], ", ".join(number(ms, 2) for ms in row["ms"]) or row.get("error"),
             f"{100 * (min(row['ms']) / base - 1):+.1f} %" if row["ms"] and base else "") for row in variants]
    lines = ["GPT-2 124M, T 1024, bf16, each variant in turn, then all again:", "",
             table(("flags", "ms a step, each turn", "fastest, against the defaults"), rows), ""]
    lines += [f"- `{variants[0]['command']}`"] if "command" in variants[0] else []
    if part.get("skipped"):
        lines += [f"- not tried, because this train does not know them: {', '.join(part['skipped'])}"]
    return "\n".join(lines)


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
    return (f"Medians during the run: SM clock {seen['sm_clock_mhz']:.0f} MHz, {seen['power_w']:.0f} W; "
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


SECTIONS = {"build": build_section, "steps": steps_section, "roofline": printed_table, "tests": tests_section,
            "torch": torch_section, "ncu": printed_table, "bench": printed_table, "talk": talk_section, "ab": ab_section,
            "sanitizer": sanitizer_section, "ranks": ranks_section, "fp32": torch_section}
PRINTED = ("steps", "roofline", "torch", "ncu", "ab", "fp32")
