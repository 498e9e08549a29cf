"""Many prompts in one pass a step against the same prompts one after another, side by side in one process.

    python tests/bench/many.py [--repeats 3] [--lanes 64] [--steps 20] [--device cpu] [--save]

Ragged lanes: 4 to 16 vectors, all tasks of the lab, 16 examples a step. Both ways train the same lanes with the same seeds; each repeat runs both in turn, ratios are taken within a repeat, medians are shown
with the smallest and largest, and the largest difference between the losses of the two says that they did the same. On a CPU: the lab. On a GPU: the lab in float32, and the shape of a 160M model in bfloat16 with 32 lanes."""

import argparse
import json
import platform
import resource
import statistics
import time
from datetime import date
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, GPTNeoXConfig

from softprompt_nb.lab.world import TASKS, lab_task
from softprompt_nb.lm import FrozenLM
from softprompt_nb.load import load_lm
from softprompt_nb.prompts import SoftPrompt
from softprompt_nb.training.many import kept_bytes, lanes_that_fit, tune_many
from softprompt_nb.training.step import Settings, prepare
from softprompt_nb.training.tuning import tune

SIZES = (4, 7, 10, 16)


def model_160m(device):
    "Random weights in the shape of pythia-160m behind the lab's tokenizer."
    torch.manual_seed(0)
    cfg = GPTNeoXConfig(
        vocab_size=50304,
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        intermediate_size=3072,
        rotary_pct=0.25,
        max_position_embeddings=2048,
    )
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(cfg, dtype=torch.bfloat16)
    return FrozenLM(model, load_lm(device="cpu").tokenizer, "160m")


def lanes_of(lm, lanes):
    names = [n for n, t in TASKS.items() if len(t.examples(None if t.closed else 40, seed=0, split="train")) >= 24]
    data = {n: lab_task(n).examples(24, split="train") for n in names}
    return [SoftPrompt.init(lm, SIZES[i % len(SIZES)], seed=i) for i in range(lanes)], [
        data[names[i % len(names)]] for i in range(lanes)
    ]


def seconds(f, device):
    if device == "cuda":
        torch.cuda.synchronize(), torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    out = f()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, out, torch.cuda.max_memory_allocated() if device == "cuda" else None


def measure(lm, name, lanes, steps, repeats, device):
    "A row of the table."
    prompts, data = lanes_of(lm, lanes)
    kw = dict(batch_size=16, steps=steps, progress=False, checkpoints=0)
    together = lambda: tune_many(lm, prompts, data, seed=list(range(lanes)), **kw)
    loop = lambda: [tune(lm, p, d, seed=i, **kw) for i, (p, d) in enumerate(zip(prompts, data))]
    tune_many(lm, prompts, data, **kw | dict(steps=2)), tune(lm, prompts[0], data[0], **kw | dict(steps=2))
    pairs = [(seconds(together, device), seconds(loop, device)) for _ in range(repeats)]
    ratios = [b[0] / a[0] for a, b in pairs]
    differ = max((x.history.loss - y.history.loss).abs().max() for x, y in zip(pairs[0][0][1], pairs[0][1][1]))
    ts = [prepare(lm, p, d, None, Settings(batch_size=16)) for p, d in zip(prompts, data)]
    row = dict(
        model=name,
        dtype=str(lm.dtype)[6:],
        lanes=lanes,
        steps=steps,
        together_s=round(statistics.median(a[0] for a, _ in pairs), 3),
        loop_s=round(statistics.median(b[0] for _, b in pairs), 3),
        times=round(statistics.median(ratios), 2),
        times_range=[round(min(ratios), 2), round(max(ratios), 2)],
        ms_a_lane_and_step=round(1e3 * statistics.median(a[0] for a, _ in pairs) / lanes / steps, 2),
        largest_loss_difference=float(differ),
        kept_mb_a_lane=round(kept_bytes(lm, ts[3]) / 2**20, 1),
        lanes_that_fit_here=lanes_that_fit(lm, ts * 50),
    )
    if device == "cuda":
        row |= dict(
            together_peak_gb=round(max(a[2] for a, _ in pairs) / 2**30, 2),
            loop_peak_gb=round(max(b[2] for _, b in pairs) / 2**30, 2),
        )
    else:
        row["process_peak_gb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
    return row


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--repeats", type=int, default=3)
    ap.add_argument("--lanes", type=int, default=64)
    ap.add_argument("--steps", type=int, default=20)
    ap.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    ap.add_argument("--save", action="store_true", help="keep the table as a dated file in tests/bench/results")
    a = ap.parse_args()
    torch.set_num_threads(2)
    todo = [("lab-instruct-s", lambda: load_lm(device=a.device, dtype=torch.float32), a.lanes)] + (
        [("160m shape", lambda: model_160m("cuda"), 32)] if a.device == "cuda" else []
    )
    rows = []
    for name, make, lanes in todo:
        r = measure(make(), name, lanes, a.steps, a.repeats, a.device)
        rows.append(r)
        print(
            f"{name}: {r['lanes']} lanes of {SIZES[0]} to {SIZES[-1]} vectors, {r['steps']} steps: together {r['together_s']} s, one after another {r['loop_s']} s, {r['times']} times faster ({r['times_range'][0]}-{r['times_range'][1]}); "
            f"losses differ by {r['largest_loss_difference']:.1e} at most; {r['kept_mb_a_lane']} MB kept for a lane's backward pass, {r['lanes_that_fit_here']} lanes fit here",
            flush=True,
        )
    if a.save:
        where = torch.cuda.get_device_name() if a.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
        path = Path(__file__).parent / "results" / f"many-{date.today()}-{a.device}.json"
        path.write_text(
            json.dumps(
                dict(
                    date=str(date.today()),
                    device=where,
                    repeats=a.repeats,
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
