"""PEZ against the variant that projects twice: the vectors are overwritten by their tokens before the gradient, as in the published script for language models, so that nothing smaller than the way to another token adds up.

    python tests/double_projection.py [--to nbs/papers/results/interpretable-prompts-pez.json] [--budget 3000]

Every task of the lab that has the items, three seeds. Same items, first prompt, order, budget and validation; AdamW at several rates, as a large one hides the difference."""

import argparse
from contextlib import contextmanager
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
    return [
        name
        for name, t in TASKS.items()
        if len(t.examples(SEARCHED + HELD, split="train", fewer=True)) == SEARCHED + HELD
    ]


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


def compare(lm, tasks, seeds, rates, budget, n=5, progress=lambda row: None):
    "A row for each task, seed, rate (over the embedding table's scale) and variant."
    rows = []
    for task, seed, rate, twice in product(tasks, seeds, rates, (False, True)):
        t = lab_task(task)
        items, test = (
            t.examples(k, seed=seed, split=s)
            for k, s in ((SEARCHED + HELD, "train"), (None if t.closed else SEARCHED + HELD, "test"))
        )
        kw = dict(n=n, valid=items[SEARCHED:], steps=10**6, seed=seed, lr=rate * lm.scale, budget=budget)
        if twice:
            with double_projection():
                h = module.pez(lm, items[:SEARCHED], **kw)
        else:
            h = module.pez(lm, items[:SEARCHED], **kw)
        rows.append(
            dict(
                task=task,
                seed=seed,
                rate=rate,
                method="double projection" if twice else "PEZ",
                valid_accuracy=float(h.accuracy),
                valid_loss=float(h.loss),
                accuracy=float(exact_match(lm, h.soft(lm), test)),
                changed=float(h.history.changed.mean()),
                steps=len(h.history),
                spent=h.record["forwards"] + 3 * h.record["backwards"],
                text=h.text,
            )
        )
        progress(rows[-1])
    return pd.DataFrame(rows)


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("--to", help="a .json file for the table")
    ap.add_argument("--budget", type=int, default=3000)
    a = ap.parse_args()
    from softprompt_nb.files import write_results

    t = compare(
        load_lm("lab-base-s"),
        tasks(),
        (0, 1, 2),
        (0.3, 1.0, 3.0, 10.0),
        a.budget,
        progress=lambda row: print(row, flush=True),
    )
    if a.to:
        write_results(t, a.to)
    print(
        t.groupby(["rate", "method"])[["valid_accuracy", "valid_loss", "accuracy", "changed", "steps", "spent"]]
        .mean()
        .round(3)
    )


if __name__ == "__main__":
    main()
