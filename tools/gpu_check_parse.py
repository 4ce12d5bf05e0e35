"""What `make gpu-check` extracts from the logs of compilers, tests, sanitizers and training runs."""
import json
import re
import statistics
import subprocess

# ---- compiler ----------------------------------------------------------------------------------


def compiler_warnings(log):
    """Warnings of g++, nvcc and ptxas, each line once."""
    found = {}
    for line in log.splitlines():
        if re.search(r"\bwarning\b\s*(#|:)", line, re.IGNORECASE) and "CMake Warning" not in line:
            found[line.strip()] = None
    return list(found)


def compiler_errors(log, most=20):
    """The first lines that show why a build failed."""
    pattern = re.compile(r"\berror\b\s*(#|:)|^FAILED|CMake Error|fatal|No such file", re.IGNORECASE)
    lines = log.splitlines()
    found = [line for line in lines if pattern.search(line)]
    return found[:most] if found else lines[-most:]


def demangled(names):
    """Mangled names as readable ones, without arguments; unchanged if c++filt is missing."""
    try:
        done = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True,
                              timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return dict(zip(names, names))
    return {name: short_kernel(line) for name, line in zip(names, done.stdout.splitlines())}


def short_kernel(signature):
    """`void lathe::cuda::(anonymous namespace)::f<float>(Args)` is `f<float>`."""
    text = signature.replace("(anonymous namespace)::", "").replace("lathe::cuda::", "")
    text = text.replace("lathe::", "").replace("__nv_bfloat16", "bf16").removeprefix("void ")
    depth = 0
    for at, letter in enumerate(text):
        depth += (letter == "<") - (letter == ">" and text[at - 1] != "-")
        if letter == "(" and depth == 0:
            return text[:at]
    return text


def kernel_usage(log):
    """Registers, spills, stack and static shared memory (bytes) of each kernel, from `-Xptxas -v`. The
    last compilation counts."""
    kernels = {}
    current = None
    for line in log.splitlines():
        if entry := re.search(r"Compiling entry function '(\S+)' for '(\w+)'", line):
            current = kernels[entry.groups()] = {"registers": None, "spill_stores": 0,
                                                 "spill_loads": 0, "stack": 0, "shared": 0}
        elif "Function properties for" in line:
            # For a function that is called, not inlined, the figures are not the kernel's.
            name = line.rsplit(None, 1)[-1]
            current = next((k for key, k in kernels.items() if key[0] == name), None)
        elif current is not None:
            if spills := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, "
                                   r"(\d+) bytes spill loads", line):
                stack, stores, loads = map(int, spills.groups())
                current.update(stack=stack, spill_stores=stores, spill_loads=loads)
            elif used := re.search(r"Used (\d+) registers", line):
                current["registers"] = int(used.group(1))
                if shared := re.search(r"(\d+) bytes smem", line):
                    current["shared"] = int(shared.group(1))
    readable = demangled([name for name, _ in kernels]) if kernels else {}
    return [{"kernel": readable[name], "architecture": architecture, **usage}
            for (name, architecture), usage in kernels.items()]


# ---- tests -------------------------------------------------------------------------------------


def gtest_cases(log):
    """Counts of GoogleTest cases, and the first lines of each that failed."""
    passed = skipped = 0
    failed = {}
    lines_of_case = []
    for line in log.splitlines():
        if line.startswith("[ RUN      ]"):
            lines_of_case = []
        elif line.startswith("[       OK ]"):
            passed += 1
        elif match := re.match(r"\[  SKIPPED \] (\S+) \(", line):
            skipped += 1
        elif match := re.match(r"\[  FAILED  \] (\S+?),? .*\(\d+ ms\)", line):
            failed[match.group(1)] = lines_of_case[:12]
        else:
            lines_of_case.append(line)
    return {"passed": passed, "skipped": skipped, "failed": failed}


# ---- compute-sanitizer -------------------------------------------------------------------------


def sanitizer_findings(log):
    """What compute-sanitizer found: its error count (None if it did not finish), the first line of each
    kind, and why it could not work, if so."""
    count, refusal, kinds = None, None, {}
    lines = [line[len("========= "):].rstrip() for line in log.splitlines()
             if line.startswith("========= ")]
    for at, line in enumerate(lines):
        if summary := re.match(r"(?:ERROR SUMMARY: (\d+) error|"
                               r"RACECHECK SUMMARY: \d+ hazards? displayed \((\d+) error)", line):
            count = int(summary.group(1) or summary.group(2))
        elif re.search(r"Device not supported|Unable to|No attachable process|"
                       r"Error: (?!Race|Potential)", line):
            refusal = refusal or line
        elif re.match(r"(Invalid|Out-of-|Misaligned|Uninitialized|Error: (Race|Potential)|Race|"
                      r"Barrier error|Divergent|Leaked|Program hit|Unused|Fatal)", line):
            place = lines[at + 1].strip() if at + 1 < len(lines) else ""
            # A kind is one message at one place: addresses and threads do not count.
            key = re.sub(r"0x[0-9a-f]+|\(\d+,\d+,\d+\)|\b\d+ hazards?", "_", f"{line}: {place}")
            kinds.setdefault(key, {"message": f"{line}: {place}", "times": 0})["times"] += 1
    return {"errors": count, "refusal": refusal, "kinds": list(kinds.values())}


# ---- training ----------------------------------------------------------------------------------


def unit(text):
    scale = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}.get(text[-1], 1)
    return float(text.rstrip("kMGT")) * scale


def train_log(log):
    """Steps, evaluations and the median that build/train printed."""
    run = {"loss": {}, "val_loss": {}, "step_ms": [], "tokens_per_second": None, "mfu": None}
    rates, mfus = [], []
    for line in log.splitlines():
        step = re.match(r"step (\d+)/\d+ \|", line)
        if not step:
            continue
        fields = dict(re.findall(r"(loss|val|norm|mfu) ([-+.\w]+)", line))
        if "val" in fields:
            run["val_loss"][int(step.group(1))] = float(fields["val"])
        if "loss" not in fields:
            continue
        run["loss"][int(step.group(1))] = float(fields["loss"])
        if ms := re.search(r"\| ([\d.]+) ms", line):
            run["step_ms"].append(float(ms.group(1)))
        if rate := re.search(r"\| ([\d.]+[kMGT]?) tok/s", line):
            rates.append(unit(rate.group(1)))
        if "mfu" in fields:
            mfus.append(float(fields["mfu"].rstrip("%")) / 100)
    if run["step_ms"]:
        run["median_ms"] = statistics.median(run["step_ms"])
    if rates:
        run["tokens_per_second"] = statistics.median(rates)
    if mfus:
        run["mfu"] = statistics.median(mfus)
    if median := re.search(r"median step ([\d.]+) ms, ([\d.]+) tokens/s", log):
        run["median_ms"], run["tokens_per_second"] = float(median[1]), float(median[2])
    if device := re.search(r"^\s+device\s+(.+)$", log, re.MULTILINE):
        run["device"] = device.group(1)
    return run


def json_lines(log):
    return [json.loads(line) for line in log.splitlines() if line.startswith('{"')]
