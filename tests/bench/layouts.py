"""When a tree pays: rows as trees, packed, or split, over many batches, and how well `Shared.tree_pays` chooses.

    python tests/bench/layouts.py [--widths 64 128 256 768] [--repeats 5] [--threads 2] [--save]

Random models of two to four layers, 1 to 32 prompts of 1 to 50 vectors with 4 to 64 rows of at most 4 to 32 random
tokens behind each, of which the first is the same: so nothing else is shared, which is the least that a tree can gain.
A step is forward and backward. *Gain*: packed (or split, where that is faster) over what the rule takes; *regret*: what
the rule takes over the faster of all, less one. `1500` and `1.2` in the rule are the round numbers of least mean regret
on a first such grid."""

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
from softprompt_nb.engine.forward import hidden_by_path, target_nll
from softprompt_nb.engine.sharing import find_shared
from softprompt_nb.lm import FrozenLM
from softprompt_nb.load import load_lm

import numpy as np
import pandas as pd
import torch
import transformers
from transformers import GPTNeoXForCausalLM

MOST = {64: 4200, 128: 4200, 256: 4200, 768: 1500}  # tokens in a batch, by width
LONGEST = 1100  # tokens behind and in a prompt
LANES, ROWS, LENGTHS, SIZES = (1, 8, 32), (4, 8, 16, 32, 64), (4, 8, 16, 32), (1, 10, 50)


def model_of(width):
    base = load_lm("lab-base-s")
    config = deepcopy(base.config)
    config.hidden_size = width
    config.intermediate_size = 4 * width
    config.num_attention_heads = max(4, width // 64)
    config.num_hidden_layers = 2 if width in (64, 768) else 4
    torch.manual_seed(0)
    return FrozenLM(GPTNeoXForCausalLM(config), base.tokenizer, f"{width} wide")


def batch_of(lm, lanes, n_rows, longest, n, generator):
    "Prompts and rows of up to `longest` tokens, the last two of them targets."

    def draw(low, high, k=1):
        return torch.randint(low, high, (k,), generator=generator).tolist()

    rows = []
    for lane in range(lanes):
        for _ in range(n_rows):
            (length,) = draw(max(2, longest // 2), longest + 1)
            ids = [100 + lane, *draw(10, 3000, length - 1)]
            rows.append(Encoded(ids, max(1, length - 2)))
    prompts = [(torch.randn(n, lm.d_model, generator=generator) * 0.02).requires_grad_() for _ in range(lanes)]
    lane_of_row = [lane for lane in range(lanes) for _ in range(n_rows)]
    return prompts, pad_rows(lm, rows, lanes=lane_of_row)


def seconds(lm, prompts, batch, path, repeats):
    "Median time of a step by one of the paths."

    def step():
        hidden, targets, _ = hidden_by_path(lm, prompts, batch, path)
        torch.autograd.grad(target_nll(lm, hidden, targets).mean(), prompts)

    step()
    took = []
    for _ in range(repeats):
        start = time.perf_counter()
        step()
        took.append(time.perf_counter() - start)
    return median(took)


def kinds(width):
    "(prompts, rows of each, tokens of a row, vectors of a prompt) of the batches that are timed."
    most = MOST.get(width, 1500)
    for lanes, n_rows, longest, n in product(LANES, ROWS, LENGTHS, SIZES):
        tokens = n + n_rows * longest
        if lanes * tokens <= most and tokens <= LONGEST:
            yield lanes, n_rows, longest, n


def measure(width, repeats, generator):
    "A row for each kind of batch."
    lm = model_of(width)
    rows = []
    for lanes, n_rows, longest, n in kinds(width):
        prompts, batch = batch_of(lm, lanes, n_rows, longest, n, generator)
        shared = find_shared(prompts, batch)
        row = dict(width=width, lanes=lanes, rows=n_rows, tokens=longest, n=n)
        row |= dict(places=shared.shape[1], pays=shared.tree_pays)
        for path in ("tree", "packed", "split"):
            if path != "split" or n >= longest:
                row[path] = seconds(lm, prompts, batch, path, repeats)
        rows.append(row)
    return rows


def report(width, rows):
    "How well the rule chooses for models of a width."
    table = pd.DataFrame(rows)
    other = table[[path for path in ("packed", "split") if path in table]].min(axis=1)
    taken = np.where(table.pays, table.tree, other)
    regret = taken / np.minimum(table.tree, other) - 1
    gain = np.log(other / taken)
    print(
        f"{width} wide, {len(table)} kinds of batches: trees taken for {table.pays.mean():.0%}, "
        f"gain {np.exp(gain.mean()):.2f} (where taken {np.exp(gain[table.pays].mean()):.2f}), "
        f"regret {regret.mean():.1%}, at most {regret.max():.0%}",
        flush=True,
    )


def save(rows, threads, repeats):
    "Keep the table as a dated file."
    rounded = []
    for row in rows:
        rounded.append({key: round(value, 6) if isinstance(value, float) else value for key, value in row.items()})
    versions = dict(python=platform.python_version(), torch=torch.__version__, transformers=transformers.__version__)
    record = dict(
        date=str(date.today()),
        device=f"CPU, {threads} threads",
        repeats=repeats,
        versions=versions,
        rows=rounded,
    )
    path = Path(__file__).parent / "results" / f"layouts-{date.today()}-cpu.json"
    path.write_text(json.dumps(record) + "\n")
    print("kept in", path.relative_to(Path(__file__).parents[2]))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--widths", type=int, nargs="+", default=list(MOST))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save", action="store_true", help="keep the table as a dated file in tests/bench/results")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    generator = torch.Generator().manual_seed(0)
    rows = []
    for width in args.widths:
        of_width = measure(width, args.repeats, generator)
        report(width, of_width)
        rows += of_width
    if args.save:
        save(rows, args.threads, args.repeats)


if __name__ == "__main__":
    main()
