"""A step of a real model on real rows against PEFT's, what is kept for the backward pass, and generation by a prompt.

    python tests/bench/real.py [--models NAME ...] [--data FOLDER] [--repeats 5] [--device cpu] [--save]

SmolLM2 and Gemma 3 (fetched, or taken from the cache), in float32. Rows: plurals (16 short ones), SST-2 (16 of about 40
tokens), GSM8K with its worked solutions (4 of about 200). Both sides take the same rows and vectors; each repeat runs
both in turn, ratios are taken within a repeat, medians are shown with the smallest and largest, and the two losses say
that the same was computed. Generation: 16 texts, 32 new tokens each, behind ten vectors. Few-shot: 8 reviews behind
the same 16 labelled ones, the log-probability of both labels, against a padded call of the model on each whole text."""

import argparse
import json
import statistics
from pathlib import Path

from softprompt_nb.data import Example, collate
from softprompt_nb.engine.forward import prompted_loss
from softprompt_nb.engine.inference import generate, score_options
from softprompt_nb.load import load_lm
from softprompt_nb.prompts import SoftPrompt
from softprompt_nb.training.many import kept_for_backward

import torch
from forward import clock, ratio, save
from peft import PromptTuningConfig, get_peft_model

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
MODELS = ("smollm2-135m-instruct", "gemma-3-270m")


def plurals(folder):
    rows = json.loads((folder / "instruction_induction" / "induce" / "singular_to_plural.json").read_text())["examples"]
    return [Example(f"Input: {row['input']}\nOutput:", f" {row['output']}") for row in list(rows.values())[:16]]


LABELS = (" negative", " positive")


def reviews(folder, first=0, count=16):
    lines = (folder / "fewshot_classification_rlprompt" / "sst-2" / "test.tsv").read_text().splitlines()[1:]
    pairs = [line.split("\t") for line in lines[first : first + count]]
    return [Example(f"Review: {text}\nSentiment:", LABELS[int(label)]) for text, label in pairs]


def solutions(folder):
    lines = (folder / "gsm8k" / "test.jsonl").read_text().splitlines()[:4]
    rows = [json.loads(line) for line in lines]
    return [Example(f"Question: {row['question']}\nAnswer:", f" {row['answer']}") for row in rows]


ROWS = {"plurals": plurals, "sst-2": reviews, "gsm8k": solutions}


def theirs_for(lm, vectors, batch):
    "PEFT's model with these vectors, and its loss on a batch."
    model = get_peft_model(lm.model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=len(vectors))).eval()
    weight = model.prompt_encoder["default"].embedding.weight
    with torch.no_grad():
        weight.copy_(vectors)

    def loss():
        out = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels)
        return out.loss

    return model, weight, loss


def step_row(lm, name, examples, n, repeats, device):
    "A row of the table of steps."
    batch = collate(lm, examples)
    vectors = SoftPrompt.init(lm, n, seed=0).vectors.requires_grad_()
    weight, peft_loss = theirs_for(lm, vectors, batch)[1:]

    def ours_loss():
        return prompted_loss(lm, vectors, batch)

    def ours():
        torch.autograd.grad(ours_loss(), vectors)

    def theirs():
        torch.autograd.grad(peft_loss(), weight)

    with torch.no_grad():
        losses = (ours_loss().item(), peft_loss().item())
    steps = dict(ours=ours, peft=theirs)
    for step in steps.values():
        step()
    runs = [{key: clock(step, device) for key, step in steps.items()} for _ in range(repeats)]
    row = dict(model=lm.name, rows=name, B=len(examples), T=batch.input_ids.shape[1], n=n, losses=losses)
    for key in steps:
        row[f"{key}_ms"] = round(1e3 * statistics.median(run[key][0] for run in runs), 1)
    row["times_peft"], row["range"] = ratio(runs, "peft", "ours")
    row["ours_kept_mb"] = round(kept_for_backward(lm, ours_loss) / 2**20)
    row["peft_kept_mb"] = round(kept_for_backward(lm, peft_loss) / 2**20)
    return row


def generation_row(lm, name, examples, repeats, device, new=32):
    "A row of the table of generation: tokens a second."
    prompt = SoftPrompt.init(lm, 10, seed=0)
    texts = [example.input for example in examples]
    model, _, _ = theirs_for(lm, prompt.vectors, collate(lm, examples))
    tokenizer = lm.tokenizer
    side, tokenizer.padding_side = tokenizer.padding_side, "left"
    batch = tokenizer(texts, return_tensors="pt", padding=True).to(lm.device)
    tokenizer.padding_side = side
    exact = dict(do_sample=False, min_new_tokens=new, max_new_tokens=new, pad_token_id=lm.pad_id)

    def ours():
        generate(lm, prompt, texts, max_new_tokens=new, min_new_tokens=new)

    def theirs():
        model.generate(**batch, **exact)

    steps = dict(ours=ours, peft=theirs)
    with torch.no_grad():
        for step in steps.values():
            step()
        runs = [{key: clock(step, device) for key, step in steps.items()} for _ in range(repeats)]
    row = dict(model=lm.name, rows=name, texts=len(texts), new=new)
    for key in steps:
        row[f"{key}_tokens_a_second"] = round(len(texts) * new / statistics.median(run[key][0] for run in runs))
    row["times_peft"], row["range"] = ratio(runs, "peft", "ours")
    return row


def shots_row(lm, folder, repeats, device):
    "A row of the table of few-shot scoring: seconds for the labels of eight texts."
    shown = "".join(f"{example.input}{example.target}\n\n" for example in reviews(folder))
    texts = [shown + example.input for example in reviews(folder, first=16, count=8)]
    side, lm.tokenizer.padding_side = lm.tokenizer.padding_side, "left"
    batch = lm.tokenizer(texts, return_tensors="pt", padding=True).to(lm.device)
    lm.tokenizer.padding_side = side
    words = [lm.tokenizer(label, add_special_tokens=False)["input_ids"] for label in LABELS]
    if any(len(ids) != 1 for ids in words):
        raise ValueError("The plain side takes both labels from one pass, so each must be one token.")
    positions = (batch.attention_mask.cumsum(1) - 1).clamp(min=0)

    def ours():
        return score_options(lm, None, texts, list(LABELS), end=False)

    def theirs():
        logits = lm.model(**batch, position_ids=positions, logits_to_keep=1, use_cache=False).logits[:, -1]
        return logits.log_softmax(-1)[:, [ids[0] for ids in words]]

    steps = dict(ours=ours, plain=theirs)
    with torch.no_grad():
        difference = (ours().to(lm.device) - theirs()).abs().max().item()
        runs = [{key: clock(step, device) for key, step in steps.items()} for _ in range(repeats)]
    row = dict(model=lm.name, rows="16 shots", texts=len(texts), T=batch.input_ids.shape[1], difference=difference)
    for key in steps:
        row[f"{key}_s"] = round(statistics.median(run[key][0] for run in runs), 2)
    row["times_plain"], row["range"] = ratio(runs, "plain", "ours")
    return row


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--save", action="store_true", help="keep the table as a dated file in tests/bench/results")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if not args.data.is_dir():
        print(f"The real rows are read from {args.data.name}, which is not here: name their folder with --data.")
        return
    rows = []
    for model in args.models:
        try:
            lm = load_lm(model, device=args.device, dtype="float32")
        except (ValueError, ImportError, OSError) as e:
            print(e)
            continue
        for name, read in ROWS.items():
            examples = read(args.data)
            for n in (10, 100):
                rows.append(step_row(lm, name, examples, n, args.repeats, args.device))
                print(json.dumps(rows[-1]), flush=True)
        rows.append(generation_row(lm, "sst-2", reviews(args.data), args.repeats, args.device))
        print(json.dumps(rows[-1]), flush=True)
        rows.append(shots_row(lm, args.data, args.repeats, args.device))
        print(json.dumps(rows[-1]), flush=True)
    if args.save and rows:
        save("real", rows, args.device, torch.float32, args.repeats)


if __name__ == "__main__":
    main()
