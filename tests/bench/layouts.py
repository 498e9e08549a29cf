"""When a tree pays: rows behind prompts as trees, packed, or split, over many kinds of batches, and how well `Shared.tree_pays` chooses.

    python tests/bench/layouts.py [--widths 64 128 256 768] [--repeats 5] [--threads 2] [--save]

Random models of two to four layers, 1 to 32 prompts of 1 to 50 vectors with 4 to 64 rows of at most 4 to 32 random tokens behind each, of which the first is the same: so nothing else is shared, which is the least that a tree can gain. A step is forward
and backward. *Gain*: packed (or split, where that is faster) over what the rule takes; *regret*: what the rule takes over the faster of all, less one. `1500` and `1.2` in the rule are the round numbers of least mean regret on a first such grid."""

import argparse
import json
import platform
import time
from copy import deepcopy
from datetime import date
from itertools import product
from pathlib import Path
from statistics import median

from softprompt_nb.data import Encoded, pad_rows
from softprompt_nb.engine.forward import _hidden, target_nll
from softprompt_nb.engine.packing import find_shared
from softprompt_nb.lm import FrozenLM
from softprompt_nb.load import load_lm

import numpy as np
import pandas as pd
import torch
import transformers
from transformers import GPTNeoXForCausalLM

MOST = {64: 4200, 128: 4200, 256: 4200, 768: 1500}  # tokens in a batch, by width


def model_of(width):
    base = load_lm("lab-base-s")
    c = deepcopy(base.config)
    c.hidden_size, c.intermediate_size, c.num_attention_heads, c.num_hidden_layers = (
        width,
        4 * width,
        max(4, width // 64),
        2 if width in (64, 768) else 4,
    )
    torch.manual_seed(0)
    return FrozenLM(GPTNeoXForCausalLM(c), base.tokenizer, f"{width} wide")


def batch_of(lm, lanes, B, T, n, g):
    "Prompts and rows of up to T tokens, the last two of them targets."
    draw = lambda lo, hi, k=1: torch.randint(lo, hi, (k,), generator=g).tolist()
    ids = [[100 + l, *draw(10, 3000, draw(max(2, T // 2), T + 1)[0] - 1)] for l in range(lanes) for _ in range(B)]
    rows = [Encoded(i, max(1, len(i) - 2)) for i in ids]
    return [(torch.randn(n, lm.d_model, generator=g) * 0.02).requires_grad_() for _ in range(lanes)], pad_rows(
        lm, rows, lanes=[l for l in range(lanes) for _ in range(B)]
    )


def seconds(lm, prompts, batch, path, repeats):
    def step():
        h, y, _ = _hidden(lm, prompts, batch, path)
        torch.autograd.grad(target_nll(lm, h, y).mean(), prompts)

    step()
    took = []
    for _ in range(repeats):
        start = time.perf_counter()
        step()
        took.append(time.perf_counter() - start)
    return median(took)


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--widths", type=int, nargs="+", default=list(MOST))
    ap.add_argument("--repeats", type=int, default=5)
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--save", action="store_true", help="keep the table as a dated file in tests/bench/results")
    a = ap.parse_args()
    torch.set_num_threads(a.threads)
    rows, g = [], torch.Generator().manual_seed(0)
    for width in a.widths:
        lm = model_of(width)
        for lanes, B, T, n in product((1, 8, 32), (4, 8, 16, 32, 64), (4, 8, 16, 32), (1, 10, 50)):
            if lanes * (n + B * T) > MOST.get(width, 1500) or n + B * T > 1100:
                continue
            prompts, batch = batch_of(lm, lanes, B, T, n, g)
            f = find_shared(prompts, batch)
            times = {
                p: seconds(lm, prompts, batch, p, a.repeats)
                for p in ("tree", "packed", "split")
                if p != "split" or n >= T
            }
            rows.append(
                dict(width=width, lanes=lanes, rows=B, tokens=T, n=n, places=f.shape[1], pays=f.tree_pays, **times)
            )
        t = pd.DataFrame([r for r in rows if r["width"] == width])
        other = t[[c for c in ("packed", "split") if c in t]].min(axis=1)
        taken = np.where(t.pays, t.tree, other)
        regret = taken / np.minimum(t.tree, other) - 1
        print(
            f"{width} wide, {len(t)} kinds of batches: trees taken for {t.pays.mean():.0%}, gain {np.exp(np.log(other / taken).mean()):.2f} (where taken {np.exp(np.log((other / taken)[t.pays]).mean()):.2f}), regret {regret.mean():.1%}, at most {regret.max():.0%}",
            flush=True,
        )
    if a.save:
        path = Path(__file__).parent / "results" / f"layouts-{date.today()}-cpu.json"
        rows = [{k: round(v, 6) if isinstance(v, float) else v for k, v in r.items()} for r in rows]
        path.write_text(
            json.dumps(
                dict(
                    date=str(date.today()),
                    device=f"CPU, {a.threads} threads",
                    repeats=a.repeats,
                    versions=dict(
                        python=platform.python_version(), torch=torch.__version__, transformers=transformers.__version__
                    ),
                    rows=rows,
                )
            )
            + "\n"
        )
        print("kept in", path.relative_to(Path(__file__).parents[2]))


if __name__ == "__main__":
    main()
