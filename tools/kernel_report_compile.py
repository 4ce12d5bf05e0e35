"""What the compiler reports about every kernel: registers, spills, shared memory, launch bounds.

Compiles each source with the build's own command (compile_commands.json), for one architecture at a
time, to a cubin. Results are cached under the hash of all inputs."""
import concurrent.futures
import hashlib
import json
import os
import re
import shlex
import subprocess
import tempfile
from pathlib import Path

import gpu_check_parse as parse

# Options removed from the build's commands: those that make a spill an error, because the report must
# list it, and architectures and -c, which are set here.
UNWANTED = re.compile(r"-Werror=all-warnings|-Xptxas=-Werror|--generate-code=.*|-gencode.*|-c")


class Problem(Exception):
    """One sentence for the user."""


def commands(build):
    """{source path: nvcc's arguments, without architectures and output} of kernels/cuda/*.cu."""
    listing = build / "compile_commands.json"
    if not listing.is_file():
        raise Problem(f"{listing} is not there: configure the build (make)")
    found = {}
    for entry in json.loads(listing.read_text(encoding="utf-8")):
        path = Path(entry["file"])
        if path.parent.name != "cuda" or path.suffix != ".cu" or path.parent.parent.name != "kernels":
            continue
        arguments = shlex.split(entry["command"])
        while arguments and not Path(arguments[0]).name.startswith("nvcc"):
            arguments.pop(0)  # such as ccache
        if not arguments:
            raise Problem(f"{build} was configured without nvcc")
        found[path] = without_output(arguments, path)
    if not found:
        raise Problem(f"{build} was configured without nvcc")
    return found


def without_output(arguments, source):
    kept, skip = [], False
    for argument in arguments:
        if skip or argument == str(source) or UNWANTED.fullmatch(argument):
            skip = False
        elif argument in ("-o", "-MF", "-MT"):
            skip = True
        elif argument != "-MD":
            kept.append(argument)
    return kept


def nvcc_version(nvcc):
    try:
        done = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise Problem(f"{nvcc}, which the build uses, does not run: {error}") from error
    return re.search(r"V(\d+\.\d+\.\d+)", done.stdout).group(1)


def includes(source, root):
    """The source and the project's own headers that it includes, directly or not."""
    seen, todo = {}, [source]
    while todo:
        path = todo.pop()
        if path in seen or not path.is_file():
            continue
        seen[path] = path.read_bytes()
        for name in re.findall(rb'^\s*#include "([^"]+)"', seen[path], re.MULTILINE):
            todo.append(root / name.decode())
    return seen


def digest(source, root, arguments, architecture, version):
    """A digest of everything that a cubin depends on, independent of where the tree lies."""
    state = hashlib.sha256()
    texts = [a.replace(str(root), "ROOT") for a in arguments[1:]] + [architecture, version]
    state.update("\0".join(texts).encode())
    for path, content in sorted(includes(source, root).items()):
        state.update(os.path.relpath(path, root).encode() + b"\0" + content + b"\0")
    return state.hexdigest()[:24]


def launch_bounds(ptx):
    """{mangled name: (most threads of a block, least blocks of a multiprocessor)} from
    __launch_bounds__; None if not given."""
    bounds = {}
    for name, said in re.findall(r"\.entry\s+(\w+)\s*\([^)]*\)([^{]*)\{", ptx):
        threads = re.search(r"\.maxntid\s+([\d, ]+)", said)
        blocks = re.search(r"\.minnctapersm\s+(\d+)", said)
        product = 1
        for number in threads.group(1).split(",") if threads else []:
            product *= int(number)
        bounds[name] = (product if threads else None, int(blocks.group(1)) if blocks else None)
    return bounds


def compile_one(source, arguments, architecture, cubin):
    """Compiles to `cubin` and returns {kernel: usage}."""
    number = architecture.removeprefix("sm_")
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / cubin.name
        command = arguments + [f"--generate-code=arch=compute_{number},code=[sm_{number}]", "-cubin",
                               "-Xptxas=-v", "--keep", f"--keep-dir={folder}", str(source), "-o",
                               str(made)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
        if done.returncode != 0:
            raise Problem(f"{source.name} for {architecture} does not compile: "
                          + "\n".join(parse.compiler_errors(done.stderr + done.stdout)))
        ptx = max(Path(folder).glob("*.ptx"), key=os.path.getsize).read_text(encoding="utf-8")
        made.replace(cubin)
    bounds = launch_bounds(ptx)
    readable = parse.demangled(list(bounds))
    bounds = {readable[name]: both for name, both in bounds.items()}
    usage = {}
    for kernel in parse.kernel_usage(done.stderr + done.stdout):
        threads, blocks = bounds[kernel["kernel"]]
        usage[kernel["kernel"]] = {
            "registers": kernel["registers"], "stack": kernel["stack"],
            "spills": kernel["spill_stores"] + kernel["spill_loads"], "static": kernel["shared"],
            "most_threads": threads, "least_blocks": blocks}
    return usage


def compile_cached(source, root, arguments, architecture, version, cache):
    name = f"{source.stem}-{architecture}-{digest(source, root, arguments, architecture, version)}"
    cubin, record = cache / f"{name}.cubin", cache / f"{name}.json"
    if record.is_file() and cubin.is_file():
        return json.loads(record.read_text(encoding="utf-8")), cubin
    for old in cache.glob(f"{source.stem}-{architecture}-*"):
        old.unlink()
    usage = compile_one(source, arguments, architecture, cubin)
    written = record.with_suffix(f".{os.getpid()}")
    written.write_text(json.dumps(usage), encoding="utf-8")
    written.replace(record)
    return usage, cubin


def compile_kernels(build, root, architectures, cache, jobs):
    """({architecture: {"file.cu: kernel": usage}}, {architecture: {file: cubin}}, nvcc's version)."""
    found = commands(build)
    version = nvcc_version(next(iter(found.values()))[0])
    cache.mkdir(parents=True, exist_ok=True)
    kernels = {a: {} for a in architectures}
    cubins = {a: {} for a in architectures}
    # The longest first, so that none of them runs alone at the end.
    sources = sorted(found, key=lambda path: -path.stat().st_size)
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        runs = {(s, a): pool.submit(compile_cached, s, root, found[s], a, version, cache)
                for s in sources for a in architectures}
        for (source, architecture), run in runs.items():
            usage, cubins[architecture][source.name] = run.result()
            for kernel, values in usage.items():
                kernels[architecture][f"{source.name}: {kernel}"] = values
    return kernels, cubins, version
