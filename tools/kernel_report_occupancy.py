"""How many blocks of a kernel a multiprocessor holds at once, and what limits them: NVIDIA's formula
(cuda_occupancy.h, with which tests/tools/kernel_report_test.py compares it)."""
from dataclasses import dataclass

WARP = 32
REGISTERS = 65536          # of a multiprocessor, all generations from 8.0 on
PARTITIONS = 4             # of a multiprocessor: a warp's registers lie in one
REGISTER_UNIT = 256        # registers are given to a warp in so many
MOST_REGISTERS = 255       # of a thread
MOST_THREADS = 1024        # of a block
SHARED_UNIT = 128          # bytes
SHARED_RESERVED = 1024     # bytes of a block that the driver takes
KIB = 1024


@dataclass(frozen=True)
class Limits:
    """Of a multiprocessor; shared memory in bytes."""
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
    """Of "sm_90a", say. KeyError if nothing is known of it."""
    return LIMITS[int("".join(c for c in architecture if c.isdigit()))]


def up(value, unit):
    return -(-value // unit) * unit


def occupancy(architecture, registers, threads, shared):
    """Blocks of a multiprocessor and what keeps them from being more: "registers", "shared memory",
    "threads" or "blocks". `shared`: bytes of a block, static and dynamic. 0 blocks do not run."""
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
