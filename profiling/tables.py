"""Shared by roofline.py, ncu_report.py and nsys_report.py: peaks of devices, rows of measured work, and
the tables and picture made from them."""
import html
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

# A GPU's limits: TFLOP/s of dense matrix products (fp32 sums) in bf16, in fp32 without tensor
# cores, and in TF32; TB/s of its memory. The FLOP/s are those of kernels/cuda/peak.cpp. For Hopper
# and Ada NVIDIA's data sheets give bf16 and TF32 with sparsity; these are half of that. The first
# entry whose name is part of the driver's name for the GPU counts.
PEAKS = [
    ("H200", 989.4, 66.9, 494.7, 4.8),          # "NVIDIA H200 Tensor Core GPU" data sheet, SXM
    ("H100 PCIe", 756.5, 51.2, 378.0, 2.0),     # "NVIDIA H100 Tensor Core GPU" data sheet, PCIe
    ("H100 NVL", 835.5, 60.0, 417.7, 3.9),      # the same, NVL
    ("H100", 989.4, 66.9, 494.7, 3.35),         # the same, SXM
    ("A100-SXM4-80GB", 312, 19.5, 156, 2.039),  # "NVIDIA A100 Tensor Core GPU" data sheet, 80GB SXM
    ("A100 80GB PCIe", 312, 19.5, 156, 1.935),  # the same, 80GB PCIe
    ("A100", 312, 19.5, 156, 1.555),            # the same, first edition: 40GB
    ("A40", 149.7, 37.4, 74.8, 0.696),          # "NVIDIA A40" data sheet
    ("L40S", 362, 91.6, 183, 0.864),            # "NVIDIA L40S" data sheet
    ("RTX 4090", 165.2, 82.6, 82.6, 1.008),     # "NVIDIA Ada GPU Architecture" white paper
    ("RTX 3090", 71.2, 35.6, 35.6, 0.936),      # "NVIDIA Ampere GA102 GPU Architecture" white paper
]


@dataclass
class Peaks:
    flops: float = 0  # FLOP/s; 0: not known
    bytes: float = 0  # bytes/s; 0: not known

    def floor_ms(self, flops, bytes_):
        """The least time that this work can take; None if a rate is not known."""
        if not self.flops or not self.bytes:
            return None
        return 1e3 * max(flops / self.flops, bytes_ / self.bytes)

    def bound(self, flops, bytes_):
        if not self.flops or not self.bytes:
            return None
        return "compute" if flops / self.flops > bytes_ / self.bytes else "memory"


def peaks_of(device, dtype="bf16", tf32=False):
    """By the driver's name for the GPU and the number type; no peaks if it is not in the table."""
    for name, bf16, fp32, tf32_rate, memory in PEAKS:
        if name in device:
            rate = bf16 if dtype == "bf16" else tf32_rate if tf32 else fp32 if dtype == "fp32" else 0
            return Peaks(1e12 * rate, 1e12 * memory)
    return Peaks()


@dataclass
class Row:
    """Calls of one kind with one shape: an operation, a part of one, or a kernel."""
    name: str
    shape: str = ""
    calls: float = 0
    ms: float = 0      # of all calls
    flops: float = 0   # the same
    bytes: float = 0
    extra: dict = field(default_factory=dict)  # further columns, by heading

    def add(self, ms, flops=0, bytes_=0, calls=1):
        self.calls += calls
        self.ms += ms
        self.flops += flops
        self.bytes += bytes_


def measures(row, total_ms, peaks):
    """A row's figures for the tables and the JSON. None for what is unknown."""
    seconds = row.ms / 1e3
    floor = peaks.floor_ms(row.flops, row.bytes)
    return {
        "name": row.name, "shape": row.shape, "calls": row.calls, "ms": row.ms,
        "share": row.ms / total_ms if total_ms else None,
        "tflops": row.flops / seconds / 1e12 if seconds and row.flops else None,
        "tbps": row.bytes / seconds / 1e12 if seconds and row.bytes else None,
        "bound": peaks.bound(row.flops, row.bytes) if row.flops or row.bytes else None,
        "floor_ms": floor if row.flops or row.bytes else None,
        "of_peak": floor / row.ms if floor is not None and row.ms and (row.flops or row.bytes) else None,
        **row.extra,
    }


def number(value, digits=3):
    """A number with this many significant digits; a dash if it is unknown."""
    if value is None:
        return "-"
    if value == 0 or 1e-3 <= abs(value) < 1e6:
        whole = len(str(int(abs(value))))
        return f"{value:.{max(0, min(4, digits - whole if abs(value) >= 1 else digits))}f}"
    return f"{value:.{digits - 1}e}"


def percent(value):
    return "-" if value is None else f"{100 * value:.1f} %"


def markdown(headings, rows):
    """A table; the first two columns are text, the others numbers."""
    cells = [headings] + [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(headings))]
    left = [i < 2 for i in range(len(headings))]

    def line(row):
        return "| " + " | ".join(c.ljust(w) if l else c.rjust(w)
                                 for c, w, l in zip(row, widths, left)) + " |"
    rule = "|" + "|".join("-" * (w + 2) if l else "-" * (w + 1) + ":" for w, l in zip(widths, left)) + "|"
    return "\n".join([line(cells[0]), rule] + [line(row) for row in cells[1:]])


def rate_table(rows, total_ms, peaks, extra=()):
    """Rows by time, with their rates. `extra`: further columns, from Row.extra, as (heading, format)."""
    headings = ["operation", "shape", "calls", "ms", "share", "TFLOP/s", "TB/s", "of peak", "bound by",
                "floor ms"]
    lines = []
    for row in sorted(rows, key=lambda r: -r.ms):
        m = measures(row, total_ms, peaks)
        lines.append([row.name, row.shape, f"{row.calls:g}", number(row.ms), percent(m["share"]),
                      number(m["tflops"]), number(m["tbps"]), percent(m["of_peak"]), m["bound"] or "-",
                      number(m["floor_ms"])] + [show(row.extra.get(heading)) for heading, show in extra])
    return markdown(headings + [heading for heading, _ in extra], lines)


def bars_svg(rows, total_ms, peaks, title, most=24):
    """The time of each row as a bar, with its floor as the dark part."""
    rows = sorted(rows, key=lambda r: -r.ms)[:most]
    width, label, bar, height = 1000, 380, 460, 20
    longest = max((r.ms for r in rows), default=0) or 1
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height * (len(rows) + 3)}" '
           'font-family="sans-serif" font-size="12">',
           '<rect width="100%" height="100%" fill="white"/>',
           f'<text x="10" y="18" font-size="14">{html.escape(title)}</text>']
    for i, row in enumerate(rows):
        y = height * (i + 2)
        m = measures(row, total_ms, peaks)
        length = bar * row.ms / longest
        out.append(f'<text x="{label - 8}" y="{y}" text-anchor="end">{html.escape(row.name)} '
                   f'{html.escape(row.shape)}</text>')
        out.append(f'<rect x="{label}" y="{y - 12}" width="{length:.1f}" height="14" fill="#9ecae1"/>')
        if m["floor_ms"] is not None:
            floor = min(bar, bar * m["floor_ms"] / longest)
            out.append(f'<rect x="{label}" y="{y - 12}" width="{floor:.1f}" height="14" fill="#3182bd"/>')
        of_peak = "" if m["of_peak"] is None else f', {percent(m["of_peak"])} of peak'
        out.append(f'<text x="{label + length + 6:.1f}" y="{y}">{number(row.ms)} ms{of_peak}</text>')
    return "\n".join(out + ["</svg>"]) + "\n"


def fail(program, sentence):
    print(f"{program}: {sentence}", file=sys.stderr)
    raise SystemExit(2)


def read_text(program, path):
    try:
        return Path(path).read_text(errors="replace")
    except OSError as error:
        return fail(program, f"{path}: {error.strerror}")


def write_json(path, content):
    Path(path).write_text(json.dumps(content, indent=1) + "\n")


def add_peak_arguments(parser):
    parser.add_argument("--device", metavar="NAME", help="the GPU's name, instead of the one in the file")
    parser.add_argument("--peak-flops", type=float, metavar="N", help="FLOP/s of its matrix products")
    parser.add_argument("--peak-bytes", type=float, metavar="N", help="bytes/s of its memory")
    parser.add_argument("--json", metavar="FILE", help="the same for programs")


def chosen_peaks(arguments, device, dtype, tf32=False):
    peaks = peaks_of(arguments.device or device, dtype, tf32)
    return Peaks(arguments.peak_flops or peaks.flops, arguments.peak_bytes or peaks.bytes)
