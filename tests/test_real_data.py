"""Things we did not make: a real pretrained model by others, and real data sets, where they lie beside the clone."""
import json
from pathlib import Path

import pytest
import torch

from softprompt_nb.data import Example, load_examples
from softprompt_nb.lm import load_lm
from softprompt_nb.prompts import SoftPrompt
from softprompt_nb.training.inference import generate, loss_on
from softprompt_nb.training.many import tune_many
from softprompt_nb.training.tuning import tune

SHARED = Path(__file__).resolve().parents[2]/"shared"
stories = SHARED/"models"/"stories260k"
sst2 = SHARED/"data"/"sentence_classification"/"stsa.binary.train"
induction = SHARED/"data"/"instruction_induction"/"induce"
needs = lambda path: pytest.mark.skipif(not path.exists(), reason=f"{path.name} does not lie beside this clone")


@needs(stories)
def test_a_prompt_makes_a_real_model_say_a_given_sentence(tmp_path):
    lm = load_lm(stories)
    sentence = " Lily had a red ball and she liked to play in the park."
    ex = [Example("Once upon a time", sentence)]
    # this model never learned its end-of-text token (it was trained on one endless stream), so no prompt can make it stop
    run = tune(lm, SoftPrompt.init(lm, 16), ex, steps=200, end=False, progress=False)
    assert loss_on(lm, run.prompt, ex, end=False) < .05 < 1 < loss_on(lm, None, ex, end=False)
    assert sentence.strip() in generate(lm, run.prompt, [ex[0].input], 40)[0]
    again = SoftPrompt.load(run.prompt.save(tmp_path/"p"), load_lm(stories))
    assert torch.equal(again.vectors, run.prompt.vectors) and loss_on(lm, again, ex) == loss_on(lm, run.prompt, ex)


@needs(stories)
def test_many_prompts_on_a_real_model_are_single_ones():
    lm = load_lm(stories)
    examples = [[Example("", t)] for t in (" Once upon a time there was a red ball.", " Tom and Lily went to the park.", " The dog was very happy today.")]
    prompts = [SoftPrompt.init(lm, n, seed=n) for n in (4, 8, 16)]
    kw = dict(steps=40, batch_size=1, end=False, progress=False)
    for p, e, r in zip(prompts, examples, tune_many(lm, prompts, examples, **kw)):
        assert (tune(lm, p, e, **kw).history.loss - r.history.loss).abs().max() < 1e-4 and r.record["final_loss"] < .5*r.record["first_loss"]


@needs(sst2)
def test_sst2_loads_and_trains_through_the_same_calls():
    rows = [l.split(" ", 1) for l in sst2.read_text(encoding="utf-8").splitlines()]
    rows = [dict(label=a, text=b) for a, b in rows if len(b) < 120]
    examples = load_examples(rows, format=lambda r: Example(f"review : {r['text']}", [" negative", " positive"][int(r["label"])]), limit=300)
    lm = load_lm()
    run = tune(lm, SoftPrompt.init(lm, 10), examples[:200], steps=40, progress=False)
    assert loss_on(lm, run.prompt, examples[200:]) < loss_on(lm, None, examples[200:])


@needs(induction)
def test_an_instruction_induction_task_loads_and_trains(tmp_path):
    data = json.loads((induction/"singular_to_plural.json").read_text())["examples"]
    rows = list(data.values())
    path = tmp_path/"plural.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    examples = load_examples(path, format=("{input}", " {output}"))
    assert len(examples) == len(rows)
    lm = load_lm()
    run = tune(lm, SoftPrompt.init(lm, 10), examples[:-50], steps=40, progress=False)
    assert loss_on(lm, run.prompt, examples[-50:]) < loss_on(lm, None, examples[-50:])
