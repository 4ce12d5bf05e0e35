"""The parts `talk` and `ranks` of `make gpu-check`: whole training runs and their expected results."""
import shutil

import gpu_check_machine as machine
import gpu_check_parse as parse
from gpu_check_run import last_line
from gpu_check_train import TINY, gpt2_124m, train_fitting, words

# The run of wordplay on four A100s: validation loss by step, training loss by step.
TALK_VALIDATION = {0: 4.129, 100: 2.479, 200: 2.149, 300: 1.714}
TALK_TRAIN = {10: 3.154, 100: 2.446, 200: 2.068, 300: 1.492}
TALK_TOLERANCE = 0.05  # at every evaluation except the first, of the initial weights


# ---- talk ----------------------------------------------------------------------------------------


def talk_rows(run, steps):
    """Ours beside the published figures, as far as the run got."""
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


# ---- ranks ---------------------------------------------------------------------------------------


MPI_ENVIRONMENT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
                   "OMPI_MCA_rmaps_base_oversubscribe": "1", "OMPI_MCA_hwloc_base_binding_policy": "none"}
RANKS_TOLERANCE = 2e-4  # of losses printed with four digits, fp32


def one_rank_over_nccl(check, result):
    """A step with NCCL's collectives against one without, in turns. Why there is no figure, or ""."""
    flags = {**gpt2_124m(check), "steps": 4 if check.tiny else 20, "benchmark": True}
    batches = [2] if check.tiny else [16, 8, 4, 2]
    result["turns"] = []
    for comm in ("auto", "nccl", "auto", "nccl"):
        done, run = train_fitting(check, {**flags, "comm": comm}, batches)
        if comm == "nccl" and ("has no NCCL" in done.text or "libnccl.so.2 is not found" in done.text):
            result["nccl_note"] = "no NCCL, so its cost was not measured"
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
    """The losses of two ranks that share the GPU against those of one. What is wrong, or ""."""
    mpirun = shutil.which("mpirun")
    if not mpirun:
        result["shared_note"] = "no mpirun, so two ranks were not run"
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
        if "this build has no MPI" in done.text:  # carried binaries have none
            result["shared_note"] = "two ranks were not run, because this build has no MPI"
            return ""
        if not done.ok or not losses[ranks]:
            return f"{ranks} rank(s): {last_line(done.text)}"
    result["shared_steps"] = len(losses[1])
    result["shared_difference"] = max(abs(losses[1][step] - losses[2].get(step, float("inf"))) for step in losses[1])
    return "" if result["shared_difference"] <= RANKS_TOLERANCE else "two ranks have other losses than one"


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
