"""One training step of a soft prompt against PEFT's, and against the bare trunk over as many tokens, side by side in one process.

    python tests/bench/forward.py [--repeats 7] [--device cpu] [--save]

Forward and backward, random weights, four target tokens a row. Each repeat runs all three in turn; ratios are taken within a repeat, and medians are shown with the smallest and
largest. On a CPU: float32 and two threads, the shape of pythia-70m. On a GPU: bfloat16, the shapes of a 1B and an 8B model, with peak memory."""

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


def steps(lm, B, T, n):
    "The three steps to compare, as functions without arguments."
    ids = torch.randint(0, lm.vocab_size, (B, T), device=lm.device)
    labels = torch.full_like(ids, -100)
    labels[:, -4:] = ids[:, -4:]
    mask = torch.ones_like(ids)
    batch = Batch(ids, mask, labels, torch.zeros(B, dtype=torch.long, device=lm.device))
    v = (torch.randn(n, lm.d_model, device=lm.device) * 0.02).requires_grad_()

    def ours_loss():
        return prompted_loss(lm, v, batch)

    def ours():
        torch.autograd.grad(ours_loss(), v)

    x = torch.randn(B, -(-(n + B * T) // B), lm.d_model, device=lm.device, dtype=lm.dtype) * 0.02

    def bare():
        y = x.clone().requires_grad_()
        torch.autograd.grad(lm.trunk(inputs_embeds=y, use_cache=False).last_hidden_state.float().sum(), y)

    pm = get_peft_model(lm.model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=n)).eval()

    def peft_loss():
        return pm(input_ids=ids, attention_mask=mask, labels=labels).loss

    def theirs():
        pm.zero_grad()
        peft_loss().backward()

    return dict(ours=ours, bare=bare, peft=theirs), plan(lm, v, batch), dict(ours=ours_loss, peft=peft_loss)


def clock(f, device):
    "Seconds and, on a GPU, peak bytes of one call."
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    f()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, torch.cuda.max_memory_allocated() if device == "cuda" else None


def measure(lm, shape, B, T, n, repeats, device):
    "A row of the table."
    fs, path, losses = steps(lm, B, T, n)
    failed = {}
    for k, f in list(fs.items()):
        try:
            f()
        except torch.cuda.OutOfMemoryError:
            failed[k] = "out of memory"
    runs = [{k: clock(f, device) for k, f in fs.items() if k not in failed} for _ in range(repeats)]
    row = dict(
        shape=shape,
        B=B,
        T=T,
        n=n,
        path=path,
        aim=AIMS.get((shape, B, T, n)),
        **{f"{k}_failed": v for k, v in failed.items()},
    )
    row |= {f"{k}_kept_mb": round(kept_for_backward(lm, f) / 2**20) for k, f in losses.items() if k not in failed}
    for k in fs:
        if k in failed:
            continue
        row[f"{k}_ms"] = round(1e3 * statistics.median(r[k][0] for r in runs), 1)
        if device == "cuda":
            row[f"{k}_peak_gb"] = round(max(r[k][1] for r in runs) / 2**30, 2)
    for name, a, b in (("times_peft", "peft", "ours"), ("over_bare", "ours", "bare")):
        if a not in failed and b not in failed:
            q = [r[a][0] / r[b][0] for r in runs]
            row[name], row[name + "_range"] = round(statistics.median(q), 2), [round(min(q), 2), round(max(q), 2)]
    return row


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--repeats", type=int, default=7)
    ap.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    ap.add_argument("--shapes", nargs="*")
    ap.add_argument("--save", action="store_true", help="keep the table as a dated file in tests/bench/results")
    a = ap.parse_args()
    torch.set_num_threads(2)
    dtype = torch.float32 if a.device == "cpu" else torch.bfloat16
    rows = []
    print(
        f"{'model':>5} {'B':>3} {'T':>4} {'n':>5}  {'path':7} {'ours ms':>9} {'PEFT ms':>9} {'bare ms':>9}  {'x PEFT':>7} {'(range)':>14} {'aim':>5}  {'over bare':>9}",
        flush=True,
    )
    for shape in a.shapes or (["70m"] if a.device == "cpu" else ["1b", "8b"]):
        for B, T, n in LARGE.get(shape, RUNS):
            lm = FrozenLM(model_of(shape, a.device, dtype), NoTokenizer(), shape)
            r = measure(lm, shape, B, T, n, a.repeats, a.device)
            rows.append(r)
            lo_hi = "-".join(map(str, r.get("times_peft_range", [])))
            print(
                f"{shape:>5} {B:3} {T:4} {n:5}  {r['path']:7} {r.get('ours_ms', '-'):>9} {r.get('peft_ms', '-'):>9} {r.get('bare_ms', '-'):>9}  {r.get('times_peft', '-'):>7} {lo_hi:>14} {r['aim'] or '':>5}  {r.get('over_bare', '-'):>9}"
                + f"  kept MB: ours {r.get('ours_kept_mb')}, PEFT {r.get('peft_kept_mb')}"
                + (
                    f"  peak GB: ours {r.get('ours_peak_gb')}, PEFT {r.get('peft_peak_gb')}"
                    if a.device == "cuda"
                    else ""
                ),
                flush=True,
            )
            del lm
    if a.save:
        where = torch.cuda.get_device_name() if a.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
        record = dict(
            date=str(date.today()),
            device=where,
            dtype=str(dtype)[6:],
            repeats=a.repeats,
            versions=dict(
                python=platform.python_version(),
                torch=torch.__version__,
                transformers=transformers.__version__,
                peft=peft.__version__,
            ),
            rows=rows,
        )
        path = Path(__file__).parent / "results" / f"forward-{date.today()}-{a.device}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(record, indent=1) + "\n")
        print("kept in", path.relative_to(Path(__file__).parents[2]))


if __name__ == "__main__":
    main()
