#!/usr/bin/env python3
"""profiling/: tables from traces and from the output of Nsight Compute and Nsight Systems; and, given a
build folder of CUDA on the CPU, the table of a real run.

The CSV files in profiling/ were written by hand in the formats of Nsight Compute 2025.3 and Nsight
Systems 2025.3, with the launches of a real step: each product takes 100 us, each other kernel 50.

usage: profiling_test.py [--real BUILD_DIR] [unittest's arguments]"""
import csv
import json
import os
import re
import subprocess
import sys
import tempfile
import unittest
import xml.etree.ElementTree as ElementTree
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
FILES = Path(__file__).resolve().parent / "profiling"
BUILD = None
sys.dont_write_bytecode = True
sys.path.insert(0, str(ROOT / "profiling"))
import kernels  # noqa: E402
import ncu_report  # noqa: E402
import nsys_report  # noqa: E402
import tables  # noqa: E402

H100 = "NVIDIA H100 80GB HBM3"


def call(program, *arguments, code=0, env=None):
    done = subprocess.run([ROOT / "profiling" / program, *map(str, arguments)], capture_output=True, text=True,
                          env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **(env or {})})
    assert done.returncode == code, f"{program}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout if code == 0 else done.stderr


def columns(text, heading):
    """The lines, as dictionaries, of the table that has this column."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|") and heading in line)

    def cells(line):
        return [cell.strip() for cell in line.strip("|").split("|")]
    rows = []
    for line in lines[start + 2:]:
        if not line.startswith("|"):
            break
        rows.append(dict(zip(cells(lines[start]), cells(line))))
    return rows


class Folder(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = Path(folder.name)


def trace_of(events, **about):
    return {"otherData": {"device": H100, "dtype": "bf16", "tf32": False, "model": "gpt2-124m", "layers": 12,
                          "batch_size": 64, "micro_steps": 1, "seq_len": 1024, "ranks": 1, "step": 4, **about},
            "traceEvents": events}


def event(name, category, ts, dur, flops=0, bytes_=0, shape="", pid=0):
    return {"name": name, "ph": "X", "cat": category, "pid": pid, "tid": 0, "ts": ts, "dur": dur,
            "args": {"flops": flops, "bytes": bytes_, "shape": shape}}


# 2 ms on an H100 (989.4 TFLOP/s, 3.35 TB/s): an operation in two parts; a memory-bound one, called
# twice; a wait of 0.1 ms; gaps of 0.1 ms.
EVENTS = [
    event("forward", "phase", 0, 1200), event("backward", "phase", 1200, 800),
    event("linear_forward", "operation", 0, 1000, 0.4947e12, 0.67e9, "8x8x8"),
    event("product", "part", 0, 800, 0.4947e12, 0.335e9, "8x8x8"),
    event("GELU", "part", 800, 200, 0, 0.335e9, "8x8"),
    event("layernorm_forward", "operation", 1050, 400, 0, 0.67e9, "2x4x8"),
    event("wait: norm", "wait", 1450, 100),
    event("layernorm_forward", "operation", 1550, 400, 0, 0.67e9, "2x4x8"),
    event("norm", "communication", 1400, 150),
    event("adamw", "operation", 0, 50, 0, 1e6, "9", pid=1),
]


class Roofline(Folder):
    def table(self, trace, *arguments, code=0):
        path = self.root / "t.json"
        path.write_text(json.dumps(trace))
        return call("roofline.py", path, *arguments, code=code)

    def test_known_answers(self):
        out = self.table(trace_of(EVENTS))
        rows = columns(out, "TFLOP/s")
        self.assertEqual([r["operation"] for r in rows],
                         ["linear_forward: product", "layernorm_forward", "linear_forward: GELU"])
        product, norm, gelu = rows
        self.assertEqual((norm["calls"], norm["ms"], norm["share"]), ("2", "0.800", "40.0 %"))
        self.assertEqual((norm["TB/s"], norm["of peak"], norm["bound by"]), ("1.68", "50.0 %", "memory"))
        self.assertEqual(norm["TFLOP/s"], "-")
        self.assertEqual(norm["floor ms"], "0.400")
        self.assertEqual((product["TFLOP/s"], product["of peak"], product["bound by"], product["floor ms"]),
                         ("618", "62.5 %", "compute", "0.500"))
        self.assertEqual((gelu["shape"], gelu["of peak"]), ("8x8", "50.0 %"))
        self.assertIn("step 2.000 ms = operations 1.800 + waits for ranks 0.100 + gaps 0.100", out)
        # The operations: max(0.5, 0.2) + 2 x 0.2; their parts: 0.5 + 0.1 + 0.4.
        self.assertIn("floor: 0.900 ms for the operations (45.0 % of the step), 1.000 ms for the rows", out)

    def test_json_and_picture_say_the_same(self):
        self.table(trace_of(EVENTS), "--json", self.root / "o.json", "--svg", self.root / "o.svg")
        found = json.loads((self.root / "o.json").read_text())
        self.assertEqual(found["device"], H100)
        self.assertAlmostEqual(found["step_ms"], 2)
        self.assertAlmostEqual(found["floor_ms"], 0.9)
        self.assertAlmostEqual(found["rows"][0]["of_peak"], 0.625)
        self.assertEqual(found["rows"][0]["bound"], "compute")
        bars = [r for r in ElementTree.parse(self.root / "o.svg").iter() if r.tag.endswith("rect")][1:]
        widths = [float(b.get("width")) for b in bars]
        self.assertEqual(len(widths), 6)  # time and floor of each
        self.assertAlmostEqual(widths[1] / widths[0], 0.625, places=2)
        self.assertAlmostEqual(widths[3] / widths[2], 0.5, places=2)

    def test_unknown_device_has_rates_and_no_shares(self):
        for device in ("CUDA on the CPU, 3 multiprocessors", "Intel(R) Xeon(R) Processor, 2 threads"):
            rows = columns(self.table(trace_of(EVENTS, device=device)), "TFLOP/s")
            self.assertEqual({(r["of peak"], r["floor ms"], r["bound by"]) for r in rows}, {("-", "-", "-")})
            self.assertEqual(rows[0]["TFLOP/s"], "618")
        out = self.table(trace_of(EVENTS, device="?"), "--peak-flops", "989.4e12", "--peak-bytes", "3.35e12")
        self.assertEqual(columns(out, "TFLOP/s")[1]["of peak"], "50.0 %")
        out = self.table(trace_of(EVENTS, device="?"), "--device", "NVIDIA H200")
        self.assertEqual(columns(out, "TFLOP/s")[1]["of peak"], "34.9 %")

    def test_fp32_and_other_ranks(self):
        out = self.table(trace_of(EVENTS, dtype="fp32"))
        self.assertIn("peaks: 66.9 TFLOP/s", out)
        self.assertIn("peaks: 494.7 TFLOP/s", self.table(trace_of(EVENTS, dtype="fp32", tf32=True)))
        self.assertEqual(columns(self.table(trace_of(EVENTS), "--rank", "1"), "TFLOP/s")[0]["operation"], "adamw")

    def test_what_is_no_trace_is_refused(self):
        for content in ("{}", "no json", '{"traceEvents": []}', "[1]"):
            (self.root / "bad.json").write_text(content)
            self.assertIn("is not a trace with costs", call("roofline.py", self.root / "bad.json", code=2))
        self.assertIn("No such file", call("roofline.py", self.root / "none.json", code=2))
        self.assertIn("no operations of rank 7", self.table(trace_of(EVENTS), "--rank", "7", code=2))


class Peaks(unittest.TestCase):
    def test_are_those_of_the_program(self):
        source = (ROOT / "kernels/cuda/peak.cpp").read_text()
        listed = re.findall(r'\{"([^"]+)", ([\d.]+), ([\d.]+)\}', source)
        self.assertGreaterEqual(len(listed), 9)
        for name, bf16, fp32 in listed:
            self.assertEqual(tables.peaks_of(f"NVIDIA {name}", "bf16").flops, 1e12 * float(bf16), name)
            self.assertEqual(tables.peaks_of(f"NVIDIA {name}", "fp32").flops, 1e12 * float(fp32), name)
            self.assertGreater(tables.peaks_of(f"NVIDIA {name}").bytes, 5e11)
        self.assertEqual({name for name, *_ in tables.PEAKS if " 80GB" not in name and "-80GB" not in name},
                         {name for name, *_ in listed})

    def test_driver_names(self):
        for device, memory in {H100: 3.35, "NVIDIA H100 PCIe": 2.0, "NVIDIA A100-SXM4-40GB": 1.555,
                               "NVIDIA A100-SXM4-80GB": 2.039, "NVIDIA A100 80GB PCIe": 1.935,
                               "NVIDIA H200": 4.8}.items():
            self.assertAlmostEqual(tables.peaks_of(device).bytes / 1e12, memory, msg=device)
        self.assertEqual(tables.peaks_of("NVIDIA GeForce GTX 1080"), tables.Peaks())


class Ncu(Folder):
    def test_both_formats_are_read_alike(self):
        details, raw = (ncu_report.read_kernels((FILES / f"ncu_{page}.csv").read_text()) for page in ("details", "raw"))
        self.assertEqual(len(details), 42)
        self.assertEqual([k["name"] for k in details], [k["name"] for k in raw])
        for one, other in zip(details, raw):
            self.assertEqual(set(one["metrics"]), set(other["metrics"]))
            for metric, value in one["metrics"].items():
                if value is None:
                    self.assertIsNone(other["metrics"][metric], metric)
                else:
                    self.assertAlmostEqual(value, other["metrics"][metric], delta=1e-9 * abs(value), msg=metric)
        self.assertAlmostEqual(details[0]["metrics"]["gpu__time_duration.sum"], 50e-6)

    def test_places_tell_the_classes(self):
        names = [k["name"] for k in ncu_report.read_kernels((FILES / "ncu_raw.csv").read_text())]
        classes = kernels.classify(names)
        of = dict(zip(map(kernels.short_name, names), classes))
        self.assertEqual(of["resident_rows_kernel<bf16>"], "head")
        self.assertEqual(of["sort_kernel"], "embedding")
        self.assertEqual(of["attention::flash_forward_kernel<64, false>"], "forward")
        self.assertEqual(of["clip_scale_kernel"], "optimizer")
        # ln_f, logits, rows, dx, dwte, sum of losses, ln_f's backward and its sums.
        self.assertEqual([kernels.short_name(n).split("<")[0] for n, c in zip(names, classes) if c == "head"][:3],
                         ["forward_kernel", "nvjet_hsh_128x256_64x4_2x1_v_bz_coopB_TNN", "resident_rows_kernel"])
        self.assertEqual([classes.count(c) for c in kernels.CLASSES], [5, 8, 8, 16, 4, 1])
        with self.assertRaises(ValueError):
            kernels.classify(names[:10])
        with self.assertRaises(ValueError):
            kernels.classify(names[1:] + names[1:])

    def test_names_are_those_of_the_sources(self):
        sources = "".join(path.read_text() for path in (ROOT / "kernels" / "cuda").glob("*.cu"))
        there = set(re.findall(r"__global__[^;{]*?\b(\w+_kernel)\(", sources))
        self.assertGreater(len(there), 30)
        for name in [*kernels.NORM_FORWARD, *kernels.NORM_BACKWARD, *kernels.SUMS, *kernels.LOSSES,
                     *kernels.OPTIMIZER, "begin_step_kernel", "add_losses_kernel"]:
            self.assertIn(name, there)

    def test_table(self):
        out = call("ncu_report.py", FILES / "ncu_details.csv", "--layers", 12, "--device", H100,
                   "--json", self.root / "o.json")
        classes = {r["class"]: r for r in columns(out[out.index("\n| class"):], "class")}
        rows = columns(out, "conflicts")
        attention = next(r for r in rows if r["kernel"] == "attention::flash_forward_kernel<64, false>")
        self.assertEqual((attention["calls"], attention["ms"], attention["GB"]), ("12", "0.600", "1.44"))
        self.assertEqual((attention["TB/s"], attention["memory"], attention["busy"]), ("2.40", "71.6 %", "71.6 %"))
        self.assertEqual((attention["registers"], attention["conflicts"]), ("64", "12000"))
        product = next(r for r in rows if r["kernel"].startswith("nvjet"))
        self.assertEqual((product["tensor"], product["busy"], product["memory"]), ("75.0 %", "75.0 %", "35.8 %"))
        # Forward: 4 products and 4 others; backward: 8 and 8.
        self.assertEqual(classes["forward"]["ms"], "7.20")
        self.assertEqual(classes["backward"]["ms"], "14.4")
        self.assertEqual(classes["head"]["ms"], "0.550")
        self.assertEqual(classes["optimizer"]["ms"], "0.200")
        found = json.loads((self.root / "o.json").read_text())
        self.assertAlmostEqual(found["ms"], 0.25 + 7.2 + 0.55 + 14.4 + 0.2 + 0.05)
        self.assertAlmostEqual(found["ms"], sum(k["ms"] for k in found["kernels"]))

    def test_unknown_device_takes_its_percentages(self):
        rows = columns(call("ncu_report.py", FILES / "ncu_raw.csv"), "conflicts")
        self.assertEqual(next(r for r in rows if r["kernel"] == "sort_kernel")["memory"], "70.0 %")

    def test_what_is_no_profile_is_refused(self):
        (self.root / "empty.csv").write_text("==PROF== No kernels were profiled.\n")
        self.assertIn("ncu has counted nothing", call("ncu_report.py", self.root / "empty.csv", code=2))
        lines = (FILES / "ncu_raw.csv").read_text().splitlines()
        (self.root / "short.csv").write_text("\n".join(lines[:12]) + "\n")
        self.assertIn("not those of one whole step", call("ncu_report.py", self.root / "short.csv", code=2))


class Nsys(Folder):
    def test_table(self):
        out = call("nsys_report.py", FILES / "steps", "--device", H100, "--json", self.root / "o.json")
        tables_ = out.split("parts of these:")
        rows = {(r["operation"], r["shape"]): r for r in columns(tables_[0], "kernels")}
        head = rows[("linear_cross_entropy", "32x64x62")]
        self.assertEqual((head["calls"], head["ms"], head["kernels"]), ("1", "0.400", "5"))
        self.assertEqual(rows[("layernorm_forward", "2x16x64")]["calls"], "3")
        self.assertEqual(rows[("begin_step", "")]["ms"], "0.050")
        parts = {(r["operation"], r["shape"]): r for r in columns(tables_[1], "kernels")}
        self.assertEqual(parts[("logits", "32x64x64")]["ms"], "0.100")
        self.assertNotIn(("logits", "32x64x64"), rows)
        # Every kernel but the collective, once each, however it is nested.
        self.assertIn("2 steps; a step:", out)
        self.assertIn("kernels 2.880 ms a step, of which 2.850 in operations, 0.030 in none", out)
        found = json.loads((self.root / "o.json").read_text())
        self.assertAlmostEqual(sum(r["ms"] for r in found["operations"]), 2.85)
        flops = {r["name"]: r["tflops"] for r in found["operations"]}
        self.assertAlmostEqual(flops["linear_cross_entropy"] * 0.4e-3 * 1e12, 6 * 32 * 64 * 62, delta=1e2)

    def test_what_has_no_ranges_is_refused(self):
        for report in ("cuda_gpu_kern_sum", "nvtx_kern_sum"):
            lines = (FILES / f"steps_{report}.csv").read_text().splitlines()
            (self.root / f"p_{report}.csv").write_text(lines[0] + "\n")
        self.assertIn("--profile A:B", call("nsys_report.py", self.root / "p", code=2))
        (self.root / "p_nvtx_kern_sum.csv").write_text("SKIPPED: no NVTX data\n")
        self.assertIn("no line with the columns", call("nsys_report.py", self.root / "p", code=2))


TOOL = """#!/usr/bin/env bash
printf '%s\\n' "$@" >>"$RECORD"
"""


class Scripts(Folder):
    """What the scripts call, with tools that only record their arguments."""

    def recorded(self, script, name, *arguments):
        tool, recorded = self.root / name, self.root / "recorded"
        tool.write_text(TOOL)
        tool.chmod(0o755)
        recorded.write_text("")
        call(script, *arguments, env={name.upper(): str(tool), "RECORD": str(recorded)})
        return recorded.read_text().splitlines()

    def test_ncu(self):
        recorded = self.recorded("ncu.sh", "ncu", "o.csv", "--", "build/train", "--model", "gpt2-124m")
        self.assertEqual(recorded[:5], ["--clock-control", "none", "--profile-from-start", "off", "--graph-profiling"])
        self.assertIn("dram__bytes_write.sum", recorded[recorded.index("--metrics") + 1].split(","))
        self.assertEqual(recorded[recorded.index("--log-file") + 1], "o.csv")
        train = recorded[recorded.index("build/train"):]
        self.assertEqual(train, ["build/train", "--model", "gpt2-124m", "--n-layer", "1", "--profile", "3:4",
                                 "--steps", "4", "--device", "cuda", "--eval-interval", "0"])

    def test_metrics_are_those_that_the_report_reads(self):
        recorded = self.recorded("ncu.sh", "ncu", "o.csv", "--", "build/train")
        asked = recorded[recorded.index("--metrics") + 1].split(",")
        heading = next(csv.reader([line for line in (FILES / "ncu_raw.csv").read_text().splitlines()
                                   if line.startswith('"ID"')]))
        self.assertEqual(set(asked), set(heading[11:]))
        for metric in (ncu_report.TIME, ncu_report.READ, ncu_report.WRITTEN, ncu_report.WARPS, ncu_report.ISSUE,
                       ncu_report.REGISTERS, ncu_report.CONFLICTS, ncu_report.MEMORY_PERCENT[0]):
            self.assertIn(metric, asked)

    def test_flags_that_are_given_stay(self):
        recorded = self.recorded("ncu.sh", "ncu", "o.csv", "--", "t", "--n-layer=3", "--steps", "9", "--profile", "4:6")
        self.assertEqual(recorded[recorded.index("t"):], ["t", "--n-layer=3", "--steps", "9", "--profile", "4:6", "--device",
                                                  "cuda", "--eval-interval", "0"])

    def test_nsys(self):
        recorded = self.recorded("nsys.sh", "nsys", "o", "--", "build/train", "--data", "d")
        self.assertEqual(recorded[:3], ["profile", "--trace=cuda,nvtx,cublas", "--capture-range=cudaProfilerApi"])
        self.assertEqual(recorded[recorded.index("build/train"):recorded.index("stats")],
                         ["build/train", "--data", "d", "--profile", "5:8", "--steps", "8", "--device", "cuda",
                          "--eval-interval", "0"])
        self.assertEqual(recorded[-1], "o.nsys-rep")
        self.assertIn("--report=cuda_gpu_kern_sum,nvtx_kern_sum", recorded)

    def test_mistakes(self):
        for script in ("ncu.sh", "nsys.sh"):
            self.assertIn("usage:", call(script, "o", "build/train", code=2))
            name = script[:-3].upper()
            self.assertIn("is not found", call(script, "o", "--", "t", code=2, env={name: "/no/such/tool"}))


class Real(Folder):
    """The trace of a run on the CUDA device, made as in docs/profiling.md."""

    def test_trace_of_a_run(self):
        block = (ROOT / "docs/profiling.md").read_text().split("```")[1]
        commands = block.replace("\\\n", " ").replace("build/profiling", str(self.root)) \
            .replace("build/cuda-on-cpu", str(BUILD)).strip().splitlines()
        self.assertEqual(commands[0], "make cuda-on-cpu")
        for command in commands[1:]:
            done = subprocess.run(command.split(), capture_output=True, text=True, cwd=ROOT,
                                  env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"})
            self.assertEqual(done.returncode, 0, f"{command}\n{done.stderr}")
        self.assertTrue((self.root / "roofline.svg").exists())
        trace = self.root / "trace.json"
        out = call("roofline.py", trace, "--device", H100, "--json", self.root / "o.json")
        rows = {(r["operation"], r["shape"]): r for r in columns(out, "TFLOP/s")}
        self.assertEqual(rows[("linear_forward: product", "32x64x256")]["calls"], "2")
        self.assertEqual(rows[("linear_backward: GELU backward", "32x256")]["calls"], "2")
        self.assertEqual(rows[("linear_cross_entropy: softmax rows", "32x64")]["calls"], "1")
        self.assertEqual(rows[("attention_forward", "2x2x16x32")]["bound by"], "memory")
        found = json.loads((self.root / "o.json").read_text())
        self.assertEqual(found["about"]["layers"], 2)
        share = sum(r["share"] for r in found["rows"])
        self.assertTrue(0.5 < share <= 1, share)
        self.assertAlmostEqual(sum(r["ms"] for r in found["rows"]), found["operations_ms"], delta=0.02)
        self.assertGreaterEqual(found["gaps_ms"], 0)

    def test_bench_device(self):
        for device in ("cpu", "cuda"):
            done = subprocess.run([BUILD / "bench_device", "--tiny", "--device", device], capture_output=True, text=True,
                                  check=True)
            head, _, body = done.stdout.partition("operation  ")
            self.assertRegex(head, r"; bf16; a copy moves [\d.e+]+ GB/s\n")
            rows = {line[:38].strip(): line[38:].split() for line in body.splitlines()[1:]}
            self.assertEqual(len(rows), 26)
            self.assertEqual(rows["linear_backward fc"][0], "32x64x256")
            self.assertEqual(rows["adamw"][3], "-")  # FLOP/s
            for name, (_, median, least, flops, _, *share) in rows.items():
                self.assertGreater(float(median), 0, name)
                self.assertLessEqual(float(least), float(median), name)
                self.assertEqual(share == ["-"], flops != "-", name)  # no peak is known here
        refused = subprocess.run([BUILD / "bench_device", "--tiny", "--filter", "nothing"], capture_output=True,
                                 text=True)
        self.assertEqual((refused.returncode, "matches no operation's name" in refused.stderr), (2, True))


if __name__ == "__main__":
    if "--real" in sys.argv:
        at = sys.argv.index("--real")
        BUILD = Path(sys.argv[at + 1])
        del sys.argv[at:at + 2]
    unittest.main()
