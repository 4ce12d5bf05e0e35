"""The parts `tests` and `sanitizer` of `make gpu-check`: the CUDA tests on the GPU, then some of them
under compute-sanitizer. The list of tests comes with carried binaries, otherwise from ctest."""
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor, as_completed

import gpu_check_archive as archive
import gpu_check_parse as parse
from gpu_check_run import Stopped, last_line

# What runs under compute-sanitizer: (tool, test, filter), the most informative first. Kernels run
# ten to a hundred times slower there, so the longest cases are left out; racecheck, the slowest,
# sees each attention kernel once or twice. initcheck is left out: the tests fill all memory before
# an operation sees it.
ONE_OF_EACH_ATTENTION = ("AttentionOf/0.*:AttentionOf/1.*-*AnyMagnitude*:*SharpScores*:"
                         "*RisingScores*:*AgreesWithPlain:*IsSplit:*Refused")
SANITIZED = [
    ("racecheck", "cuda_attention_test", ONE_OF_EACH_ATTENTION),
    ("memcheck", "cuda_ops_test", "-*FiniteDifferences*:*AnyMagnitude*:*OverChunks:Determinism.*"),
    ("memcheck", "cuda_attention_test", "-*FiniteDifferences*:*/2.*:*LongSequences*:*AnyMagnitude*:*RisingScores*"),
    ("racecheck", "cuda_ops_test", "LayerNorm.*:Embedding.*:LinearCrossEntropy.*:GlobalNorm.*:AdamW.*"
                                   "-*FiniteDifferences*:*AnyMagnitude*:*OverChunks:*Refuses*"),
    ("synccheck", "cuda_attention_test", ONE_OF_EACH_ATTENTION),
]
LEAST_RUN_S = 20  # a run under it that gets less shows nothing
# The tests check the results of CUDA's functions themselves.
TOOL_FLAGS = {"memcheck": ["--report-api-errors", "no"]}


def test_list(check):
    """Name, command, environment and limit of each CUDA test."""
    if (check.programs / archive.LIST).exists():
        tests = archive.tests_here(check.programs)
    else:
        listed = check.run(["ctest", "--test-dir", check.programs, *archive.CTEST_LISTING])
        tests = archive.tests_of_listing(listed.text) if listed.ok and "{" in listed.text else []
    tests = [test for test in tests if re.search(check.args.tests or "", test["name"])]
    return sorted(tests, key=lambda test: not test["name"].startswith("train_"))  # whole programs take longest


# ---- tests ---------------------------------------------------------------------------------------


def run_test(check, test):
    """Runs one test program; returns its result."""
    try:
        done = check.run(test["command"], limit=test["limit_s"], apart=True,
                         env={**check.args.child_env, **test["environment"]})
    except Stopped:
        return {"status": "no time", "cases": parse.gtest_cases(""), "end": []}
    cases = parse.gtest_cases(done.text)
    if done.timed_out:
        status = "cut off"
    elif cases["failed"] or done.code != 0:
        status = "failed"
    elif cases["skipped"] and not cases["passed"]:  # tests skip what needs a GPU if there is none
        status = "all skipped"
    else:
        status = "passed"
    return {"status": status, "exit_code": done.code, "seconds": done.seconds, "cases": cases,
            "end": done.text.splitlines()[-12:]}


def tests(check, result):
    listed = test_list(check)
    if not listed:
        return "failed", "no test was found"
    binaries = result["binaries"] = {}
    with ThreadPoolExecutor(min(8, len(os.sched_getaffinity(0)))) as pool:
        running = {pool.submit(run_test, check, test): test["name"] for test in listed}
        for ended in as_completed(running):
            binaries[running[ended]] = ended.result()
            check.save()
    cases = [binary["cases"] for binary in binaries.values()]
    failed = sum(len(case["failed"]) for case in cases)
    summary = (f"{sum(case['passed'] for case in cases)} cases passed, {failed} failed, "
               f"{sum(case['skipped'] for case in cases)} skipped, in {len(binaries)} programs")
    bad = {name: binary["status"] for name, binary in binaries.items() if binary["status"] != "passed"}
    if bad:
        summary += "; " + ", ".join(f"{name}: {status}" for name, status in sorted(bad.items()))
    if bad and set(bad.values()) <= {"cut off", "no time"}:
        return "timed out", summary
    return ("failed" if bad else "passed"), summary


# ---- sanitizer -----------------------------------------------------------------------------------


def kernel_filter(check):
    """Restricts compute-sanitizer to lathe's kernels, with the option that its version has."""
    text = check.run(["compute-sanitizer", "--help"], limit=20).text
    if "kernel_substring" in text:
        return ["--kernel-name", "kernel_substring=lathe"]
    return ["--kernel-regex", "kns=lathe"] if "kns" in text else []


def sanitize(check, tool, test, cases, kernels, limit):
    """One test program under one tool."""
    program = [word for word in test["command"] if not word.startswith("--gtest_filter=")]
    command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "99", "--print-limit", "50",
               *kernels, *TOOL_FLAGS.get(tool, []), *program, f"--gtest_filter={cases}"]
    done = check.run(command, limit=limit, env={**check.args.child_env, **test["environment"]}, apart=True)
    found = parse.sanitizer_findings(done.text)
    ran = parse.gtest_cases(done.text)
    return {"tool": tool, "test": test["name"], "filter": cases, "seconds": done.seconds,
            "cases": ran["passed"] + len(ran["failed"]), "status": verdict(done, found, ran), **found}


def verdict(done, found, ran):
    if found["kinds"] or found["errors"] or done.code == 99:
        return "errors found"
    if done.timed_out:
        return "cut off"
    if found["refusal"]:
        return "not available"
    if found["errors"] is None:
        return f"no result: {last_line(done.text)}"
    if done.code != 0:
        return f"the test failed under it: {', '.join(ran['failed']) or done.code}"
    return "clean" if ran["passed"] else "no case ran"


def sanitizer(check, result):
    if not shutil.which("compute-sanitizer"):
        return "not run", "not available: no compute-sanitizer here"
    known = {test["name"]: test for test in test_list(check)}
    runs = [(tool, known[name], cases) for tool, name, cases in SANITIZED if name in known]
    if not runs:
        return "failed", "no test was found"
    kernels = kernel_filter(check)
    workers = min(4, max(1, len(os.sched_getaffinity(0)) // 2))
    rows = result["runs"] = []

    def one(tool, test, cases):
        # Time that earlier runs did not use is shared by the later ones.
        limit = max(LEAST_RUN_S, check.left() * workers / (len(runs) - len(rows)) - 1)
        try:
            return sanitize(check, tool, test, cases, kernels, limit)
        except Stopped:
            return {"tool": tool, "test": test["name"], "status": "no time", "kinds": [], "cases": 0}

    with ThreadPoolExecutor(workers) as pool:
        for ended in as_completed([pool.submit(one, *run) for run in runs]):
            rows.append(ended.result())
            check.save()
    return judge_sanitized(rows)


def judge_sanitized(rows):
    by = lambda *words: [row for row in rows if row["status"] in words]  # noqa: E731
    summary = f"{len(by('clean'))} of {len(rows)} runs clean"
    if found := by("errors found"):
        summary += f", {len(found)} with errors: " + ", ".join(sorted({f"{r['tool']} {r['test']}" for r in found}))
    if cut := by("cut off", "no time"):
        summary += f", {len(cut)} cut off"
    if absent := by("not available"):
        summary += f", {len(absent)} not available ({absent[0]['refusal']})"
    if len(by("clean")) == len(rows):
        return "passed", summary
    known = by("clean", "cut off", "no time", "not available")
    return ("not run" if len(known) == len(rows) else "failed"), summary
