"""PEZ against the variant that projects twice.

In the variant the vectors are overwritten by their tokens before the gradient, as in the published script for language
models, so that nothing smaller than the way to another token adds up.

    python tests/double_projection.py [--to nbs/papers/results/interpretable-prompts-pez.json] [--budget 3000]

Every task of the lab that has the items, three seeds. Same items, first prompt, order, budget and validation; AdamW at
several rates, as a large one hides the difference."""

import argparse
from contextlib import contextmanager, nullcontext
from itertools import product

from softprompt_nb.engine.inference import exact_match
from softprompt_nb.lab.world import TASKS, lab_task
from softprompt_nb.load import load_lm
from softprompt_nb.translation.hard import pez as module

import pandas as pd
import torch

SEARCHED, HELD = 16, 32  # items to search on, and to choose by


def tasks():
    "The tasks of the lab with enough items."
    wanted = SEARCHED + HELD
    return [name for name, task in TASKS.items() if len(task.examples(wanted, split="train", fewer=True)) == wanted]


@contextmanager
def double_projection():
    "Inside, `pez` is the variant; all else is ours."
    ours = module.pez_gradient

    def projected(objective, proj, P, rows, config):
        with torch.no_grad():
            P.copy_(proj.table[proj.nearest(P)])
        return ours(objective, proj, P, rows, config)

    module.pez_gradient = projected
    try:
        yield
    finally:
        module.pez_gradient = ours


def drawn(task, seed):
    "Items to search on and to choose by, and items to measure on."
    task = lab_task(task)
    items = task.examples(SEARCHED + HELD, seed=seed, split="train")
    test = task.examples(None if task.closed else SEARCHED + HELD, seed=seed, split="test")
    return items, test


def nothing(row):
    "No report."


def compare(lm, tasks, seeds, rates, budget, n=5, progress=nothing):
    "A row for each task, seed, rate (over the embedding table's scale) and variant."
    rows = []
    for task, seed, rate, twice in product(tasks, seeds, rates, (False, True)):
        items, test = drawn(task, seed)
        with double_projection() if twice else nullcontext():
            hard = module.pez(
                lm,
                items[:SEARCHED],
                n=n,
                valid=items[SEARCHED:],
                steps=10**6,
                seed=seed,
                lr=rate * lm.scale,
                budget=budget,
            )
        row = dict(
            task=task,
            seed=seed,
            rate=rate,
            method="double projection" if twice else "PEZ",
            valid_accuracy=float(hard.accuracy),
            valid_loss=float(hard.loss),
            accuracy=float(exact_match(lm, hard.soft(lm), test)),
            changed=float(hard.history.changed.mean()),
            steps=len(hard.history),
            spent=hard.record["forwards"] + 3 * hard.record["backwards"],
            text=hard.text,
        )
        rows.append(row)
        progress(row)
    return pd.DataFrame(rows)


def show(row):
    print(row, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--to", help="a .json file for the table")
    parser.add_argument("--budget", type=int, default=3000)
    given = parser.parse_args()
    from softprompt_nb.files import about_results, write_results

    rates = (0.3, 1.0, 3.0, 10.0)
    table = compare(load_lm("lab-base-s"), tasks(), (0, 1, 2), rates, given.budget, progress=show)
    if given.to:
        settings = [
            dict(model="lab-base-s", task=task, rate=rate, budget=given.budget) for task in tasks() for rate in rates
        ]
        write_results(given.to, table, about_results(settings, (0, 1, 2)))
    columns = ["valid_accuracy", "valid_loss", "accuracy", "changed", "steps", "spent"]
    print(table.groupby(["rate", "method"])[columns].mean().round(3))


if __name__ == "__main__":
    main()
