"""A machine with almost nothing: a folder with the files of a few Debian packages and their
dependencies, entered by chroot in namespaces of its own, without a network. For root on Debian."""
import os
import re
import shutil
import subprocess
from pathlib import Path

UNUSED = ("/usr/share/doc", "/usr/share/man", "/usr/share/locale", "/usr/share/info")
DEVICES = ("null", "zero", "random", "urandom")
# Headers of CUDA's libraries, which a machine with nvcc may lack.
LIBRARY_HEADERS = re.compile(r"cublas|cudnn|cufft|curand|cusolver|cusparse|nccl|nvtx|npp|nvjpeg|nvml|cupti|cufile|"
                             r"nvJitLink|nvrtc|cuda_profiler|cudaProfiler|cutensor|nvperf|nvblas", re.IGNORECASE)
NVCC_LIBRARIES = ("libcudart_static.a", "libcudadevrt.a", "libculibos.a")


def why_impossible():
    """What this machine lacks for it, or ""."""
    if os.geteuid() != 0:
        return "chroot needs root"
    for tool in ("dpkg-query", "unshare", "chroot", "tar", "ldconfig"):
        if not shutil.which(tool):
            return f"there is no {tool}"
    done = subprocess.run(["unshare", "--mount", "--net", "--pid", "--fork", "mount", "-t", "tmpfs", "none", "/mnt"],
                          capture_output=True, text=True, check=False)
    return f"namespaces are not allowed: {done.stderr.strip()}" if done.returncode else ""


def names_in(dependencies):
    """"a (>= 1), b | c:any" is [["a"], ["b", "c"]]."""
    plain = re.sub(r"\(.*?\)", "", dependencies)
    return [[name.strip().split(":")[0] for name in either.split("|")] for either in plain.split(",") if either.strip()]


def with_dependencies(packages):
    """dpkg's names of the installed packages and all their dependencies."""
    listed = subprocess.run(["dpkg-query", "-W", "-f", "${binary:Package}\t${Pre-Depends}, ${Depends}\t${Provides}\n"],
                            capture_output=True, text=True, check=True).stdout
    installed, provided = {}, {}
    for name, depends, provides in (line.split("\t") for line in listed.splitlines()):
        installed[name.split(":")[0]] = (name, depends)
        for either in names_in(provides):
            provided.setdefault(either[0], name.split(":")[0])
    absent = [name for name in packages if name not in installed]
    if absent:
        raise FileNotFoundError(f"packages that are not installed: {', '.join(absent)}")
    found, waiting = {}, list(packages)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found[name] = installed[name][0]
        for either in names_in(installed[name][1]):
            here = [other if other in installed else provided.get(other) for other in either]
            waiting += [other for other in here if other][:1]
    return sorted(found.values())


def files_of(packages):
    files = []
    for package in packages:
        lists = [Path(f"/var/lib/dpkg/info/{name}.list") for name in (package, package.split(":")[0])]
        text = next(path for path in lists if path.exists()).read_text(encoding="utf-8")
        files += [line for line in text.splitlines() if line not in ("", "/.") and not line.startswith(UNUSED)]
    return files


class BareMachine:
    def __init__(self, folder):
        self.root = Path(folder)
        self.libraries = []
        for name in ("usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "proc", "dev", "tmp", "root", "srv"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        for name in ("bin", "sbin", "lib", "lib64"):
            (self.root / name).symlink_to(f"usr/{name}")
        for name in DEVICES:
            (self.root / "dev" / name).touch()

    def install(self, *packages):
        """Copies the packages' files from this machine."""
        files = {os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
                 for path in files_of(with_dependencies(packages))}
        # Symbolic links have intermediate links: /usr/bin/c++ links into /etc/alternatives.
        links = {f"/etc/alternatives/{entry}" for entry in os.listdir("/etc/alternatives")
                 if os.path.realpath(f"/etc/alternatives/{entry}") in files}
        links |= {path for link in links if os.path.islink(path := f"/usr/bin/{os.path.basename(link)}")}
        wanted = "".join(f"{path[1:]}\n" for path in sorted(files | links) if os.path.lexists(path))
        with subprocess.Popen(["tar", "-C", "/", "-c", "--no-recursion", "-T", "-"], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE) as pack:
            with subprocess.Popen(["tar", "-C", str(self.root), "-x"], stdin=pack.stdout) as unpack:
                pack.stdin.write(wanted.encode())
                pack.stdin.close()
                if unpack.wait() or pack.wait():
                    raise OSError("tar could not copy the packages")
        subprocess.run(["ldconfig", "-r", str(self.root)], check=True)

    def install_nvcc(self, toolkit):
        """nvcc's own files: compilers, the runtime with its headers, none of CUDA's other libraries."""
        if not (toolkit / "bin" / "ptxas").exists():
            raise FileNotFoundError(f"{toolkit} is not nvcc's toolkit: it has no bin/ptxas")
        home = self.root / "usr/local/cuda"
        for name in ("bin", "nvvm"):
            shutil.copytree(toolkit / name, home / name, symlinks=True)
        shutil.copytree(toolkit / "include", home / "include", symlinks=True,
                        ignore=lambda _, names: [name for name in names if LIBRARY_HEADERS.match(name)])
        for folder in (home / "lib64", home / "targets/x86_64-linux/lib"):
            folder.mkdir(parents=True)
            for name in NVCC_LIBRARIES:
                found = [path / name for path in (toolkit / "lib64", toolkit / "targets/x86_64-linux/lib")]
                for path in [path for path in found if path.exists()][:1]:
                    shutil.copy(path, folder)
        (home / "targets/x86_64-linux/include").symlink_to("../../include")

    def lend_libraries(self, paths):
        """Shared libraries that are not part of the machine: they replace its GPU."""
        folder = self.root / "lent"
        folder.mkdir(exist_ok=True)
        for path in paths:
            shutil.copy(path, folder)
        self.libraries = ["/lent"]

    def run(self, command, folder="/srv", timeout=600, **environment):
        """Runs a command on it, without this machine's environment, processes or network."""
        path = "/usr/local/cuda/bin:/usr/bin:/bin:/usr/sbin"
        environment = {"PATH": path, "HOME": "/root", "LC_ALL": "C", "LD_LIBRARY_PATH": ":".join(self.libraries),
                       **environment}
        words = [f"{key}={value}" for key, value in environment.items()]
        script = 'root=$1; shift; mount -t proc proc "$root/proc"\n'
        script += "".join(f'mount --bind /dev/{name} "$root/dev/{name}"\n' for name in DEVICES)
        script += 'cd /; exec chroot "$root" /usr/bin/env -i "$@"'
        inside = ["/bin/bash", "-c", 'cd "$1" && shift && exec "$@"', "bare", folder]
        apart = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "bash", "-ec", script, "bare"]
        return subprocess.run([*apart, str(self.root), *words, *inside, *map(str, command)],
                              capture_output=True, text=True, timeout=timeout, check=False)
