#!/usr/bin/env python3
"""Built binaries in one file: packed where lathe is built, used where `make gpu-check` runs.

usage: tools/gpu_check_archive.py BUILD_FOLDER FILE [TESTS]      (tools/carry_binaries.sh calls it)
   TESTS: only tests whose names match this pattern

The file is a tar of the programs, the CUDA tests and `carried.json`, its first entry: the commit and
sources that it was built from, the GPUs it is for, and how each test is run.
"""
import hashlib
import io
import json
import lzma
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

sys.dont_write_bytecode = True
import gpu_check_machine as machine  # noqa: E402
import gpu_check_parse as parse  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
LIST = "carried.json"
FORMAT = 1
PROGRAMS = ("train", "sample", "prepare", "corpus", "bench_device")
# What a Linux with a C++ compiler always has.
SYSTEM_LIBRARIES = {"linux-vdso", "ld-linux-x86-64", "libc", "libm", "libgcc_s", "libstdc++", "libgomp"}
CPU_FLAGS = {"avx2", "bmi2", "fma"}  # what x86-64-v3 adds; without it a program dies


def sources_hash(root=ROOT):
    """A digest of everything that is compiled: shows without git whether binaries match this tree."""
    found = [root / "CMakeLists.txt", root / "CMakePresets.json"]
    for folder in ("cmake", "kernels", "src", "tools", "tests"):
        found += [path for path in (root / folder).rglob("*") if path.is_file()
                  and (path.suffix in (".cpp", ".h", ".cu", ".cuh", ".cmake") or path.name == "CMakeLists.txt")]
    total = hashlib.sha256()
    for path in sorted(found):
        total.update(f"{path.relative_to(root)}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def cmake_cache(build):
    lines = (build / "CMakeCache.txt").read_text(encoding="utf-8").splitlines()
    return dict(re.match(r"([^:]+):[^=]*=(.*)", line).groups() for line in lines if re.match(r"[\w.-]+:\w+=", line))


# ---- tests that a build folder has ---------------------------------------------------------------


def tests_of_listing(text):
    """From what `ctest --show-only=json-v1` prints: name, command, environment, limit of each test."""
    found = []
    for test in json.loads(text[text.index("{"):])["tests"]:
        properties = {entry["name"]: entry["value"] for entry in test.get("properties", [])}
        if "command" in test and not properties.get("DISABLED"):
            found.append({"name": test["name"], "command": test["command"],
                          "environment": dict(entry.split("=", 1) for entry in properties.get("ENVIRONMENT", [])),
                          "limit_s": properties.get("TIMEOUT", 300)})
    return found


CTEST_LISTING = ["-L", "^cuda$", "-LE", "gpu-check", "--show-only=json-v1"]


def placed(value, build, root=ROOT):
    """A test of the list, with this machine's paths."""
    if isinstance(value, str):
        return value.replace("{build}", str(build)).replace("{root}", str(root))
    if isinstance(value, list):
        return [placed(word, build, root) for word in value]
    if isinstance(value, dict):
        return {key: placed(word, build, root) for key, word in value.items()}
    return value


# ---- packing -------------------------------------------------------------------------------------


def libraries(program):
    """Names of the shared libraries that a program needs, from ldd."""
    lines = machine.output_of("ldd", str(program)).splitlines()
    return {match.group(1) for line in lines if (match := re.match(r"\s*(?:\S*/)?([^/\s]+?)\.so", line))}


def carried_tests(build, pattern):
    """The matching tests, with {build} and {root} replacing this machine's folders."""
    done = subprocess.run(["ctest", "--test-dir", str(build), *CTEST_LISTING],
                          capture_output=True, text=True, check=True)
    here = {str(build): "{build}", str(ROOT): "{root}"}
    located = {f"LATHE_{name.upper()}": f"{{build}}/{name}" for name in PROGRAMS}
    located["LATHE_GOLDEN_DIR"] = "{root}/tests/model/golden"
    tests = []
    for test in tests_of_listing(done.stdout):
        if not Path(test["command"][0]).is_relative_to(build) or not re.search(pattern, test["name"]):
            continue  # not from this build: run by mpirun
        for folder, name in here.items():
            test["command"] = [word.replace(folder, name) for word in test["command"]]
        test["environment"].update(located)
        tests.append(test)
    return tests


def description(build, pattern):
    cache = cmake_cache(build)
    on_cpu = cache.get("LATHE_CUDA_ON_CPU") == "ON"
    commit, changed = machine.commit()
    log = build / "compile.log"
    return {"format": FORMAT, "commit": commit, "changed": changed, "sources": sources_hash(),
            "preset": "cuda-on-cpu" if on_cpu else "gpu",
            "architectures": [] if on_cpu else cache["LATHE_CUDA_ARCHITECTURES"].split(";"),
            "march": cache["LATHE_MARCH"], "compiler": machine.compiler_version(), "nvcc": machine.nvcc_version(),
            "kernels": parse.kernel_usage(log.read_text(encoding="utf-8")) if log.exists() else [],
            "tests": carried_tests(build, pattern)}


def stripped(build, stage, names, on_cpu):
    """Copies of the programs without symbols. SystemExit if one needs a library that the other machine may
    lack. CUDA on the CPU may need more, and keeps symbols because it names kernels by them."""
    for name in names:
        (stage / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(build / name, stage / name)
        subprocess.run(["strip", "--strip-debug" if on_cpu else "--strip-all", str(stage / name)], check=True)
        foreign = libraries(stage / name) - SYSTEM_LIBRARIES
        if foreign and not on_cpu:
            sys.exit(f"gpu_check_archive: {name} needs {', '.join(sorted(foreign))}, "
                     "which the other machine may lack")


def programs_of(known):
    """Names, relative to the build folder, of all programs in an archive with this description."""
    return sorted({*PROGRAMS, *(test["command"][0].removeprefix("{build}/") for test in known["tests"])})


def pack(build, file, pattern=""):
    about = description(build, pattern)
    names = programs_of(about)
    with tempfile.TemporaryDirectory() as folder:
        stage = Path(folder)
        stripped(build, stage, names, about["preset"] == "cuda-on-cpu")
        total = sum((stage / name).stat().st_size for name in names)
        about["bytes"] = total
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(file.name + ".partial")
        # The tests contain the same kernels: a dictionary larger than all of them packs each kernel
        # once.
        filters = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": min(total + (1 << 20), 192 << 20)}]
        with lzma.open(partial, "wb", filters=filters) as packed, tarfile.open(fileobj=packed, mode="w|") as tar:
            text = json.dumps(about, indent=1).encode()
            entry = tarfile.TarInfo(LIST)
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text))
            for name in names:
                entry = tar.gettarinfo(stage / name, name)
                entry.mtime, entry.uname, entry.gname = 0, "", ""
                with open(stage / name, "rb") as program:
                    tar.addfile(entry, program)
        os.replace(partial, file)
    print(f"{file}: {file.stat().st_size / 1e6:.1f} MB, {len(names)} programs ({total / 1e6:.0f} MB), "
          f"{len(about['tests'])} tests, commit {about['commit']}")


# ---- using ---------------------------------------------------------------------------------------


def find(asked):
    """The requested file, or the one in deps/, or None."""
    if asked:
        return None if asked == "none" else Path(asked).resolve()
    deps = os.environ.get("LATHE_DEPS")
    for folder in ([Path(deps)] if deps else []) + [ROOT / "deps"]:
        if (folder / "binaries.tar.xz").is_file():
            return folder / "binaries.tar.xz"
    return None


UNREADABLE = (OSError, EOFError, ValueError, KeyError, lzma.LZMAError, tarfile.TarError)


def about(file):
    """The file's description. Raises one of UNREADABLE."""
    with tarfile.open(file, "r:xz") as tar:
        first = tar.next()
        if first is None or first.name != LIST:
            raise ValueError(f"its first entry is not {LIST}")
        return json.load(tar.extractfile(first))


def unpack(file, into):
    """Raises one of UNREADABLE."""
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir(parents=True)
    with tarfile.open(file, "r:xz") as tar:
        safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        tar.extractall(into, **safe)


def serves(architectures, capability):
    """Whether code for these ("80-real", "90a-real") runs on a GPU of this capability ("90")."""
    for architecture in architectures:
        number, exact = re.match(r"(\d+)(a?)", architecture).groups()
        if number == capability or (not exact and number[:-1] == capability[:-1] and number <= capability):
            return True
    return False


def unfit_for(known, preset, capability, cpu_flags):
    """Why binaries with this description do not fit this tree and machine, or ""."""
    if known.get("format") != FORMAT:
        return f"it has format {known.get('format')}, not {FORMAT}"
    if known["preset"] != preset:
        return f"it was built by preset {known['preset']}"
    if known["sources"] != sources_hash():
        return f"the sources differ from those it was built from (commit {known['commit']})"
    if preset == "gpu" and capability and not serves(known["architectures"], capability):
        return f"it has no code for compute capability {capability}, only {', '.join(known['architectures'])}"
    if known["march"] == "x86-64-v3" and CPU_FLAGS - cpu_flags:
        return f"this CPU has no {', '.join(sorted(CPU_FLAGS - cpu_flags))}"
    return ""


def missing_libraries(folder, known):
    """{program: libraries that are not found here}."""
    lacking = {name: [line.split()[0] for line in machine.output_of("ldd", str(folder / name)).splitlines()
                      if line.endswith("not found")] for name in programs_of(known)}
    return {name: absent for name, absent in lacking.items() if absent}


def tests_here(folder):
    """The unpacked tests, ready to run."""
    known = json.loads((folder / LIST).read_text(encoding="utf-8"))
    return [placed(test, folder) for test in known["tests"]]


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit("usage: tools/gpu_check_archive.py BUILD_FOLDER FILE [TESTS]")
    pack(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve(), *sys.argv[3:])
