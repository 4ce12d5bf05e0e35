"""The report of `make gpu-check`: where it is stored, and what of it is printed."""
import json
import os
import re
import sys
from pathlib import Path

import gpu_check_machine as machine
import gpu_check_sections as sections

MARKS = {"passed": "passed", "failed": "FAILED", "timed out": "TIMED OUT", "interrupted": "INTERRUPTED"}


def gpu_name(report):
    known = report["environment"]
    return known["gpu"].get("name") or (known.get("device") or "").split(",")[0] or None


def machine_name(report):
    return gpu_name(report) or ("CUDA on the CPU" if report["preset"] == "cuda-on-cpu" else "unknown GPU")


def title(report):
    changed = ", files changed since" if report["changed"] else ""
    return f"{machine_name(report)}, commit {report['commit']}{changed}"


def new_path(folder, report):
    """DATE-COMMIT-gpu-NAME.md, with a number if that exists. Nothing is overwritten."""
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


def newest(where, mine):
    """(path, report) of the newest report at `where`, a folder or a file, with the same commit and preset
    as `mine` and, if known, the same GPU; or None."""
    where = Path(where)
    found = []
    for path in [where.with_suffix(".json")] if where.is_file() else where.glob("*-gpu-*.json"):
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
            same = (all(report[key] == mine[key] for key in ("commit", "preset"))
                    and gpu_name(mine) in (None, gpu_name(report)))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # some other file
        if same and "calls" in report:
            found.append((report["date"], path.stat().st_mtime_ns, path, report))
    return max(found)[2:] if found else None


def without_places(text, path):
    """Reports are committed, so they show no folders of the machine: paths are relative to the repository,
    to a virtual environment, or to the folder of the report, OUT."""
    text = text.replace(f"{machine.ROOT}/", "")
    if sys.prefix != sys.base_prefix:
        text = text.replace(f"{sys.prefix}/bin/", "").replace(f"{sys.prefix}/", "")
    folder = os.path.abspath(path.parent)
    return text if folder.startswith(machine.ROOT) else text.replace(folder, "OUT")


def write(path, report):
    for target, text in ((path.with_suffix(".json"), json.dumps(report, indent=1) + "\n"),
                         (path, markdown(report))):
        partial = target.with_name(target.name + ".partial")
        partial.write_text(without_places(text, path), encoding="utf-8")
        os.replace(partial, target)


def part_line(name, part):
    seconds = f"{part['seconds']:5.0f} s" if "seconds" in part else "       "
    status = MARKS.get(part["status"], part["status"])
    return f"  {name:<10} {status:<11} {seconds}  {part['summary']}"


def part_table(name, part, most=30):
    """A measuring part's tables, for the console: from some machines no files come back."""
    if name not in sections.PRINTED:
        return ""
    lines = [line for line in sections.SECTIONS[name](part).splitlines() if line.startswith("|")]
    return "\n".join("    " + line for line in lines[:most])


def summary(report, path):
    call = report["calls"][-1]
    lines = [f"gpu-check: {title(report)}, {call['elapsed_s']:.0f} s of {call['budget_s']:.0f}"]
    lines += [part_line(name, part) for name, part in report["parts"].items()]
    verdict = {0: "every part passed", 1: "FAILED", 3: "not every part was run"}[report["exit_code"]]
    lines.append(f"gpu-check: {verdict}; report: {os.path.relpath(path)}")
    return "\n".join(lines)


def markdown(report):
    parts = report["parts"]
    state = "" if report["finished"] else " **The run is not finished, or was cut off.**"
    calls = [f"- {call['date']}, `{call['command']}`: {call.get('elapsed_s', 0):.0f} s of {call['budget_s']:.0f}"
             for call in report["calls"]]
    rows = [(name, MARKS.get(part["status"], part["status"]), sections.number(part.get("seconds")), part["summary"])
            for name, part in parts.items()]
    lines = [f"# lathe on {title(report)}", "", *calls, "", state, "",
             sections.table(("part", "result", "seconds", "summary"), rows), "",
             "## Machine", "", sections.environment(report["environment"], machine_name(report))]
    for name, part in parts.items():
        if part["status"] == "not run" and "seconds" not in part:
            continue
        lines += ["", f"## {name}", "", f"{MARKS.get(part['status'], part['status'])}: {part['summary']}", "",
                  sections.SECTIONS[name](part)]
        if "traceback" in part:
            lines += ["", sections.quoted(part["traceback"].splitlines())]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"
