#!/usr/bin/env python3
"""Tests and measures lathe on this machine's GPU, within a time budget, offline.

    make gpu-check                                     everything, in eight minutes
    make gpu-check GPU_CHECK_ARGS="--parts build,talk"
    make gpu-check GPU_CHECK_ARGS=--continue           what an earlier call did not get to

Parts, in this order: build (uses carried binaries, otherwise compiles), steps (GPT-2 124M, compared with
the prediction), roofline (the operations of a traced step), tests, torch (PyTorch against lathe), ncu
(hardware counters), bench (each operation alone), talk (the run that the project must reproduce), ab
(open questions, both ways), sanitizer, ranks (NCCL's cost for one rank; two ranks on one GPU), fp32.
Each part has a time limit within the budget and is stopped when it is reached. A report for people (.md),
the same for programs (.json), the log (.log) and a step's trace go to --out. They are rewritten after
each step, so that an interrupted run keeps its results.

Exit code 0: every part passed. 1: one failed or ran out of time. 3: none failed, but one was not
run, for lack of time or tools. 2: wrong usage.
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
import gpu_check_plan as plan  # noqa: E402
import gpu_check_report as report  # noqa: E402
from gpu_check_parts import PARTS  # noqa: E402
from gpu_check_run import ROOT, Check, Stopped  # noqa: E402

PASSED, FAILED, NOT_RUN = 0, 1, 3


# ---- one part ------------------------------------------------------------------------------------


def limit_of(check, name, later):
    asked = check.args.limits.get(name)
    later = [] if name == "build" else later  # useless without the build
    return plan.limit_of(name, PARTS[name], check.args.budget - check.elapsed(),
                         [(other, PARTS[other]) for other in later], check.estimates, asked)


def why_not(check, name, limit):
    """Why a part cannot start, or ""."""
    if limit <= 0:
        return f"too few of {check.args.budget:.0f} s are left"
    if name == "build":
        return ""
    if check.report["parts"].get("build", {}).get("built") is False:
        return "the build failed"
    return "" if check.program("train").exists() else f"there is no {check.program('train')}"


def run_part(check, name, later):
    result = check.report["parts"][name]
    limit = limit_of(check, name, later)
    if why := why_not(check, name, limit):
        if result["status"] == "not run":  # otherwise an earlier call has more to report
            result.update(summary=why)
        return
    result.clear()
    begin = time.monotonic()
    check.deadline = begin + limit
    result.update(status="running", summary=f"at most {limit:.0f} s", limit_s=round(limit, 1), seconds=0)
    if name == "build":
        result["built"] = False
    check.save()
    try:
        status, summary = PARTS[name].run(check, result)
    except Stopped:
        status, summary = "timed out", f"stopped after {time.monotonic() - begin:.0f} s"
    except Exception as error:  # an error in one part must not stop the others
        status, summary = "failed", f"{type(error).__name__}: {error}"
        result["traceback"] = traceback.format_exc()
    seconds = round(time.monotonic() - begin, 1)
    result.update(status=status, summary=summary, seconds=seconds)
    if status in ("passed", "timed out"):
        check.estimates.correct(name, PARTS[name], seconds, status == "passed")


def learn_device(check):
    """The GPU's name as the program reports it, if nvidia-smi is absent."""
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


# ---- arguments -----------------------------------------------------------------------------------


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
    """The first folder that has the text."""
    deps = os.environ.get("LATHE_DEPS")
    for folder in (os.environ.get("LATHE_TEST_DATA"), deps and os.path.join(deps, "data"),
                   ROOT / "deps" / "data", ROOT / ".." / "shared" / "data"):
        if folder and (Path(folder) / "tinyshakespeare.txt").exists():
            return Path(folder).resolve()
    return None


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=names_of_parts, default=list(PARTS), help="comma-separated subset")
    parser.add_argument("--budget", type=float, default=480, help="seconds for all parts (480)")
    parser.add_argument("--limits", type=limits, default={}, help="PART=SECONDS,...: other time limits")
    parser.add_argument("--continue", dest="resume", nargs="?", const="", metavar="REPORT",
                        help="only what the newest report of this commit and GPU in --out lacks, added to "
                        "that report; or name a report, or a folder for the newest in it")
    parser.add_argument("--preset", choices=["gpu", "cuda-on-cpu"], default="gpu",
                        help="cuda-on-cpu: the same on a machine without a GPU, with tiny models")
    parser.add_argument("--out", default=ROOT / "profiling" / "results", help="where reports go")
    parser.add_argument("--binaries", metavar="FILE", help="finished binaries by tools/carry_binaries.sh "
                        "(LATHE_DEPS or deps/, binaries.tar.xz); none: compile")
    parser.add_argument("--data", type=Path, help="folder with tinyshakespeare.txt and gpt2/ "
                        "(LATHE_TEST_DATA, LATHE_DEPS/data, deps/data or ../shared/data)")
    parser.add_argument("--build-dir", help="build/PRESET")
    parser.add_argument("--no-build", action="store_true", help="use the build folder as it is")
    parser.add_argument("--cmake-args", default="", help="more arguments for CMake")
    parser.add_argument("--tests", help="only tests whose names match this pattern")
    parser.add_argument("--python", default=sys.executable, help="a python with PyTorch")
    args = parser.parse_args()
    if args.no_build:
        args.parts = [name for name in args.parts if name != "build"]
    if args.resume == "":
        args.resume = args.out
    return args


def prepare_environment(args):
    """For the programs that are started: CUDA's tools, carried sources, libraries, test data."""
    machine.add_tools_to_path()
    if sys.prefix != sys.base_prefix:  # CMake and the programs find Python's packages there
        os.environ.setdefault("VIRTUAL_ENV", sys.prefix)
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


# ---- the order of things -------------------------------------------------------------------------


def run_parts(check):
    asked = [name for name in check.args.parts if not check.is_told(name)]
    for at, name in enumerate(asked):
        check.say(f"  {name} ...")
        run_part(check, name, asked[at + 1:])
        learn_device(check)
        check.save()
        part = check.report["parts"][name]
        check.say("\n".join(filter(None, [report.part_line(name, part), report.part_table(name, part)])))
    check.report["finished"] = True


def main():
    args = parse_arguments()
    prepare_environment(args)
    check = Check(args)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, check.interrupt)
    check.say(f"gpu-check: {report.title(check.report)}; report: {os.path.relpath(check.path)}")
    try:
        run_parts(check)
    finally:
        for part in check.report["parts"].values():
            if part["status"] == "running":
                part.update(status="interrupted", summary="gpu-check was stopped while it ran")
        check.report["exit_code"] = exit_code(check.report["parts"])
        check.save()
        check.say(report.summary(check.report, check.path))
        check.close()
    return check.report["exit_code"]


if __name__ == "__main__":
    sys.exit(main())
