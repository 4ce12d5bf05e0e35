#!/usr/bin/env python3
"""The GPU resources that every kernel takes, and how long a step should take; needs no GPU.

usage: tools/kernel_report.py [--arch sm_80,sm_90a] [--nvdisasm PROGRAM] [--jobs N]
       tools/kernel_report.py --check compiled|launched     (used by the tests)

Compiles each kernel (kernel_report_compile.py), runs the launchers to see how they launch it
(kernel_report_launches.py), computes how many of its blocks fit a multiprocessor
(kernel_report_occupancy.py), counts instructions if nvdisasm is there (kernel_report_mix.py) and predicts
whole steps (step_model.py). Prints what differs from profiling/kernel-report.json, and rewrites that file
and the .md beside it (kernel_report_write.py). Architectures that are not in the committed report are only
printed.

Exit code: 0; 1 if a kernel spills, if fewer blocks fit than its launcher assumes, or, with --check, if
the committed report does not match the sources; 2 if something is missing; 77 if --check must be skipped."""
import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path

import kernel_report_launches as launches
import kernel_report_write as write
import step_model
from kernel_report_compile import Problem, commands, compile_kernels, nvcc_version
from kernel_report_mix import find_disassembler, instruction_mix
from kernel_report_occupancy import LIMITS, occupancy

ROOT = Path(__file__).resolve().parent.parent
ARCHITECTURES = ("sm_80", "sm_90a")
STEPS = {"gpt2-124m, batch 16": ("gpt2-124m", 16), "gpt2-124m, batch 64": ("gpt2-124m", 64),
         "gpt2-1558m, batch 16": ("gpt2-1558m", 16)}
SKIPPED = 77


def complete(architecture, compiled, use):
    """A kernel's entry in the report. A kernel that nothing launches is assumed to have the most threads."""
    threads = use["threads"] or compiled["most_threads"] or 1024
    blocks, limit = occupancy(architecture, compiled["registers"], threads,
                              compiled["static"] + use["dynamic"])
    return {**compiled, **use, "blocks": blocks, "limit": limit}


def joined(compiled, uses):
    """{architecture: {name: entry}}. Problem if something is launched that was not compiled."""
    unused = dataclasses.asdict(launches.Use())
    for architecture, of_architecture in uses.items():
        if lost := sorted(set(of_architecture) - set(compiled[architecture])):
            raise Problem(f"{lost[0]} is launched but was not compiled: are both builds from these sources?")
    return {architecture: {name: complete(architecture, kernel, uses[architecture].get(name, unused))
                           for name, kernel in sorted(kernels.items())}
            for architecture, kernels in compiled.items()}


def launched(program, architectures):
    return {architecture: {name: dataclasses.asdict(use)
                           for name, use in launches.uses_of(program, architecture).items()}
            for architecture in architectures}


def predicted_steps(program, kernels):
    starved = step_model.starved_kernels(kernels)
    steps = {}
    for name, (model, batch) in STEPS.items():
        lines = launches.listing(program, ["--model", model, "--batch-size", str(batch)],
                                 step_model.ARCHITECTURE)
        steps[name] = step_model.predict(lines, starved)
        for unknown in steps[name].unknown:
            print(f"kernel-report: step_model.py has no model of {unknown}", file=sys.stderr)
    return steps


def read_committed(path):
    if not path.is_file():
        return {"nvcc": None, "kernels": {}, "instructions": {}, "steps": {}}
    return json.loads(path.read_text(encoding="utf-8"))


def fails(found):
    for line in found:
        print(f"kernel-report: {line}", file=sys.stderr)
    return 1 if found else 0


def check_compiled(args):
    """Checks spills, occupancy, and that the committed registers match the sources."""
    committed = read_committed(args.report)
    version = nvcc_version(next(iter(commands(args.build).values()))[0])
    if version != committed["nvcc"]:
        print(f"kernel-report: SKIPPED: this is nvcc {version}, but {args.report} is from {committed['nvcc']}")
        return SKIPPED
    compiled, _, _ = compile_kernels(args.build, ROOT, args.architectures, args.cache, args.jobs)
    uses = {architecture: {name: {field: kernel[field] for field in write.LAUNCHED}
                           for name, kernel in committed["kernels"].get(architecture, {}).items()
                           if name in compiled[architecture]}
            for architecture in args.architectures}
    kernels = joined(compiled, uses)
    found = write.problems(kernels)
    stale = write.differences(committed["kernels"], kernels)
    return fails(found + [f"not as committed (make kernel-report writes it): {line}" for line in stale])


def check_launched(args):
    """Checks that kernels are launched as in the committed report."""
    committed = read_committed(args.report)["kernels"]
    unused = dataclasses.asdict(launches.Use())
    now = launched(args.list_launches, args.architectures)
    for architecture, uses in now.items():
        for name in committed.get(architecture, {}):
            uses.setdefault(name, unused)
    stale = write.differences(committed, now, write.LAUNCHED)
    return fails([f"not as committed (make kernel-report writes it): {line}" for line in stale])


def write_report(args):
    compiled, cubins, version = compile_kernels(args.build, ROOT, args.architectures, args.cache,
                                                args.jobs)
    kernels = joined(compiled, launched(args.list_launches, args.architectures))
    before = read_committed(args.report)
    mix = instruction_mix(find_disassembler(args.nvdisasm), cubins, before["instructions"],
                          bool(args.nvdisasm))
    steps = predicted_steps(args.list_launches, kernels)
    report = {"nvcc": version, "kernels": kernels, "instructions": mix,
              "steps": {name: write.step_numbers(step) for name, step in steps.items()}}
    page = write.to_markdown(report, steps)
    if tuple(args.architectures) != ARCHITECTURES:
        print(page)
        return fails(write.problems(kernels))
    if before["nvcc"] not in (None, version):
        print(f"nvcc {before['nvcc']} -> {version}")
    changes = (write.differences(before["kernels"], kernels)
               + write.step_differences(before["steps"], report["steps"]))
    print("\n".join(changes) if changes else "nothing changed")
    args.report.write_text(write.to_json(report), encoding="utf-8")
    args.report.with_suffix(".md").write_text(page, encoding="utf-8")
    return fails(write.problems(kernels))


def arguments():
    parser = argparse.ArgumentParser(description="The GPU resources that every kernel takes")
    parser.add_argument("--arch", default=",".join(ARCHITECTURES), help="sm_80,sm_90a, or others")
    parser.add_argument("--nvdisasm", help="disassembler for recounting all instructions; otherwise the one on "
                        "the PATH, if any, counts those of changed files")
    parser.add_argument("--check", choices=("compiled", "launched"))
    parser.add_argument("--build", type=Path, default=ROOT / "build", help="a build with nvcc")
    parser.add_argument("--list-launches", type=Path,
                        default=ROOT / "build/cuda-on-cpu/list_launches")
    parser.add_argument("--report", type=Path, default=ROOT / "profiling/kernel-report.json")
    parser.add_argument("--cache", type=Path, help="default: kernel-report in the build")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    args = parser.parse_args()
    args.cache = args.cache or args.build / "kernel-report"
    args.architectures = args.arch.split(",")
    for architecture in args.architectures:
        if architecture.removeprefix("sm_").rstrip("af") not in map(str, LIMITS):
            raise Problem(f"--arch {architecture}: known are {', '.join(f'sm_{n}' for n in LIMITS)}")
    return args


def main():
    args = arguments()
    if args.check == "compiled":
        return check_compiled(args)
    if args.check == "launched":
        return check_launched(args)
    return write_report(args)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Problem as problem:
        print(f"kernel-report: {problem}", file=sys.stderr)
        sys.exit(2)
