#!/usr/bin/env python3
"""Which lines and kernels of kernels/cuda the CUDA device's tests execute, by gcov.

usage: tools/coverage.py BUILD_DIR     (a build with --coverage whose tests have run; `make coverage`)

Prints a table by file; each instance of a kernel template counts as a kernel. Fails if a kernel never
ran or fewer than 95 % of the lines did.
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
    """Names of the __global__ functions of a file."""
    bounds = r"(?:__launch_bounds__\s*\((?:[^()]|\([^()]*\))*\)\s*)?"
    return re.findall(rf"__global__\s+{bounds}void\s+{bounds}(\w+)\s*\(", source.read_text())


def name_of(demangled):
    """For "void lathe::(anonymous namespace)::f<float>(int)": f and f<float>."""
    text = demangled.replace("(anonymous namespace)::", "")
    depth, start, end = 0, 0, len(text)  # outside of <>: start of the name and of its arguments
    for i, c in enumerate(text):
        if c == "(" and depth == 0:
            end = i
            break
        depth += (c == "<") - (c == ">")
        if depth == 0 and c in " :":
            start = i + 1
    return text[start:end].split("<")[0], text[start:end]


def main():
    build, root = pathlib.Path(sys.argv[1]), pathlib.Path(__file__).resolve().parent.parent
    lines = collections.defaultdict(dict)  # file -> line -> executions
    ran = collections.defaultdict(lambda: collections.defaultdict(dict))  # file -> function -> instance -> ran
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
                base, instance = name_of(function["demangled_name"])
                before = ran[name][base].get(instance, False)
                ran[name][base][instance] = before or function["execution_count"] > 0
    hit = total = awake = 0
    asleep = []
    for name in sorted(lines):
        executed, count = sum(1 for n in lines[name].values() if n), len(lines[name])
        hit, total = hit + executed, total + count
        # Instances of kernels; one without an instance counts as a kernel that never ran.
        kernels = {i: r for k in kernels_of(root / name) for i, r in (ran[name][k] or {k: False}).items()}
        missing = [k for k, executed_once in kernels.items() if not executed_once]
        asleep += [f"{name}: {k}" for k in missing]
        awake += len(kernels) - len(missing)
        never = [n for n in sorted(lines[name]) if lines[name][n] == 0]
        print(f"{name:45} {executed:5} of {count:5} lines {executed / count:7.1%}"
              f"  {len(kernels) - len(missing):2} of {len(kernels):2} kernels"
              + (f"  not run: {never[:12]}" if never else ""))
    if total == 0:
        sys.exit(f"coverage: no data in {build}")
    print(f"{'all':45} {hit:5} of {total:5} lines {hit / total:7.1%}"
          f"  {awake:2} of {awake + len(asleep):2} kernels")
    for kernel in asleep:
        print(f"never run: {kernel}")
    sys.exit(1 if asleep or hit < LEAST_LINES * total else 0)


if __name__ == "__main__":
    main()
