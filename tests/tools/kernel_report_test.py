#!/usr/bin/env python3
"""tools/kernel_report.py and step_model.py: with a simulated compiler and program; against NVIDIA's
own occupancy formula; and, given list_launches, against the real launchers.

usage: kernel_report_test.py [--list-launches PROGRAM] [--cuda-include DIR] [unittest's arguments]"""
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.dont_write_bytecode = True
sys.path.insert(0, str(ROOT / "tools"))
import kernel_report_compile as compiler  # noqa: E402
import kernel_report_launches as launches  # noqa: E402
import kernel_report_mix as mix  # noqa: E402
import kernel_report_occupancy as occupancy  # noqa: E402
import kernel_report_write as write  # noqa: E402
import step_model  # noqa: E402

LIST_LAUNCHES = CUDA_INCLUDE = None

# A compiler that compiles one kernel, with the registers and spills that the environment sets.
NVCC = """#!/usr/bin/env bash
if [[ $1 == --version ]]; then echo "Cuda compilation tools, release 13.0, V${VERSION:-13.0.88}"; exit 0; fi
echo x >>"$COMPILATIONS"
while [[ $# -gt 0 ]]; do
  case $1 in
    -o) out=$2; shift ;;
    --keep-dir=*) folder=${1#*=} ;;
    -Xptxas=-Werror) echo "error : a spill" >&2; exit 1 ;;
  esac
  shift
done
echo cubin >"$out"
cat >"$folder/f.ptx" <<EOT
.visible .entry _ZN5lathe4cuda1fIfEEvPT_(
	.param .u64 _ZN5lathe4cuda1fIfEEvPT__param_0
)
.maxntid 256, 1, 1
.minnctapersm ${LEAST_BLOCKS:-1}
{
	ret;
}
EOT
cat >&2 <<EOT
ptxas info    : Compiling entry function '_ZN5lathe4cuda1fIfEEvPT_' for 'sm_90a'
ptxas info    : Function properties for _ZN5lathe4cuda1fIfEEvPT_
    0 bytes stack frame, ${SPILL:-0} bytes spill stores, 0 bytes spill loads
ptxas info    : Used ${REGISTERS:-120} registers, used 1 barriers, 512 bytes smem, 380 bytes cmem[0]
EOT
"""
# Launchers that size the grid by the number of multiprocessors.
LISTING = """#!/usr/bin/env bash
while [[ $# -gt 0 ]]; do [[ $1 != --multiprocessors ]] || count=$2; shift; done
echo '{"run": {"L": 1, "H": 2, "C": 64, "V": 128, "T": 64, "B": 1, "dtype": "bf16", "flops_per_token": 1000, "multiprocessors": '$count'}}'
echo '{"phase": "step"}'
echo '{"op": "layernorm_backward", "flops": 0, "bytes": 1000000}'
echo '{"kernel": "_ZN5lathe4cuda1fIfEEvPT_", "file": "x.cu", "grid": ['$((2 * count))', 1, 1], "block": [32, 8, 1], "shared": '${SHARED:-6144}'}'
echo '{"product": [4096, 4096, 4096], "in": "bf16", "out": "fp32", "adds": true, "vector": false}'
"""


DISASSEMBLER = """#!/usr/bin/env bash
printf '\\t.section\\t.text._ZN5lathe4cuda1fIfEEvPT_,"ax",@progbits\\n'
printf '        /*0000*/                   LDG.E.128 R4, desc[UR4][R2.64] ;\\n'
"""


class Pretended(unittest.TestCase):
    """Whole runs of kernel_report.py."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = Path(folder.name)
        source = self.root / "kernels/cuda/x.cu"
        source.parent.mkdir(parents=True)
        source.write_text("// nothing\n", encoding="utf-8")
        for name, text in (("nvcc", NVCC), ("list_launches", LISTING),
                           ("disassembler", DISASSEMBLER)):
            path = self.root / name
            path.write_text(text, encoding="utf-8")
            path.chmod(path.stat().st_mode | stat.S_IXUSR)
        command = (f"ccache {self.root}/nvcc -I{ROOT} -O3 --generate-code=arch=compute_80,code=[sm_80] "
                   f"-Xptxas=-Werror -MD -MT x.o -MF x.d -x cu -c {source} -o x.o")
        (self.root / "compile_commands.json").write_text(
            json.dumps([{"file": str(source), "command": command, "directory": str(self.root)}]),
            encoding="utf-8")
        self.report = self.root / "report.json"

    def run_report(self, *arguments, **environment):
        return subprocess.run(
            [sys.executable, str(ROOT / "tools/kernel_report.py"), "--build", str(self.root),
             "--list-launches", str(self.root / "list_launches"), "--report", str(self.report),
             *arguments], capture_output=True, text=True, check=False,
            env={**os.environ, "PATH": "/usr/bin:/bin", "COMPILATIONS": str(self.root / "compilations"), **environment})

    def compilations(self):
        return len((self.root / "compilations").read_text(encoding="utf-8").splitlines())

    def recompile(self):
        shutil.rmtree(self.root / "kernel-report")

    def test_writes_the_report_and_is_content_with_it(self):
        done = self.run_report()
        self.assertEqual(done.returncode, 0, done.stderr)
        kernel = json.loads(self.report.read_text(encoding="utf-8"))["kernels"]["sm_90a"]["x.cu: f<float>"]
        self.assertEqual(kernel, {"registers": 120, "stack": 0, "spills": 0, "static": 512,
                                  "most_threads": 256, "least_blocks": 1, "threads": 256,
                                  "dynamic": 6144, "grid_blocks": 2, "blocks": 2, "limit": "registers"})
        page = self.report.with_suffix(".md").read_text(encoding="utf-8")
        self.assertIn("| x.cu: f<float> | 120 | 0 | 512 + 6144 | 256 | 2 | 16 | registers | 2 |", page)
        self.assertIn("PREDICTED", page)
        self.assertEqual(self.compilations(), 2)
        for check in ("compiled", "launched"):
            done = self.run_report("--check", check)
            self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(self.compilations(), 2)  # nothing changed
        self.assertIn("nothing changed", self.run_report().stdout)

    def test_fewer_blocks_than_the_grid_assumes_is_an_error(self):
        # LayerNorm's backward pass once: 168 registers x 256 threads, a grid for two blocks.
        self.assertEqual(self.run_report().returncode, 0)
        self.recompile()
        done = self.run_report("--check", "compiled", REGISTERS="168")
        self.assertEqual(done.returncode, 1)
        self.assertIn("sm_90a x.cu: f<float>: 1 of 2 assumed blocks fit a multiprocessor; the limit is "
                      "registers (168 registers x 256 threads", done.stderr)
        self.assertIn("registers 120 -> 168", done.stderr)
        done = self.run_report(REGISTERS="168")
        self.assertEqual(done.returncode, 1)
        self.assertIn("registers 120 -> 168", done.stdout)
        self.assertIn("## Problems", self.report.with_suffix(".md").read_text(encoding="utf-8"))
        # Even if the report was committed with it.
        self.assertEqual(self.run_report("--check", "compiled").returncode, 1)

    def test_fewer_blocks_than_launch_bounds_name_is_an_error(self):
        done = self.run_report(LEAST_BLOCKS="3")
        self.assertEqual(done.returncode, 1)
        self.assertIn("2 of 3 assumed blocks", done.stderr)

    def test_shared_memory_is_a_limit(self):
        done = self.run_report(SHARED="120000")
        self.assertEqual(done.returncode, 1)
        self.assertIn("1 of 2 assumed blocks fit a multiprocessor; the limit is shared memory", done.stderr)

    def test_a_spill_is_an_error_and_is_named(self):
        done = self.run_report(SPILL="24")
        self.assertEqual(done.returncode, 1)
        self.assertIn("x.cu: f<float> spills registers: 24 bytes", done.stderr)

    def test_a_report_of_other_sources_is_an_error(self):
        self.assertEqual(self.run_report().returncode, 0)
        (self.root / "kernels/cuda/x.cu").write_text("// changed\n", encoding="utf-8")
        done = self.run_report("--check", "compiled", REGISTERS="119")
        self.assertEqual(done.returncode, 1)
        self.assertIn("not as committed", done.stderr)
        done = self.run_report("--check", "launched", SHARED="6145")
        self.assertEqual(done.returncode, 1)
        self.assertIn("dynamic shared bytes 6144 -> 6145", done.stderr)

    def test_another_compiler_skips(self):
        self.assertEqual(self.run_report().returncode, 0)
        done = self.run_report("--check", "compiled", VERSION="12.9.41")
        self.assertEqual(done.returncode, 77)
        self.assertIn("SKIPPED", done.stdout)

    def test_instructions_stay_as_long_as_the_source_does(self):
        page = self.report.with_suffix(".md")
        self.run_report("--nvdisasm", str(self.root / "disassembler"))
        self.assertIn("| 1: LDG.128 x 1 |", page.read_text(encoding="utf-8"))
        self.run_report()
        self.assertIn("| 1: LDG.128 x 1 |", page.read_text(encoding="utf-8"))
        (self.root / "kernels/cuda/x.cu").write_text("// changed\n", encoding="utf-8")
        self.run_report()
        self.assertIn("| no disassembler |", page.read_text(encoding="utf-8"))
        done = self.run_report("--nvdisasm", "no-such-program")
        self.assertEqual(done.returncode, 2)
        self.assertIn("--nvdisasm no-such-program: no such program", done.stderr)

    def test_other_architectures_are_printed_alone(self):
        done = self.run_report("--arch", "sm_120")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("## sm_120", done.stdout)
        self.assertFalse(self.report.exists())
        done = self.run_report("--arch", "sm_70")
        self.assertEqual(done.returncode, 2)
        self.assertIn("--arch sm_70: known are", done.stderr)


class Reading(unittest.TestCase):
    def test_launch_bounds(self):
        bounds = compiler.launch_bounds(""".visible .entry a(
	.param .align 8 .b8 a_param_0[96]
)
.maxntid 32, 8, 1
.minnctapersm 2
{
}
.entry b()
{
}
""")
        self.assertEqual(bounds, {"a": (256, 2), "b": (None, None)})

    def test_instructions(self):
        kernels = mix.count("""	.section	.text._Z1fv,"ax",@progbits
        /*0000*/                   LDC R1, c[0x0][0x37c] ;
        /*0010*/              @!P0 LDG.E.128.CONSTANT R4, desc[UR4][R2.64] ;
        /*0020*/                   LDG.E.U16 R4, desc[UR4][R2.64] ;
        /*0030*/                   LDG.E R4, desc[UR4][R2.64] ;
        /*0040*/              @UP1 HMMA.16816.F32.BF16 R4, R4, R5, R6 ;
        /*0050*/                   MUFU.EX2 R4, R4 ;
        /*0060*/                   NOP ;
""")
        self.assertEqual(dict(kernels["_Z1fv"]), {"all": 6, "LDG.128": 1, "LDG.16": 1, "LDG.32": 1,
                                                  "HMMA": 1, "MUFU": 1})

    def test_differences(self):
        kernel = {field: 1 for field in write.COMPILED + write.LAUNCHED + write.WORKED_OUT}
        found = write.differences({"sm_90a": {"a": kernel, "b": kernel}},
                                  {"sm_90a": {"a": {**kernel, "registers": 2}, "c": kernel}})
        self.assertEqual(found, ["sm_90a a: registers 1 -> 2", "sm_90a b: gone", "sm_90a c: new"])


class Occupancy(unittest.TestCase):
    def test_known_kernels(self):
        self.assertEqual(occupancy.occupancy("sm_90a", 168, 256, 6144), (1, "registers"))
        self.assertEqual(occupancy.occupancy("sm_90a", 128, 256, 6144), (2, "registers"))
        self.assertEqual(occupancy.occupancy("sm_90a", 32, 256, 0), (8, "threads"))
        self.assertEqual(occupancy.occupancy("sm_90a", 32, 1024, 65664)[0], 2)
        self.assertEqual(occupancy.occupancy("sm_80", 32, 256, 65664), (2, "shared memory"))
        self.assertEqual(occupancy.occupancy("sm_80", 32, 256, 201216), (0, "shared memory"))
        self.assertEqual(occupancy.occupancy("sm_90a", 128, 1024, 0), (0, "registers"))
        self.assertEqual(occupancy.occupancy("sm_80", 16, 32, 0), (32, "blocks"))

    def test_as_nvidia_has_it(self):
        header = CUDA_INCLUDE and Path(CUDA_INCLUDE) / "cuda_occupancy.h"
        if not header or not header.is_file() or not shutil.which("g++"):
            self.skipTest("no cuda_occupancy.h, or no g++")
        # compute capability, multiprocessor's shared memory and threads
        devices = [(number, limits.shared, 32 * limits.warps) for number, limits in
                   occupancy.LIMITS.items()]
        cases = [(device, registers, threads, shared) for device in devices
                 for registers in (16, 32, 40, 51, 64, 96, 128, 168, 206, 255)
                 for threads in (32, 64, 96, 128, 256, 384, 512, 1024)
                 for shared in (0, 32, 6144, 8192, 49152, 65664, 81920, 98304)]
        text = "".join(f"{number // 10} {number % 10} {all_shared} {all_threads} {r} {t} {s}\n"
                       for (number, all_shared, all_threads), r, t, s in cases)
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "o.cpp"
            source.write_text(NVIDIAS, encoding="utf-8")
            subprocess.run(["g++", "-w", "-o", f"{folder}/o", f"-I{CUDA_INCLUDE}", str(source)], check=True)
            done = subprocess.run([f"{folder}/o"], input=text, capture_output=True, text=True, check=True)
        theirs = [int(line) for line in done.stdout.split()]
        ours = [occupancy.occupancy(f"sm_{device[0]}", r, t, s)[0] for device, r, t, s in cases]
        self.assertEqual(len(theirs), len(cases))
        self.assertEqual([(c, a, b) for c, a, b in zip(cases, ours, theirs) if a != b][:5], [])


NVIDIAS = r"""
#include <cstdio>
#include <cuda_occupancy.h>
int main() {
  int major, minor, threads, registers, block, shared, all_shared;
  while (std::scanf("%d %d %d %d %d %d %d", &major, &minor, &all_shared, &threads, &registers, &block,
                    &shared) == 7) {
    cudaOccDeviceProp device;
    device.computeMajor = major, device.computeMinor = minor;
    device.maxThreadsPerBlock = 1024, device.maxThreadsPerMultiprocessor = threads;
    device.regsPerBlock = device.regsPerMultiprocessor = 65536, device.warpSize = 32;
    device.sharedMemPerBlock = 49152, device.sharedMemPerMultiprocessor = all_shared;
    device.sharedMemPerBlockOptin = all_shared - 1024, device.reservedSharedMemPerBlock = 1024;
    device.numSms = 100;
    cudaOccFuncAttributes function;
    function.maxThreadsPerBlock = 1024, function.numRegs = registers;
    function.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
    function.maxDynamicSharedSizeBytes = shared;
    cudaOccDeviceState state;
    state.carveoutConfig = SHAREDMEM_CARVEOUT_MAX_SHARED;
    cudaOccResult result;
    const cudaOccError error = cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &function,
                                                                        &state, block, shared);
    std::printf("%d\n", error == CUDA_OCC_SUCCESS ? result.activeBlocksPerMultiprocessor : -1);
  }
}
"""


def a_run(**changes):
    return {"run": {"L": 1, "H": 12, "C": 768, "V": 50304, "T": 1024, "B": 64, "dtype": "bf16",
                    "flops_per_token": 8e8, "multiprocessors": 132, **changes}}


def flops_of(lines):
    return sum(2 * line["product"][0] * line["product"][1] * line["product"][2] for line in lines
               if "product" in line)


class StepModel(unittest.TestCase):
    def test_a_product_bound_by_arithmetic_and_one_by_memory(self):
        large = {"product": [65536, 3072, 768], "in": "bf16", "out": "bf16", "adds": False}
        time = step_model.product_time(large, a_run()["run"])
        self.assertAlmostEqual(time.floor_us, 2 * 65536 * 3072 * 768 / 800e12 * 1e6)
        rate = step_model.PEAK_FLOPS * step_model.PRODUCT_SHARE
        self.assertGreater(time.us, 2 * 65536 * 3072 * 768 / rate * 1e6)
        small = {"product": [16, 4096, 4096], "in": "bf16", "out": "bf16", "adds": False}
        time = step_model.product_time(small, a_run()["run"])
        self.assertAlmostEqual(time.floor_us, (2 * 16 * 4096 + 4096 * 4096) * 2 / 3e12 * 1e6)

    def test_a_kernel_without_a_model_is_named(self):
        lines = [a_run(), {"phase": "step"}, {"op": "adamw", "flops": 0, "bytes": 3.35e9},
                 {"kernel": "", "name": "adamw.cu: adamw_kernel<bf16>"},
                 {"kernel": "", "name": "adamw.cu: unheard_of"},
                 {"phase": "evaluation"}, {"kernel": "", "name": "x.cu: not_of_the_step"}]
        step = step_model.predict(lines)
        self.assertEqual(step.unknown, ["unheard_of"])
        share = next(model.share for model in step_model.MODELS if "adamw_kernel" in model.pattern)
        self.assertAlmostEqual(step.rows[0].us, 1000 / share)
        self.assertEqual(step.launches, 2)
        self.assertIn("no model", step_model.markdown(step))

    def test_a_kernel_of_which_fewer_blocks_fit_is_slower(self):
        name = "layernorm.cu: backward_kernel<bf16, 32, 3>"
        lines = [a_run(), {"phase": "step"}, {"op": "layernorm_backward", "flops": 0, "bytes": 4e8},
                 {"kernel": "", "name": name}]
        full = step_model.predict(lines).rows[0].us
        self.assertAlmostEqual(step_model.predict(lines, {name}).rows[0].us, full / 0.73)


class Real(unittest.TestCase):
    """list_launches, the real program."""

    def setUp(self):
        if not LIST_LAUNCHES:
            self.skipTest("no list_launches")

    def lines(self, *arguments, more=0):
        return launches.listing(LIST_LAUNCHES, arguments, "sm_90a", more)

    def test_operations_are_as_costly_as_their_products(self):
        flops, declared, operation = {}, {}, None
        for line in self.lines("--model", "gpt2-124m", "--batch-size", "64"):
            if line.get("phase") == "evaluation":
                break
            if "op" in line:
                operation = line["op"]
                declared[operation] = declared.get(operation, 0) + line["flops"]
            flops[operation] = flops.get(operation, 0) + flops_of([line])
        for operation in ("linear_forward", "linear_backward"):
            self.assertGreater(flops[operation], 0)
            self.assertEqual(flops[operation], declared[operation])
        # The vocabulary is padded.
        self.assertAlmostEqual(flops["linear_cross_entropy"] / declared["linear_cross_entropy"],
                               50304 / 50257)

    def test_the_whole_step_has_a_model(self):
        for arguments in (("--model", "gpt2-124m", "--batch-size", "16"),
                          ("--model", "gpt2-1558m", "--batch-size", "16")):
            step = step_model.predict(self.lines(*arguments))
            self.assertEqual(step.unknown, [])
            self.assertGreater(step.us, step.floor_us)

    def test_grids_made_for_the_multiprocessors_are_found(self):
        uses = {}
        arguments = ("--n-layer", "1", "--batch-size", "16")
        launches.add_run(uses, self.lines(*arguments), self.lines(*arguments, more=1))
        for name, use in uses.items():
            if name.startswith("layernorm.cu: backward_kernel"):
                self.assertGreater(use.grid_blocks, 0, name)
            if name.startswith(("gelu.cu", "adamw.cu", "attention.cu")):
                self.assertEqual(use.grid_blocks, 0, name)


if __name__ == "__main__":
    ARGUMENTS = sys.argv[1:]
    while ARGUMENTS and ARGUMENTS[0] in ("--list-launches", "--cuda-include"):
        if ARGUMENTS[0] == "--list-launches":
            LIST_LAUNCHES = ARGUMENTS[1]
        else:
            CUDA_INCLUDE = ARGUMENTS[1]
        ARGUMENTS = ARGUMENTS[2:]
    unittest.main(argv=[sys.argv[0], *ARGUMENTS])
