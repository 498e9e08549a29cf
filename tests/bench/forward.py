"""One training step of a soft prompt against PEFT's, and against the bare trunk over as many tokens, in one process.

    python tests/bench/forward.py [--repeats 7] [--device cpu] [--save]

Forward and backward, random weights, four target tokens a row. Each repeat runs all three in turn; ratios are taken
within a repeat, and medians are shown with the smallest and largest. On a CPU: float32 and two threads, the shape of
pythia-70m. On a GPU: bfloat16, the shapes of a 1B and an 8B model, with peak memory."""

import argparse
import json
import platform
import statistics
import time
from datetime import date
from pathlib import Path

from softprompt_nb.data import Batch
from softprompt_nb.engine.forward import plan, prompted_loss
from softprompt_nb.lm import FrozenLM
from softprompt_nb.training.many import kept_for_backward

import peft
import torch
import transformers
from peft import PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, GPTNeoXConfig, LlamaConfig

SHAPES = {
    "70m": lambda: GPTNeoXConfig(
        vocab_size=50304,
        hidden_size=512,
        num_hidden_layers=6,
        num_attention_heads=8,
        intermediate_size=2048,
        rotary_pct=0.25,
        max_position_embeddings=2048,
    ),
    "1b": lambda: GPTNeoXConfig(
        vocab_size=50304,
        hidden_size=2048,
        num_hidden_layers=16,
        num_attention_heads=8,
        intermediate_size=8192,
        rotary_pct=0.25,
        max_position_embeddings=2048,
    ),
    "8b": lambda: LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        intermediate_size=14336,
        max_position_embeddings=4096,
    ),
}
RUNS = [(16, 48, 10), (16, 48, 64), (16, 48, 256), (8, 48, 1024), (32, 256, 20)]
LARGE = {"8b": [(8, 512, 20), (8, 48, 20)]}  # at these sizes less is enough to see
AIMS = {
    ("8b", 8, 512, 20): 1.3,
    ("70m", 16, 48, 10): 4,
    ("70m", 16, 48, 64): 7,
    ("70m", 16, 48, 256): 14,
    ("70m", 8, 48, 1024): 13,
    ("70m", 32, 256, 20): 3.5,
}


class NoTokenizer:
    pad_token_id = eos_token_id = 0


def model_of(shape, device, dtype):
    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(SHAPES[shape](), dtype=dtype).eval()


def random_batch(lm, n_rows, length):
    "Random rows of one length, their last four tokens the targets."
    ids = torch.randint(0, lm.vocab_size, (n_rows, length), device=lm.device)
    labels = torch.full_like(ids, -100)
    labels[:, -4:] = ids[:, -4:]
    places = torch.zeros(n_rows, dtype=torch.long, device=lm.device)
    return Batch(ids, torch.ones_like(ids), labels, places)


def steps(lm, n_rows, length, n):
    "The three steps to compare, as functions without arguments; the path of ours; the losses alone."
    batch = random_batch(lm, n_rows, length)
    vectors = (torch.randn(n, lm.d_model, device=lm.device) * 0.02).requires_grad_()

    def ours_loss():
        return prompted_loss(lm, vectors, batch)

    def ours():
        torch.autograd.grad(ours_loss(), vectors)

    as_long = -(-(n + n_rows * length) // n_rows)
    x = torch.randn(n_rows, as_long, lm.d_model, device=lm.device, dtype=lm.dtype) * 0.02

    def bare():
        embeds = x.clone().requires_grad_()
        hidden = lm.trunk(inputs_embeds=embeds, use_cache=False).last_hidden_state
        torch.autograd.grad(hidden.float().sum(), embeds)

    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=n)
    peft_model = get_peft_model(lm.model, config).eval()

    def peft_loss():
        out = peft_model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels)
        return out.loss

    def theirs():
        peft_model.zero_grad()
        peft_loss().backward()

    path = plan(lm, vectors, batch)
    return dict(ours=ours, bare=bare, peft=theirs), path, dict(ours=ours_loss, peft=peft_loss)


def clock(step, device):
    "Seconds and, on a GPU, peak bytes of one call."
    if device != "cuda":
        start = time.perf_counter()
        step()
        return time.perf_counter() - start, None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    step()
    torch.cuda.synchronize()
    return time.perf_counter() - start, torch.cuda.max_memory_allocated()


def without_memory(functions):
    "Names of the steps for which the memory does not do; the others have been run once."
    failed = []
    for name, step in functions.items():
        try:
            step()
        except torch.cuda.OutOfMemoryError:
            failed.append(name)
    return failed


def ratio(runs, above, below):
    "Median of a ratio within each repeat, and its smallest and largest."
    ratios = [run[above][0] / run[below][0] for run in runs]
    return round(statistics.median(ratios), 2), [round(min(ratios), 2), round(max(ratios), 2)]


def measure(lm, shape, n_rows, length, n, repeats, device):
    "A row of the table."
    functions, path, losses = steps(lm, n_rows, length, n)
    failed = without_memory(functions)
    ran = {name: step for name, step in functions.items() if name not in failed}
    runs = [{name: clock(step, device) for name, step in ran.items()} for _ in range(repeats)]
    row = dict(shape=shape, B=n_rows, T=length, n=n, path=path, aim=AIMS.get((shape, n_rows, length, n)))
    for name in failed:
        row[f"{name}_failed"] = "out of memory"
    for name, loss in losses.items():
        if name in ran:
            row[f"{name}_kept_mb"] = round(kept_for_backward(lm, loss) / 2**20)
    for name in ran:
        seconds, peaks = zip(*(run[name] for run in runs))
        row[f"{name}_ms"] = round(1e3 * statistics.median(seconds), 1)
        if device == "cuda":
            row[f"{name}_peak_gb"] = round(max(peaks) / 2**30, 2)
    for name, above, below in (("times_peft", "peft", "ours"), ("over_bare", "ours", "bare")):
        if above in ran and below in ran:
            row[name], row[f"{name}_range"] = ratio(runs, above, below)
    return row


def heading():
    timings = f"{'ours ms':>9} {'PEFT ms':>9} {'bare ms':>9}"
    ratios = f"{'x PEFT':>7} {'(range)':>14} {'aim':>5}  {'over bare':>9}"
    return f"{'model':>5} {'B':>3} {'T':>4} {'n':>5}  {'path':7} {timings}  {ratios}"


def line(row):
    "A row of the table, as it is printed."

    def value(key):
        return row.get(key, "-")

    span = "-".join(map(str, row.get("times_peft_range", [])))
    batch = f"{row['shape']:>5} {row['B']:3} {row['T']:4} {row['n']:5}  {row['path']:7}"
    timings = f"{value('ours_ms'):>9} {value('peft_ms'):>9} {value('bare_ms'):>9}"
    ratios = f"{value('times_peft'):>7} {span:>14} {row['aim'] or '':>5}  {value('over_bare'):>9}"
    memory = f"  kept MB: ours {row.get('ours_kept_mb')}, PEFT {row.get('peft_kept_mb')}"
    if "ours_peak_gb" in row or "peft_peak_gb" in row:
        memory += f"  peak GB: ours {row.get('ours_peak_gb')}, PEFT {row.get('peft_peak_gb')}"
    return f"{batch} {timings}  {ratios}{memory}"


def save(name, rows, device, dtype, repeats):
    "Keep a table as a dated file."
    where = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    versions = dict(
        python=platform.python_version(),
        torch=torch.__version__,
        transformers=transformers.__version__,
        peft=peft.__version__,
    )
    record = dict(
        date=str(date.today()),
        device=where,
        dtype=str(dtype)[6:],
        repeats=repeats,
        versions=versions,
        rows=rows,
    )
    path = Path(__file__).parent / "results" / f"{name}-{date.today()}-{device}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
    print("kept in", path.relative_to(Path(__file__).parents[2]))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--shapes", nargs="*")
    parser.add_argument("--save", action="store_true", help="keep the table as a dated file in tests/bench/results")
    args = parser.parse_args()
    torch.set_num_threads(2)
    on_cpu = args.device == "cpu"
    dtype = torch.float32 if on_cpu else torch.bfloat16
    rows = []
    print(heading(), flush=True)
    for shape in args.shapes or (["70m"] if on_cpu else ["1b", "8b"]):
        for n_rows, length, n in LARGE.get(shape, RUNS):
            lm = FrozenLM(model_of(shape, args.device, dtype), NoTokenizer(), shape)
            rows.append(measure(lm, shape, n_rows, length, n, args.repeats, args.device))
            print(line(rows[-1]), flush=True)
            del lm
    if args.save:
        save("forward", rows, args.device, dtype, args.repeats)


if __name__ == "__main__":
    main()
