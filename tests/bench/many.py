"""Many prompts in one pass a step against the same prompts one after another, side by side in one process.

    python tests/bench/many.py [--repeats 3] [--lanes 64] [--steps 20] [--device cpu] [--save]

Ragged lanes: 4 to 16 vectors, all tasks of the lab, 16 examples a step. Both ways train the same lanes with the same
seeds; each repeat runs both in turn, ratios are taken within a repeat, medians are shown with the smallest and largest,
and the largest difference between the losses of the two says that they did the same. On a CPU: the lab. On a GPU: the
lab in float32, and the shape of a 160M model in bfloat16 with 32 lanes."""

import argparse
import json
import platform
import resource
import statistics
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from softprompt_nb.lab.world import TASKS, lab_task
from softprompt_nb.lm import FrozenLM
from softprompt_nb.load import load_lm
from softprompt_nb.prompts import SoftPrompt
from softprompt_nb.training.many import kept_bytes, lanes_that_fit, tune_many
from softprompt_nb.training.step import Settings, prepare
from softprompt_nb.training.tuning import tune

import torch
import transformers
from transformers import AutoModelForCausalLM, GPTNeoXConfig

SIZES = (4, 7, 10, 16)


def model_160m(device):
    "Random weights in the shape of pythia-160m behind the lab's tokenizer."
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=50304,
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        intermediate_size=3072,
        rotary_pct=0.25,
        max_position_embeddings=2048,
    )
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return FrozenLM(model, load_lm(device="cpu").tokenizer, "160m")


def lanes_of(lm, lanes):
    "The prompt and the data of each lane."
    names = []
    for name, task in TASKS.items():
        known = task.examples(None if task.closed else 40, seed=0, split="train")
        if len(known) >= 24:
            names.append(name)
    data = {name: lab_task(name).examples(24, split="train") for name in names}
    prompts = [SoftPrompt.init(lm, SIZES[i % len(SIZES)], seed=i) for i in range(lanes)]
    return prompts, [data[names[i % len(names)]] for i in range(lanes)]


@dataclass
class Timed:
    "What a call gave and took."

    seconds: float
    runs: list
    peak: int | None  # bytes on a GPU


def timed(call, device):
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    runs = call()
    if device == "cuda":
        torch.cuda.synchronize()
    took = time.perf_counter() - start
    return Timed(took, runs, torch.cuda.max_memory_allocated() if device == "cuda" else None)


def measure(lm, name, lanes, steps, repeats, device):
    "A row of the table."
    prompts, data = lanes_of(lm, lanes)
    options = dict(batch_size=16, steps=steps, progress=False, checkpoints=0)

    def together():
        return tune_many(lm, prompts, data, seed=list(range(lanes)), **options)

    def loop():
        return [tune(lm, prompts[i], data[i], seed=i, **options) for i in range(lanes)]

    tune_many(lm, prompts, data, **options | dict(steps=2))
    tune(lm, prompts[0], data[0], **options | dict(steps=2))
    pairs = [(timed(together, device), timed(loop, device)) for _ in range(repeats)]
    both, single = zip(*pairs)
    ratios = [loop.seconds / together.seconds for together, loop in pairs]
    differ = max((x.history.loss - y.history.loss).abs().max() for x, y in zip(both[0].runs, single[0].runs))
    together_s = statistics.median(each.seconds for each in both)
    settings = Settings(batch_size=16)
    tunings = [prepare(lm, prompt, examples, None, settings) for prompt, examples in zip(prompts, data)]
    row = dict(
        model=name,
        dtype=str(lm.dtype).removeprefix("torch."),
        lanes=lanes,
        steps=steps,
        together_s=round(together_s, 3),
        loop_s=round(statistics.median(each.seconds for each in single), 3),
        times=round(statistics.median(ratios), 2),
        times_range=[round(min(ratios), 2), round(max(ratios), 2)],
        ms_a_lane_and_step=round(1e3 * together_s / lanes / steps, 2),
        largest_loss_difference=float(differ),
        kept_mb_a_lane=round(kept_bytes(lm, tunings[3]) / 2**20, 1),
        lanes_that_fit_here=lanes_that_fit(lm, tunings * 50),
    )
    if device == "cuda":
        row["together_peak_gb"] = round(max(each.peak for each in both) / 2**30, 2)
        row["loop_peak_gb"] = round(max(each.peak for each in single) / 2**30, 2)
    else:
        row["process_peak_gb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
    return row


def line(row):
    "A row in words."
    low, high = row["times_range"]
    return (
        f"{row['model']}: {row['lanes']} lanes of {SIZES[0]} to {SIZES[-1]} vectors, {row['steps']} steps: "
        f"together {row['together_s']} s, one after another {row['loop_s']} s, "
        f"{row['times']} times faster ({low}-{high}); "
        f"losses differ by {row['largest_loss_difference']:.1e} at most; "
        f"{row['kept_mb_a_lane']} MB kept for a lane's backward pass, "
        f"{row['lanes_that_fit_here']} lanes fit here"
    )


def save(rows, repeats, device):
    "The table as a dated file."
    where = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    versions = dict(python=platform.python_version(), torch=torch.__version__, transformers=transformers.__version__)
    note = dict(date=str(date.today()), device=where, repeats=repeats, versions=versions, rows=rows)
    path = Path(__file__).parent / "results" / f"many-{date.today()}-{device}.json"
    path.write_text(json.dumps(note, indent=1) + "\n")
    print("kept in", path.relative_to(Path(__file__).parents[2]))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--lanes", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--save", action="store_true", help="keep the table as a dated file in tests/bench/results")
    args = parser.parse_args()
    torch.set_num_threads(2)
    lab = load_lm(device=args.device, dtype=torch.float32)
    rows = [measure(lab, "lab-instruct-s", args.lanes, args.steps, args.repeats, args.device)]
    print(line(rows[0]), flush=True)
    if args.device == "cuda":
        del lab
        rows.append(measure(model_160m("cuda"), "160m shape", 32, args.steps, args.repeats, args.device))
        print(line(rows[1]), flush=True)
    if args.save:
        save(rows, args.repeats, args.device)


if __name__ == "__main__":
    main()
