"""InSPEcT over all pairs of layers in one batch against one row for each pair, side by side in one process.

    python tests/bench/inspect_layers.py [--repeats 3] [--prompts 4] [--new 24] [--device cpu] [--save]

The slow way computes a prompt's states anew for every pair and writes each text alone, with a cache (the published code has none). Both ways must give the same texts. Ratios are taken within a repeat; medians are shown with the smallest and largest."""

import argparse
import json
import platform
import statistics
import sys
import time
from datetime import date
from pathlib import Path

import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from softprompt_nb.load import load_lm
from softprompt_nb.prompts import SoftPrompt
from softprompt_nb.translation.readings.inspect import TargetText, inspect_prompt

from slow_inspect import one_pair

TARGET = TargetText("copy the list . | spell the word . | {} |")


def seconds(f, device):
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    out = f()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, out


def measure(name, prompts, new, repeats, device):
    lm = load_lm(name, device=device, dtype=torch.float32)
    ps = [SoftPrompt.init(lm, 8, "gaussian", seed=i) for i in range(prompts)]
    tidy = lambda t: t.strip().split("\n")[0].strip()
    fast = lambda: inspect_prompt(lm, ps, TARGET, max_new_tokens=new, stop=None)
    pairs = [(s, t) for s in range(len(lm.layers) + 1) for t in range(len(lm.layers))]
    slow = lambda: [[tidy(one_pair(lm, p, s, t, TARGET, new)) for s, t in pairs] for p in ps]
    fast(), one_pair(lm, ps[0], 0, 0, TARGET, new)
    runs = [(seconds(fast, device), seconds(slow, device)) for _ in range(repeats)]
    same = sum(
        a == b for row, want in zip(runs[0][0][1].texts.reshape(prompts, -1), runs[0][1][1]) for a, b in zip(row, want)
    )
    ratios = [b[0] / a[0] for a, b in runs]
    return dict(
        model=name,
        prompts=prompts,
        pairs=len(pairs),
        new_tokens=new,
        batched_s=round(statistics.median(a[0] for a, _ in runs), 3),
        one_by_one_s=round(statistics.median(b[0] for _, b in runs), 3),
        times=round(statistics.median(ratios), 1),
        times_range=[round(min(ratios), 1), round(max(ratios), 1)],
        same_texts=f"{same} of {prompts * len(pairs)}",
    )


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--repeats", type=int, default=3)
    ap.add_argument("--prompts", type=int, default=4)
    ap.add_argument("--new", type=int, default=24)
    ap.add_argument("--models", nargs="+", default=["lab-instruct-s"])
    ap.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    ap.add_argument("--save", action="store_true", help="keep the table as a dated file in tests/bench/results")
    a = ap.parse_args()
    torch.set_num_threads(2)
    rows = []
    for name in a.models:
        r = measure(name, a.prompts, a.new, a.repeats, a.device)
        rows.append(r)
        print(
            f"{name}: {r['prompts']} prompts, {r['pairs']} pairs of layers: batched {r['batched_s']} s, one by one {r['one_by_one_s']} s, {r['times']} times faster ({r['times_range'][0]}-{r['times_range'][1]}); {r['same_texts']} texts equal",
            flush=True,
        )
    if a.save:
        where = torch.cuda.get_device_name() if a.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
        path = Path(__file__).parent / "results" / f"inspect-{date.today()}-{a.device}.json"
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
