#!/usr/bin/env python3
"""Rehearses `make gpu-check` on a machine with almost nothing: a chroot without network, git, MPI, oneDNN,
libfmt and whatever else a machine with a GPU may lack.

    carried   only binaries in an archive and python3: no compiler, no CMake
    compiled  g++, CMake, Ninja, nvcc's own files and the carried headers: the fallback

The programs of the preset cuda-on-cpu replace those for a GPU. Needs root, Debian and permission to create
namespaces; otherwise prints what is missing and exits with 77.

usage: gpu_rehearsal.py --build-dir BUILD [--compile quick|complete] [--binaries FILE]
  --build-dir  a finished build of the preset cuda-on-cpu
  --compile    quick: configure and compile a file of each kind; complete: all (many minutes)
  --binaries   an archive from tools/carry_binaries.sh: its programs must run there too
"""
import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.dont_write_bytecode = True
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "tests" / "tools")]
import bare_machine  # noqa: E402
import gpu_check_archive as archive  # noqa: E402
import gpu_check_machine  # noqa: E402

SKIPPED = 77
TESTS = "^(cuda_on_cpu_test|cuda_device_test|cuda_transformer_test)$"
REPOSITORY = "/srv/lathe"
# One file for each dependency of a build: CLI11 and fmt; cuBLASLt's header; NCCL's; a kernel for
# nvcc.
SAMPLES = ["src/io/CMakeFiles/lathe_io.dir/flags.cpp.o", "kernels/cuda/CMakeFiles/lathe_cuda.dir/matmul.cpp.o",
           "src/comm/CMakeFiles/lathe_comm.dir/nccl_communicator.cpp.o",
           "kernels/cuda/CMakeFiles/lathe_cuda.dir/cast.cu.o"]


def require(condition, what, done=None):
    if not condition:
        print(done.stdout[-6000:] + done.stderr[-2000:] if done else "")
        sys.exit(f"gpu_rehearsal: FAILED: {what}")


def copy_repository(machine):
    """The tracked files, and untracked ones that are not ignored, as copied: no .git, no build folder."""
    listed = subprocess.run(["git", "-C", ROOT, "ls-files", "--cached", "--others", "--exclude-standard"],
                            capture_output=True, text=True, check=True).stdout
    for name in listed.splitlines():
        if (ROOT / name).is_file():
            target = machine.root / REPOSITORY[1:] / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target)


def gpu_check(machine, *arguments, **environment):
    command = ["python3", "tools/gpu_check.py", *arguments, "--out", "/srv/out"]
    done = machine.run(command, REPOSITORY, timeout=3600, **environment)
    reports = list((machine.root / "srv/out").glob("*-gpu-*.md"))
    require(len(reports) == 1, f"one report was expected, not {len(reports)}", done)
    return done, json.loads(reports[0].with_suffix(".json").read_text()), reports[0].read_text()


# ---- carried -------------------------------------------------------------------------------------


def lend_stand_in(machine, build):
    """The libraries that CUDA on the CPU links with here."""
    found = set()
    for program in ("train", "tests/cuda_transformer_test", "tests/cuda_on_cpu_test"):
        output = subprocess.run(["ldd", build / program], capture_output=True, text=True, check=True).stdout
        found |= {path for name, path in re.findall(r"^\s*(\S+?)\.so\S* => (/\S+)", output, re.MULTILINE)
                  if name not in archive.SYSTEM_LIBRARIES}
    machine.lend_libraries(sorted(found))


def rehearse_carried(machine, build):
    """The whole flow from an archive, in two calls."""
    machine.install("bash", "dash", "coreutils", "libc-bin", "libgomp1", "libstdc++6", "python3")
    for tool in ("git", "cmake", "ctest", "g++", "mpirun"):
        require(machine.run(["bash", "-c", f"type {tool}"]).returncode != 0, f"the bare machine has {tool}")
    deps = machine.root / REPOSITORY[1:] / "deps"
    archive.pack(build, deps / "binaries.tar.xz", TESTS)
    lend_stand_in(machine, build)
    begin = ["--preset", "cuda-on-cpu"]
    done, report, _ = gpu_check(machine, *begin, "--parts", "build,steps,roofline,tests")
    statuses = {name: part["status"] for name, part in report["parts"].items()}
    require(statuses["build"] == statuses["steps"] == statuses["tests"] == "passed", f"the first call: {statuses}", done)
    require("carried" in report["parts"]["build"], "the archive was not used", done)
    require(report["commit"] == archive.about(deps / "binaries.tar.xz")["commit"], "the commit is the archive's", done)
    done, report, text = gpu_check(machine, *begin, "--continue")
    require(len(report["calls"]) == 2 and "tests ..." not in done.stdout, "the second call goes on", done)
    parts = report["parts"]
    ended = {name: part["status"] for name, part in parts.items()}
    require(all(ended[name] == "passed" for name in ("build", "steps", "tests", "talk", "ab", "ranks")), f"{ended}", done)
    require(set(ended.values()) <= {"passed", "not run"}, f"{ended}", done)
    require("not installed" in parts["torch"]["summary"], "PyTorch is not there, and it was not said", done)
    require("no mpirun" in parts["ranks"]["summary"], "mpirun is not there, and it was not said", done)
    require("| passed |" in text and "## steps" in text, "the report for people", done)
    print(done.stdout)


def rehearse_gpu_binaries(machine, file):
    """Runs the programs for a GPU on the bare machine, as far as they get without a GPU."""
    into = machine.root / "srv/gpu-binaries"
    archive.unpack(file, into)
    known = archive.about(file)
    for name in archive.programs_of(known):
        done = machine.run(["ldd", f"/srv/gpu-binaries/{name}"])
        require(done.returncode == 0 and "not found" not in done.stdout, f"{name} lacks a library", done)
    done = machine.run(["/srv/gpu-binaries/train", "--help"])
    require(done.returncode == 0 and "--device" in done.stdout, "train --help", done)
    done = machine.run(["/srv/gpu-binaries/tests/cuda_device_test"])
    require("no GPU" in done.stdout, "the tests start, and say what they lack", done)
    print(f"the programs of {file.name} start on the bare machine")


# ---- compiled ------------------------------------------------------------------------------------


def rehearse_compiled(machine, toolkit, complete):
    """The fallback: no archive, but carried headers."""
    machine.libraries = []
    machine.install("g++", "cmake", "ninja-build", "binutils")
    machine.install_nvcc(toolkit)
    deps = machine.root / REPOSITORY[1:] / "deps"
    subprocess.run([ROOT / "tools" / "carry_deps.sh", deps], check=True)
    require(not list(machine.root.glob("usr/include/fmt")), "the bare machine has fmt")
    require(not (machine.root / "usr/local/cuda/include/cublasLt.h").exists(), "the bare machine has cublasLt.h")
    if complete:
        shutil.rmtree(machine.root / "srv/out", ignore_errors=True)
        done, report, _ = gpu_check(machine, "--binaries", "none", "--parts", "build", "--budget", "3500",
                                    "--limits", "build=3500", LATHE_COMMIT="abc1234")
        require(report["parts"]["build"]["status"] == "passed", "the build", done)
        notes = report["parts"]["build"]["notes"]
        print(done.stdout)
    else:
        notes = compile_samples(machine)
    require("no MPI, so a run has one rank" in notes and not any("NCCL" in note or "GoogleTest" in note for note in notes),
            f"CMake found other things than the machine has: {notes}")


def compile_samples(machine):
    deps = f"{REPOSITORY}/deps"
    command = ["cmake", "--preset", "gpu", "-DLATHE_CUDA_ARCHITECTURES=90a-real"]
    configured = machine.run(command, REPOSITORY, LATHE_DEPS=deps)
    require(configured.returncode == 0, "CMake", configured)
    built = machine.run(["cmake", "--build", "build/gpu", "--target", *SAMPLES], REPOSITORY, LATHE_DEPS=deps)
    require(built.returncode == 0, "the compilers", built)
    folder = machine.root / REPOSITORY[1:] / "build/gpu"
    require(all((folder / name).exists() for name in SAMPLES), "an object is missing", built)
    print(f"configured and compiled {len(SAMPLES)} files with carried headers")
    return re.findall(r"^-- lathe: (.*)$", configured.stdout, re.MULTILINE)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build-dir", type=Path, required=True)
    parser.add_argument("--compile", choices=["quick", "complete"], default="quick")
    parser.add_argument("--binaries", type=Path)
    args = parser.parse_args()
    if why := bare_machine.why_impossible():
        print(f"gpu_rehearsal: SKIPPED: {why}")
        return SKIPPED
    with tempfile.TemporaryDirectory(prefix="lathe-bare-") as folder:
        machine = bare_machine.BareMachine(folder)
        copy_repository(machine)
        rehearse_carried(machine, args.build_dir.resolve())
        if args.binaries:
            rehearse_gpu_binaries(machine, args.binaries)
        gpu_check_machine.add_tools_to_path()
        toolkit = gpu_check_machine.cuda_toolkit()
        if not toolkit:
            print("gpu_rehearsal: no nvcc here, so nothing is compiled there")
            return 0
        rehearse_compiled(machine, Path(toolkit), args.compile == "complete")
    return 0


if __name__ == "__main__":
    sys.exit(main())
