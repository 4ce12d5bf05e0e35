#!/usr/bin/env python3
"""Checks lathe's safetensors files against the reference package, both ways.

    safetensors_reference.py make  FILE   writes the fixture that lathe's test reads
    safetensors_reference.py check FILE   reads what lathe's test wrote (fixtures/written.safetensors)

Needs the packages safetensors (made with 0.8.0) and numpy.
"""
import json
import struct
import sys

import numpy as np
import safetensors


def ramp(n, scale):
    return (np.arange(n) - n / 2) * scale


def bf16_bits(values):
    return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def make(path):
    arrays = {
        "f64": ramp(6, 0.125).reshape(2, 3),
        "i64": np.array([-(2**63), 0, 2**63 - 1], dtype=np.int64),
        "f32": ramp(10, 0.5).astype(np.float32).reshape(5, 2),
        "scalar": np.array(2.5, dtype=np.float32),
        "empty": np.zeros((0, 7), dtype=np.float32),
        "i32": np.array([-1, 2], dtype=np.int32),
        "f16": ramp(3, 1).astype(np.float16),
        "u8": np.arange(5, dtype=np.uint8),
        "mask": np.array([True, False, True]),
        'odd "name" \u00e9\u6f22\U0001f600': np.array([1.0], dtype=np.float32),
    }
    arrays["bf16"] = bf16_bits(ramp(4, 0.5))
    specs = {name: safetensors.TensorSpec(
                 dtype="bfloat16" if name == "bf16" else str(array.dtype), shape=list(array.shape),
                 data_ptr=array.ctypes.data, data_len=array.nbytes)
             for name, array in arrays.items()}
    with open(path, "wb") as file:
        file.write(safetensors.serialize(specs, {"format": "pt", "note": "line\nand \"quote\""}))


def check(path):
    with open(path, "rb") as file:
        data = file.read()
    length = struct.unpack("<Q", data[:8])[0]
    assert length % 8 == 0
    header = json.loads(data[8:8 + length])
    assert header["__metadata__"] == {"format": "pt", "who": "\u00e9 \"x\""}, header
    read = dict(safetensors.deserialize(data))
    want = {
        "wte.weight": ("F32", [3, 4], np.arange(12, dtype=np.float32) / 4),
        "moment": ("F64", [2], np.array([0.1, -1e300])),
        "position": ("I64", [1], np.array([2**40], dtype=np.int64)),
        "none": ("F32", [4, 0], np.zeros(0, dtype=np.float32)),
        "scalar": ("I32", [], np.array([-5], dtype=np.int32)),
        "half": ("BF16", [3], bf16_bits(np.array([1.0, -2.5, 0.0]))),
        'h "0"\u00e9': ("U8", [3], np.array([1, 2, 3], dtype=np.uint8)),
    }
    assert set(read) == set(want), set(read)
    for name, (dtype, shape, values) in want.items():
        assert read[name]["dtype"] == dtype, (name, read[name]["dtype"])
        assert list(read[name]["shape"]) == shape, (name, read[name]["shape"])
        assert bytes(read[name]["data"]) == values.tobytes(), name
    print(f"{path}: read by safetensors {safetensors.__version__} as written")


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ("make", "check"):
        sys.exit(__doc__)
    {"make": make, "check": check}[sys.argv[1]](sys.argv[2])
