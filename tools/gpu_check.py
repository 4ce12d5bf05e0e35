#!/usr/bin/env python3
"""Builds, tests and measures lathe on the GPU of this machine, within a time budget, offline.

    make gpu-check                                     everything, in eight minutes
    make gpu-check GPU_CHECK_ARGS="--parts build,talk"

Parts, in this order: build, tests, sanitizer, gpt2 (a benchmark, PyTorch beside it), ranks (what NCCL
costs one, and two that share the GPU), talk (the run that the project must reproduce). Each has a
time limit inside the budget, and is stopped at it. A report for people (.md), the same for programs (.json) and the whole log (.log) go to --out, and are
written again after each step, so that a run that is cut off leaves what it has.

Exit code 0: every part passed. 1: one failed or ran out of time. 3: none failed, but one was not
run, for want of time or tools. 2: wrong usage.
"""
import argparse
import contextlib
import os
import signal
import sys
import time
import traceback
from pathlib import Path

sys.dont_write_bytecode = True
import gpu_check_machine as machine  # noqa: E402
import gpu_check_parse as parse  # noqa: E402
import gpu_check_report as report  # noqa: E402
from gpu_check_parts import PARTS  # noqa: E402
from gpu_check_run import ROOT, Check, Stopped  # noqa: E402

PASSED, FAILED, NOT_RUN = 0, 1, 3


def say(text):
    print(text, flush=True)


def run_part(check, name):
    result = check.report["parts"][name]
    limit = check.limit_of(name, PARTS)
    if limit <= 0:
        result.update(summary=f"no time left of {check.args.budget:.0f} s")
        return
    if name in ("gpt2", "ranks", "talk") and not check.program("train").exists():
        result.update(summary=f"there is no {check.program('train')}")
        return
    if check.report["parts"].get("build", {}).get("built") is False and name != "build":
        result.update(summary="the build failed")
        return
    begin = time.monotonic()
    check.deadline = begin + limit
    result.update(status="running", summary=f"at most {limit:.0f} s", limit_s=round(limit, 1))
    if name == "build":
        result["built"] = False
    check.save()
    try:
        status, summary = PARTS[name].run(check, result)
    except Stopped:
        status, summary = "timed out", f"stopped after {time.monotonic() - begin:.0f} s"
    except Exception as error:  # one part's mistake is not the others'
        status, summary = "failed", f"{type(error).__name__}: {error}"
        result["traceback"] = traceback.format_exc()
    result.update(status=status, summary=summary, seconds=round(time.monotonic() - begin, 1))


def learn_device(check):
    """The GPU's name by the program itself, where nvidia-smi is absent."""
    known = check.report["environment"]
    if known["gpu"] or known.get("device") or not check.program("train").exists():
        return
    with contextlib.suppress(Stopped):
        check.deadline = check.begin + check.args.budget
        done = check.run([check.program("train"), "--model", "shakespeare-cpu", "--vocab-size", "65",
                          "--device", "cuda", "--dry-run"], limit=20, env=check.args.child_env)
        known["device"] = parse.train_log(done.text).get("device")


def exit_code(parts):
    statuses = {part["status"] for part in parts.values()}
    if statuses & {"failed", "timed out", "running", "interrupted"}:
        return FAILED
    return PASSED if statuses <= {"passed"} else NOT_RUN


def names_of_parts(text):
    asked = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in asked if name not in PARTS]
    if unknown or not asked:
        raise argparse.ArgumentTypeError(f"'{text}': parts are {', '.join(PARTS)}")
    return [name for name in PARTS if name in asked]


def limits(text):
    try:
        pairs = dict(word.split("=") for word in text.split(",") if word)
        found = {name: float(seconds) for name, seconds in pairs.items()}
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}': write PART=SECONDS,...") from None
    if set(found) - set(PARTS):
        raise argparse.ArgumentTypeError(f"'{text}': parts are {', '.join(PARTS)}")
    return found


def default_data():
    """The first folder that holds the text."""
    deps = os.environ.get("LATHE_DEPS")
    for folder in (os.environ.get("LATHE_TEST_DATA"), deps and os.path.join(deps, "data"),
                   ROOT / ".." / "shared" / "data"):
        if folder and (Path(folder) / "tinyshakespeare.txt").exists():
            return Path(folder).resolve()
    return None


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=names_of_parts, default=list(PARTS), help="some of them, by comma")
    parser.add_argument("--budget", type=float, default=480, help="seconds for all parts (480)")
    parser.add_argument("--limits", type=limits, default={}, help="PART=SECONDS,...: lower or higher limits")
    parser.add_argument("--preset", choices=["gpu", "cuda-on-cpu"], default="gpu",
                        help="cuda-on-cpu: the same on a machine without a GPU, with tiny models")
    parser.add_argument("--out", default=ROOT / "profiling" / "results", help="where reports go")
    parser.add_argument("--data", type=Path, help="folder with tinyshakespeare.txt and gpt2/ "
                        "(LATHE_TEST_DATA, LATHE_DEPS/data or ../shared/data)")
    parser.add_argument("--build-dir", help="build/PRESET")
    parser.add_argument("--no-build", action="store_true", help="the build folder is as it should be")
    parser.add_argument("--cmake-args", default="", help="more arguments for CMake")
    parser.add_argument("--tests", help="only the tests that match this pattern (ctest -R)")
    parser.add_argument("--python", default=sys.executable, help="the python that has PyTorch")
    args = parser.parse_args()
    if args.no_build:
        args.parts = [name for name in args.parts if name != "build"]
    return args


def prepare_environment(args):
    """For the programs that are run: CUDA's tools, carried sources, libraries, the tests' data."""
    machine.add_tools_to_path()
    if not os.environ.get("LATHE_DEPS") and (ROOT / "deps" / "include").is_dir():
        os.environ["LATHE_DEPS"] = str(ROOT / "deps")
    args.data = args.data.resolve() if args.data else default_data()
    if args.preset == "gpu":
        found = {"LATHE_CUBLASLT": machine.library("libcublasLt"), "LATHE_NCCL": machine.library("libnccl"),
                 "NCCL_HOME": machine.nccl_home()}
        for name, path in found.items():
            if path:
                os.environ.setdefault(name, path)
    args.child_env = {"LATHE_TEST_DATA": str(args.data)} if args.data else {}


def main():
    args = parse_arguments()
    prepare_environment(args)
    check = Check(args)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, check.interrupt)
    say(f"gpu-check: {report.title(check.report)}; report: {os.path.relpath(check.path)}")
    try:
        for name in args.parts:
            say(f"  {name} ...")
            run_part(check, name)
            learn_device(check)
            check.save()
            say(report.part_line(name, check.report["parts"][name]))
        check.report["finished"] = True
    finally:
        for part in check.report["parts"].values():
            if part["status"] == "running":
                part.update(status="interrupted", summary="gpu-check was stopped while it ran")
        check.report["exit_code"] = exit_code(check.report["parts"])
        check.save()
        say(report.summary(check.report, check.path))
    return check.report["exit_code"]


if __name__ == "__main__":
    sys.exit(main())
