import argparse
import json
import math
import os
import shutil
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import pandas as pd
import torch
import transformers
import softprompt_nb.lab
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm
from transformers import AutoTokenizer, GPTNeoXConfig, GPTNeoXForCausalLM

from softprompt_nb.lab.corpus import BASE, INSTRUCT, Manifest, corpus, drawn, lab_tokenizer, rows
from softprompt_nb.lab.world import TASKS, lab_task, with_instruction, with_shots
from softprompt_nb.measure import proportion

@dataclass(frozen=True)
class Recipe:
    "Everything that decides a model's weights."
    name: str
    mixture: dict              # `{family: share of documents}`
    steps: int                 # optimiser steps in all
    start: str = ''            # name of the recipe whose model this one continues; empty: from scratch
    seed: int = 0              # of initial weights and corpus
    width: int = 128
    layers: int = 4
    heads: int = 4
    vocab: int = 3072
    context: int = 256         # longest text, in tokens
    tokens: int = 4096         # a step reads this many, as rows of half the context; every fourth step as rows of the whole context
    lr: float = 3e-3           # at its peak; linear warm-up, then cosine to a fiftieth
    warmup: int = 100          # steps
    decay: float = .05         # weight decay on matrices
    skip_drawn: bool = False   # leave made-up inputs, which nobody can foresee, out of the loss?

RECIPES = {r.name: r for r in (
    Recipe('lab-base-s', BASE, 2600),
    Recipe('lab-instruct-s', INSTRUCT, 1600, start='lab-base-s', seed=1, lr=2e-3, warmup=50, skip_drawn=True))}
MODELS = Path(softprompt_nb.lab.__path__[0])/'models' # the shipped ones

def batch(recipe, tok,
          step, # from 0
          seen=None, # a `Manifest` that counts
         )->torch.Tensor:
    "The token ids of one step, (rows, length)."
    length = recipe.context if step % 4 == 3 else recipe.context//2
    docs = corpus(f'{recipe.name}|{recipe.seed}|{step}', mixture=recipe.mixture)
    return torch.from_numpy(rows(docs, tok, recipe.tokens//length, length, seen))

def rate(recipe,
         step, # from 0
        ):
    "The learning rate of that step."
    if step < recipe.warmup: return recipe.lr*(step+1)/recipe.warmup
    done = (step-recipe.warmup)/max(1, recipe.steps-recipe.warmup)
    return recipe.lr*(.02 + .49*(1+math.cos(math.pi*done)))

def new_model(recipe, tok):
    "A GPT-NeoX of the recipe's shape with fresh weights."
    torch.manual_seed(recipe.seed)
    return GPTNeoXForCausalLM(GPTNeoXConfig(
        vocab_size=len(tok), hidden_size=recipe.width, num_hidden_layers=recipe.layers, num_attention_heads=recipe.heads, intermediate_size=4*recipe.width, max_position_embeddings=recipe.context,
        rotary_pct=.5, use_parallel_residual=False, tie_word_embeddings=True, attention_dropout=0., hidden_dropout=0., bos_token_id=tok.eos_token_id, eos_token_id=tok.eos_token_id, pad_token_id=tok.pad_token_id))

def optimiser(recipe, model):
    "AdamW with weight decay on matrices only."
    named = dict(model.named_parameters())
    groups = [dict(params=[p for p in named.values() if p.ndim > 1], weight_decay=recipe.decay), dict(params=[p for p in named.values() if p.ndim < 2], weight_decay=0.)]
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=(.9, .98), fused=True)

def next_token_loss(model,
                    ids, # (rows, length)
                    skip=None, # (rows, length) bool: tokens that are read but not asked for
                   ):
    "Mean cross-entropy of the tokens given those before them in their row."
    want = ids if skip is None else ids.masked_fill(skip, -100)
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), want[:, 1:].flatten())

def _swap_in(folder, write):
    "Write a folder next to `folder`, then put it in its place."
    new = folder.with_name(folder.name + '.new')
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    write(new)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(new, folder)

def save_checkpoint(folder, recipe, model, opt, step, losses, seen, seconds):
    "Weights, optimiser state and record of a run after `step` steps."
    def write(to):
        names = {id(p): n for n, p in model.named_parameters()}
        save_file({n: p.detach().contiguous() for n, p in model.named_parameters()}, to/'model.safetensors')
        save_file({f'{names[id(p)]}|{k}': torch.as_tensor(v).contiguous() for p, s in opt.state.items() for k, v in s.items()}, to/'optimiser.safetensors')
        (to/'state.json').write_text(json.dumps(dict(recipe=asdict(recipe), step=step, losses=losses, seen=seen.to_dict(), seconds=seconds)))
    _swap_in(Path(folder), write)

def load_checkpoint(folder, recipe, model, opt):
    "Restore a run; returns `(step, losses, seen, seconds)`. A checkpoint of another recipe raises `ValueError`."
    state = json.loads((Path(folder)/'state.json').read_text())
    if differ := [k for k, v in asdict(recipe).items() if state['recipe'].get(k) != v]:
        raise ValueError(f"the checkpoint in {folder} was made by another recipe (it differs in {', '.join(differ)}): give another folder, or delete that one to start anew")
    named, moments = dict(model.named_parameters()), load_file(Path(folder)/'optimiser.safetensors')
    with torch.no_grad():
        for n, w in load_file(Path(folder)/'model.safetensors').items(): named[n].copy_(w)
    for key, v in moments.items():
        n, k = key.split('|')
        opt.state[named[n]][k] = v if k == 'step' else v.to(named[n].device)
    return state['step'], state['losses'], Manifest.from_dict(state['seen']), state['seconds']

@dataclass
class Pretrained:
    "A model, its tokenizer, and the record of how it came about."
    recipe: Recipe
    model: GPTNeoXForCausalLM
    tokenizer: transformers.PreTrainedTokenizerFast
    history: pd.DataFrame = field(repr=False) # a row a step: step, loss
    seen: Manifest = field(repr=False)        # what it read
    seconds: float = 0.
    def plot(self, ax=None): return loss_curve(self.history, self.recipe.name, ax)
    def __repr__(self): return f"Pretrained({self.recipe.name}, {len(self.history)} of {self.recipe.steps} steps, loss {self.history.loss.tail(50).mean():.3f} (mean of the last 50), {self.seconds:.0f} s)"

def loss_curve(history, label='', ax=None):
    "Loss by step, thin, with its running mean over 50 steps."
    ax = history.plot('step', 'loss', ax=ax, alpha=.3, lw=.8, legend=False, ylabel='loss (nats per token)')
    ax.plot(history.step, history.loss.rolling(50, min_periods=1).mean(), color=ax.lines[-1].get_color(), label=label)
    ax.legend(frameon=False)
    return ax

def _step(recipe, model, tok, opt, step, seen):
    ids = batch(recipe, tok, step, seen)
    skip = torch.from_numpy(drawn(ids.numpy(), tok)).to(model.device) if recipe.skip_drawn else None
    loss = next_token_loss(model.train(), ids.to(model.device), skip)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.)
    for g in opt.param_groups: g['lr'] = rate(recipe, step)
    opt.step()
    opt.zero_grad()
    if not math.isfinite(loss.item()): raise FloatingPointError(f"the loss is {loss.item()} at step {step} (rate {rate(recipe, step):.2g}): try a smaller lr or a longer warmup")
    return loss.item()

def _begin(recipe, device):
    "Tokenizer and model as the recipe starts them."
    if not recipe.start: tok = lab_tokenizer(recipe.seed, recipe.vocab); return tok, new_model(recipe, tok).to(device)
    folder = MODELS/recipe.start
    if not folder.exists(): raise FileNotFoundError(f"{recipe.name} continues {recipe.start}, and there is no {folder}: pretrain {recipe.start} first")
    return AutoTokenizer.from_pretrained(folder), GPTNeoXForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device)

def pretrain(recipe,       # a `Recipe` or the name of one in `RECIPES`
             folder=None,  # checkpoints go here, and an interrupted run in it is resumed; `None` keeps none
             until=None,   # stop after this step, keeping the schedule of the whole recipe
             every=100,    # steps between checkpoints
             device=None,  # "cpu", "cuda"; `None` takes a GPU if there is one
             progress=True, # show a bar?
            )->Pretrained:
    "Train a language model by its recipe."
    recipe = RECIPES[recipe] if isinstance(recipe, str) else recipe
    device = device or ('cuda' if torch.cuda.is_available() else 'cpu')
    tok, model = _begin(recipe, device)
    opt, stop = optimiser(recipe, model), min(until or recipe.steps, recipe.steps)
    step, losses, seen, before = load_checkpoint(folder, recipe, model, opt) if folder and (Path(folder)/'state.json').exists() else (0, [], Manifest(), 0.)
    began, bar = time.time(), tqdm(range(step, stop), initial=step, total=stop, desc=recipe.name, disable=not progress, mininterval=2)
    for step in bar:
        losses.append(_step(recipe, model, tok, opt, step, seen))
        if step % 20 == 19: bar.set_postfix(loss=f'{sum(losses[-20:])/20:.3f}', refresh=False)
        if folder and ((step+1) % every == 0 or step+1 == stop): save_checkpoint(folder, recipe, model, opt, step+1, losses, seen, before+time.time()-began)
    return Pretrained(recipe, model.eval(), tok, pd.DataFrame(dict(step=range(len(losses)), loss=losses)), seen, before+time.time()-began)

def _pad(seqs, fill): return torch.tensor([s + [fill]*(max(map(len, seqs))-len(s)) for s in seqs])

@torch.no_grad()
def answers_exactly(model, tok,
                examples, # a list of `Example`
                batch=128, # texts at once
               )->torch.Tensor:
    "For each example, whether greedy decoding would answer with exactly its target."
    ends = torch.tensor([tok.eos_token_id, *tok('\n').input_ids], device=model.device)
    asks, answers = tok([e.input for e in examples]).input_ids, tok([e.target for e in examples]).input_ids
    right = []
    for i in range(0, len(examples), batch):
        x, y = asks[i:i+batch], answers[i:i+batch]
        ids = _pad([a+b for a, b in zip(x, y)], tok.pad_token_id).to(model.device)
        best = model(input_ids=ids, use_cache=False).logits.argmax(-1)
        for row, a, b in zip(best, x, y):
            said = row[len(a)-1:len(a)+len(b)]
            right.append(bool((said[:-1].tolist() == b) and (said[-1] == ends).any()))
    return torch.tensor(right)

def accuracy(model, tok, n=100, seed=0, shots=5):
    "Exact match on held-out items by task: with the instruction, with solved examples, and with the bare input; a row a task."
    out = []
    for task in TASKS.values():
        items = task.examples(None if task.closed else n, seed=seed, split='test')
        asks = dict(instruction=with_instruction(task, items), shots=with_shots(task, items, shots, seed), bare=items)
        hits = {how: proportion(answers_exactly(model, tok, ex).tolist(), seeds=(seed,)) for how, ex in asks.items()}
        out.append(dict(task=task.name, kind=task.kind, n=len(items), **{how: p.value for how, p in hits.items()}, low=hits['instruction'].low, high=hits['instruction'].high))
    return pd.DataFrame(out)

def _versions(): return dict(torch=torch.__version__, transformers=transformers.__version__)

def ship(run, # a finished `Pretrained`
         folder, n=100, # items of each open task to measure accuracy on
        )->pd.DataFrame:
    "Write the model as a Hugging Face folder with its manifest; returns the table of accuracies."
    half = GPTNeoXForCausalLM(run.model.config).half()
    half.load_state_dict(run.model.half().state_dict())
    table = accuracy(half.float().eval(), run.tokenizer, n)
    record = dict(name=run.recipe.name, recipe=asdict(run.recipe), corpus=run.seen.to_dict(), parameters=half.num_parameters(), final_loss=round(run.history.loss.tail(50).mean(), 4), seconds=round(run.seconds),
                  versions=_versions(), losses=[round(x, 4) for x in run.history.loss], accuracy=dict(seed=0, shots=5, split='test', rows=table.round(4).to_dict('records')))
    def write(to):
        half.half().save_pretrained(to)
        run.tokenizer.save_pretrained(to)
        (to/'manifest.json').write_text(json.dumps(record, indent=1))
    _swap_in(Path(folder), write)
    return table

def manifest(name="lab-instruct-s", # of a shipped model, or a folder
            )->dict:
    "The record of a model that `ship` wrote; an unknown name raises `FileNotFoundError`."
    file = (MODELS/name if (MODELS/name).exists() else Path(name))/'manifest.json'
    if not file.exists(): raise FileNotFoundError(f"no manifest at {file}: name one of {', '.join(sorted(p.name for p in MODELS.glob('*')))} or a folder written by ship")
    return json.loads(file.read_text())

def main(argv=None):
    "The command line: `python -m softprompt_nb.lab.pretrain lab-base-s --out folder`."
    p = argparse.ArgumentParser(prog='python -m softprompt_nb.lab.pretrain', description='Pretrain a model of the lab and write it as a Hugging Face folder.')
    p.add_argument('name', choices=list(RECIPES))
    p.add_argument('--out', required=True, help='folder for the model')
    p.add_argument('--checkpoints', help='folder for checkpoints; an interrupted run in it is resumed')
    p.add_argument('--device', help='cpu or cuda; a GPU is used if there is one')
    o = p.parse_args(argv)
    run = pretrain(o.name, o.checkpoints, device=o.device)
    print(run, ship(run, o.out).to_string(), sep='\n')

if __name__ == '__main__' and '__file__' in globals(): main()
