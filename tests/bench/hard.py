"""Searching for hard prompts: many candidates scored in one call against one call for each, and a step of PEZ against the plain path.

    python tests/bench/hard.py [--prompts 256] [--tokens 8 20] [--examples 32] [--repeats 5] [--threads 2] [--device cpu] [--save]

Prompts of 8 tokens, as PEZ's smallest, and of 20, as GCG's. *Batched*: `Objective.task`, every prompt computed once for all its examples, many prompts in a pass. *One call each*: for every prompt a plain call of the transformers model on its rows, padded,
with logits at every place, as a loop over prompts has it. *One call each, targets only*: the same rows through the package without shared prefixes, so that what is left is the batching and the sharing alone.
Each repeat runs the ways in turn, ratios are taken within a repeat, medians are shown with the smallest and largest; the largest difference of the scores says that they did the same."""

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


def took(f, device):
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    out = f()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, out


@torch.no_grad()
def plain_score(lm, ids, rows):
    "Nats per target token of one prompt, by the model's own forward pass."
    x = assemble(lm, lm.embed(torch.tensor(ids, device=lm.device)), pad_rows(lm, rows))
    z = lm.model(
        inputs_embeds=x.inputs_embeds, attention_mask=x.attention_mask, position_ids=x.position_ids, use_cache=False
    ).logits
    return F.cross_entropy(z[:, :-1].flatten(0, 1).float(), x.labels[:, 1:].flatten(), ignore_index=-100).item()


@torch.no_grad()
def targets_only(lm, ids, rows):
    return prompted_loss(
        lm, lm.embed(torch.tensor(ids, device=lm.device)), pad_rows(lm, rows), shared_prefix=False
    ).item()


def plain_step(lm, proj, P, rows):
    "Gradient of the plain loss at the projected prompt."
    v = proj.table[proj.nearest(P)].clone().requires_grad_()
    x = assemble(lm, v, pad_rows(lm, rows))
    z = lm.model(
        inputs_embeds=x.inputs_embeds, attention_mask=x.attention_mask, position_ids=x.position_ids, use_cache=False
    ).logits
    return torch.autograd.grad(
        F.cross_entropy(z[:, :-1].flatten(0, 1).float(), x.labels[:, 1:].flatten(), ignore_index=-100), v
    )[0]


def spread(xs):
    return dict(median=round(median(xs), 2), range=[round(min(xs), 2), round(max(xs), 2)])


def scoring(lm, task, prompts, n, examples, repeats, device):
    "Seconds and ratios of the three ways to score."
    o = Objective(lm, lab_task(task).examples(examples, split="train"))
    ids = o.random_prompts(prompts, n, torch.Generator().manual_seed(0))
    ways = {
        "batched": lambda some: o.task(some).tolist(),
        "one call each": lambda some: [plain_score(lm, p, o.pool) for p in some],
        "one call each, targets only": lambda some: [targets_only(lm, p, o.pool) for p in some],
    }
    for f in ways.values():
        f(ids[:8])
    runs = [{k: took(lambda: f(ids), device) for k, f in ways.items()} for _ in range(repeats)]
    differ = max(abs(a - b) for k in ways for a, b in zip(runs[0]["batched"][1], runs[0][k][1]))
    return dict(
        what="scoring",
        task=task,
        prompts=prompts,
        n=n,
        examples=examples,
        seconds={k: round(median(r[k][0] for r in runs), 3) for k in ways},
        largest_difference=differ,
        times={k: spread([r[k][0] / r["batched"][0] for r in runs]) for k in ways if k != "batched"},
    )


def step(lm, task, n, repeats, device, batch=16, steps=20):
    "Seconds and ratio of a step's gradient."
    o = Objective(lm, lab_task(task).examples(batch, split="train"))
    proj, g = Projection(lm, o.ok), torch.Generator().manual_seed(0)
    P = proj.table[torch.randint(len(proj.ids), (n,), generator=g)] + 0.01
    ours, plain = (
        (lambda: [pez_gradient(o, proj, P, o.pool, PEZConfig())[1] for _ in range(steps)][-1]),
        (lambda: [plain_step(lm, proj, P, o.pool) for _ in range(steps)][-1]),
    )
    ours(), plain()
    runs = [(took(ours, device), took(plain, device)) for _ in range(repeats)]
    return dict(
        what="PEZ step",
        task=task,
        examples=batch,
        n=n,
        seconds=dict(
            ours=round(median(a[0] for a, _ in runs) / steps, 4), plain=round(median(b[0] for _, b in runs) / steps, 4)
        ),
        times=dict(plain=spread([b[0] / a[0] for a, b in runs])),
        largest_difference=(runs[0][0][1] - runs[0][1][1]).abs().max().item(),
    )


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--prompts", type=int, default=256)
    ap.add_argument("--tokens", type=int, nargs="+", default=[8, 20])
    ap.add_argument("--examples", type=int, default=32)
    ap.add_argument("--repeats", type=int, default=5)
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    ap.add_argument("--save", action="store_true", help="keep the table as a dated file in tests/bench/results")
    a = ap.parse_args()
    torch.set_num_threads(a.threads)
    load, lm = os.getloadavg()[0], load_lm("lab-base-s", device=a.device)
    rows = []
    for task, n in product(("capital", "sentiment"), a.tokens):
        rows += [
            scoring(lm, task, a.prompts, n, a.examples, a.repeats, a.device),
            step(lm, task, n, a.repeats, a.device),
        ]
        for r in rows[-2:]:
            print(
                f"{r['what']}, {task}, {n} tokens: seconds {r['seconds']}, ratios { ({k: (v['median'], *v['range']) for k, v in r['times'].items()}) }, largest difference {r['largest_difference']:.1e}",
                flush=True,
            )
    print(f"{a.threads} threads, load before {load:.1f}")
    if a.save:
        where = torch.cuda.get_device_name() if a.device == "cuda" else f"CPU, {a.threads} threads"
        path = Path(__file__).parent / "results" / f"hard-{date.today()}-{a.device}.json"
        path.write_text(
            json.dumps(
                dict(
                    date=str(date.today()),
                    device=where,
                    repeats=a.repeats,
                    load_before=round(load, 2),
                    versions=dict(
                        python=platform.python_version(), torch=torch.__version__, transformers=transformers.__version__
                    ),
                    rows=rows,
                ),
                indent=1,
            )
            + "\n"
        )
        print("kept in", path.relative_to(Path(__file__).parents[2]))


if __name__ == "__main__":
    main()
