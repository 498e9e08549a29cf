"""Studies of real models that take a GPU minutes and a CPU days: sixteen examples a class, and the tasks of instruction
induction at four rates.

    python tests/bench/_gpu_runs.py MODEL --data FOLDER --out FOLDER [--seconds 300]

MODEL is a name for `load_lm`; the folder of --data holds the sets as `studies.classification.draw` and `induction_dod`
read them. What has run when the seconds are over stands for something: whole groups of runs, breadth first. Products of
matrices are in TF32 (ten bits), which is said in the results."""

import argparse
import time
from pathlib import Path

from softprompt_nb.experiments.runs import RunStore
from softprompt_nb.files import about_results, write_results, write_tensors
from softprompt_nb.load import cached_lm
from softprompt_nb.prompts import SoftPrompt
from softprompt_nb.studies.classification import classify_configs, run_classification
from softprompt_nb.training.many import tune_many
from softprompt_nb.training.step import RELATIVE_LR
from softprompt_nb.translation.translator.dods import induction_dod

import torch

SCALES = (1.0, 0.5, 0.25, 0.125)  # of the default rate
TWINS = 7
PUSH = 1e-3  # of the vectors' own deviation


def induction(folder):
    "Examples to train on and held-out ones, for each task that has enough of them."
    tasks = {}
    for task in induction_dod(folder, train=260):
        if len(task.train) == 260:
            tasks[task.name] = (list(task.train[:200]), list(task.train[200:]))
    return tasks


def pushed(prompt, twin):
    "A start a thousandth beside another; the first twin is the start itself."
    if twin == 0:
        return prompt
    noise = torch.randn(prompt.vectors.shape, generator=torch.Generator().manual_seed(twin))
    vectors = prompt.vectors + PUSH * prompt.vectors.std() * noise.to(prompt.vectors)
    return SoftPrompt(vectors, prompt.at, prompt.base, prompt.info)


def train(lm, tasks, lanes, out, name, steps=80):
    "Tune some lanes (task, seed, scale, twin), and keep losses and vectors."
    starts = []
    for task, seed, _, twin in lanes:
        own = 1000 * seed + sorted(tasks).index(task)
        starts.append(pushed(SoftPrompt.init(lm, 8, seed=own), twin))
    begun = time.perf_counter()
    runs = tune_many(
        lm,
        starts,
        [tasks[task][0] for task, *_ in lanes],
        steps=steps,
        batch_size=8,
        lr=[RELATIVE_LR * lm.scale * scale for _, _, scale, _ in lanes],
        seed=[seed for _, seed, *_ in lanes],
        valid=[tasks[task][1] for task, *_ in lanes],
        eval_every=20,
        checkpoints=1,
        progress=False,
    )
    seconds = time.perf_counter() - begun
    rows = []
    for (task, seed, scale, twin), run in zip(lanes, runs):
        valid = run.history.dropna(subset=["valid"])
        rows.append(
            dict(
                task=task,
                seed=seed,
                scale=scale,
                twin=twin,
                lr=run.record["settings"]["lr"],
                first_loss=run.record["first_loss"],
                final_loss=run.record["final_loss"],
                outcome=run.record["outcome"],
                valid=[round(value, 5) for value in valid.valid.tolist()],
                valid_steps=valid.step.tolist(),
                norm_end=run.record["norm_end"],
            )
        )
    settings = dict(model=lm.name, revision=lm.revision, n=8, steps=steps, batch_size=8, matmul="tf32")
    about = about_results([settings], sorted({seed for _, seed, *_ in lanes})) | dict(seconds=seconds)
    write_results(out / f"{name}-{lm.name}.json", dict(rows=rows), about)
    tensors = dict(
        start=torch.stack([start.vectors.float().cpu() for start in starts]),
        prompt=torch.stack([run.prompt.vectors.float().cpu() for run in runs]),
    )
    write_tensors(out / f"{name}-{lm.name}.safetensors", tensors, {})
    print(f"{name}: {len(lanes)} lanes, {seconds:.0f} s", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    end = time.perf_counter() + args.seconds
    torch.set_float32_matmul_precision("high")
    args.out.mkdir(parents=True, exist_ok=True)
    lm = cached_lm(args.model, args.device, "float32")
    print(lm, f"scale {lm.scale:.4g}", flush=True)

    store = RunStore(args.out / "classification")
    folder = args.data / "fewshot_classification_rlprompt"
    more = dict(folder=str(folder), device=args.device, steps=args.steps)
    configs = classify_configs([args.model], **more)
    print(f"{len(configs)} ways of classifying", flush=True)
    run_classification(store, configs, together=64, until=end)
    print(f"classification: {len(store)} runs, {end - time.perf_counter():.0f} s left", flush=True)

    tasks = induction(args.data / "instruction_induction")
    names = sorted(tasks)
    waves = {
        "rates": [(task, 0, scale, 0) for task in names for scale in SCALES],
        "prompts": [(task, seed, 0.25, 0) for seed in range(args.seeds) for task in names],
        "twins": [
            (task, 0, scale, twin)
            for task in ("antonyms", "singular_to_plural")
            for scale in SCALES
            for twin in range(TWINS)
        ],
    }
    for name, lanes in waves.items():
        if time.perf_counter() < end:
            train(lm, tasks, lanes, args.out, name, args.steps)


if __name__ == "__main__":
    main()
