"""The part `build` of `make gpu-check`: uses carried binaries, otherwise compiles."""
import json
import os
import re
import shlex
import shutil

import gpu_check_archive as archive
import gpu_check_machine as machine
import gpu_check_parse as parse
from gpu_check_run import last_line


def build(check, result):
    machine.warm_libraries()
    why = "no archive of binaries"
    if check.archive:
        result["archive"] = str(check.archive)
        why = use_archive(check, result)
        if not why:
            return "passed", (f"used the binaries of commit {result['carried']['commit']} from {check.archive.name}, "
                              f"{len(archive.tests_here(check.carried))} tests")
        result["unfit"] = why
    check.say(f"    {why}: compiling")
    check.programs = check.build_dir
    status, summary = compile_here(check, result)
    return status, f"{summary} (compiled here: {why})"


# ---- carried binaries ----------------------------------------------------------------------------


def use_archive(check, result):
    """Unpacks the archive and tries its programs. Why it cannot be used, or ""."""
    try:
        known = archive.about(check.archive)
        capability = machine.compute_capability(check.args.python) if check.args.preset == "gpu" else None
        if why := archive.unfit_for(known, check.args.preset, capability, machine.cpu_flags()):
            return f"{check.archive.name} cannot be used: {why}"
        if not unpacked(check.carried, known):
            archive.unpack(check.archive, check.carried)
    except archive.UNREADABLE as error:
        return f"{check.archive.name} cannot be unpacked: {type(error).__name__}: {error}"
    if why := does_not_run(check, known):
        return f"{check.archive.name} cannot be used: {why}"
    check.programs = check.carried
    result.update(built=True, kernels=known["kernels"],
                  carried={key: value for key, value in known.items() if key not in ("tests", "kernels")})
    return ""


def unpacked(folder, known):
    try:
        return json.loads((folder / archive.LIST).read_text(encoding="utf-8")) == known
    except (OSError, ValueError):
        return False


def does_not_run(check, known):
    """Why the unpacked programs do not run on this machine, or ""."""
    for program, lacking in archive.missing_libraries(check.carried, known).items():
        return f"{program} needs {', '.join(lacking)}"
    train = check.carried / "train"
    if not (done := check.run([train, "--help"], limit=30)).ok:
        return f"train --help: {last_line(done.text)}"
    if check.args.preset == "gpu" and check.report["environment"]["gpu"]:
        dry = [train, "--model", "shakespeare-cpu", "--vocab-size", "65", "--device", "cuda", "--dry-run"]
        if not (done := check.run(dry, limit=60)).ok:
            return f"train --device cuda: {last_line(done.text)}"
    return ""


# ---- compiling -----------------------------------------------------------------------------------


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


def compile_here(check, result):
    configured = check.run(configure(check))
    result["configure_s"] = configured.seconds
    result["notes"] = re.findall(r"^-- lathe: (.*)$", configured.text, re.MULTILINE)
    if not configured.ok:
        result["errors"] = parse.compiler_errors(configured.text)
        return stopped(configured, "CMake failed")
    check.save()
    targets = [*archive.PROGRAMS]
    if not any("GoogleTest" in note for note in result["notes"]):
        targets.append("cuda_tests")
    cores = len(os.sched_getaffinity(0))
    command = ["cmake", "--build", check.build_dir, "--parallel", cores, "--target", *targets]
    if (check.build_dir / "Makefile").exists():
        command += ["--", "--output-sync=target"]  # a kernel's registers span several lines
    built = check.run(command)
    result.update(build_s=built.seconds, build_cpu_s=built.cpu_seconds, cores=cores)
    return judge_build(check, result, built)


def judge_build(check, result, built):
    # Compiler output appears once; a later build of the same folder compiles nothing.
    kept = check.work / "compile.log"
    with open(kept, "a", encoding="utf-8") as file:
        file.write(built.text)
    result["warnings"] = parse.compiler_warnings(built.text)
    result["kernels"] = parse.kernel_usage(kept.read_text(encoding="utf-8"))
    if not built.ok:
        result["errors"] = parse.compiler_errors(built.text)
        return stopped(built, "the build failed")
    result["built"] = True
    spilling = [k["kernel"] for k in result["kernels"] if k["spill_stores"] or k["spill_loads"]]
    summary = (f"{len(result['kernels'])} kernels, {len(spilling)} spill, "
               f"{len(result['warnings'])} warnings")
    return ("failed" if spilling else "passed"), summary


def stopped(done, what):
    if done.timed_out:
        return "timed out", f"stopped after {done.seconds:.0f} s"
    return "failed", f"{what}: {last_line(done.text)}"
