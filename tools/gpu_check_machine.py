"""What `make gpu-check` reports about the machine it runs on."""
import contextlib
import glob
import importlib.metadata
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import threading

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def output_of(*command, timeout=20):
    """What a command prints, or "" if it is absent, fails or takes too long."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=True)
        return done.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def add_tools_to_path():
    """CUDA's programs and the driver's are often not in PATH."""
    homes = [os.environ.get("CUDA_HOME"), "/usr/local/cuda", "/opt/cuda"]
    folders = [os.path.join(home, "bin") for home in homes if home]
    folders += ["/usr/local/nvidia/bin", "/usr/lib/wsl/lib"]
    folders += sorted(glob.glob("/usr/local/cuda*/compute-sanitizer"))
    folders += sorted(glob.glob("/opt/nvidia/nsight-compute/*"), reverse=True)
    path = os.environ.get("PATH", "").split(os.pathsep)
    path += [folder for folder in folders if os.path.isdir(folder) and folder not in path]
    os.environ["PATH"] = os.pathsep.join(path)


GPU_FIELDS = {"name": "name", "driver": "driver_version", "compute_capability": "compute_cap",
              "memory_mib": "memory.total", "memory_used_mib": "memory.used",
              "sm_clock_mhz": "clocks.sm", "max_sm_clock_mhz": "clocks.max.sm",
              "memory_clock_mhz": "clocks.mem", "max_memory_clock_mhz": "clocks.max.mem",
              "power_limit_w": "power.limit", "temperature_c": "temperature.gpu"}


def nvidia_smi(*fields):
    """The values of fields for the first GPU, or None."""
    out = output_of("nvidia-smi", "--id=0", "--query-gpu=" + ",".join(fields),
                    "--format=csv,noheader,nounits")
    values = [value.strip() for value in out.splitlines()[0].split(", ")] if out else []
    return values if len(values) == len(fields) else None


def gpu():
    """The first GPU according to nvidia-smi; {} if there is none."""
    values = nvidia_smi(*GPU_FIELDS.values())
    if values:
        return dict(zip(GPU_FIELDS, values))
    # An old nvidia-smi refuses all fields if it does not know one of them.
    if not nvidia_smi("name"):
        return {}
    found = {key: nvidia_smi(field) for key, field in GPU_FIELDS.items()}
    return {key: value[0] for key, value in found.items() if value}


def cuda_toolkit():
    """The folder above nvcc's own bin/, or None without nvcc. Asks nvcc itself, because the nvcc in PATH
    may be a link to it or a script that calls it."""
    if not (nvcc := shutil.which("nvcc")):
        return None
    nvcc = os.path.realpath(nvcc)
    try:
        output = subprocess.run([nvcc, "--dryrun", "-x", "cu", "-c", os.devnull], capture_output=True, text=True,
                                timeout=20, check=False).stderr
    except (OSError, subprocess.SubprocessError):
        output = ""
    match = re.search(r"^#\$ TOP=(.+)$", output, re.MULTILINE)
    return os.path.realpath(match.group(1)) if match else os.path.dirname(os.path.dirname(nvcc))


def compute_capability(python):
    """"90" for 9.0: from the driver, otherwise nvcc's own query, otherwise PyTorch; or None."""
    text = (nvidia_smi("compute_cap") or [""])[0]
    if not text:
        query = os.path.join(cuda_toolkit() or "", "bin/__nvcc_device_query")
        text = output_of(query) if os.path.exists(query) else ""
    if not re.search(r"\d\d|\d\.\d", text):
        text = output_of(python, "-c", "import torch; print('%d.%d' % torch.cuda.get_device_capability())",
                         timeout=60)
    match = re.search(r"(\d+)\.?(\d)", text)
    return match.group(1) + match.group(2) if match else None


def library(name):
    """Path of an NVIDIA library: the toolkit's, otherwise the one that came with PyTorch; or None."""
    folders = []
    if home := cuda_toolkit():
        folders += [f"{home}/lib64", f"{home}/targets/x86_64-linux/lib", f"{home}/lib"]
    folders += [f"{entry}/nvidia/*/lib" for entry in sys.path if entry]
    found = [path for folder in folders for path in sorted(glob.glob(f"{folder}/{name}.so.[0-9]*"))]
    return found[0] if found else None


def nccl_home():
    """The folder above PyTorch's include/nccl.h, or None. CMake finds the toolkit's."""
    found = [path for entry in sys.path if entry for path in glob.glob(f"{entry}/nvidia/*/include/nccl.h")]
    return os.path.dirname(os.path.dirname(found[0])) if found else None


def warm_libraries():
    """Reads cuBLASLt and PyTorch's libraries from disk in the background: gigabytes that the first
    program to load them would wait for."""
    files = [os.environ.get("LATHE_CUBLASLT")]
    for entry in filter(None, sys.path):
        files += glob.glob(f"{entry}/torch/lib/*.so*") + glob.glob(f"{entry}/nvidia/*/lib/*.so*")
    files = [path for path in dict.fromkeys(files) if path and os.path.isfile(path)]
    with contextlib.suppress(OSError, ValueError):
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if sum(os.path.getsize(path) for path in files) < free / 2:
            threading.Thread(target=read_through, args=(files,), daemon=True).start()


def read_through(files):
    for path in files:
        with contextlib.suppress(OSError), open(path, "rb", buffering=0) as file:
            while file.read(1 << 23):
                pass


def torch_version(python):
    """Without importing it, which takes seconds."""
    if os.path.abspath(python) == os.path.abspath(sys.executable):
        try:
            return importlib.metadata.version("torch")
        except importlib.metadata.PackageNotFoundError:
            return None
    return output_of(python, "-c", "import importlib.metadata as m; print(m.version('torch'))") or None


def cpu_flags():
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        if match := re.search(r"^flags\s*:\s*(.+)$", file.read(), re.MULTILINE):
            return set(match.group(1).split())
    return set()


def nvcc_version():
    match = re.search(r"release [\d.]+, V([\d.]+)", output_of("nvcc", "--version"))
    return match.group(1) if match else None


def compiler_version():
    return (output_of("c++", "--version").splitlines() or [None])[0]


def cpu_name():
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        if match := re.search(r"^model name\s*:\s*(.+)$", file.read(), re.MULTILINE):
            return match.group(1)
    return platform.machine()


def commit():
    """(short hash, whether files differ from it). LATHE_COMMIT names the hash of a copy whose .git is absent
    or of another commit."""
    if named := os.environ.get("LATHE_COMMIT"):
        return named, None
    short = output_of("git", "-C", ROOT, "rev-parse", "--short", "HEAD")
    if short:
        return short, bool(output_of("git", "-C", ROOT, "status", "--porcelain"))
    return "unknown", None


def environment(python):
    return {"gpu": gpu(), "nvcc": nvcc_version(), "compiler": compiler_version(),
            "cmake": (output_of("cmake", "--version").splitlines() or [None])[0],
            "ninja": output_of("ninja", "--version") or None,
            "cublaslt": os.environ.get("LATHE_CUBLASLT"),
            "nccl": os.environ.get("LATHE_NCCL"),
            "compute_sanitizer": shutil.which("compute-sanitizer"), "ncu": shutil.which("ncu"),
            "cpu": cpu_name(), "cores": len(os.sched_getaffinity(0)),
            "system": platform.platform(),
            "python": platform.python_version(), "torch": torch_version(python)}


@contextlib.contextmanager
def watched_gpu(into):
    """Samples clock, power and temperature every second; puts their medians into `into`."""
    try:
        watch = subprocess.Popen(["nvidia-smi", "--id=0", "--query-gpu=clocks.sm,power.draw,temperature.gpu",
                                  "--format=csv,noheader,nounits", "--loop=1"],
                                 stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    except OSError:
        yield
        return
    try:
        yield
    finally:
        watch.terminate()
        try:
            written = watch.communicate(timeout=5)[0]
        except subprocess.TimeoutExpired:
            watch.kill()
            written = watch.communicate()[0]
        rows = [line.split(", ") for line in written.splitlines()]
        rows = [[float(value) for value in row] for row in rows
                if len(row) == 3 and all(re.fullmatch(r"[\d.]+", value) for value in row)]
        if rows:
            clock, power, temperature = zip(*rows)
            into.update(sm_clock_mhz=statistics.median(clock), power_w=statistics.median(power),
                        temperature_c=max(temperature))
