#!/usr/bin/env python3
"""What the tests of the CUDA device execute: lines and kernels of kernels/cuda, by gcov.

usage: tools/coverage.py BUILD_DIR     (a build with --coverage whose tests have run; `make coverage`)

Prints a table by file. Fails where a kernel was never run or fewer than 95 % of the lines were.
"""
import collections
import json
import pathlib
import re
import subprocess
import sys

LEAST_LINES = 0.95


def gcov_reports(build):
    """The parsed gcov report of every object file that was compiled for coverage."""
    for data in sorted(build.rglob("*.gcda")):
        done = subprocess.run(
            ["gcov", "--json-format", "--stdout", str(data.resolve())],
            cwd=data.parent, capture_output=True, text=True, check=True)
        for line in done.stdout.splitlines():
            if line.startswith("{"):
                yield json.loads(line)


def kernels_of(source):
    """Names of the __global__ functions of a file, by the line that they begin in."""
    text = source.read_text()
    pattern = re.compile(r"__global__\s+(?:__launch_bounds__\([^)]*\)\s+)?void\s+(?:__launch_bounds__\([^)]*\)\s+)?(\w+)\s*\(")
    return {match.group(1): text.count("\n", 0, match.start()) + 1 for match in pattern.finditer(text)}


def main():
    build, root = pathlib.Path(sys.argv[1]), pathlib.Path(__file__).resolve().parent.parent
    lines = collections.defaultdict(dict)  # file -> line -> executions
    run = collections.defaultdict(set)  # file -> functions that ran
    for report in gcov_reports(build):
        for file in report["files"]:
            path = pathlib.Path(file["file"])
            path = path if path.is_absolute() else pathlib.Path(report["current_working_directory"]) / path
            if not path.resolve().is_relative_to(root / "kernels/cuda"):
                continue
            name = str(path.resolve().relative_to(root))
            for line in file["lines"]:
                number = line["line_number"]
                lines[name][number] = lines[name].get(number, 0) + line["count"]
            for function in file["functions"]:
                if function["execution_count"] > 0:
                    run[name].add(re.sub(r"[<(].*", "", function["demangled_name"].split("(anonymous namespace)::")[-1]).split("::")[-1].split(" ")[-1])
    hit = total = 0
    asleep = []
    for name in sorted(lines):
        executed, count = sum(1 for n in lines[name].values() if n), len(lines[name])
        hit, total = hit + executed, total + count
        kernels = kernels_of(root / name)
        missing = [k for k in kernels if k not in run[name]]
        asleep += [f"{name}: {k}" for k in missing]
        never = [n for n in sorted(lines[name]) if lines[name][n] == 0]
        print(f"{name:45} {executed:5} of {count:5} lines {executed / count:7.1%}"
              f"  {len(kernels) - len(missing):2} of {len(kernels):2} kernels"
              + (f"  not run: {never[:12]}" if never else ""))
    if total == 0:
        sys.exit(f"coverage: no data in {build}")
    print(f"{'all':45} {hit:5} of {total:5} lines {hit / total:7.1%}")
    for kernel in asleep:
        print(f"never run: {kernel}")
    sys.exit(1 if asleep or hit < LEAST_LINES * total else 0)


if __name__ == "__main__":
    main()
