"""InSPEcT over all pairs of layers in one batch against one row for each pair, side by side in one process.

    python tests/bench/inspect_layers.py [--repeats 3] [--prompts 4] [--new 24] [--device cpu] [--save]

The slow way computes a prompt's states anew for every pair and writes each text alone, with a cache (the published code
has none). Both ways must give the same texts. Ratios are taken within a repeat; medians are shown with the smallest and
largest."""

import argparse
import json
import platform
import sys
import time
from datetime import date
from pathlib import Path
from statistics import median

import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from softprompt_nb.load import load_lm
from softprompt_nb.prompts import SoftPrompt
from softprompt_nb.translation.readings.inspect import TargetText, inspect_prompt

from slow_inspect import one_pair

HERE = Path(__file__).parent
TARGET = TargetText("copy the list . | spell the word . | {} |")


def took(function, device):
    "Seconds of a call, and what it gave."
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    out = function()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, out


def first_line(text):
    return text.strip().split("\n")[0].strip()


def measure(name, n_prompts, new, repeats, device):
    lm = load_lm(name, device=device, dtype=torch.float32)
    prompts = [SoftPrompt.init(lm, 8, "gaussian", seed=i) for i in range(n_prompts)]
    pairs = [(source, level) for source in range(len(lm.layers) + 1) for level in range(len(lm.layers))]

    def batched():
        return inspect_prompt(lm, prompts, TARGET, max_new_tokens=new, stop=None).texts.ravel().tolist()

    def one_by_one():
        return [first_line(one_pair(lm, prompt, *pair, TARGET, new)) for prompt in prompts for pair in pairs]

    batched()
    one_pair(lm, prompts[0], 0, 0, TARGET, new)
    runs = [(took(batched, device), took(one_by_one, device)) for _ in range(repeats)]
    fast = [first[0] for first, _ in runs]
    slow = [second[0] for _, second in runs]
    ratios = [b / a for a, b in zip(fast, slow)]
    (_, texts), (_, wanted) = runs[0]
    same = sum(text == want for text, want in zip(texts, wanted))
    return dict(
        model=name,
        prompts=n_prompts,
        pairs=len(pairs),
        new_tokens=new,
        batched_s=round(median(fast), 3),
        one_by_one_s=round(median(slow), 3),
        times=round(median(ratios), 1),
        times_range=[round(min(ratios), 1), round(max(ratios), 1)],
        same_texts=f"{same} of {len(wanted)}",
    )


def show(row):
    least, most = row["times_range"]
    print(
        f"{row['model']}: {row['prompts']} prompts, {row['pairs']} pairs of layers: batched {row['batched_s']} s, "
        f"one by one {row['one_by_one_s']} s, {row['times']} times faster ({least}-{most}); "
        f"{row['same_texts']} texts equal",
        flush=True,
    )


def save(rows, given):
    "Keeps the table as a dated file."
    where = torch.cuda.get_device_name() if given.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    path = HERE / "results" / f"inspect-{date.today()}-{given.device}.json"
    versions = dict(
        python=platform.python_version(),
        torch=torch.__version__,
        transformers=transformers.__version__,
    )
    record = dict(
        date=str(date.today()),
        device=where,
        repeats=given.repeats,
        versions=versions,
        rows=rows,
    )
    path.write_text(json.dumps(record, indent=1) + "\n")
    print("kept in", path.relative_to(HERE.parents[1]))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--new", type=int, default=24)
    parser.add_argument("--models", nargs="+", default=["lab-instruct-s"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--save", action="store_true", help="keep the table as a dated file in tests/bench/results")
    given = parser.parse_args()
    torch.set_num_threads(2)
    rows = []
    for name in given.models:
        rows.append(measure(name, given.prompts, given.new, given.repeats, given.device))
        show(rows[-1])
    if given.save:
        save(rows, given)


if __name__ == "__main__":
    main()
