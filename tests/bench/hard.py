"""Searching for hard prompts: many candidates in one call against one call each; a step of PEZ against the plain path.

    python tests/bench/hard.py [--prompts 256] [--tokens 8 20] [--examples 32] [--repeats 5] [--threads 2]
                               [--device cpu] [--save]

Prompts of 8 tokens, as PEZ's smallest, and of 20, as GCG's. *Batched*: `Objective.task`, every prompt computed once for
all its examples, many prompts in a pass. *One call each*: for every prompt a plain call of the transformers model on
its rows, padded, with logits at every place, as a loop over prompts has it. *One call each, targets only*: the same
rows through the package without shared prefixes, so that what is left is the batching and the sharing alone.
Each repeat runs the ways in turn, ratios are taken within a repeat, medians are shown with the smallest and largest;
the largest difference of the scores says that they did the same."""

import argparse
import json
import os
import platform
import time
from datetime import date
from itertools import product
from pathlib import Path
from statistics import median

from softprompt_nb.data import pad_rows
from softprompt_nb.engine.forward import assemble, prompted_loss
from softprompt_nb.lab.world import lab_task
from softprompt_nb.load import load_lm
from softprompt_nb.translation.hard.objective import Objective
from softprompt_nb.translation.hard.pez import PEZConfig, Projection, pez_gradient

import torch
import torch.nn.functional as F
import transformers

HERE = Path(__file__).parent


def took(function, device):
    "Seconds of a call, and what it gave."
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    out = function()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, out


def plain_loss(lm, vectors, rows):
    "Nats per target token behind a prompt, by the model's own forward pass."
    inputs = assemble(lm, vectors, pad_rows(lm, rows))
    logits = lm.model(
        inputs_embeds=inputs.inputs_embeds,
        attention_mask=inputs.attention_mask,
        position_ids=inputs.position_ids,
        use_cache=False,
    ).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), inputs.labels[:, 1:].flatten(), ignore_index=-100)


@torch.no_grad()
def plain_score(lm, ids, rows):
    return plain_loss(lm, lm.embed_ids(ids), rows).item()


@torch.no_grad()
def targets_only(lm, ids, rows):
    return prompted_loss(lm, lm.embed_ids(ids), pad_rows(lm, rows), shared_prefix=False).item()


def plain_step(lm, proj, P, rows):
    "Gradient of the plain loss at the projected prompt."
    projected = proj.table[proj.nearest(P)].clone().requires_grad_()
    return torch.autograd.grad(plain_loss(lm, projected, rows), projected)[0]


def spread(ratios):
    return dict(median=round(median(ratios), 2), range=[round(min(ratios), 2), round(max(ratios), 2)])


def scoring(lm, task, prompts, n, examples, repeats, device):
    "Seconds and ratios of the three ways to score."
    objective = Objective(lm, lab_task(task).examples(examples, split="train"))
    ids = objective.random_prompts(prompts, n, torch.Generator().manual_seed(0))
    rows = objective.pool
    ways = {
        "batched": lambda some: objective.task(some).tolist(),
        "one call each": lambda some: [plain_score(lm, prompt, rows) for prompt in some],
        "one call each, targets only": lambda some: [targets_only(lm, prompt, rows) for prompt in some],
    }
    seconds = {name: [] for name in ways}
    scores = {name: way(ids[:8]) for name, way in ways.items()}
    for _ in range(repeats):
        for name, way in ways.items():
            spent, scores[name] = took(lambda way=way: way(ids), device)
            seconds[name].append(spent)
    batched = seconds["batched"]
    differences = [abs(a - b) for name in ways for a, b in zip(scores["batched"], scores[name])]
    return dict(
        what="scoring",
        task=task,
        prompts=prompts,
        n=n,
        examples=examples,
        seconds={name: round(median(each), 3) for name, each in seconds.items()},
        largest_difference=max(differences),
        times={
            name: spread([slow / fast for slow, fast in zip(each, batched)])
            for name, each in seconds.items()
            if name != "batched"
        },
    )


def step(lm, task, n, repeats, device, batch=16, steps=20):
    "Seconds and ratio of a step's gradient."
    objective = Objective(lm, lab_task(task).examples(batch, split="train"))
    proj = Projection(lm, objective.ok)
    P = proj.table[torch.randint(len(proj.ids), (n,), generator=torch.Generator().manual_seed(0))] + 0.01

    def ours():
        for _ in range(steps):
            gradient = pez_gradient(objective, proj, P, objective.pool, PEZConfig())[1]
        return gradient

    def plain():
        for _ in range(steps):
            gradient = plain_step(lm, proj, P, objective.pool)
        return gradient

    ours()
    plain()
    runs = [(took(ours, device), took(plain, device)) for _ in range(repeats)]
    fast = [first[0] for first, _ in runs]
    slow = [second[0] for _, second in runs]
    (_, gradient), (_, wanted) = runs[0]
    return dict(
        what="PEZ step",
        task=task,
        examples=batch,
        n=n,
        seconds=dict(ours=round(median(fast) / steps, 4), plain=round(median(slow) / steps, 4)),
        times=dict(plain=spread([b / a for a, b in zip(fast, slow)])),
        largest_difference=(gradient - wanted).abs().max().item(),
    )


def show(row):
    ratios = {name: (ratio["median"], *ratio["range"]) for name, ratio in row["times"].items()}
    print(
        f"{row['what']}, {row['task']}, {row['n']} tokens: seconds {row['seconds']}, ratios {ratios}, "
        f"largest difference {row['largest_difference']:.1e}",
        flush=True,
    )


def save(rows, given, load):
    "Keeps the table as a dated file."
    where = torch.cuda.get_device_name() if given.device == "cuda" else f"CPU, {given.threads} threads"
    path = HERE / "results" / f"hard-{date.today()}-{given.device}.json"
    versions = dict(
        python=platform.python_version(),
        torch=torch.__version__,
        transformers=transformers.__version__,
    )
    record = dict(
        date=str(date.today()),
        device=where,
        repeats=given.repeats,
        load_before=round(load, 2),
        versions=versions,
        rows=rows,
    )
    path.write_text(json.dumps(record, indent=1) + "\n")
    print("kept in", path.relative_to(HERE.parents[1]))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--tokens", type=int, nargs="+", default=[8, 20])
    parser.add_argument("--examples", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--save", action="store_true", help="keep the table as a dated file in tests/bench/results")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    load = os.getloadavg()[0]
    lm = load_lm("lab-base-s", device=given.device)
    rows = []
    for task, n in product(("capital", "sentiment"), given.tokens):
        rows.append(scoring(lm, task, given.prompts, n, given.examples, given.repeats, given.device))
        show(rows[-1])
        rows.append(step(lm, task, n, given.repeats, given.device))
        show(rows[-1])
    print(f"{given.threads} threads, load before {load:.1f}")
    if given.save:
        save(rows, given, load)


if __name__ == "__main__":
    main()
