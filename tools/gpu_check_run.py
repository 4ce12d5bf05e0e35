"""One run of `make gpu-check`: its clock, its report, the programs that it starts."""
import contextlib
import dataclasses
import datetime
import gzip
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import gpu_check_archive as archive
import gpu_check_machine as machine
import gpu_check_plan as plan
import gpu_check_report as report

ROOT = Path(__file__).resolve().parent.parent
LARGEST_LOG = 8 << 20


class Stopped(Exception):
    """The part's time is up."""


@dataclasses.dataclass
class Done:
    code: int
    seconds: float
    cpu_seconds: float  # of all its processes, including any that run at the same time
    text: str
    timed_out: bool

    @property
    def ok(self):
        return self.code == 0 and not self.timed_out


class Check:
    """One run of gpu-check: its arguments, its results so far, its clock."""

    def __init__(self, args):
        self.args = args
        self.tiny = args.preset == "cuda-on-cpu"
        self.begin = time.monotonic()
        self.build_dir = Path(args.build_dir or ROOT / "build" / args.preset).resolve()
        self.carried = self.build_dir / "carried"  # where carried binaries are unpacked
        self.archive = archive.find(args.binaries)
        carried_only = (self.carried / archive.LIST).exists() and not (self.build_dir / "train").exists()
        self.programs = self.carried if carried_only else self.build_dir
        self.work = self.build_dir / "gpu-check"
        self.work.mkdir(parents=True, exist_ok=True)
        self.deadline = self.begin + args.budget  # of the current part
        self.children = set()
        self.report = self.new_report()
        earlier = report.newest(args.resume, self.report) if args.resume else None
        if earlier:
            self.continue_report(*earlier)
        else:
            self.path = report.new_path(Path(args.out), self.report)
        self.add_call()
        self.estimates = plan.Estimates([self.path.parent, ROOT / "profiling" / "results"],
                                        report.machine_name(self.report))
        self.log = open(self.path.with_suffix(".log"), "a+b")
        self.save()

    def new_report(self):
        commit, changed = self.commit()
        return {"date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
                "commit": commit, "changed": changed, "preset": self.args.preset,
                "finished": False, "calls": [],
                "environment": machine.environment(self.args.python), "parts": {}}

    def commit(self):
        """From git; in a copy without it, from an archive that was made from the same sources."""
        commit, changed = machine.commit()
        if commit == "unknown" and self.archive:
            with contextlib.suppress(*archive.UNREADABLE):
                known = archive.about(self.archive)
                if known["sources"] == archive.sources_hash():
                    return known["commit"], known["changed"]
        return commit, changed

    def continue_report(self, path, known):
        """Continues an earlier report, copied to --out if it lies elsewhere."""
        known.update(date=self.report["date"], environment=self.report["environment"], finished=False)
        for part in known["parts"].values():
            if part["status"] == "running":
                part.update(status="interrupted", summary="gpu-check was stopped while it ran")
        self.report = known
        self.path = Path(self.args.out).resolve() / f"{path.stem}.md"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for name in (f"{path.stem}-trace.json", f"{path.stem}-tuning.log", plan.Estimates.NAME):
            if (path.parent / name).is_file() and not (self.path.parent / name).exists():
                shutil.copy(path.parent / name, self.path.parent)

    def add_call(self):
        self.report["calls"].append({"date": self.report["date"], "budget_s": self.args.budget,
                                     "command": shlex.join(["tools/gpu_check.py", *sys.argv[1:]])})
        for name in self.args.parts:
            self.report["parts"].setdefault(name, {"status": "not run", "summary": "not started"})

    def is_told(self, name):
        """Whether an earlier call finished this part, whatever the result. The files of `build` may be gone."""
        part = self.report["parts"].get(name, {})
        return name != "build" and part.get("status") in ("passed", "failed") and "traceback" not in part

    # ---- time --------------------------------------------------------------------------------

    def elapsed(self):
        return time.monotonic() - self.begin

    def left(self):
        """Seconds until the part must end."""
        return self.deadline - time.monotonic()

    # ---- programs ----------------------------------------------------------------------------

    def run(self, command, limit=None, env=None, apart=False):
        """Runs a command in a session of its own, and ends the whole session at the limit. Its output goes
        straight to the log, or first to `apart` if several commands run at once."""
        command = [str(word) for word in command]
        limit = min(limit or self.left(), self.left())
        if limit <= 0:
            raise Stopped
        begin, cpu = time.monotonic(), cpu_seconds()
        head = f"\n$ {shlex.join(command)}\n".encode()
        output = tempfile.TemporaryFile(dir=self.work) if apart else self.log
        if not apart:
            output.write(head)
        output.flush()
        start = output.seek(0, os.SEEK_END)
        code, timed_out = self.wait(command, output, limit, {**os.environ, **(env or {})})
        output.seek(start)
        text = output.read()
        seconds = time.monotonic() - begin
        note = f"\n[{'stopped at its limit' if timed_out else f'exit code {code}'}, {seconds:.1f} s]\n"
        self.log.write((head + text if apart else b"") + note.encode())
        self.log.flush()
        return Done(code, round(seconds, 2), round(cpu_seconds() - cpu, 1), text.decode(errors="replace"), timed_out)

    def wait(self, command, output, limit, env):
        """(exit code, whether it was stopped)."""
        try:
            child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output,
                                     stderr=subprocess.STDOUT, cwd=ROOT, env=env,
                                     start_new_session=True)
        except OSError as error:
            output.write(f"{command[0]}: {error.strerror}\n".encode())
            return 127, False
        self.children.add(child.pid)
        timed_out = False
        try:
            child.wait(limit)
        except subprocess.TimeoutExpired:
            timed_out = True
            end_session(child.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(2)
        finally:
            end_session(child.pid, signal.SIGKILL)  # also what it left running
            with contextlib.suppress(subprocess.TimeoutExpired):  # a driver can make it unkillable
                child.wait(10)
            self.children.discard(child.pid)
        return child.returncode, timed_out

    def interrupt(self, number, _):
        """On a signal: ends what runs; the report is written on the way out."""
        self.deadline = 0
        for child in list(self.children):
            end_session(child, signal.SIGKILL)
        raise SystemExit(128 + number)

    # ---- what parts share --------------------------------------------------------------------

    def say(self, text):
        print(text, flush=True)

    def program(self, name):
        return self.programs / name

    def save(self):
        self.report["calls"][-1]["elapsed_s"] = round(self.elapsed(), 1)
        report.write(self.path, self.report)

    def close(self):
        """Compresses a log that is too large to pass on."""
        path = self.path.with_suffix(".log")
        self.log.close()
        if path.stat().st_size > LARGEST_LOG:
            with open(path, "rb") as plain, gzip.open(f"{path}.gz", "ab") as packed:
                shutil.copyfileobj(plain, packed)
            path.unlink()

    def shakespeare(self):
        """Path of tiny Shakespeare, or None."""
        text = self.args.data and self.args.data / "tinyshakespeare.txt"
        return text if text and text.exists() else None

    def text(self):
        """Text to measure on: tiny Shakespeare, or part of the embedded corpus."""
        if not self.tiny and self.shakespeare():
            return self.shakespeare()
        path = self.work / "stories.txt"
        if not path.exists():
            size = 20000 if self.tiny else 1000000
            self.must([self.program("corpus"), "--out", path, "--bytes", size])
        return path

    def data(self, kind):
        """A data directory, prepared once, by characters ("char") or GPT-2's tokens ("gpt2")."""
        text = self.text()
        folder = self.work / f"data-{text.stem}-{kind}"
        if not (folder / "tokenizer.json").exists():
            shutil.rmtree(folder, ignore_errors=True)
            vocabulary = ["--vocab-dir", self.args.data / "gpt2"] if kind == "gpt2" else []
            self.must([self.program("prepare"), "--tokenizer", kind, *vocabulary, "--input", text,
                       "--out", folder])
        return folder

    def must(self, command):
        done = self.run(command)
        if not done.ok:
            raise RuntimeError(f"{Path(command[0]).name}: {last_line(done.text)}")


def cpu_seconds():
    """Of children that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def end_session(session, number):
    """Signals every process of a session: Ninja and ctest put their children into other groups."""
    for entry in os.listdir("/proc"):
        with contextlib.suppress(ValueError, ProcessLookupError, PermissionError):
            if os.getsid(int(entry)) == session:
                os.kill(int(entry), number)


def last_line(text):
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no output"
