"""The instructions of every kernel, counted in the code (not as often as they run)."""
import collections
import re
import shutil
import subprocess

import gpu_check_parse as parse
from kernel_report_compile import Problem

MOVES = ("LDG", "STG", "LDS", "STS", "LDL", "STL", "LD", "ST", "LDGSTS")
OTHERS = ("LDSM", "HMMA", "HGMMA", "UTMALDG", "UTMASTG", "UBLKCP", "MUFU", "SHFL", "BAR", "DADD",
          "DMUL", "DFMA", "DSETP", "RED", "ATOM", "ATOMG", "ATOMS")
INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)((?:\.[A-Z0-9_]+)*)")


def find_disassembler(named):
    """The path of nvdisasm, or None: `named` by the user, otherwise on the PATH."""
    if named and not shutil.which(named):
        raise Problem(f"--nvdisasm {named}: no such program")
    return shutil.which(named or "nvdisasm")


def kind_of(opcode, modifiers):
    """The kind of an instruction: "LDG.128", "HMMA"; None if it is not counted separately."""
    if opcode in MOVES:
        width = re.search(r"\.(U?8|S8|U?16|S16|64|128)\b", modifiers)
        return f"{opcode}.{width.group(1).lstrip('US') if width else '32'}"
    return opcode if opcode in OTHERS else None


def count(text):
    """{mangled name: {kind: instructions, "all": n}} from nvdisasm's output."""
    kernels, current = {}, None
    for line in text.splitlines():
        if section := re.match(r"\s*\.section\s+\.text\.(\w+)", line):
            current = kernels.setdefault(section.group(1), collections.Counter())
        elif current is not None and (found := INSTRUCTION.search(line)):
            opcode, modifiers = found.groups()
            if opcode == "NOP":
                continue
            current["all"] += 1
            if kind := kind_of(opcode, modifiers):
                current[kind] += 1
    return kernels


def mix_text(kinds):
    """"350: LDG.128 x 4, MUFU x 8": all instructions, then the kinds counted separately."""
    counted = ", ".join(f"{kind} x {n}" for kind, n in sorted(kinds.items()) if kind != "all")
    return f"{kinds['all']}" + (f": {counted}" if counted else "")


def disassembled(disassembler, cubin):
    """{kernel: text}"""
    done = subprocess.run([disassembler, "-c", str(cubin)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Problem(f"{disassembler} {cubin} failed: {done.stderr.strip()}")
    kernels = count(done.stdout)
    readable = parse.demangled(list(kernels))
    return {readable[name]: mix_text(kinds) for name, kinds in sorted(kernels.items())}


def instruction_mix(disassembler, cubins, before, recount):
    """{architecture: {file: {"of": digest of what was compiled, "kernels": {kernel: text}}}}. Keeps an
    entry of `before` with the same digest, unless a recount is requested. Without such an entry and
    without a disassembler there are no kernels."""
    mix = {}
    for architecture, files in cubins.items():
        mix[architecture] = {}
        for file, cubin in sorted(files.items()):
            digest = cubin.stem.rsplit("-", 1)[1]
            known = before.get(architecture, {}).get(file, {})
            kernels = known["kernels"] if known.get("of") == digest else {}
            if disassembler and (recount or not kernels):
                kernels = disassembled(disassembler, cubin)
            mix[architecture][file] = {"of": digest, "kernels": kernels}
    return mix
