"""How many blocks of a kernel fit a multiprocessor at once, and what limits them: NVIDIA's formula
(cuda_occupancy.h; tests/tools/kernel_report_test.py compares the two)."""
from dataclasses import dataclass

WARP = 32
REGISTERS = 65536          # per multiprocessor, for all generations since 8.0
PARTITIONS = 4             # per multiprocessor; a warp's registers lie in one
REGISTER_UNIT = 256        # a warp gets registers in multiples of this
MOST_REGISTERS = 255       # per thread
MOST_THREADS = 1024        # per block
SHARED_UNIT = 128          # bytes
SHARED_RESERVED = 1024     # bytes per block that the driver takes
KIB = 1024


@dataclass(frozen=True)
class Limits:
    """Per multiprocessor; shared memory in bytes."""
    shared: int
    warps: int
    blocks: int

    @property
    def shared_per_block(self):
        return self.shared - SHARED_RESERVED


# By compute capability; CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".
LIMITS = {
    80: Limits(164 * KIB, 64, 32),
    86: Limits(100 * KIB, 48, 16),
    87: Limits(164 * KIB, 48, 16),
    89: Limits(100 * KIB, 48, 24),
    90: Limits(228 * KIB, 64, 32),
    100: Limits(228 * KIB, 64, 32),
    103: Limits(228 * KIB, 64, 32),
    110: Limits(228 * KIB, 48, 24),
    120: Limits(100 * KIB, 48, 24),
    121: Limits(100 * KIB, 48, 24),
}


def limits_of(architecture):
    """For an architecture such as "sm_90a". KeyError if it is not known."""
    return LIMITS[int("".join(c for c in architecture if c.isdigit()))]


def up(value, unit):
    return -(-value // unit) * unit


def occupancy(architecture, registers, threads, shared):
    """Blocks per multiprocessor, and what limits them: "registers", "shared memory", "threads" or
    "blocks". `shared`: bytes per block, static and dynamic. A kernel with 0 blocks cannot run."""
    limits = limits_of(architecture)
    warps = up(threads, WARP) // WARP
    warp_registers = up(registers * WARP, REGISTER_UNIT)
    by = {"blocks": limits.blocks, "threads": limits.warps // warps if threads <= MOST_THREADS else 0}
    too_many = warp_registers * up(warps, PARTITIONS) > REGISTERS or registers > MOST_REGISTERS
    if too_many:
        by["registers"] = 0
    elif warp_registers:
        by["registers"] = REGISTERS // PARTITIONS // warp_registers * PARTITIONS // warps
    block_shared = up(shared + SHARED_RESERVED, SHARED_UNIT)
    by["shared memory"] = limits.shared // block_shared
    limit = min(by, key=by.get)
    return by[limit], limit
