#!/usr/bin/env python3
"""Writes golden/*.safetensors: the weights (fp32) of small GPT-2 models in PyTorch, and for one batch their
logits, loss and all gradients in double precision.

    python3 tests/model/make_golden.py      # needs torch and numpy; made with the versions below

Each value comes with the error of the same PyTorch code in fp32 and bf16 (largest and root mean square).
lathe's own fp32 and bf16 may be off by twice as much.

The model is written in plain tensor operations, so that it follows the paper and not a library's
module. Weights are stored as Hugging Face stores them: linear layers [in, out].
"""
import json
import math
import os
import struct

import numpy as np
import torch

torch.set_default_dtype(torch.float64)
HERE = os.path.dirname(os.path.abspath(__file__))


def parameters(config, generator):
    c, std = config["n_embd"], 0.2  # larger than 0.02, so that every path matters
    def normal(*shape):  # representable in fp32, as that is how they are stored
        return (torch.randn(*shape, generator=generator) * std).float().double().requires_grad_()
    p = {"wte.weight": normal(config["vocab_size"], c), "wpe.weight": normal(config["seq_len"], c)}
    def layernorm(name):
        p[name + ".weight"] = (1 + normal(c)).detach().float().double().requires_grad_()
        if config["bias"]:
            p[name + ".bias"] = normal(c)
    def linear(name, i, o):
        p[name + ".weight"] = normal(i, o)
        if config["bias"]:
            p[name + ".bias"] = normal(o)
    for l in range(config["n_layer"]):
        h = f"h.{l}"
        layernorm(h + ".ln_1")
        linear(h + ".attn.c_attn", c, 3 * c)
        linear(h + ".attn.c_proj", c, c)
        layernorm(h + ".ln_2")
        linear(h + ".mlp.c_fc", c, 4 * c)
        linear(h + ".mlp.c_proj", 4 * c, c)
    layernorm("ln_f")
    return p


def logits(config, p, tokens):
    b, t = tokens.shape
    c, heads = config["n_embd"], config["n_head"]
    def layernorm(name, x):
        return torch.nn.functional.layer_norm(x, (c,), p[name + ".weight"], p.get(name + ".bias"), 1e-5)
    def linear(name, x):
        y = x @ p[name + ".weight"]
        return y + p[name + ".bias"] if config["bias"] else y
    def gelu(x):
        if config["gelu"] == "exact":
            return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x ** 3)))
    causal = torch.ones(t, t).tril().bool()
    x = p["wte.weight"][tokens] + p["wpe.weight"][:t]
    for l in range(config["n_layer"]):
        h = f"h.{l}"
        q, k, v = linear(h + ".attn.c_attn", layernorm(h + ".ln_1", x)).split(c, dim=2)
        q, k, v = (y.view(b, t, heads, c // heads).transpose(1, 2) for y in (q, k, v))
        scores = (q @ k.transpose(2, 3)) / math.sqrt(c // heads)
        a = scores.masked_fill(~causal, -math.inf).softmax(3) @ v
        x = x + linear(h + ".attn.c_proj", a.transpose(1, 2).reshape(b, t, c))
        x = x + linear(h + ".mlp.c_proj", gelu(linear(h + ".mlp.c_fc", layernorm(h + ".ln_2", x))))
    return layernorm("ln_f", x) @ p["wte.weight"].T


def run(config, p, tokens, targets, dtype):
    """Logits, loss and gradients with every tensor of this type, as double."""
    p = {key: value.detach().to(dtype).requires_grad_() for key, value in p.items()}
    out = logits(config, p, tokens)
    loss = torch.nn.functional.cross_entropy(out.view(-1, config["vocab_size"]).to(
        torch.float32 if dtype == torch.bfloat16 else dtype), targets.view(-1))
    loss.backward()
    result = {"logits": out.detach().double(), "loss": loss.detach().double().reshape(1)}
    result.update({"grad." + key: value.grad.double() for key, value in p.items()})
    return result


def save_safetensors(path, tensors, metadata):
    header, data = {"__metadata__": metadata}, b""
    types = {"float64": "F64", "float32": "F32", "int32": "I32"}
    for name, array in sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0])):
        header[name] = {"dtype": types[str(array.dtype)], "shape": list(array.shape),
                        "data_offsets": [len(data), len(data) + array.nbytes]}
        data += array.tobytes()
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + data)


def main():
    cases = {
        "bias_tanh": dict(n_layer=2, n_head=3, n_embd=24, vocab_size=97, seq_len=19, bias=True, gelu="tanh", batch=2, t=17),
        "nobias_exact": dict(n_layer=2, n_head=2, n_embd=20, vocab_size=65, seq_len=16, bias=False, gelu="exact", batch=3, t=16),
    }
    for name, config in cases.items():
        generator = torch.Generator().manual_seed(20261122)
        p = parameters(config, generator)
        shape = (config["batch"], config["t"])
        tokens = torch.randint(config["vocab_size"], shape, generator=generator)
        targets = torch.randint(config["vocab_size"], shape, generator=generator)
        tensors = {"tokens": tokens.int().numpy(), "targets": targets.int().numpy()}
        for key, value in p.items():
            tensors["weight." + key] = value.detach().float().numpy()
        reference = run(config, p, tokens, targets, torch.float64)
        tensors.update({key: value.numpy() for key, value in reference.items()})
        for type_name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            for key, value in run(config, p, tokens, targets, dtype).items():
                error = value - reference[key]
                tensors[f"error_{type_name}.{key}"] = np.array(
                    [error.abs().max().item(), error.square().mean().sqrt().item()])
        os.makedirs(os.path.join(HERE, "golden"), exist_ok=True)
        save_safetensors(os.path.join(HERE, "golden", name + ".safetensors"), tensors,
                         {"torch": torch.__version__, "numpy": np.__version__,
                          **{key: str(value) for key, value in config.items()}})
        print(name, "loss", reference["loss"].item())


if __name__ == "__main__":
    main()
