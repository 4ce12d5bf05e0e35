#!/usr/bin/env python3
"""tools/gpu_check.py: reports, limits, exit codes, with programs that only pretend; what it reads out
of logs; and, given a build folder of CUDA on the CPU, the real programs.

usage: gpu_check_test.py [--real BUILD_DIR] [unittest's arguments]"""
import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.dont_write_bytecode = True
sys.path.insert(0, str(ROOT / "tools"))
import gpu_check_parse as parse  # noqa: E402

# Losses of the run that gpu-check compares with, and what build/train prints of one.
TRAIN = """#!/usr/bin/env bash
echo "lathe"; echo "  device      Pretended GPU, 1 multiprocessors"
benchmark= batch=
while [[ $# -gt 0 ]]; do
  case $1 in --benchmark) benchmark=1 ;; --batch-size) batch=$2 ;; --dry-run) exit 0 ;; --help) exit 0 ;; esac
  shift
done
if [[ $batch -gt ${LARGEST_BATCH:-1000} ]]; then
  echo "train: 99.0 GiB of the GPU's memory wanted: lower --batch-size, --seq-len or the model" >&2; exit 2
fi
if [[ -n $benchmark ]]; then
  for s in 1 2 3; do echo "step $s/3 | loss 10.9$s | lr 1e-3 | norm 1.0 | 5$s.0 ms | 2.5k tok/s | mfu 40.$s% | eta 00:00"; done
  echo "median step 52.00 ms, 315077 tokens/s over 3 steps"; exit 0
fi
echo "step 0/300 | val 4.2000"
line() { echo "step $1/300 | loss $2 | lr 1e-3 | norm 1.0 | 700.0 ms | 374.5k tok/s | mfu 45.0% | eta 00:00"; }
line 10 3.1500; line 100 2.4460; echo "step 100/300 | val 2.4800"
# A child in a process group of its own, as Ninja's and ctest's are.
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
  *name*) echo "NVIDIA Pretended 1, 580.1, 9.0, 81559, 0, 345, 1980, 2619, 2619, 700.00, 30" ;;
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
TORCH = """#!/usr/bin/env bash
[[ $1 != -c ]] || { echo 9.9.9; exit 0; }
echo '{"variant": "eager", "torch": "9.9.9", "median_ms": 104.0, "min_ms": 103, "max_ms": 110, "tokens_per_second": 157538}'
sleep ${TORCH_HANGS:-0}
echo '{"variant": "compiled", "torch": "9.9.9", "median_ms": 78.0, "min_ms": 77, "max_ms": 90, "tokens_per_second": 210051}'
"""


def alive(pid_file, seconds=15):
    """Whether a process is still there; one that is dead and not yet waited for is not."""
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


class Pretended(unittest.TestCase):
    """A build folder and a machine of shell scripts."""

    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.root = Path(self.folder.name)
        for name, text in {"build/train": TRAIN, "build/prepare": PREPARE, "build/tests/fake_test": GTEST,
                           "bin/nvidia-smi": SMI, "bin/compute-sanitizer": SANITIZER, "bin/torch": TORCH}.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            path.chmod(path.stat().st_mode | stat.S_IXUSR)
        (self.root / "data").mkdir()
        (self.root / "data/tinyshakespeare.txt").write_text("First Citizen:\n" * 100)
        (self.root / "build/CTestTestfile.cmake").write_text(
            f'add_test(fake_test "{self.root}/build/tests/fake_test")\n'
            'set_tests_properties(fake_test PROPERTIES LABELS cuda)\n')

    def command(self, *arguments):
        return [sys.executable, ROOT / "tools/gpu_check.py", "--no-build", "--build-dir", self.root / "build",
                "--out", self.root / "out", "--data", self.root / "data", "--python", self.root / "bin/torch",
                *arguments]

    def environment(self, **more):
        return {**os.environ, "PATH": f"{self.root}/bin:{os.environ['PATH']}", "LATHE_CUBLASLT": "/nowhere", **more}

    def check(self, *arguments, **env):
        done = subprocess.run(self.command(*arguments), env=self.environment(**env), capture_output=True,
                              text=True, timeout=60, check=False)
        return done, *self.read()

    def read(self):
        newest = max((self.root / "out").glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
        report = json.loads(newest.read_text())
        return report, newest.with_suffix(".md").read_text()

    def test_everything_passes(self):
        done, report, text = self.check()
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertTrue(report["finished"])
        self.assertEqual({part["status"] for part in report["parts"].values()}, {"passed"})
        self.assertEqual(report["environment"]["gpu"]["name"], "NVIDIA Pretended 1")
        self.assertEqual(report["parts"]["tests"]["binaries"]["fake_test"]["cases"]["passed"], 2)
        self.assertEqual(len(report["parts"]["sanitizer"]["runs"]), 4)
        self.assertIn("lathe is 1.50 times as fast", report["parts"]["gpt2"]["summary"])
        self.assertEqual(len(report["parts"]["gpt2"]["runs"][0]["lathe"]), 2)
        self.assertEqual(report["parts"]["talk"]["val_loss"], {"0": 4.2, "100": 2.48, "200": 2.15, "300": 1.7})
        self.assertIn("| validation | 300 | 1.714 | 1.7000 | -0.0140 | within 0.05 |", text)
        self.assertIn("pretended-1.md", done.stdout.splitlines()[-1])
        self.assertIn("every part passed", done.stdout.splitlines()[-1])

    def test_nothing_is_overwritten_and_data_are_prepared_once(self):
        for _ in range(2):
            self.assertEqual(self.check("--parts", "talk")[0].returncode, 0)
        self.assertEqual(len(list((self.root / "out").glob("*.md"))), 2)
        times = list((self.root / "build/gpu-check").glob("*/times"))
        self.assertEqual([path.read_text() for path in times], ["x\n"])

    def test_a_failing_test_fails_and_does_not_stop_the_others(self):
        done, report, text = self.check("--parts", "tests,sanitizer,talk", BREAK="1", FINDS="memcheck")
        self.assertEqual(done.returncode, 1)
        self.assertEqual([part["status"] for part in report["parts"].values()], ["failed", "failed", "passed"])
        self.assertIn("Bad.One", report["parts"]["tests"]["binaries"]["fake_test"]["cases"]["failed"])
        self.assertIn("bad_test.cpp:7: Failure", text)
        self.assertIn("Invalid __global__ read of size 4 bytes: at lathe::cuda::f(float *)+_ in f.cu:12"
                      .replace("+_", "+0x10"), text)
        self.assertIn("FAILED", done.stdout.splitlines()[-1])

    def test_tests_that_all_skip_prove_nothing(self):
        done, report, _ = self.check("--parts", "tests", SKIP="1")
        self.assertEqual(done.returncode, 1)
        self.assertEqual(report["parts"]["tests"]["binaries"]["fake_test"]["status"], "all skipped")

    def test_a_loss_that_is_off_fails(self):
        done, report, text = self.check("--parts", "talk", LAST_LOSS="1.7700")
        self.assertEqual((done.returncode, report["parts"]["talk"]["status"]), (1, "failed"))
        self.assertIn("| 1.7700 | +0.0560 | OFF |", text)

    def test_a_part_over_its_limit_is_killed_with_its_children(self):
        pid = self.root / "pid"
        begin = time.monotonic()
        done, report, text = self.check("--parts", "talk,tests", "--limits", "talk=2", HANG=str(pid))
        self.assertLess(time.monotonic() - begin, 15)
        self.assertEqual(done.returncode, 1)
        talk = report["parts"]["talk"]
        self.assertEqual((talk["status"], report["parts"]["tests"]["status"]), ("timed out", "passed"))
        self.assertEqual(talk["val_loss"], {"0": 4.2, "100": 2.48})
        self.assertIn("| validation | 100 | 2.479 | 2.4800 |", text)
        self.assertFalse(alive(pid))

    def test_the_budget_is_kept(self):
        begin = time.monotonic()
        done, report, _ = self.check("--parts", "gpt2,talk", "--budget", "10", TORCH_HANGS="60")
        self.assertLess(time.monotonic() - begin, 16)
        self.assertEqual(done.returncode, 3)
        self.assertEqual(report["parts"]["talk"]["status"], "not run")
        gpt2 = report["parts"]["gpt2"]
        self.assertEqual(gpt2["status"], "passed")  # eager had been told before it hung
        self.assertEqual([v["variant"] for v in gpt2["runs"][0]["torch"]], ["eager"])
        self.assertIn("2.00 times as fast", gpt2["summary"])

    def test_a_smaller_gpu_gets_a_smaller_batch(self):
        done, report, _ = self.check("--parts", "gpt2,talk", LARGEST_BATCH="8")
        self.assertEqual(done.returncode, 0, done.stdout)
        self.assertEqual(report["parts"]["gpt2"]["runs"][0]["lathe"][0]["batch_size"], 8)
        self.assertEqual(report["parts"]["talk"]["batch_size"], 8)

    def test_absent_tools_are_said(self):
        (self.root / "bin/compute-sanitizer").unlink()
        done, report, _ = self.check("--parts", "sanitizer", PATH=f"{self.root}/bin:/usr/bin:/bin", CUDA_HOME="/nowhere")
        if "compute_sanitizer" in report["environment"] and report["environment"]["compute_sanitizer"]:
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

    def test_interrupted_ctest(self):
        log = """test 1
    Start 1: a_test
test 2
    Start 2: b_test
1: [ RUN      ] A.X
2: [ RUN      ] B.X
1: [       OK ] A.X (1 ms)
2: [       OK ] B.X (1 ms)
1/2 Test #1: a_test ...........................   Passed    0.01 sec
2: [ RUN      ] B.Y
"""
        found = parse.ctest_binaries(log, "/nowhere")
        self.assertEqual((found["a_test"]["status"], found["a_test"]["cases"]["passed"]), ("passed", 1))
        self.assertEqual((found["b_test"]["status"], found["b_test"]["cases"]["passed"]), ("cut off", 1))


class Real(unittest.TestCase):
    """The programs that CUDA on the CPU built: the same flow with tiny models."""

    build_dir = None

    def test_cuda_on_cpu(self):
        if not self.build_dir:
            self.skipTest("no build folder was named (--real)")
        told = subprocess.run([Path(self.build_dir) / "train", "--help"], capture_output=True, text=True, check=True)
        if "cuda" not in told.stdout:
            self.skipTest("this build/train knows no --device cuda")
        with tempfile.TemporaryDirectory() as out:
            done = subprocess.run(
                [sys.executable, ROOT / "tools/gpu_check.py", "--preset", "cuda-on-cpu", "--no-build", "--build-dir",
                 self.build_dir, "--parts", "tests,gpt2,ranks,talk", "--tests", "^cuda_on_cpu_test$", "--out", out],
                capture_output=True, text=True, timeout=120, check=False)
            report = json.loads(next(Path(out).glob("*.json")).read_text())
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr + json.dumps(report["parts"], indent=1))
        self.assertGreater(report["parts"]["tests"]["binaries"]["cuda_on_cpu_test"]["cases"]["passed"], 0)
        self.assertGreater(report["parts"]["gpt2"]["runs"][0]["lathe"][0]["median_ms"], 0)
        self.assertEqual(sorted(report["parts"]["talk"]["val_loss"]), ["0", "2", "4"])


if __name__ == "__main__":
    if "--real" in sys.argv:
        at = sys.argv.index("--real")
        Real.build_dir = sys.argv[at + 1]
        del sys.argv[at:at + 2]
    unittest.main()
