"""The parts of `make gpu-check`. Each takes the run and its place in the report, fills that as it
goes, and returns (status, one line for people)."""
import contextlib
import json
import os
import re
import shlex
import shutil
from concurrent.futures import ThreadPoolExecutor

import gpu_check_machine as machine
import gpu_check_parse as parse
import gpu_check_report as report
from gpu_check_run import ROOT, Part, Stopped, last_line

# Which cases of a test program run under compute-sanitizer, where not those that ctest runs. Kernels
# are ten to a hundred times slower there, so the longest are left out; racecheck, the slowest, sees
# each kernel of attention once or twice.
SANITIZED = {
    ("cuda_attention_test", "racecheck"): "AttentionOf/0.*:AttentionOf/1.*-*AnyMagnitude*:*SharpScores*:"
                                          "*RisingScores*:*AgreesWithPlain:*IsSplit:*Refused",
    ("cuda_attention_test", None): "-*FiniteDifferences*:*/2.*:*LongSequences*:*AnyMagnitude*:*RisingScores*",
    # Of the products only the column sums are kernels of lathe.
    ("cuda_matmul_test", "racecheck"): "*SumsColumns*",
    ("cuda_matmul_test", "synccheck"): "*SumsColumns*",
}
NOT_SANITIZED = {"train_cuda_test",  # whole programs
                 "cublaslt_library_test", "nccl_library_test"}  # no call of CUDA: nothing to report
SANITIZER_TOOLS = {
    # The tests themselves see what CUDA's functions return.
    "memcheck": ["--report-api-errors", "no"],
    "racecheck": [],
    "synccheck": [],
    # Not confined to lathe's kernels: it would not see what cuBLAS's write.
    "initcheck": [],
}

# The run of wordplay on four A100s: validation loss by step, train loss by step.
TALK_VALIDATION = {0: 4.129, 100: 2.479, 200: 2.149, 300: 1.714}
TALK_TRAIN = {10: 3.154, 100: 2.446, 200: 2.068, 300: 1.492}
TALK_TOLERANCE = 0.05  # at every evaluation but the first, which is the initial weights'

# Sizes with which the stand-in for CUDA takes seconds: the same flow, other numbers.
TINY = {"n-layer": 1, "n-head": 2, "n-embd": 32, "seq-len": 32}


# ---- build ---------------------------------------------------------------------------------------


def configure(check):
    command = ["cmake", "--preset", check.args.preset, "-B", check.build_dir]
    if not (check.build_dir / "CMakeCache.txt").exists() and not shutil.which("ninja"):
        command += ["-G", "Unix Makefiles"]
    if check.args.preset == "gpu":
        if capability := machine.compute_capability(check.args.python):
            kind = "a" if int(capability) >= 90 else ""
            command += [f"-DLATHE_CUDA_ARCHITECTURES={capability}{kind}-real"]
        command += ["-DCMAKE_CUDA_FLAGS=-Xptxas=-v"]
    return command + shlex.split(check.args.cmake_args)


def build(check, result):
    configured = check.run(configure(check))
    result["configure_s"] = configured.seconds
    result["notes"] = re.findall(r"^-- lathe: (.*)$", configured.text, re.MULTILINE)
    if not configured.ok:
        result["errors"] = parse.compiler_errors(configured.text)
        return stop(configured, "CMake failed")
    check.save()
    targets = ["train", "sample", "prepare", "corpus"]
    if not any("GoogleTest" in note for note in result["notes"]):
        targets.append("cuda_tests")
    cores = len(os.sched_getaffinity(0))
    command = ["cmake", "--build", check.build_dir, "--parallel", cores, "--target", *targets]
    if (check.build_dir / "Makefile").exists():
        command += ["--", "--output-sync=target"]  # a kernel's registers come in several lines
    built = check.run(command)
    result.update(build_s=built.seconds, build_cpu_s=built.cpu_seconds, cores=cores)
    # Compiler output is seen once; a later build of the same folder compiles nothing.
    kept = check.work / "compile.log"
    with open(kept, "a", encoding="utf-8") as file:
        file.write(built.text)
    result["warnings"] = parse.compiler_warnings(built.text)
    result["kernels"] = parse.kernel_usage(kept.read_text(encoding="utf-8"))
    if not built.ok:
        result["errors"] = parse.compiler_errors(built.text)
        return stop(built, "the build failed")
    result["built"] = True
    spilling = [k["kernel"] for k in result["kernels"] if k["spill_stores"] or k["spill_loads"]]
    summary = (f"{len(result['kernels'])} kernels, {len(spilling)} spill, "
               f"{len(result['warnings'])} warnings")
    return ("failed" if spilling else "passed"), summary


def stop(done, what):
    if done.timed_out:
        return "timed out", f"stopped after {done.seconds:.0f} s"
    return "failed", f"{what}: {last_line(done.text)}"


# ---- tests ---------------------------------------------------------------------------------------


def tests(check, result):
    junit = check.work / "junit.xml"
    junit.unlink(missing_ok=True)
    jobs = min(8, len(os.sched_getaffinity(0)))
    command = ["ctest", "--test-dir", check.build_dir, "-L", "^cuda$", "-LE", "gpu-check", "-V",
               "--output-junit", junit, "-j", jobs]
    if check.args.tests:
        command += ["-R", check.args.tests]
    done = check.run(command, env=check.args.child_env)
    binaries = result["binaries"] = parse.ctest_binaries(done.text, junit)
    if not binaries:
        return stop(done, "no test was found") if not done.ok else ("failed", "no test was found")
    for binary in binaries.values():  # tests skip what needs a GPU where none answers
        if binary["cases"]["skipped"] and not binary["cases"]["passed"] and binary["status"] == "passed":
            binary["status"] = "all skipped"
    cases = [binary["cases"] for binary in binaries.values()]
    failed = sum(len(case["failed"]) for case in cases)
    summary = (f"{sum(case['passed'] for case in cases)} cases passed, {failed} failed, "
               f"{sum(case['skipped'] for case in cases)} skipped, in {len(binaries)} programs")
    bad = [name for name, binary in binaries.items() if binary["status"] != "passed"]
    if bad:
        summary += f"; not passed: {', '.join(bad)}"
    if done.timed_out:
        return "timed out", f"stopped after {done.seconds:.0f} s: {summary}"
    return ("failed" if bad or failed or done.code != 0 else "passed"), summary


# ---- sanitizer -----------------------------------------------------------------------------------


def test_binaries(check):
    """(name, command, environment) of each CUDA test that ctest knows."""
    command = ["ctest", "--test-dir", check.build_dir, "-L", "^cuda$", "-LE", "gpu-check",
               "--show-only=json-v1"]
    if check.args.tests:
        command += ["-R", check.args.tests]
    listed = check.run(command)
    begin = listed.text.find("{")
    if not listed.ok or begin < 0:
        return []
    found = []
    for test in json.loads(listed.text[begin:])["tests"]:
        properties = {p["name"]: p["value"] for p in test.get("properties", [])}
        env = dict(entry.split("=", 1) for entry in properties.get("ENVIRONMENT", []))
        if "command" in test:
            found.append((test["name"], test["command"], env))
    return found


def kernel_filter(check):
    """Confines compute-sanitizer to lathe's kernels, in the words that its version has for it."""
    text = check.run(["compute-sanitizer", "--help"], limit=20).text
    if "kernel_substring" in text:
        return ["--kernel-name", "kernel_substring=lathe"]
    return ["--kernel-regex", "kns=lathe"] if "kns" in text else []


def sanitize(check, tool, name, test, env, kernels, limit):
    """One test program under one tool."""
    cases = SANITIZED.get((name, tool), SANITIZED.get((name, None)))
    if cases is None:
        cases = next((word.split("=", 1)[1] for word in test if word.startswith("--gtest_filter=")), "*")
    test = [word for word in test if not word.startswith("--gtest_filter=")]
    kernels = kernels if tool != "initcheck" else []
    command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "99", "--print-limit", "50",
               *kernels, *SANITIZER_TOOLS[tool], *test, f"--gtest_filter={cases}"]
    done = check.run(command, limit=limit, env={**check.args.child_env, **env}, apart=True)
    found = parse.sanitizer_findings(done.text)
    ran = parse.gtest_cases(done.text)
    row = {"tool": tool, "test": name, "filter": cases, "seconds": done.seconds,
           "cases": ran["passed"] + len(ran["failed"]), **found}
    if found["kinds"] or found["errors"] or done.code == 99:
        row["status"] = "errors found"
    elif done.timed_out:
        row["status"] = "cut off"
    elif found["refusal"]:
        row["status"] = "not available"
    elif found["errors"] is None:
        row["status"] = f"no result: {last_line(done.text)}"
    elif done.code != 0:
        row["status"] = f"the test failed under it: {', '.join(ran['failed']) or done.code}"
    else:
        row["status"] = "clean"
    return row


def sanitizer(check, result):
    if not shutil.which("compute-sanitizer"):
        return "not run", "not available: no compute-sanitizer here"
    binaries = [binary for binary in test_binaries(check) if binary[0] not in NOT_SANITIZED]
    if not binaries:
        return "failed", "no test was found"
    kernels = kernel_filter(check)
    runs = [(tool, *binary, kernels) for tool in SANITIZER_TOOLS for binary in binaries]
    workers = min(4, max(1, len(os.sched_getaffinity(0)) // 2))
    rows = result["runs"] = []

    def one(run):
        # What the runs before it left over is shared by those to come.
        limit = max(5, check.left() * workers / (len(runs) - len(rows)) - 1)
        try:
            row = sanitize(check, *run, limit)
        except Stopped:
            row = {"tool": run[0], "test": run[1], "status": "no time", "kinds": [], "cases": 0}
        rows.append(row)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(one, runs))
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


# ---- benchmarks ----------------------------------------------------------------------------------


def words(flags):
    """{"steps": 30, "benchmark": True} as a command line has them."""
    return [word for key, value in flags.items() if value is not False
            for word in ([f"--{key}"] if value is True else [f"--{key}", str(value)])]


def train_fitting(check, flags, batch_sizes):
    """build/train with the largest of the batch sizes that fits the GPU's memory."""
    for batch_size in batch_sizes:
        command = [check.program("train"), *words({**flags, "batch-size": batch_size, "device": "cuda"})]
        done = check.run(command, env=check.args.child_env)
        if done.ok or "lower --batch-size" not in done.text:
            break
    run = parse.train_log(done.text)
    run.update(command=shlex.join(shown(command)), batch_size=batch_size, seconds=done.seconds)
    return done, run


def shown(command):
    """Paths below the repository as a person would type them."""
    return [os.path.relpath(word, ROOT) if str(word).startswith(str(ROOT)) else str(word) for word in command]


def pair(check, result, dtype):
    """lathe, PyTorch, lathe again; same shape, same batch. Why lathe's own run failed, or ""."""
    row = {"dtype": dtype, "lathe": [], "torch": []}
    result["runs"].append(row)
    shape = TINY if check.tiny else {"seq-len": 1024}
    steps = 4 if check.tiny else 30
    batches = [2] if check.tiny else [16, 8, 4, 2]
    bpe = not check.tiny and check.args.data and (check.args.data / "gpt2").is_dir()
    tf32 = dtype == "fp32" and "--tf32" in check.run([check.program("train"), "--help"]).text
    flags = {"model": "gpt2-124m", "data": check.data("gpt2" if bpe else "char"),
             "vocab-size": 128 if check.tiny else 50257, **shape, "dtype": dtype, "tf32": tf32,
             "steps": steps, "benchmark": True}
    for turn in range(2):
        done, run = train_fitting(check, flags, batches)
        if run.get("median_ms") and not done.timed_out:
            row["lathe"].append(run)
            check.save()
        if done.timed_out:
            raise Stopped
        if not done.ok or not run.get("median_ms"):
            return f"build/train: {last_line(done.text)}"
        batches = [run["batch_size"]]
        if turn == 0 and not beside(check, row, {**shape, "dtype": dtype, "tf32": tf32, "steps": steps,
                                                 "batch-size": run["batch_size"]}):
            break
    return ""


def beside(check, row, flags):
    """PyTorch's turn. False where there is none to compare with."""
    if not check.report["environment"]["torch"]:
        row["torch_note"] = "PyTorch is not installed for this python"
        return False
    if check.tiny:
        flags = {**flags, "device": "cpu", "vocab-size": 128, "eager-only": True}
    command = [check.args.python, ROOT / "profiling" / "torch_gpt2.py", *words(flags)]
    row["torch_command"] = shlex.join(shown(command))
    # The second turn of lathe comes after it, and needs as long as the first took.
    done = check.run(command, limit=max(check.left() - 2 * row["lathe"][0]["seconds"] - 5, 1))
    row["torch"] = parse.json_lines(done.text)
    if not check.tiny and "compiled" not in [variant["variant"] for variant in row["torch"]]:
        row["torch_note"] = (f"torch.compile had no time ({done.seconds:.0f} s)" if done.timed_out
                             else f"no compiled figure: {last_line(done.text)}")
    check.save()
    return bool(row["torch"])


def gpt2(check, result):
    result["runs"] = []
    why, cut_off = "", False
    with machine.watched_gpu(result.setdefault("gpu", {})):
        try:
            why = pair(check, result, "bf16")
        except Stopped:
            cut_off = True
        spent = sum(run["seconds"] for run in result["runs"][0]["lathe"])
        if not why and not cut_off and not check.tiny and check.left() > 40 + 3 * spent:
            with contextlib.suppress(Stopped):
                result["fp32_error"] = pair(check, result, "fp32")
    summary = "; ".join(report.comparison(row) for row in result["runs"] if row["lathe"])
    if cut_off:
        return "timed out", f"stopped; {summary or 'no figure'}"
    return ("failed", why) if why else ("passed", summary)


# ---- ranks ---------------------------------------------------------------------------------------


MPI_ENVIRONMENT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
                   "OMPI_MCA_rmaps_base_oversubscribe": "1", "OMPI_MCA_hwloc_base_binding_policy": "none"}
RANKS_TOLERANCE = 2e-4  # of losses printed with four digits, fp32


def one_rank_over_nccl(check, result):
    """A step with NCCL's collectives in it beside one without, in turns. Why there is no figure, or ""."""
    flags = {"model": "gpt2-124m", "data": check.data("char"), "vocab-size": 128 if check.tiny else 50257,
             **(TINY if check.tiny else {"seq-len": 1024}), "dtype": "bf16", "steps": 4 if check.tiny else 20,
             "benchmark": True}
    batches = [2] if check.tiny else [16, 8, 4, 2]
    result["turns"] = []
    for comm in ("auto", "nccl", "auto", "nccl"):
        done, run = train_fitting(check, {**flags, "comm": comm}, batches)
        if comm == "nccl" and ("has no NCCL" in done.text or "libnccl.so.2 is not found" in done.text):
            result["nccl_note"] = "no NCCL, so no cost of it"
            return ""
        if not done.ok or not run.get("median_ms"):
            return f"--comm {comm}: {last_line(done.text)}"
        batches = [run["batch_size"]]
        result["turns"].append({"comm": comm, "median_ms": run["median_ms"], "command": run["command"]})
        check.save()
    best = {comm: min(turn["median_ms"] for turn in result["turns"] if turn["comm"] == comm)
            for comm in ("auto", "nccl")}
    result["nccl_cost"] = best["nccl"] / best["auto"] - 1
    return ""


def two_ranks_on_one_gpu(check, result):
    """The losses of two ranks that share the GPU, beside those of one. What is wrong, or ""."""
    mpirun = shutil.which("mpirun")
    if not mpirun:
        result["shared_note"] = "no mpirun, so no two ranks"
        return ""
    flags = {"model": "shakespeare-cpu", "data": check.data("char"), "dtype": "fp32", "steps": 4 if check.tiny else 20,
             "eval-interval": 0, "total-batch-size": 768, "device": "cuda", "log-interval": 1, "deterministic": True}
    sequences = 12
    if check.tiny:
        flags |= {**TINY, "total-batch-size": 128}
        sequences = 4
    losses = {}
    for ranks in (1, 2):
        command = [check.program("train"), *words({**flags, "batch-size": sequences // ranks, "comm": "mpi"})]
        if ranks > 1:
            command = [mpirun, "-n", "2", *command, "--zero-stage", "1"]
        done = check.run(command, env={**(check.args.child_env or {}), **MPI_ENVIRONMENT})
        losses[ranks] = parse.train_log(done.text)["loss"]
        if not done.ok or not losses[ranks]:
            return f"{ranks} rank(s): {last_line(done.text)}"
    result["shared_steps"] = len(losses[1])
    result["shared_difference"] = max(abs(losses[1][step] - losses[2].get(step, float("inf"))) for step in losses[1])
    return "" if result["shared_difference"] <= RANKS_TOLERANCE else "two ranks and one have other losses"


def ranks(check, result):
    why = one_rank_over_nccl(check, result)
    wrong = two_ranks_on_one_gpu(check, result)
    cost = f"one rank over NCCL: {100 * result['nccl_cost']:+.2f} % a step" if "nccl_cost" in result else ""
    said = [why or cost or result["nccl_note"]]
    if "shared_difference" in result:
        said.append(f"two ranks on the GPU: losses within {result['shared_difference']:.0e} of one rank's")
    elif "shared_note" in result:
        said.append(result["shared_note"])
    return ("failed" if why or wrong else "passed"), "; ".join(said + ([wrong] if wrong else []))


# ---- talk ----------------------------------------------------------------------------------------


def talk_rows(run, steps):
    """Ours beside the published figures, as far as the run came."""
    rows = []
    for kind, published in (("val_loss", TALK_VALIDATION), ("loss", TALK_TRAIN)):
        for step, theirs in published.items():
            ours = run[kind].get(step)
            checked = kind == "val_loss" and step > 0
            rows.append({"kind": kind, "step": step, "published": theirs, "ours": ours,
                         "checked": checked, "within": None if ours is None or not checked
                         else abs(ours - theirs) <= TALK_TOLERANCE})
    return [row for row in rows if row["step"] <= steps]


def talk(check, result):
    if not check.tiny and not check.shakespeare():
        return "not run", "no tinyshakespeare.txt: name its folder with --data or LATHE_TEST_DATA"
    flags = {"model": "talk", "data": check.data("char"), "dtype": "bf16", "steps": 300,
             "eval-interval": 100, "log-interval": 1}
    batches = [64, 32, 16, 8]
    if check.tiny:
        flags |= {**TINY, "total-batch-size": 128, "steps": 4, "eval-interval": 2, "eval-batches": 1}
        batches = [2]
    with machine.watched_gpu(result.setdefault("gpu", {})):
        done, run = train_fitting(check, flags, batches)
    result.update(run)
    reached = max(run["loss"], default=0)
    evaluations = ", ".join(f"{loss:.3f} at {step}" for step, loss in run["val_loss"].items())
    rate = f"{run['tokens_per_second']:.0f} tokens/s" if run["tokens_per_second"] else "no step"
    mfu = f", MFU {100 * run['mfu']:.1f} %" if run["mfu"] else ""
    summary = f"validation {evaluations or 'none'}; {rate}{mfu}"
    if not check.tiny:
        result["rows"] = talk_rows(run, 300)
    if done.timed_out:
        return "timed out", f"stopped after {done.seconds:.0f} s at step {reached}: {summary}"
    if not done.ok:
        return "failed", f"build/train: {last_line(done.text)}"
    if check.tiny:
        return ("passed" if reached == 4 and len(run["val_loss"]) == 3 else "failed"), summary
    good = all(row["within"] for row in result["rows"] if row["checked"])
    return ("passed" if good else "failed"), summary


PARTS = {
    "build": Part(build, least=20, share=240, most=600),
    "tests": Part(tests, least=10, share=60, most=240),
    "sanitizer": Part(sanitizer, least=15, share=30, most=120),
    "gpt2": Part(gpt2, least=8, share=60, most=180),
    "ranks": Part(ranks, least=8, share=40, most=120),
    "talk": Part(talk, least=60, share=240, most=900),
}
