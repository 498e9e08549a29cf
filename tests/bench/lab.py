"""Every task of the lab: the model alone, with its instruction, with five examples, and with ten tuned vectors, on
the same held-out items.

    python tests/bench/lab.py [--model lab-instruct-s] [--tasks capital reverse ...] [--save]

Prompts: ten vocabulary rows, 80 steps of 16 examples, the defaults of `tune`, one seed. The closing lines count
how many tasks the model masters with their instruction (95 %), and how many of those the tuned
vectors bring to 97 %."""

import argparse
import json
import platform
from datetime import date
from pathlib import Path

import torch
import transformers

from softprompt_nb.engine.inference import exact_match
from softprompt_nb.experiments.configs import _draw
from softprompt_nb.lab.world import TASKS, lab_task, with_instruction, with_shots
from softprompt_nb.load import load_lm
from softprompt_nb.measure import proportion
from softprompt_nb.prompts import SoftPrompt
from softprompt_nb.training.tuning import tune

HOWS = ("alone", "examples", "instruction", "tuned")


def one(lm, name, seed):
    "A row of the table."
    task = lab_task(name)
    train, test = _draw(task, 400, 0, "train"), _draw(task, 200, 0, "test")
    run = tune(lm, SoftPrompt.init(lm, n=10, seed=seed), train, steps=80, batch_size=16, seed=seed, progress=False)
    got = dict(
        alone=exact_match(lm, None, test),
        examples=exact_match(lm, None, with_shots(task, test, 5)),
        instruction=exact_match(lm, None, with_instruction(task, test)),
        tuned=exact_match(lm, run.prompt, test),
    )
    return dict(
        task=name,
        kind=task.kind,
        train=len(train),
        n=len(test),
        seconds=round(run.record["seconds"], 2),
        **{k: [round(m.value, 4), round(m.low, 4), round(m.high, 4)] for k, m in got.items()},
    )


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--model", default="lab-instruct-s")
    ap.add_argument("--tasks", nargs="*", default=list(TASKS))
    ap.add_argument("--seed", type=int, default=0)
    ap.add_argument("--save", action="store_true", help="keep the table as a dated file in tests/bench/results")
    a = ap.parse_args()
    lm, rows = load_lm(a.model), []
    print(f"{'task':18} {'n':>4} {'alone':>6} {'5 ex.':>6} {'instr.':>6} {'tuned':>6} {'low':>5} {'s':>5}", flush=True)
    for name in a.tasks:
        r = one(lm, name, a.seed)
        rows.append(r)
        print(
            f"{name:18} {r['n']:4} "
            + " ".join(f"{r[k][0]:6.3f}" for k in HOWS)
            + f" {r['tuned'][1]:5.2f} {r['seconds']:5.1f}",
            flush=True,
        )
    mastered = [r for r in rows if r["instruction"][0] >= 0.95]
    reached = [r["tuned"][0] >= 0.97 for r in mastered]
    summary = dict(
        tasks=len(rows),
        mastered_with_instruction=len(mastered),
        reached_by_tuning=sum(reached),
        mean_alone=sum(r["alone"][0] for r in rows) / len(rows),
        mean_alone_of_mastered=sum(r["alone"][0] for r in mastered) / max(1, len(mastered)),
        mean_tuned=sum(r["tuned"][0] for r in rows) / len(rows),
        median_seconds=sorted(r["seconds"] for r in rows)[len(rows) // 2],
    )
    print(
        f"\n{len(mastered)} of {len(rows)} tasks at 95 % or more with their instruction; "
        f"ten vectors bring {proportion(reached or [False])} of those to 97 %. "
        f"Alone: {summary['mean_alone']:.3f} on average ({summary['mean_alone_of_mastered']:.3f} over those). "
        f"Median tuning: {summary['median_seconds']} s."
    )
    if a.save:
        record = dict(
            date=str(date.today()),
            model=a.model,
            seed=a.seed,
            device=f"{lm.device}, {torch.get_num_threads()} threads",
            versions=dict(
                python=platform.python_version(), torch=torch.__version__, transformers=transformers.__version__
            ),
            summary=summary,
            rows=rows,
        )
        path = Path(__file__).parent / "results" / f"lab-{date.today()}-{a.model}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(record, indent=1) + "\n")
        print("kept in", path.relative_to(Path(__file__).parents[2]))


if __name__ == "__main__":
    main()
