#!/usr/bin/env python3
"""tools/gpu_check.py: order, reports, limits, exit codes, with simulated programs; what it extracts
from logs; and, given a build folder of CUDA on the CPU, the real programs.

usage: gpu_check_test.py [--real BUILD_DIR] [unittest's arguments]"""
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import tempfile
import time
import unittest
import unittest.mock
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.dont_write_bytecode = True
sys.path.insert(0, str(ROOT / "tools"))
import gpu_check_archive as archive  # noqa: E402
import gpu_check_machine as machine  # noqa: E402
import gpu_check_parse as parse  # noqa: E402
import gpu_check_plan as plan  # noqa: E402

# The losses that gpu-check compares with, and what build/train prints for such a run.
TRAIN = """#!/usr/bin/env bash
echo "lathe"; echo "  device      Pretended GPU, 1 multiprocessors"
[[ $* != *--help* ]] || { echo "--tf32 --deterministic ${FLAGS:---chunk-logits --autotune --profile}"; exit "${HELP_FAILS:-0}"; }
benchmark= batch= trace= ms=52
while [[ $# -gt 0 ]]; do
  case $1 in --benchmark) benchmark=1 ;; --batch-size) batch=$2 ;; --dry-run) exit 0 ;; --trace) trace=$2 ;; --deterministic) ms=65 ;; esac
  shift
done
if [[ $batch -gt ${LARGEST_BATCH:-1000} ]]; then
  echo "train: 99.0 GiB of GPU memory are needed: lower --batch-size, --seq-len or the model" >&2; exit 2
fi
[[ -z $trace ]] || { echo '{}' >"$trace"; exit 0; }
if [[ -n $benchmark ]]; then
  for s in 1 2 3; do echo "step $s/3 | loss 10.9$s | lr 1e-3 | norm 1.0 | 5$s.0 ms | 2.5k tok/s | mfu 40.$s% | eta 00:00"; done
  echo "median step $ms.00 ms, 315077 tokens/s over 3 steps"; exit 0
fi
echo "step 0/300 | val 4.2000"
line() { echo "step $1/300 | loss $2 | lr 1e-3 | norm 1.0 | 700.0 ms | 374.5k tok/s | mfu 45.0% | eta 00:00"; }
line 10 3.1500; line 100 2.4460; echo "step 100/300 | val 2.4800"
# A child in its own process group, like Ninja's and ctest's.
[[ -z ${HANG:-} ]] || { set -m; sleep 60 & echo $! >"$HANG"; wait; }
line 200 2.0700; echo "step 200/300 | val 2.1500"
line 300 1.5000; echo "step 300/300 | val ${LAST_LOSS:-1.7000}"
"""
PREPARE = """#!/usr/bin/env bash
while [[ $# -gt 0 ]]; do [[ $1 != --out ]] || out=$2; shift; done
mkdir -p "$out"; echo {} >"$out/tokenizer.json"; echo x >>"$out/times"
"""
GTEST = """#!/usr/bin/env bash
[[ -z ${SKIP:-} ]] || { echo "[ RUN      ] Good.One"; echo "[  SKIPPED ] Good.One (0 ms)"; exit 0; }
echo "[ RUN      ] Good.One"; echo "[       OK ] Good.One (3 ms)"
echo "[ RUN      ] Bad.One"
[[ -z ${BREAK:-} ]] || { echo "bad_test.cpp:7: Failure"; echo "[  FAILED  ] Bad.One (1 ms)"; exit 1; }
echo "[       OK ] Bad.One (1 ms)"
"""
SMI = """#!/usr/bin/env bash
case "$*" in
  *--loop*) while true; do echo "1980, 650.5, 60"; sleep 0.2; done ;;
  *gpu=compute_cap*) echo 9.0 ;;
  *name*) echo "NVIDIA Pretended H100, 580.1, 9.0, 81559, 0, 345, 1980, 2619, 2619, 700.00, 30" ;;
esac
"""
SANITIZER = """#!/usr/bin/env bash
[[ $1 != --help ]] || { echo "--kernel-name kernel_substring=X"; exit 0; }
tool=$2
while [[ $1 == --* ]]; do [[ $1 == --report-api-errors || $1 == --tool || $1 == --kernel-name || $1 == --error-exitcode || $1 == --print-limit ]] && shift; shift; done
echo "========= COMPUTE-SANITIZER"
"$@"
if [[ $tool == "${FINDS:-}" ]]; then
  echo "========= Invalid __global__ read of size 4 bytes"
  echo "=========     at lathe::cuda::f(float *)+0x10 in f.cu:12"
  echo "========= ERROR SUMMARY: 1 error"; exit 99
fi
[[ $tool == racecheck ]] && echo "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)" ||
  echo "========= ERROR SUMMARY: 0 errors"
"""
# Scripts of profiling/ that print a table and write it as JSON; and Nsight Compute's, which writes a CSV.
TABLE = """#!/usr/bin/env python3
import sys
print("| operation | ms |\\n| --- | --- |\\n| adamw | 1.3 |")
open(sys.argv[sys.argv.index("--json") + 1], "w").write('[{"operation": "adamw"}]')
"""
NCU = """#!/usr/bin/env bash
[[ $2 == -- && $* == *"--n-layer 1"* && $* == *"--profile 3:4"* ]] && echo counters >"$1"
"""
BENCH = """#!/usr/bin/env bash
[[ $* == "--device cuda --batch-size 16,64" ]] || exit 2
echo "operation    shape    us    least    GFLOP/s    GB/s   share"
echo "gelu_forward   65536x3072    300.1    290.0    -    2800.0   84.0 %"
"""
CMAKE = """#!/usr/bin/env bash
[[ $1 == --version ]] && { echo "cmake version 9.9"; exit 0; }
[[ -z ${CMAKE_FAILS:-} ]] || { echo "CMake Error: no"; exit 1; }
[[ $1 == --preset ]] && { echo "-- lathe: no MPI"; exit 0; }
cp "$(dirname "$0")"/../finished/* "$2/"; echo "[1/1] compiled"
"""
TORCH = """#!/usr/bin/env bash
[[ $1 != -c ]] || { echo 9.9.9; exit 0; }
echo '{"variant": "eager", "torch": "9.9.9", "median_ms": 104.0, "min_ms": 103, "max_ms": 110, "tokens_per_second": 157538}'
sleep ${TORCH_HANGS:-0}
echo '{"variant": "compiled", "torch": "9.9.9", "median_ms": 78.0, "min_ms": 77, "max_ms": 90, "tokens_per_second": 210051}'
"""


def alive(pid_file, seconds=15):
    """Whether a process is running; a dead process that has not been waited for is not."""
    stat_file = Path(f"/proc/{pid_file.read_text().strip()}/stat")
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if stat_file.read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return False
        except OSError:
            return False
        time.sleep(0.05)
    return True


class Machine(unittest.TestCase):
    """A repository, a build folder and a machine of shell scripts."""

    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.root = Path(self.folder.name)
        for name, text in {"build/train": TRAIN, "build/prepare": PREPARE, "build/bench_device": BENCH,
                           "build/tests/cuda_ops_test": GTEST,
                           "bin/nvidia-smi": SMI, "bin/compute-sanitizer": SANITIZER, "bin/torch": TORCH, "bin/ncu": NCU,
                           "profiling/roofline.py": TABLE, "profiling/ncu_report.py": TABLE, "profiling/ncu.sh": NCU,
                           }.items():
            self.script(name, text)
        (self.root / "tools").mkdir()
        for file in (ROOT / "tools").glob("gpu_check*.py"):
            shutil.copy(file, self.root / "tools")
        for file in ("CMakeLists.txt", "CMakePresets.json"):
            (self.root / file).write_text("")
        (self.root / "data").mkdir()
        (self.root / "data/tinyshakespeare.txt").write_text("First Citizen:\n" * 100)
        (self.root / "build/CTestTestfile.cmake").write_text(
            f'add_test(cuda_ops_test "{self.root}/build/tests/cuda_ops_test")\n'
            'set_tests_properties(cuda_ops_test PROPERTIES LABELS cuda)\n')

    def script(self, name, text):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def command(self, *arguments, build=("--no-build",)):
        return [sys.executable, self.root / "tools/gpu_check.py", *build, "--build-dir", self.root / "build",
                "--out", self.root / "out", "--data", self.root / "data", "--python", self.root / "bin/torch",
                *arguments]

    def environment(self, **more):
        inherited = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        return {**inherited, "PATH": f"{self.root}/bin:{os.environ['PATH']}", "LATHE_CUBLASLT": "/nowhere",
                "LATHE_COMMIT": "abc1234", "LATHE_DEPS": "", **more}

    def check(self, *arguments, build=("--no-build",), **env):
        done = subprocess.run(self.command(*arguments, build=build), env=self.environment(**env), capture_output=True,
                              text=True, timeout=60, check=False)
        return done, *self.read()

    def read(self):
        newest = max((self.root / "out").glob("*-gpu-*.json"), key=lambda path: path.stat().st_mtime_ns)
        report = json.loads(newest.read_text())
        return report, newest.with_suffix(".md").read_text()


class Pretended(Machine):
    def test_everything_passes(self):
        done, report, text = self.check()
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertTrue(report["finished"])
        parts = report["parts"]
        self.assertEqual({part["status"] for part in parts.values()}, {"passed"})
        self.assertEqual(list(parts), ["steps", "roofline", "tests", "torch", "ncu", "bench", "talk", "ab", "sanitizer",
                                       "ranks", "fp32"])
        self.assertEqual(report["environment"]["gpu"]["name"], "NVIDIA Pretended H100")
        self.assertEqual(parts["tests"]["binaries"]["cuda_ops_test"]["cases"]["passed"], 2)
        self.assertEqual({run["tool"] for run in parts["sanitizer"]["runs"]}, {"memcheck", "racecheck"})
        self.assertIn("lathe is 1.50 times as fast", parts["torch"]["summary"])
        self.assertEqual(len(parts["torch"]["comparison"]["lathe"]), 2)
        self.assertEqual(parts["talk"]["val_loss"], {"0": 4.2, "100": 2.48, "200": 2.15, "300": 1.7})
        self.assertIn("| validation | 300 | 1.714 | 1.7000 | -0.0140 | within 0.05 |", text)
        self.assertIn("pretended-h100.md", done.stdout.splitlines()[-1])
        self.assertIn("every part passed", done.stdout.splitlines()[-1])
        self.assertLessEqual(len(list((self.root / "out").iterdir())), 8)

    def test_reports_show_no_folders_of_the_machine(self):
        _, report, text = self.check("--parts", "build,steps,tests")
        for written in (json.dumps(report), text):
            self.assertNotIn(str(ROOT), written)
            self.assertNotIn(str(self.root / "out"), written)

    def test_steps_stand_beside_what_was_predicted(self):
        _, report, text = self.check("--parts", "steps,roofline")
        self.assertEqual([(run["batch_size"], run["predicted_ms"]) for run in report["parts"]["steps"]["runs"]],
                         [(16, 31.1), (64, 116.4)])
        self.assertIn("| 64 | 52.00 | 116.4 |", text)
        self.assertEqual(report["parts"]["roofline"]["operations"], [{"operation": "adamw"}])
        self.assertIn("| adamw | 1.3 |", text)

    def test_open_questions_are_answered_both_ways(self):
        _, report, text = self.check("--parts", "ab")
        variants = {row["flags"]: row["ms"] for row in report["parts"]["ab"]["variants"]}
        self.assertEqual(variants["--deterministic"], [65, 65])
        self.assertIn("--chunk-logits 536870912", variants)
        self.assertIn("| --deterministic | 65.00, 65.00 | +25.0 % |", text)
        self.assertEqual(report["parts"]["ab"]["skipped"], ["--matmul-alignment"])  # this train does not list it

    def test_what_is_absent_is_said(self):
        (self.root / "profiling/ncu.sh").unlink()
        (self.root / "profiling/roofline.py").unlink()
        done, report, _ = self.check("--parts", "roofline,ncu", FLAGS="--none")
        self.assertEqual(done.returncode, 3)
        self.assertIn("no profiling/roofline.py", report["parts"]["roofline"]["summary"])
        self.assertIn("no ncu.sh, no train --profile", report["parts"]["ncu"]["summary"])

    def test_each_part_is_told_before_the_next_begins(self):
        pid = self.root / "pid"
        child = subprocess.Popen(self.command("--parts", "steps,tests,talk"), env=self.environment(HANG=str(pid)),
                                 stdout=subprocess.PIPE, text=True)
        lines = []
        while not lines or "talk ..." not in lines[-1]:
            lines.append(child.stdout.readline())
            self.assertTrue(lines[-1], lines)
        report, text = self.read()
        self.assertFalse(report["finished"])
        self.assertIsNone(child.poll())
        child.terminate()
        child.communicate(timeout=20)
        printed = "".join(lines)
        self.assertIn("batch 64: 52.0 ms a step (predicted 116.4)", printed)
        self.assertRegex(printed, r"tests +passed")
        self.assertIn("| 64 | 52.00 | 116.4 |", printed)
        self.assertEqual([part["status"] for part in report["parts"].values()][:2], ["passed", "passed"])
        self.assertIn("| 64 | 52.00 | 116.4 |", text)

    def test_nothing_is_overwritten_and_data_are_prepared_once(self):
        for _ in range(2):
            self.assertEqual(self.check("--parts", "talk")[0].returncode, 0)
        self.assertEqual(len(list((self.root / "out").glob("*.md"))), 2)
        times = list((self.root / "build/gpu-check").glob("*/times"))
        self.assertEqual([path.read_text() for path in times], ["x\n"])

    def test_a_failing_test_fails_and_does_not_stop_the_others(self):
        done, report, text = self.check("--parts", "tests,sanitizer,talk", BREAK="1", FINDS="memcheck")
        self.assertEqual(done.returncode, 1)
        self.assertEqual({name: part["status"] for name, part in report["parts"].items()},
                         {"tests": "failed", "talk": "passed", "sanitizer": "failed"})
        self.assertIn("Bad.One", report["parts"]["tests"]["binaries"]["cuda_ops_test"]["cases"]["failed"])
        self.assertIn("bad_test.cpp:7: Failure", text)
        self.assertIn("Invalid __global__ read of size 4 bytes: at lathe::cuda::f(float *)+0x10 in f.cu:12", text)
        self.assertIn("FAILED", done.stdout.splitlines()[-1])

    def test_a_test_that_crashes_fails(self):
        self.script("build/tests/cuda_ops_test", GTEST + "kill -SEGV $$\n")
        done, report, _ = self.check("--parts", "tests")
        self.assertEqual((done.returncode, report["parts"]["tests"]["status"]), (1, "failed"))
        self.assertIn("cuda_ops_test: failed", report["parts"]["tests"]["summary"])

    def test_tests_that_all_skip_prove_nothing(self):
        done, report, _ = self.check("--parts", "tests", SKIP="1")
        self.assertEqual(done.returncode, 1)
        self.assertEqual(report["parts"]["tests"]["binaries"]["cuda_ops_test"]["status"], "all skipped")

    def test_a_loss_that_is_off_fails(self):
        done, report, text = self.check("--parts", "talk", LAST_LOSS="1.7700")
        self.assertEqual((done.returncode, report["parts"]["talk"]["status"]), (1, "failed"))
        self.assertIn("| 1.7700 | +0.0560 | OFF |", text)

    def test_a_part_over_its_limit_is_killed_with_its_children(self):
        pid = self.root / "pid"
        begin = time.monotonic()
        done, report, text = self.check("--parts", "talk,ab", "--limits", "talk=2", HANG=str(pid))
        self.assertLess(time.monotonic() - begin, 15)
        self.assertEqual(done.returncode, 1)
        talk = report["parts"]["talk"]
        self.assertEqual((talk["status"], report["parts"]["ab"]["status"]), ("timed out", "passed"))
        self.assertEqual(talk["val_loss"], {"0": 4.2, "100": 2.48})
        self.assertIn("| validation | 100 | 2.479 | 2.4800 |", text)
        self.assertFalse(alive(pid))

    def test_the_budget_is_kept(self):
        begin = time.monotonic()
        done, report, _ = self.check("--parts", "torch,talk", "--budget", "10", TORCH_HANGS="60")
        self.assertLess(time.monotonic() - begin, 16)
        self.assertEqual(done.returncode, 3)
        self.assertEqual(report["parts"]["talk"]["status"], "not run")
        torch = report["parts"]["torch"]
        self.assertEqual(torch["status"], "passed")  # eager mode had reported before it hung
        self.assertEqual([v["variant"] for v in torch["comparison"]["torch"]], ["eager"])
        self.assertIn("2.00 times as fast", torch["summary"])

    def test_a_smaller_gpu_gets_a_smaller_batch(self):
        done, report, _ = self.check("--parts", "steps,torch,talk", LARGEST_BATCH="8")
        self.assertEqual(done.returncode, 0, done.stdout)
        self.assertEqual([run["batch_size"] for run in report["parts"]["steps"]["runs"]], [8])
        self.assertEqual(report["parts"]["torch"]["comparison"]["lathe"][0]["batch_size"], 8)
        self.assertEqual(report["parts"]["talk"]["batch_size"], 8)

    def test_absent_tools_are_said(self):
        (self.root / "bin/compute-sanitizer").unlink()
        done, report, _ = self.check("--parts", "sanitizer", PATH=f"{self.root}/bin:/usr/bin:/bin", CUDA_HOME="/nowhere")
        if report["environment"]["compute_sanitizer"]:
            self.skipTest("this machine has a compute-sanitizer")
        self.assertEqual(done.returncode, 3)
        self.assertIn("not available", report["parts"]["sanitizer"]["summary"])

    def test_a_signal_leaves_the_report(self):
        pid = self.root / "pid"
        child = subprocess.Popen(self.command("--parts", "tests,talk"), env=self.environment(HANG=str(pid)),
                                 stdout=subprocess.PIPE, text=True)
        while not pid.exists() or not pid.read_text():
            self.assertIsNone(child.poll())
            time.sleep(0.05)
        child.send_signal(signal.SIGTERM)
        out = child.communicate(timeout=20)[0]
        report, text = self.read()
        self.assertEqual(child.returncode, 128 + signal.SIGTERM)
        self.assertEqual(report["parts"]["tests"]["status"], "passed")
        self.assertEqual(report["parts"]["talk"]["status"], "interrupted")
        self.assertFalse(report["finished"])
        self.assertIn("was cut off", text)
        self.assertIn("INTERRUPTED", out)
        self.assertFalse(alive(pid))

    def test_wrong_usage(self):
        done = subprocess.run(self.command("--parts", "tests,cake"), env=self.environment(), capture_output=True,
                              text=True, check=False)
        self.assertEqual(done.returncode, 2)
        self.assertIn("cake", done.stderr)
        self.assertFalse((self.root / "out").exists())


class Continued(Machine):
    """A second call continues where the first ended."""

    def test_only_what_is_not_told_yet_is_run(self):
        self.check("--parts", "tests,talk", "--limits", "talk=2", HANG=str(self.root / "pid"), BREAK="1")
        done, report, text = self.check("--parts", "tests,talk,ab", "--continue")
        self.assertEqual(done.returncode, 1)  # a test failed, and that is reported
        self.assertEqual({name: part["status"] for name, part in report["parts"].items()},
                         {"tests": "failed", "talk": "passed", "ab": "passed"})
        self.assertNotIn("tests ...", done.stdout)
        self.assertEqual(len(list((self.root / "out").glob("*.md"))), 1)
        self.assertEqual(len(report["calls"]), 2)
        self.assertIn("bad_test.cpp:7: Failure", text)
        self.assertIn("within 0.05", text)

    def test_another_commit_is_another_report(self):
        self.check("--parts", "talk")
        _, report, _ = self.check("--parts", "tests", "--continue", LATHE_COMMIT="def5678")
        self.assertEqual(list(report["parts"]), ["tests"])

    def test_a_report_elsewhere_goes_on_in_out(self):
        self.check("--parts", "steps")
        (self.root / "out").rename(self.root / "before")
        done, report, _ = self.check("--parts", "steps,roofline", "--continue", self.root / "before")
        self.assertEqual(done.returncode, 0, done.stdout)
        self.assertEqual([part["status"] for part in report["parts"].values()], ["passed", "passed"])  # the trace came along

    def test_partial_results_stay_until_they_are_made_again(self):
        self.check("--parts", "talk", "--limits", "talk=2", HANG=str(self.root / "pid"))
        _, report, _ = self.check("--parts", "talk", "--continue", "--budget", "20")
        talk = report["parts"]["talk"]
        self.assertEqual((talk["status"], talk["val_loss"]["100"]), ("timed out", 2.48))
        self.assertIn("stopped after", talk["summary"])

    def test_estimates_are_corrected(self):
        self.check("--parts", "steps,talk", "--limits", "talk=2", HANG=str(self.root / "pid"))
        estimates = json.loads((self.root / "out/estimates.json").read_text())["NVIDIA Pretended H100"]
        self.assertLess(estimates["steps"], 30)
        self.assertGreaterEqual(estimates["talk"], 140)  # it was stopped: at least the estimate
        # Now that a part is known to be short, others get its time.
        _, report, _ = self.check("--parts", "steps,talk", "--budget", "100")
        self.assertEqual([part["status"] for part in report["parts"].values()], ["passed", "passed"])


class Carried(Machine):
    """Built binaries in an archive."""

    def setUp(self):
        super().setUp()
        shutil.move(self.root / "build", self.root / "finished")
        for name in ("sample", "corpus"):
            self.script(f"finished/{name}", "#!/bin/sh\n")
        self.script("bin/cmake", CMAKE)
        self.archive = self.root / "deps/binaries.tar.xz"
        self.pack()

    def pack(self, **changed):
        tests = [{"name": "cuda_ops_test", "command": ["{build}/tests/cuda_ops_test"], "limit_s": 60,
                  "environment": {"LATHE_GOLDEN_DIR": "{root}/tests/model/golden"}}]
        about = {"format": archive.FORMAT, "commit": "feed123", "changed": False, "preset": "gpu",
                 "sources": archive.sources_hash(self.root), "architectures": ["80-real", "90a-real"],
                 "march": "native", "compiler": "c++", "nvcc": "13.0", "kernels": [], "tests": tests, **changed}
        stage = self.root / "stage"
        shutil.copytree(self.root / "finished", stage, dirs_exist_ok=True)
        (stage / archive.LIST).write_text(json.dumps(about))
        self.archive.parent.mkdir(exist_ok=True)
        with tarfile.open(self.archive, "w:xz") as tar:
            for name in [archive.LIST, *archive.PROGRAMS, "tests/cuda_ops_test"]:
                tar.add(stage / name, name)

    def carried(self, *arguments, **env):
        return self.check("--parts", "build,tests,talk", *arguments, build=(), **env)

    def test_binaries_are_found_and_used(self):
        done, report, text = self.carried(LATHE_COMMIT="")
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertEqual(report["commit"], "feed123")  # from the archive: the copy has no git
        self.assertEqual(report["parts"]["tests"]["binaries"]["cuda_ops_test"]["cases"]["passed"], 2)
        self.assertIn("build/carried/train", report["parts"]["talk"]["command"])
        self.assertIn("Binaries of commit feed123", text)
        self.assertNotIn("compiled", (next((self.root / "out").glob("*.log"))).read_text())

    def refused(self, why, **env):
        done, report, text = self.carried(**env)
        self.assertIn(why, report["parts"]["build"]["unfit"])
        self.assertIn(why, text)
        self.assertIn("compiled here", report["parts"]["build"]["summary"])
        self.assertEqual(report["parts"]["build"]["notes"], ["no MPI"])
        self.assertNotIn("build/carried", report["parts"]["talk"].get("command", ""))
        return report

    def test_other_sources_are_compiled(self):
        (self.root / "src").mkdir()
        (self.root / "src/new.cpp").write_text("int x;\n")
        report = self.refused("the sources differ")
        self.assertEqual(report["parts"]["talk"]["status"], "passed")

    def test_binaries_of_an_earlier_call_are_not_used_for_other_sources(self):
        self.assertEqual(self.carried()[0].returncode, 0)
        (self.root / "src").mkdir()
        (self.root / "src/new.cpp").write_text("int x;\n")
        report = self.refused("the sources differ")
        self.assertIn("build/train", report["parts"]["talk"]["command"])

    def test_another_gpu_gets_code_of_its_own(self):
        self.pack(architectures=["80-real", "100a-real"])
        self.refused("no code for compute capability 90")

    def test_an_older_cpu_gets_code_of_its_own(self):
        self.pack(march="x86-64-v3")
        unfit = archive.unfit_for(archive.about(self.archive), "gpu", "90", {"sse4_2"})
        self.assertIn("sources", unfit)  # this test's own tree is checked first
        known = {**archive.about(self.archive), "sources": archive.sources_hash()}
        self.assertIn("no avx2, bmi2, fma", archive.unfit_for(known, "gpu", "90", {"sse4_2"}))
        self.assertEqual(archive.unfit_for(known, "gpu", "90", {"avx2", "bmi2", "fma"}), "")

    def test_a_program_that_does_not_run_is_not_used(self):
        self.script("finished/train", "#!/bin/sh\necho no such symbol; exit 1\n")
        self.pack()
        self.script("finished/train", TRAIN)  # what cmake builds
        report = self.refused("train --help: no such symbol")
        self.assertEqual(report["parts"]["talk"]["status"], "passed")

    def test_a_program_without_its_libraries_is_not_used(self):
        self.script("bin/ldd", "#!/bin/sh\necho '\tlibfmt.so.9 => not found'\n")
        self.refused("needs libfmt.so.9")

    def test_a_broken_archive_is_not_used(self):
        self.archive.write_bytes(self.archive.read_bytes()[:200])
        self.refused("cannot be unpacked")

    def test_where_neither_works_nothing_is_run(self):
        self.archive.unlink()
        done, report, _ = self.carried(CMAKE_FAILS="1")
        self.assertEqual(done.returncode, 1)
        self.assertEqual([part["status"] for part in report["parts"].values()], ["failed", "not run", "not run"])
        self.assertEqual(report["parts"]["talk"]["summary"], "the build failed")

    def test_a_second_call_on_a_new_machine_unpacks_again(self):
        self.check("--parts", "build,tests", build=())
        shutil.rmtree(self.root / "build")
        done, report, _ = self.carried("--continue")
        self.assertEqual(done.returncode, 0, done.stdout)
        self.assertEqual([part["status"] for part in report["parts"].values()], ["passed"] * 3)
        self.assertNotIn("tests ...", done.stdout)


class Plan(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.estimates = plan.Estimates([self.folder.name], "a GPU")
        self.part = lambda estimate, least=1, most=1000: plan.Part(None, estimate, least, most)

    def limit(self, left, *estimates, **more):
        later = [(str(at), self.part(seconds)) for at, seconds in enumerate(estimates[1:])]
        return plan.limit_of("x", self.part(estimates[0], **more), left, later, self.estimates)

    def test_later_parts_keep_what_they_need(self):
        self.assertAlmostEqual(self.limit(1000, 100, 100, 200), 1000 - 360)
        self.assertAlmostEqual(self.limit(130, 100, 100), 130)  # the second does not fit anyway
        self.assertAlmostEqual(self.limit(250, 100, 300, 100), 130)  # nor here, but the third does
        self.assertEqual(self.limit(1000, 100, most=200), 200)
        self.assertEqual(self.limit(50, 100), 50)
        self.assertEqual(self.limit(50, 100, least=60), 0)

    def test_measured_seconds_take_the_place_of_estimates(self):
        self.estimates.correct("0", self.part(200), 50.0, True)
        self.assertAlmostEqual(self.limit(1000, 100, 200), 1000 - 60)
        again = plan.Estimates([self.folder.name], "a GPU")
        self.assertEqual(again.known, {"a GPU": {"0": 50.0}})
        self.estimates.correct("0", self.part(200), 80.0, False)
        self.assertEqual(self.estimates.known["a GPU"]["0"], 120.0)
        self.assertAlmostEqual(plan.Estimates([self.folder.name], "another").seconds("0", self.part(100)), 120)


class Archive(unittest.TestCase):
    def test_code_that_a_gpu_runs(self):
        for architectures, capability, runs in [(["80-real"], "80", True), (["80-real"], "89", True), (["80-real"], "90", False),
                                                (["90a-real"], "90", True), (["90a-real"], "91", False), (["89-real"], "80", False),
                                                (["100-real"], "103", True), (["100-real"], "120", False)]:
            self.assertEqual(archive.serves(architectures, capability), runs, (architectures, capability))

    def test_the_list_of_tests(self):
        listing = "noise " + json.dumps({"tests": [
            {"name": "a", "command": ["/b/tests/a", "--x"], "properties": [
                {"name": "ENVIRONMENT", "value": ["OMP_NUM_THREADS=1"]}, {"name": "TIMEOUT", "value": 60.0}]},
            {"name": "off", "command": ["/b/off"], "properties": [{"name": "DISABLED", "value": True}]}, {"name": "unbuilt"}]})
        self.assertEqual(archive.tests_of_listing(listing), [
            {"name": "a", "command": ["/b/tests/a", "--x"], "environment": {"OMP_NUM_THREADS": "1"}, "limit_s": 60.0}])
        self.assertEqual(archive.placed({"command": ["{build}/a", "{root}/b"]}, "/x", "/y"), {"command": ["/x/a", "/y/b"]})


class Toolkit(unittest.TestCase):
    def test_nvcc_in_path_may_be_a_link_or_a_script(self):
        with tempfile.TemporaryDirectory() as folder:
            root = Path(os.path.realpath(folder))
            toolkit = root / "cuda-13"
            for name in ("cuda-13/bin", "link", "script", "none"):
                (root / name).mkdir(parents=True)
            nvcc = toolkit / "bin/nvcc"
            nvcc.write_text('#!/bin/sh\necho "#\\$ TOP=$(dirname "$0")/.." >&2\n')
            nvcc.chmod(0o755)
            (root / "link/nvcc").symlink_to(nvcc)
            (root / "script/nvcc").write_text(f'#!/bin/sh\nexec {nvcc} "$@"\n')
            (root / "script/nvcc").chmod(0o755)
            for first, expected in (("cuda-13/bin", str(toolkit)), ("link", str(toolkit)), ("script", str(toolkit)),
                                    ("none", None)):
                path = f"{root / first}:/usr/bin:/bin" if expected else str(root / first)
                with self.subTest(first), unittest.mock.patch.dict(os.environ, PATH=path):
                    self.assertEqual(machine.cuda_toolkit(), expected)


class Logs(unittest.TestCase):
    def test_kernel_usage(self):
        log = """[3/9] Building CUDA object x.cu.o
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN5lathe4cuda1fIfEEvNS0_4ArgsE' for 'sm_90a'
ptxas info    : Function properties for _ZN5lathe4cuda1fIfEEvNS0_4ArgsE
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers
ptxas info    : Compile time = 10.5 ms
ptxas info    : Compiling entry function '_ZN5lathe4cuda1gEv' for 'sm_90a'
ptxas info    : Function properties for _ZN5lathe4cuda1gEv
    16 bytes stack frame, 24 bytes spill stores, 32 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers
ptxas info    : Function properties for cudaMalloc
    8 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads
"""
        f, g = parse.kernel_usage(log)
        self.assertEqual((f["kernel"], f["registers"], f["spill_stores"]), ("f<float>", 40, 0))
        self.assertEqual((g["kernel"], g["registers"], g["spill_loads"], g["stack"]), ("g", 255, 32, 16))

    def test_compiler_output(self):
        log = "a.cpp:1:2: warning: unused\nptxas warning : Registers are spilled\nfine\na.cpp:1:2: warning: unused\n"
        self.assertEqual(len(parse.compiler_warnings(log)), 2)
        self.assertEqual(parse.compiler_errors("x\na.cu(3): error: no\ny"), ["a.cu(3): error: no"])

    def test_sanitizer_output(self):
        found = parse.sanitizer_findings("""========= COMPUTE-SANITIZER
========= Error: Race reported between Write access at f(float *)+0x210 in f.cu:10
=========     and Read access at f(float *)+0x290 in f.cu:12 [128 hazards]
=========
========= Error: Race reported between Write access at f(float *)+0x220 in f.cu:10
=========     and Read access at f(float *)+0x2a0 in f.cu:12 [64 hazards]
========= RACECHECK SUMMARY: 2 hazards displayed (2 errors, 0 warnings)
""")
        self.assertEqual(found["errors"], 2)
        self.assertEqual([kind["times"] for kind in found["kinds"]], [2])
        refused = parse.sanitizer_findings("========= COMPUTE-SANITIZER\n========= Error: Device not supported\n")
        self.assertEqual((refused["errors"], refused["kinds"]), (None, []))
        self.assertIn("Device not supported", refused["refusal"])


class Real(unittest.TestCase):
    """The programs that CUDA on the CPU built: the same flow with tiny models."""

    build_dir = None

    def test_cuda_on_cpu(self):
        if not self.build_dir:
            self.skipTest("no build folder was named (--real)")
        done = subprocess.run([Path(self.build_dir) / "train", "--help"], capture_output=True, text=True, check=True)
        if "cuda" not in done.stdout:
            self.skipTest("this build/train knows no --device cuda")
        with tempfile.TemporaryDirectory() as out:
            done = subprocess.run(
                [sys.executable, ROOT / "tools/gpu_check.py", "--preset", "cuda-on-cpu", "--no-build", "--build-dir",
                 self.build_dir, "--parts", "steps,roofline,tests,torch,talk,ab,ranks", "--tests", "^cuda_on_cpu_test$",
                 "--out", out], capture_output=True, text=True, timeout=150, check=False)
            report = json.loads(next(Path(out).glob("*-gpu-cuda-on-cpu.json")).read_text())
        parts = report["parts"]
        self.assertIn(done.returncode, (0, 3), done.stdout + done.stderr + json.dumps(parts, indent=1))
        passed = {name for name, part in parts.items() if part["status"] == "passed"}
        self.assertLessEqual({"steps", "tests", "talk", "ab", "ranks"}, passed, done.stdout)
        self.assertGreater(parts["tests"]["binaries"]["cuda_on_cpu_test"]["cases"]["passed"], 0)
        self.assertGreater(parts["steps"]["runs"][1]["median_ms"], 0)
        if parts["roofline"]["status"] != "not run":
            self.assertEqual(parts["roofline"]["status"], "passed", parts["roofline"])
        self.assertEqual(sorted(parts["talk"]["val_loss"]), ["0", "2", "4"])


if __name__ == "__main__":
    if "--real" in sys.argv:
        at = sys.argv.index("--real")
        Real.build_dir = sys.argv[at + 1]
        del sys.argv[at:at + 2]
    unittest.main()
