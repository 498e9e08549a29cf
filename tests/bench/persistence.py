"""Persistence with its gradient, and beside it gudhi's critical edges, in one process on one thread.

    python tests/bench/persistence.py [--repeats 9] [--save]

Gaussian clouds in 768 dimensions. One call of ours is a forward and a backward pass of the total lifetime of H0 and H1; gudhi's is its simplex tree from a ready matrix of distances with `flag_persistence_generators`, to which a gradient would
have to be added. Both are run in turn within a repeat; ratios are taken within a repeat, and medians are shown with the smallest and largest. gudhi is left out above the size at which one call takes over a second."""
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
import torch

from softprompt_nb.tda.persistence import distances, persistence

SIZES = (10, 20, 50, 100, 200)


def ours(x):
    total = sum(d.lifetimes.sum() for d in persistence(x))
    return torch.autograd.grad(total, x)[0]


def theirs(matrix):
    tree = gudhi.SimplexTree.create_from_array(matrix, max_filtration=float("inf"))
    tree.expansion(2)
    tree.compute_persistence()
    return tree.flag_persistence_generators()


def ms(f, *args):
    start = time.perf_counter()
    f(*args)
    return 1e3*(time.perf_counter() - start)


def matrix_of(x):
    m = torch.zeros(len(x), len(x), dtype=torch.float64)
    m[torch.triu_indices(len(x), len(x), 1).unbind()] = distances(x.detach())
    return (m + m.T).numpy()


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--repeats", type=int, default=9)
    ap.add_argument("--save", action="store_true", help="keep the table as a dated file in tests/bench/results")
    a = ap.parse_args()
    torch.set_num_threads(1)
    rows = []
    for n in SIZES:
        x = torch.randn(n, 768, generator=torch.Generator().manual_seed(0)).requires_grad_()
        m = matrix_of(x)
        ours(x), theirs(m)
        pairs = [(ms(ours, x), ms(theirs, m)) for _ in range(a.repeats if n < 100 else max(3, a.repeats//3))]
        ratios = [b/c for c, b in pairs]
        row = dict(n=n, d=768, repeats=len(pairs), forward_backward_ms=round(statistics.median(p[0] for p in pairs), 2), range_ms=[round(f(p[0] for p in pairs), 2) for f in (min, max)],
                   gudhi_generators_ms=round(statistics.median(p[1] for p in pairs), 2), times=round(statistics.median(ratios), 1), times_range=[round(min(ratios), 1), round(max(ratios), 1)])
        rows.append(row)
        print(f"n={n:4}: H0 and H1 forward and backward {row['forward_backward_ms']:7.2f} ms ({row['range_ms'][0]} to {row['range_ms'][1]}); gudhi's generators {row['gudhi_generators_ms']:8.2f} ms, {row['times']} times as long ({row['times_range'][0]} to {row['times_range'][1]})", flush=True)
    print(f"one thread; load before {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; at n=100 at most 10 ms are allowed, and at least ten times gudhi's speed is asked for")
    if a.save:
        path = Path(__file__).parent/"results"/f"persistence-{date.today()}-cpu.json"
        note = dict(date=str(date.today()), device="CPU, 1 thread", versions=dict(python=platform.python_version(), torch=torch.__version__, ripser=version("ripser"), gudhi=version("gudhi")), rows=rows)
        path.write_text(json.dumps(note, indent=1) + "\n")
        print("kept in", path.relative_to(Path(__file__).parents[2]))


if __name__ == "__main__": main()
