#!/usr/bin/env python3
"""Writes golden_adamw.h: ten steps of PyTorch's AdamW in float64 and float32."""
import numpy
import torch

DECAYED, PLAIN, STEPS = 7, 5, 10
BETA1, BETA2, EPS = (float(numpy.float32(x)) for x in (0.9, 0.95, 1e-8))
DECAY = float(numpy.float32(0.1))


def initial(i):
    return float(numpy.float32((i * 37 % 19 - 9) / 7))


def gradient(step, i):
    return float(numpy.float32(((i * 31 + step * 17) % 23 - 11) / 5 * 10.0 ** (i % 4 - 3)))


def learning_rate(step):
    return float(numpy.float32(1e-2 * (1 - 0.07 * step)))


def train(dtype):
    weights = [torch.tensor([initial(i) for i in r], dtype=dtype, requires_grad=True)
               for r in (range(DECAYED), range(DECAYED, DECAYED + PLAIN))]
    optimizer = torch.optim.AdamW([{"params": [weights[0]], "weight_decay": DECAY},
                                   {"params": [weights[1]], "weight_decay": 0.0}],
                                  lr=1.0, betas=(BETA1, BETA2), eps=EPS, foreach=False)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        for first, weight in ((0, weights[0]), (DECAYED, weights[1])):
            weight.grad = torch.tensor([gradient(step, first + i) for i in range(len(weight))],
                                       dtype=dtype)
        optimizer.step()
    return [x for weight in weights for x in weight.tolist()]


def array(type_name, name, values):
    body = ", ".join(values)
    return f"inline constexpr {type_name} {name}[] = {{{body}}};\n"


with open("golden_adamw.h", "w") as out:
    count = DECAYED + PLAIN
    out.write(f"// Made by make_golden.py with PyTorch {torch.__version__}, numpy "
              f"{numpy.__version__}.\n#pragma once\n\nnamespace lathe::testing::golden {{\n\n"
              f"inline constexpr int kDecayed = {DECAYED}, kCount = {count}, kSteps = {STEPS};\n")
    out.write(array("double", "kInitial", [repr(initial(i)) for i in range(count)]))
    out.write(array("double", "kLearningRates", [repr(learning_rate(s)) for s in range(STEPS)]))
    out.write(array("double", "kGradients",
                    [repr(gradient(s, i)) for s in range(STEPS) for i in range(count)]))
    out.write(array("double", "kFinal", [repr(x) for x in train(torch.float64)]))
    out.write(array("float", "kFinalFloat", [repr(x) + "f" for x in train(torch.float32)]))
    out.write("\n}  // namespace lathe::testing::golden\n")
