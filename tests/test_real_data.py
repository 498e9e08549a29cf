"""Things we did not make: a real pretrained model by others, and real data sets, where they lie beside the clone."""

import json
from pathlib import Path

from softprompt_nb.data import Example, load_examples
from softprompt_nb.engine.inference import generate, loss_on
from softprompt_nb.evaluation.distance.capabilities import repetition, skipping
from softprompt_nb.evaluation.distance.ladder import ladder
from softprompt_nb.load import load_lm
from softprompt_nb.prompts import SoftPrompt
from softprompt_nb.training.many import tune_many
from softprompt_nb.training.tuning import tune
from softprompt_nb.translation.hard.gcg import gcg
from softprompt_nb.translation.hard.pez import pez

import pytest
import torch

SHARED = Path(__file__).resolve().parents[2] / "shared"
stories = SHARED / "models" / "stories260k"
sst2 = SHARED / "data" / "sentence_classification" / "stsa.binary.train"
induction = SHARED / "data" / "instruction_induction" / "induce"
tinystories = SHARED / "data" / "text_tinystories" / "tinystories_train_first2MiB.txt"


def needs(path):
    return pytest.mark.skipif(not path.exists(), reason=f"{path.name} does not lie beside this clone")


@needs(stories)
def test_a_prompt_makes_a_real_model_say_a_given_sentence(tmp_path):
    lm = load_lm(stories)
    sentence = " Lily had a red ball and she liked to play in the park."
    examples = [Example("Once upon a time", sentence)]
    # this model never learned its end-of-text token (it was trained on one endless stream): no prompt makes it stop
    run = tune(lm, SoftPrompt.init(lm, 16), examples, steps=200, end=False, progress=False)
    assert loss_on(lm, run.prompt, examples, end=False) < 0.05 < 1 < loss_on(lm, None, examples, end=False)
    assert sentence.strip() in generate(lm, run.prompt, [examples[0].input], 40)[0]
    again = SoftPrompt.load(run.prompt.save(tmp_path / "prompt"), load_lm(stories))
    assert torch.equal(again.vectors, run.prompt.vectors)
    assert loss_on(lm, again, examples) == loss_on(lm, run.prompt, examples)


@needs(stories)
@pytest.mark.parametrize("search, settings", [(pez, dict(steps=40)), (gcg, dict(steps=10, candidates=32))])
def test_searches_find_a_text_that_makes_a_real_model_more_likely_to_go_on_as_told(search, settings):
    lm = load_lm(stories)
    examples = [Example(" there was a", " red ball in the park.")]
    hard = search(lm, examples, n=6, end=False, at="after_bos", **settings)
    assert hard.loss < loss_on(lm, None, examples, end=False) - 0.2
    assert hard.record["typed"] and tuple(lm.token_ids(hard.text)) == hard.tokens


@needs(stories)
def test_many_prompts_on_a_real_model_are_single_ones():
    lm = load_lm(stories, dtype="float64")  # the sums are in another order, and forty steps make much of a last bit
    texts = (
        " Once upon a time there was a red ball.",
        " Tom and Lily went to the park.",
        " The dog was very happy today.",
    )
    data = [[Example("", text)] for text in texts]
    prompts = [SoftPrompt.init(lm, n, seed=n) for n in (4, 8, 16)]
    options = dict(steps=40, batch_size=1, end=False, progress=False)
    for prompt, examples, lane in zip(prompts, data, tune_many(lm, prompts, data, **options)):
        alone = tune(lm, prompt, examples, **options)
        assert (alone.history.loss - lane.history.loss).abs().max() < 1e-9
        assert lane.record["final_loss"] < 0.5 * lane.record["first_loss"]


@needs(sst2)
def test_sst2_loads_and_trains_through_the_same_calls():
    rows = []
    for line in sst2.read_text(encoding="utf-8").splitlines():
        label, text = line.split(" ", 1)
        if len(text) < 120:
            rows.append(dict(label=label, text=text))

    def review(row):
        answer = [" negative", " positive"][int(row["label"])]
        return Example(f"review : {row['text']}", answer)

    examples = load_examples(rows, format=review, limit=300)
    lm = load_lm()
    run = tune(lm, SoftPrompt.init(lm, 10), examples[:200], steps=40, progress=False)
    assert loss_on(lm, run.prompt, examples[200:]) < loss_on(lm, None, examples[200:])


@needs(induction)
def test_an_instruction_induction_task_loads_and_trains(tmp_path):
    data = json.loads((induction / "singular_to_plural.json").read_text())["examples"]
    rows = list(data.values())
    path = tmp_path / "plural.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    examples = load_examples(path, format=("{input}", " {output}"))
    assert len(examples) == len(rows)
    lm = load_lm()
    run = tune(lm, SoftPrompt.init(lm, 10), examples[:-50], steps=40, progress=False)
    assert loss_on(lm, run.prompt, examples[-50:]) < loss_on(lm, None, examples[-50:])


@needs(stories)
@needs(tinystories)
def test_ladders_of_a_real_model_look_as_the_paper_s_do():
    lm = load_lm(stories)
    texts = tinystories.read_text(encoding="utf-8").split("<|endoftext|>")
    texts = [text.strip() for text in texts[:300]]
    options = dict(
        sizes=(0, 1, 4, 16),
        seeds=1,
        rates=(0.5,),
        steps=120,
        batch_size=8,
        train=500,
        valid=16,
        test=48,
        progress=False,
    )
    one = ladder(lm, repetition("she", texts=texts, length=32), **options).mean
    four = ladder(lm, repetition("the little girl", texts=texts, length=32), **options).mean
    skip = ladder(lm, skipping(4, texts, 32), **options).mean
    # texts begin as this model's do: behind a beginning, which holds a text more firmly than a prompt in 120 steps can
    assert one[3] < 0.1 * one[0] and (one[1:] < four[1:]).all()  # a string of one token is nearest at every size
    assert four[3] > 2 * one[3]  # a longer one stays further away
    assert skip[0] - skip[1] > 1 and (skip[1:] > 2).all()  # skipping gains at once, and stays far from zero
