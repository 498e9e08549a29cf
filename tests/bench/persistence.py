"""Persistence with its gradient, and beside it gudhi's critical edges, in one process on one thread.

    python tests/bench/persistence.py [--repeats 9] [--save]

Gaussian clouds in 768 dimensions, in single precision. Both sides do the same: a forward and a backward pass of
the total lifetime of H0 and H1. gudhi's simplex tree gets the matrix of distances, and the edges that its
`flag_persistence_generators`
names are gathered from that matrix by torch. How long the generators alone take is shown too. The two are run in
turn; ratios are taken within a repeat, and medians are shown with the smallest and largest."""

import argparse
import json
import os
import platform
import statistics
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import gudhi
import numpy as np
import torch
from scipy.spatial.distance import squareform

from softprompt_nb.tda.persistence import distances, persistence

SIZES = (10, 20, 50, 100, 200)


def ours(x):
    total = sum(d.lifetimes.sum() for d in persistence(x))
    return torch.autograd.grad(total, x)[0]


def generators(matrix):
    tree = gudhi.SimplexTree.create_from_array(matrix, max_filtration=float("inf"))
    tree.expansion(2)
    tree.compute_persistence()
    return tree.flag_persistence_generators()


def theirs(x):
    d = torch.nn.functional.pdist(x.double())
    h0, h1 = generators(squareform(d.detach().numpy()))[:2]
    loops = torch.as_tensor(np.concatenate([*h1, np.zeros((0, 4), int)]))

    def number(edges):
        "Where an edge's length stands among the pairwise distances."
        first, second = edges.amin(1), edges.amax(1)
        return first * (2 * len(x) - first - 1) // 2 + second - first - 1

    total = d[number(torch.as_tensor(h0[:, 1:]))].sum() + (d[number(loops[:, 2:])] - d[number(loops[:, :2])]).sum()
    return torch.autograd.grad(total.float(), x)[0]


def ms(f, *args):
    start = time.perf_counter()
    f(*args)
    return 1e3 * (time.perf_counter() - start)


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--repeats", type=int, default=15)
    ap.add_argument("--save", action="store_true", help="keep the table as a dated file in tests/bench/results")
    a = ap.parse_args()
    torch.set_num_threads(1)
    load, rows = os.getloadavg()[0], []
    for n in SIZES:
        x = torch.randn(n, 768, generator=torch.Generator().manual_seed(0)).requires_grad_()
        m = squareform(distances(x.detach()).numpy())
        assert torch.allclose(ours(x), theirs(x), atol=1e-5)
        runs = [
            (ms(ours, x), ms(theirs, x), ms(generators, m))
            for _ in range(a.repeats if n < 200 else max(3, a.repeats // 3))
        ]
        mine, gudhis, alone = zip(*runs)
        ratios = [b / c for c, b in zip(mine, gudhis)]
        row = dict(
            n=n,
            d=768,
            repeats=len(runs),
            forward_backward_ms=round(statistics.median(mine), 2),
            range_ms=[round(min(mine), 2), round(max(mine), 2)],
            gudhi_forward_backward_ms=round(statistics.median(gudhis), 2),
            gudhi_generators_ms=round(statistics.median(alone), 2),
            times=round(statistics.median(ratios), 1),
            times_range=[round(min(ratios), 1), round(max(ratios), 1)],
        )
        rows.append(row)
        print(
            f"n={n:4}: H0 and H1 forward and backward {row['forward_backward_ms']:7.2f} ms "
            f"({row['range_ms'][0]} to {row['range_ms'][1]}); "
            f"with gudhi's generators {row['gudhi_forward_backward_ms']:8.2f} ms "
            f"(the generators alone {row['gudhi_generators_ms']}), "
            f"{row['times']} times as long ({row['times_range'][0]} to {row['times_range'][1]}); "
            f"{row['repeats']} repeats",
            flush=True,
        )
    print(
        f"one thread; load before {load:.1f} on {os.cpu_count()} cores; "
        "at n=100 at most 10 ms are allowed, and at least ten times gudhi's speed is asked for"
    )
    if a.save:
        path = Path(__file__).parent / "results" / f"persistence-{date.today()}-cpu.json"
        note = dict(
            date=str(date.today()),
            device="CPU, 1 thread",
            load=round(load, 1),
            cores=os.cpu_count(),
            versions=dict(
                python=platform.python_version(),
                torch=torch.__version__,
                scipy=version("scipy"),
                gudhi=version("gudhi"),
            ),
            rows=rows,
        )
        path.write_text(json.dumps(note, indent=1) + "\n")
        print("kept in", path.relative_to(Path(__file__).parents[2]))


if __name__ == "__main__":
    main()
