#!/usr/bin/env python3
"""GPT-2 in plain PyTorch to compare lathe with: the same sizes, the same batch, the same step.

Written the way most people would: scaled_dot_product_attention, autocast to bf16, fused AdamW, first in
eager mode, then through torch.compile. Each variant prints one line of JSON when it is done, so a run that
is stopped while it compiles still gives the first. A step is timed from its batch on the host until the
device is idle.

    python3 profiling/torch_gpt2.py --batch-size 16 --steps 30
"""
import argparse
import json
import math
import os
import statistics
import time

import torch
import torch.nn as nn
import torch.nn.functional as F


class Block(nn.Module):
    def __init__(self, n_embd, n_head):
        super().__init__()
        self.n_head = n_head
        self.ln_1 = nn.LayerNorm(n_embd)
        self.c_attn = nn.Linear(n_embd, 3 * n_embd)
        self.attn_proj = nn.Linear(n_embd, n_embd)
        self.ln_2 = nn.LayerNorm(n_embd)
        self.c_fc = nn.Linear(n_embd, 4 * n_embd)
        self.mlp_proj = nn.Linear(4 * n_embd, n_embd)

    def forward(self, x):
        B, T, C = x.shape
        heads = self.c_attn(self.ln_1(x)).view(B, T, 3, self.n_head, C // self.n_head)
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attn_proj(y.transpose(1, 2).reshape(B, T, C))
        return x + self.mlp_proj(F.gelu(self.c_fc(self.ln_2(x)), approximate="tanh"))


class GPT2(nn.Module):
    def __init__(self, n_layer, n_head, n_embd, vocab_size, seq_len):
        super().__init__()
        self.wte = nn.Embedding(vocab_size, n_embd)
        self.wpe = nn.Embedding(seq_len, n_embd)
        self.blocks = nn.ModuleList(Block(n_embd, n_head) for _ in range(n_layer))
        self.ln_f = nn.LayerNorm(n_embd)
        for name, p in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(p)
            elif p.dim() == 2:
                residual = name.endswith("proj.weight")
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * n_layer) if residual else 0.02)

    def forward(self, tokens, targets):
        x = self.wte(tokens) + self.wpe.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.ln_f(x), self.wte.weight)  # embeddings are tied
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def parse():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--n-layer", type=int, default=12)
    parser.add_argument("--n-head", type=int, default=12)
    parser.add_argument("--n-embd", type=int, default=768)
    parser.add_argument("--vocab-size", type=int, default=50304, help="50257, padded as lathe pads it")
    parser.add_argument("--seq-len", type=int, default=1024)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--warmup", type=int, default=5, help="untimed steps before the timed ones")
    parser.add_argument("--dtype", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--tf32", action="store_true", help="fp32 products may round to TF32")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--eager-only", action="store_true", help="no torch.compile")
    return parser.parse_args()


class Clock:
    """Device timestamps, read at the end, so that nothing waits while steps are in flight."""

    def __init__(self, on_gpu):
        self.on_gpu, self.times = on_gpu, []

    def tick(self):
        if self.on_gpu:
            self.times.append(torch.cuda.Event(enable_timing=True))
            self.times[-1].record()
        else:
            self.times.append(time.perf_counter())

    def seconds(self):
        """The time from each tick to the next."""
        if not self.on_gpu:
            return [end - begin for begin, end in zip(self.times, self.times[1:])]
        torch.cuda.synchronize()
        return [begin.elapsed_time(end) / 1e3 for begin, end in zip(self.times, self.times[1:])]


def train(model, args):
    """Seconds of each timed step, and the losses of all."""
    decayed = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.1},
                                   {"params": others, "weight_decay": 0.0}],
                                  lr=6e-4, betas=(0.9, 0.95), fused=args.device != "cpu")
    on_gpu = args.device != "cpu"
    tokens = torch.randint(args.vocab_size, (args.batch_size, args.seq_len + 1))
    batch = tokens.pin_memory() if on_gpu else tokens
    kind = torch.device(args.device).type
    clock, losses = Clock(on_gpu), []
    for _ in range(args.warmup + args.steps):
        clock.tick()
        on_device = batch.to(args.device, non_blocking=True)
        with torch.autocast(kind, torch.bfloat16, enabled=args.dtype == "bf16"):
            loss = model(on_device[:, :-1], on_device[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())
    clock.tick()
    return clock.seconds()[args.warmup:], [loss.item() for loss in losses]


def report(variant, model, args):
    seconds, losses = train(model, args)
    median = statistics.median(seconds)
    on_gpu = args.device != "cpu"
    print(json.dumps({
        "variant": variant, "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "dtype": args.dtype, "tf32": args.tf32, "batch_size": args.batch_size,
        "seq_len": args.seq_len, "steps": args.steps, "median_ms": round(1e3 * median, 3),
        "min_ms": round(1e3 * min(seconds), 3), "max_ms": round(1e3 * max(seconds), 3),
        "tokens_per_second": round(args.batch_size * args.seq_len / median, 1),
        "first_loss": losses[0], "last_loss": losses[-1],
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if on_gpu else None,
    }), flush=True)


def main():
    args = parse()
    torch.manual_seed(1337)
    torch.set_float32_matmul_precision("high" if args.tf32 else "highest")
    model = GPT2(args.n_layer, args.n_head, args.n_embd, args.vocab_size, args.seq_len)
    model = model.to(args.device)
    report("eager", model, args)
    if args.eager_only:
        return
    try:
        report("compiled", torch.compile(model), args)
    except Exception as error:  # whatever the compiler lacks here, the eager result has been printed
        print(f"torch.compile: {type(error).__name__}: {str(error).splitlines()[0]}", flush=True)


if __name__ == "__main__":
    main()
    os._exit(0)  # not waiting for the compiler's workers
