"""The parts of `make gpu-check` that measure how fast lathe is and show why: `steps`, `roofline`,
`torch`, `fp32`, `ncu`, `bench` and `ab`."""
import contextlib
import json
import re
import shlex
import shutil
import statistics
import sys

import gpu_check_machine as machine
import gpu_check_parse as parse
import gpu_check_report as report
import gpu_check_sections as sections
from gpu_check_run import ROOT, Stopped, last_line
from gpu_check_train import TINY, gpt2_124m, known_flags, shown, train, train_fitting, words

# Predicted milliseconds of a bf16 step of GPT-2 124M, T 1024, by batch: tools/step_model.py, whose shares
# of the peak come from an H200, with each GPU's memory bandwidth.
PREDICTED_MS = {"H100": {16: 31.1, 64: 116.4}, "H200": {16: 28.3, 64: 106.7}}


def predicted_ms(check, batch):
    name = report.gpu_name(check.report) or ""
    return next((times.get(batch) for gpu, times in PREDICTED_MS.items() if gpu in name and not check.tiny), None)


# ---- steps ---------------------------------------------------------------------------------------


def steps(check, result):
    """GPT-2 124M in bf16 at two batch sizes, then one traced step of the larger."""
    rows = result["runs"] = []
    flags = {**gpt2_124m(check), "steps": 4 if check.tiny else 20, "benchmark": True}
    with machine.watched_gpu(result.setdefault("gpu", {})):
        for batches in ([[2], [4]] if check.tiny else [[16, 8, 4, 2], [64, 32]]):
            done, run = train_fitting(check, flags, batches)
            if not done.ok or not run.get("median_ms"):
                if rows and "lower --batch-size" in done.text:
                    break
                summary = step_summary(rows)
                if done.timed_out:
                    return "timed out", f"stopped after {done.seconds:.0f} s; {summary}"
                return "failed", f"build/train: {last_line(done.text)}; {summary}"
            rows.append({**run, "predicted_ms": predicted_ms(check, run["batch_size"])})
            check.say(f"    {step_summary(rows[-1:])}")
            check.save()
    why_no_trace = traced_step(check, result, rows[-1]["batch_size"])
    return ("failed" if why_no_trace else "passed"), "; ".join(filter(None, [step_summary(rows), why_no_trace]))


def step_summary(rows):
    return "; ".join(one_step(row) for row in rows) or "no figure"


def one_step(row):
    text = f"batch {row['batch_size']}: {row['median_ms']:.1f} ms a step"
    if row["predicted_ms"]:
        text += f" (predicted {row['predicted_ms']:.1f})"
    text += f", {row['tokens_per_second']:.0f} tokens/s"
    return text + (f", MFU {100 * row['mfu']:.1f} %" if row["mfu"] else "")


def traced_step(check, result, batch):
    """Writes the trace of one step beside the report. Why there is none, or ""."""
    trace = check.path.with_name(check.path.stem + "-trace.json")
    done, run = train(check, {**gpt2_124m(check), "batch-size": batch, "steps": 6, "eval-interval": 0,
                              "trace": trace})
    if done.ok and trace.exists():
        result.update(trace=trace.name, traced_command=run["command"])
        return ""
    return f"no trace: {last_line(done.text)}"


# ---- roofline ------------------------------------------------------------------------------------


def roofline(check, result):
    """The table of operations from the trace of `steps`."""
    trace = check.path.with_name(check.report["parts"].get("steps", {}).get("trace", "none"))
    script = ROOT / "profiling" / "roofline.py"
    if not script.exists():
        return "not run", "not available: no profiling/roofline.py"
    if not trace.is_file():
        return "not run", "no trace: the part steps writes it"
    return run_reporter(check, result, [sys.executable, script, trace], "operations")


def run_reporter(check, result, command, what):
    """Runs a script that prints a table and writes the same as JSON."""
    file = check.work / f"{what}.json"
    file.unlink(missing_ok=True)
    done = check.run([*command, "--json", file])
    result["table"] = [line for line in done.text.splitlines() if line.strip()]
    if not done.ok:
        return ("timed out" if done.timed_out else "failed"), last_line(done.text)
    with contextlib.suppress(OSError, ValueError):
        result[what] = json.loads(file.read_text(encoding="utf-8"))
    rows = sum(line.startswith("|") for line in result["table"])
    return ("passed" if rows > 2 else "failed"), f"{max(rows - 2, 0)} {what} in the table"


# ---- PyTorch -------------------------------------------------------------------------------------


def pair(check, result, dtype):
    """lathe, PyTorch, lathe again, with the same shape and batch. Why lathe's run failed, or ""."""
    row = result["comparison"] = {"dtype": dtype, "lathe": [], "torch": []}
    count = 4 if check.tiny else 20
    batches = [2] if check.tiny else [16, 8, 4, 2]
    tf32 = dtype == "fp32" and "--tf32" in known_flags(check)
    flags = {**gpt2_124m(check, dtype), "tf32": tf32, "steps": count, "benchmark": True}
    for turn in range(2):
        done, run = train_fitting(check, flags, batches)
        if done.timed_out:
            raise Stopped
        if not done.ok or not run.get("median_ms"):
            return f"build/train: {last_line(done.text)}"
        row["lathe"].append(run)
        check.save()
        batches = [run["batch_size"]]
        shape = TINY if check.tiny else {"seq-len": 1024}
        if turn == 0 and not beside(check, row, {**shape, "dtype": dtype, "tf32": tf32, "steps": count,
                                                 "batch-size": run["batch_size"]}):
            break
    return ""


def beside(check, row, flags):
    """PyTorch's turn. False if there is no PyTorch to compare with."""
    if not check.report["environment"]["torch"]:
        row["torch_note"] = "PyTorch is not installed for this python"
        return False
    if check.tiny:
        flags = {**flags, "device": "cpu", "vocab-size": 128, "eager-only": True}
    command = [check.args.python, ROOT / "profiling" / "torch_gpt2.py", *words(flags)]
    row["torch_command"] = shlex.join(shown(command))
    # lathe's second turn follows and needs as long as its first.
    done = check.run(command, limit=max(check.left() - 2 * row["lathe"][0]["seconds"] - 5, 1))
    row["torch"] = parse.json_lines(done.text)
    if not check.tiny and "compiled" not in [variant["variant"] for variant in row["torch"]]:
        row["torch_note"] = (f"torch.compile had no time ({done.seconds:.0f} s)" if done.timed_out
                             else f"no compiled figure: {last_line(done.text)}")
    check.save()
    return bool(row["torch"])


def compared(check, result, dtype):
    why, cut_off = "", False
    with machine.watched_gpu(result.setdefault("gpu", {})):
        try:
            why = pair(check, result, dtype)
        except Stopped:
            cut_off = True
    row = result.get("comparison", {})
    summary = sections.comparison(row) if row.get("lathe") else "no figure"
    if cut_off:
        return "timed out", f"stopped; {summary}"
    if why:
        return "failed", why
    return ("passed" if row["torch"] else "not run"), "; ".join(filter(None, [summary, row.get("torch_note")]))


def torch(check, result):
    return compared(check, result, "bf16")


def fp32(check, result):
    return compared(check, result, "fp32")


# ---- Nsight Compute ------------------------------------------------------------------------------


def ncu(check, result):
    """Hardware counters of every kernel in a step of one layer."""
    scripts = [ROOT / "profiling" / name for name in ("ncu.sh", "ncu_report.py")]
    absent = [script.name for script in scripts if not script.exists()]
    absent += [] if shutil.which("ncu") else ["ncu"]
    absent += [] if "--profile" in known_flags(check) else ["train --profile"]
    if absent:
        return "not run", f"not available: no {', no '.join(absent)}"
    counters = check.work / "ncu.csv"
    counters.unlink(missing_ok=True)
    flags = {**gpt2_124m(check), "n-layer": 1, "batch-size": 2 if check.tiny else 16, "steps": 4, "profile": "3:4",
             "eval-interval": 0, "device": "cuda"}
    command = [scripts[0], counters, "--", check.program("train"), *words(flags)]
    result["command"] = shlex.join(shown(command))
    done = check.run(command, env=check.args.child_env)
    if not done.ok or not counters.exists():
        return ("timed out" if done.timed_out else "failed"), f"ncu.sh: {last_line(done.text)}"
    return run_reporter(check, result, [sys.executable, scripts[1], counters], "kernels")


# ---- operations ----------------------------------------------------------------------------------


def bench(check, result):
    """Every operation alone, at the shapes of GPT-2 124M."""
    program = check.program("bench_device")
    if not program.exists():
        return "not run", "not available: no bench_device"
    flags = {"device": "cuda", **({"tiny": True} if check.tiny else {"batch-size": "16,64"})}
    done = check.run([program, *words(flags)], env=check.args.child_env)
    lines = [line for line in done.text.splitlines() if line.strip()]
    result["table"] = ["```", *lines, "```"]
    rows = sum(bool(re.search(r" \d+\.\d +\d+\.\d ", line)) for line in lines)  # median and least
    if not done.ok:
        return ("timed out" if done.timed_out else "failed"), f"{rows} operations, then {last_line(done.text)}"
    return ("passed" if rows else "failed"), f"{rows} operations in the table"


# ---- A/B -----------------------------------------------------------------------------------------


# The open questions, each answered by the same steps with and without a flag.
VARIANTS = [{}, {"chunk-logits": 1 << 26}, {"chunk-logits": 1 << 28}, {"chunk-logits": 1 << 29},
            {"matmul-alignment": 16}, {"matmul-alignment": 256}, {"autotune": 0}, {"deterministic": True}]
ROUNDS = 2


def ab(check, result):
    """The same steps with and without each flag that this train knows, in turns."""
    known = known_flags(check)
    variants = [variant for variant in VARIANTS if all(f"--{flag}" in known for flag in variant)]
    result["skipped"] = sorted({f"--{flag}" for variant in VARIANTS for flag in variant if f"--{flag}" not in known})
    rows = result["variants"] = [{"flags": " ".join(words(variant)) or "defaults", "ms": []} for variant in variants]
    flags = {**gpt2_124m(check), "batch-size": 2 if check.tiny else 64, "steps": 4 if check.tiny else 15,
             "benchmark": True}
    if "--tuning-log" in known:
        variants[0] = {"tuning-log": check.path.with_name(check.path.stem + "-tuning.log")}
    try:
        for _ in range(ROUNDS):  # a drifting clock then affects all alike
            for row, variant in zip(rows, variants):
                ab_turn(check, row, {**flags, **variant})
    except Stopped:
        if not all(row["ms"] for row in rows if "error" not in row):
            return "timed out", f"stopped; {ab_summary(rows, result['skipped'])}"
    return ("failed" if any("error" in row for row in rows) else "passed"), ab_summary(rows, result["skipped"])


def ab_turn(check, row, flags):
    if "error" in row:
        return
    done, run = train_fitting(check, flags, [flags["batch-size"], flags["batch-size"] // 4 or 1])
    if done.timed_out:
        raise Stopped
    if not done.ok or not run.get("median_ms"):
        row["error"] = last_line(done.text)
    else:
        row["ms"].append(run["median_ms"])
        row.update(command=run["command"], batch_size=run["batch_size"])
    check.save()


def ab_summary(rows, skipped):
    base = min(rows[0]["ms"], default=None)
    said = [f"{row['flags']} {100 * (min(row['ms']) / base - 1):+.1f} %" for row in rows[1:] if row["ms"] and base]
    said += [f"{row['flags']}: {row['error']}" for row in rows if "error" in row]
    said += [f"unknown to train: {', '.join(skipped)}"] if skipped else []
    return (f"{statistics.median(rows[0]['ms']):.1f} ms with the defaults; " if base else "") + "; ".join(said)
