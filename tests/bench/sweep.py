"""What a sweep costs beside the runs themselves: trivial runs in a bare loop, in a bare process pool, and in a sweep
with its records.

    python tests/bench/sweep.py [--runs 200] [--workers 2] [--save]

A run here adds two numbers, so that all the time is overhead: hashing, claim, record (three waits for the disk
each), and the way to a worker and back. The start of a pool, in which each worker imports torch and
transformers, is measured apart from it. Each figure is the median of three, in the same process."""

import argparse
import json
import os
import platform
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import date
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import torch

from softprompt_nb.experiments.runs import Result, RunStore
from softprompt_nb.experiments.sweep import sweep
from softprompt_nb.files import write_file


@dataclass(frozen=True)
class Add:
    "As little as a run can be."

    a: int
    repeat: int = 0

    def run(self, work):
        return Result(dict(sum=self.a + 1))


def add(c):
    return c.run(None).metrics


def took(f):
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--runs", type=int, default=200)
    ap.add_argument("--workers", type=int, default=2)
    ap.add_argument("--save", action="store_true", help="keep the table as a dated file in tests/bench/results")
    a = ap.parse_args()
    out = {}

    def configs(repeat, n=a.runs):
        return [Add(i, repeat) for i in range(n)]

    def each(name, run, repeats=3):
        seconds = [took(partial(run, repeat)) for repeat in range(repeats)]
        out[name] = round(1000 * median(seconds) / a.runs, 3)

    with tempfile.TemporaryDirectory() as tmp:
        each("one durable file", lambda r: [write_file(Path(tmp) / "x", "x") for _ in range(a.runs)])
        each("bare loop", lambda r: [add(c) for c in configs(r)])
        each("sweep, in this process", lambda r: sweep(configs(r), f"{tmp}/serial", workers=0, progress=False))
        each("sweep, all there already", lambda r: sweep(configs(0), f"{tmp}/serial", workers=0, progress=False))
        with ProcessPoolExecutor(a.workers, get_context("spawn")) as pool:
            startup = took(lambda: list(pool.map(add, configs(9, a.workers))))
            each("bare pool, map", lambda r: list(pool.map(add, configs(r))))
            each("bare pool, submit", lambda r: [f.result() for f in [pool.submit(add, c) for c in configs(r)]])
            each("sweep, warm pool given", lambda r: sweep(configs(r), f"{tmp}/pool", pool, progress=False))
        own = took(lambda: sweep(configs(6, a.workers), f"{tmp}/own", workers=a.workers, progress=False))
        table = took(lambda: RunStore(f"{tmp}/serial").table())
    start = {"bare pool": round(startup, 2), "default pool of a sweep, from start to end": round(own, 2)}
    print(f"{'ms a run':40} {'':>8}")
    for k, v in out.items():
        print(f"{k:40} {v:8.3f}")
    print(
        f"start of a pool in seconds: {start}; table of {3 * a.runs} records: {table:.2f} s; "
        f"{a.runs} runs, {a.workers} workers, load before {os.getloadavg()[0]:.1f}"
    )
    if a.save:
        record = dict(
            date=str(date.today()),
            runs=a.runs,
            workers=a.workers,
            repeats=3,
            ms_per_run=out,
            start_seconds=start,
            table_seconds=round(table, 3),
            table_rows=3 * a.runs,
            threads=torch.get_num_threads(),
            versions=dict(python=platform.python_version(), torch=torch.__version__),
            cores=os.cpu_count(),
        )
        path = Path(__file__).parent / "results" / f"sweep-{date.today()}-cpu.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(record, indent=1) + "\n")
        print("kept in", path.relative_to(Path(__file__).parents[2]))


if __name__ == "__main__":
    main()
