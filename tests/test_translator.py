"""Datasets of datasets, prompts for every task, the translator and what chooses among its texts.

Against independent computations, kills and bad input. Models are in float64, so that two ways to compute the same
number agree to a billionth on any processor."""

import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

from softprompt_nb.data import Example, pad_rows
from softprompt_nb.engine.forward import assemble
from softprompt_nb.engine.inference import generate
from softprompt_nb.engine.views import with_settings
from softprompt_nb.experiments.runs import RunStore
from softprompt_nb.lab.grammar import COMPOSABLE, HELD_OPERATIONS, HELD_WORDS
from softprompt_nb.lm import FrozenLM
from softprompt_nb.prompts import SoftPrompt
from softprompt_nb.training.tuning import tune
from softprompt_nb.translation.translator import evaluate as evaluating
from softprompt_nb.translation.translator import refine as refining
from softprompt_nb.translation.translator import train_prompts as module
from softprompt_nb.translation.translator.confidence import Confidence, reliability
from softprompt_nb.translation.translator.dods import (
    CHECKERS,
    DoD,
    TaskSet,
    induction_dod,
    lab_dod,
    natural_dod,
    own_dod,
)
from softprompt_nb.translation.translator.refine import prefer, refine, said_words
from softprompt_nb.translation.translator.rerank import (
    Candidate,
    answers_of,
    divergence_parts,
    instructed,
    rerank,
    text_divergence,
)
from softprompt_nb.translation.translator.train_prompts import Pair, Pairs, train_prompts
from softprompt_nb.translation.translator.translator import Translation, Translator, TranslatorConfig

import numpy as np
import pytest
import torch
from families import reconfigured, tiny, tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

INDUCTION = Path(__file__).resolve().parents[2] / "shared" / "data" / "instruction_induction"
_made = {}


CLOSE = dict(rel=1e-9, abs=1e-9)  # the same number, computed in float64 in two ways
EPS32 = torch.finfo(torch.float32).eps


def tiny64(name="llama", seed=0):
    return tiny(name, dtype=torch.float64, seed=seed)


def lm_of(name="llama"):
    if name not in _made:
        _made[name] = tiny64(name)
    return _made[name]


def same_candidates(some, others):
    "The same texts in the same order, with the same numbers."
    assert len(some) == len(others)
    for first, second in zip(some, others):
        assert [c.text for c in first] == [c.text for c in second]
        assert [c.tokens for c in first] == [c.tokens for c in second]
        assert [c.logprob for c in first] == pytest.approx([c.logprob for c in second], **CLOSE)


def mean_gap(translator, chosen):
    "By how much the better texts are likelier than the worse ones."
    prompts = [prompt for prompt, _, _ in chosen]
    better, _ = translator.logprobs(prompts, [text for _, text, _ in chosen])
    worse, _ = translator.logprobs(prompts, [text for _, _, text in chosen])
    return (better - worse).mean().item()


def same_prompts(some, others, steps):
    "Vectors that differ by no more than a billionth, or (kept in float32) the rounding of their optimiser's steps."
    for first, second in zip(some, others, strict=True):
        size = second.vectors.abs().max().item()
        both_double = first.vectors.dtype == second.vectors.dtype == torch.float64
        close = 1e-9 if both_double else 4 * steps * EPS32 * size
        assert (first.vectors - second.vectors).abs().max() <= close


def some_tasks(k=4):
    return DoD(
        TaskSet(
            f"task{i}",
            "train" if i < k - 1 else "validation",
            (f"do {i}", f"make {i}"),
            tuple(Example(f"{c}{i}", f" {c}!") for c in "abcdef"),
            (Example("x", " x!"),),
            ((" x!",),),
            "line",
        )
        for i in range(k)
    )


def random_pairs(lm, k=10, n=2):
    return Pairs(
        Pair(SoftPrompt.init(lm, n, "gaussian", seed=i), (f"say {chr(97 + i)}", f"write {chr(97 + i)}"), f"t{i}")
        for i in range(k)
    )


# datasets of datasets


def test_the_labs_depths_are_kept_apart():
    dod = lab_dod(train=300, validation=30, held=30, examples=8, test=4)
    train = dod.split("train", "validation")
    names = {t.name for t in train}
    assert len(names) == 330 and not names & {t.name for t in dod.split("composition", "argument", "operation")}
    for t in train:
        operation, *words = t.name.split(".")
        assert operation not in HELD_OPERATIONS and not HELD_WORDS & {*words}
    assert all(HELD_WORDS & {*t.name.split(".")} for t in dod.split("argument"))
    assert all(t.name.split(".")[0] in HELD_OPERATIONS for t in dod.split("operation"))
    operations = [t.name.split(".")[0] for t in dod.split("composition")]
    assert len(set(operations)) >= len(COMPOSABLE) - len(HELD_OPERATIONS) - 2
    for t in dod:
        assert not {e.input for e in t.train} & {e.input for e in t.test}
        assert t.score([e.target for e in t.test]) == [1.0] * len(t.test)


@pytest.mark.parametrize("name", ["dod.parquet", "dod.jsonl"])
def test_a_table_comes_back_as_it_was(tmp_path, name):
    dots = [("a", " a."), ("b", " b.")]
    dod = some_tasks() + own_dod([dict(task="dots", instruction="add a dot é", examples=dots, checker="contains")])
    assert list(DoD.load(dod.save(tmp_path / name))) == list(dod)
    assert [f.name for f in tmp_path.iterdir()] == [name]


@given(st.lists(st.sampled_from("cat dog fox ,".split()), min_size=1, max_size=5), st.sampled_from(list(CHECKERS)))
@settings(deadline=None, max_examples=60)
def test_every_checker_passes_what_is_right(words, name):
    right = " ".join(words)
    if not any(w.isalpha() for w in words):
        return
    assert CHECKERS[name](f" {right}\nmore", ["something else", right]) == pytest.approx(1)


def test_checkers_tell_right_from_wrong():
    assert CHECKERS["line"]("Cat", ["cat"]) == 0 and CHECKERS["exact"]("Cat.", ["cat"]) == 1
    assert CHECKERS["contains"]("the cat sat", ["cat"]) == 1 and CHECKERS["contains"]("concatenate", ["cat"]) == 0
    assert CHECKERS["set"]("camel, monkey", ["monkey, camel"]) == 1 and CHECKERS["set"]("camel", ["monkey, camel"]) == 0
    assert CHECKERS["f1"]("a b", ["b c"]) == 0.5 and CHECKERS["rouge"]("b a", ["a b"]) == 0.5


@pytest.mark.skipif(not INDUCTION.exists(), reason="the instruction-induction data does not lie beside this clone")
def test_all_24_tasks_of_instruction_induction_load():
    dod = induction_dod(INDUCTION)
    assert len(dod) == 24 and all(len(t.instructions) > 1 for t in dod)
    for t in dod:
        assert t.score([a[-1] for a in t.answers]) == [1.0] * len(t.test), t.name  # each of the right answers is right
    assert dod["sum"].score([" 47"])[0] == 1
    assert dod["synonyms"].checker == "contains"
    assert "Sentence 2:" in dod["cause_and_effect"].train[0].input


def test_natural_instructions_load(tmp_path):
    instances = [dict(input=f"w{i}", output=[f"w{i} w{i}", "both"]) for i in range(20)]
    instances += [dict(input="x" * 5000, output=["too long"]), dict(input="empty", output=[""])]
    task = dict(Definition=["Say it twice."], Instances=instances)
    (tmp_path / "task1_twice.json").write_text(json.dumps(task))
    (tmp_path / "task2_few.json").write_text(json.dumps(task | dict(Instances=task["Instances"][:3])))
    dod = natural_dod(sorted(tmp_path.iterdir()), least=10, test=5, train=10)
    (t,) = dod
    assert t.name == "task1_twice" and len(t.train) == 10 and len(t.test) == 5 and t.checker == "rouge"
    assert not {e.input for e in t.train} & {e.input for e in t.test} and all(len(a) == 2 for a in t.answers)


def test_a_natural_input_that_comes_twice_is_one_with_all_its_answers(tmp_path):
    instances = [dict(input=f"w{i % 10}", output=[f"w{i}", "both"]) for i in range(20)]
    task = dict(Definition=["Say it."], Instances=instances)
    (tmp_path / "task1_say.json").write_text(json.dumps(task))
    (t,) = natural_dod([tmp_path / "task1_say.json"], least=10, test=5, train=10)
    assert len(t.train) == len(t.test) == 5 and not {e.input for e in t.train} & {e.input for e in t.test}
    assert {len(answers) for answers in t.answers} == {3}


def own(examples, **more):
    (task,) = own_dod([dict(task="s", instruction="say", examples=examples)], **more)
    return task


def test_own_examples_are_divided_by_input_whatever_their_order():
    rows = [(f"text {i}", " pos" if i < 40 else " neg") for i in range(80)]
    task = own(rows)
    assert len(task.test) == 20 and len(task.train) == 60
    assert {e.target for e in task.test} == {e.target for e in task.train[-8:]} == {" pos", " neg"}
    assert set(own(rows[::-1]).test) == set(task.test) != set(own(rows, seed=1).test)
    often = own(rows * 3 + [(f"text {i}", " either") for i in range(80)])
    assert len(often.test) == 40 and {e.input for e in often.test} == {e.input for e in task.test}
    assert not {e.input for e in often.train} & {e.input for e in often.test}


SOLVED = [("a", " b"), ("c", " d")]


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda t: own([("same", " pos")] * 8), "1 different input"),
        (
            lambda t: own_dod([dict(instruction="say", train=SOLVED, test=[(" c ", "d"), ("e", " f")])]),
            "1 of its 2 test",
        ),
        (lambda t: TaskSet("a", "b", ("c",), (1,), (1, 2, 3, 4), (("x",), ("x",))), "answers to 2"),
        (lambda t: own(SOLVED).score([" b", " d"]), "2 replies to the 1 tests"),
        (lambda t: own_dod([dict(task="a", examples=[("x", "y")])]), "needs an instruction"),
        (lambda t: own_dod([dict(instruction="a", examples=[("x", "y")])]), "at least two"),
        (lambda t: DoD([]), "no tasks"),
        (lambda t: DoD([some_tasks()[0]] * 2), "twice"),
        (lambda t: some_tasks().split("test"), "no split"),
        (lambda t: induction_dod(t), "no induce"),
        (lambda t: lab_dod(train=2000, varied=0), "ask for fewer"),
        (lambda t: some_tasks().save(t / "x.csv"), "parquet or"),
        (lambda t: (t / "x.jsonl").write_text("{") and DoD.load(t / "x.jsonl"), "no saved DoD"),
        (lambda t: TaskSet("a", "b", ("c",), (1,), (1,), (1,), "guess"), "use one of"),
    ],
)
def test_bad_tables_are_said(tmp_path, call, words):
    with pytest.raises(ValueError, match=words):
        call(tmp_path)


# prompts


@pytest.mark.parametrize("start", ["shared", "own"])
def test_a_trained_prompt_is_that_of_tune(start):
    lm, dod = lm_of(), some_tasks()
    got = train_prompts(lm, dod, n=3, steps=6, batch_size=4, seeds=(0, 1), start=start, wave=3, progress=False)
    assert [(p.task, p.seed) for p in got] == [(t.name, s) for s in (0, 1) for t in dod]
    model = (lm.name, lm.identity.key, 3)
    first = [module.PromptConfig(t.name, t.data, *model, start=start, seed=1, lm=lm).first for t in dod]
    assert torch.equal(first[0].vectors, first[1].vectors) == (start == "shared")
    want = tune(lm, first[2], list(dod[2].train), steps=6, batch_size=4, seed=1, progress=False).prompt
    same_prompts([got[6].prompt], [want], steps=6)


def test_a_run_that_is_killed_loses_only_its_wave(tmp_path, monkeypatch):
    lm, dod, real, waves = lm_of(), some_tasks(6), module.tune_many, []

    def killed(lm, prompts, *args, **kw):
        waves.append(len(prompts))
        if len(waves) == 3:
            raise KeyboardInterrupt
        return real(lm, prompts, *args, **kw)

    monkeypatch.setattr(module, "tune_many", killed)
    kw = dict(n=2, steps=3, batch_size=2, store=tmp_path / "runs", wave=2, progress=False)
    with pytest.raises(KeyboardInterrupt):
        train_prompts(lm, dod, **kw)
    assert len(RunStore(tmp_path / "runs")) == 4
    whole = train_prompts(lm, dod, **kw)
    assert waves == [2, 2, 2, 2] and len(whole) == 6
    alone = train_prompts(lm, dod, **kw | dict(store=None, wave=6))
    same_prompts(whole.prompts, alone.prompts, steps=3)


def test_other_data_is_another_run(tmp_path):
    lm, dod = lm_of(), some_tasks(2)
    kw = dict(n=2, steps=2, store=tmp_path, progress=False)
    train_prompts(lm, dod, **kw)
    t = dod[0]
    train_prompts(lm, [replace(t, train=t.train[:3])], **kw)
    assert len(RunStore(tmp_path)) == 3


def test_another_model_of_the_same_weights_gets_its_own_prompts(tmp_path):
    lm = tiny("llama")
    wider = reconfigured(lm, rms_norm_eps=0.1)
    template = FrozenLM(lm.model, tokenizer(), lm.name)
    lm.tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    template.tokenizer.chat_template = "{% for message in messages %}u: {{ message['content'] }}{% endfor %}"
    half = FrozenLM(copy.deepcopy(lm.model).bfloat16(), lm.tokenizer, lm.name)
    kw = dict(n=2, steps=2, at="chat", progress=False)
    found = [train_prompts(each, some_tasks(2), store=tmp_path, **kw).points for each in (lm, wider, template, half)]
    assert len(RunStore(tmp_path)) == 8
    assert torch.equal(found[1], train_prompts(wider, some_tasks(2), **kw).points)
    assert not any(torch.equal(found[0], points) for points in found[1:])


def test_a_prompt_that_failed_is_no_pair(tmp_path, monkeypatch):
    def failing(*args, **kw):
        runs = real(*args, **kw)
        runs[0].record.update(outcome="failed", ended="ValueError: gone")
        return runs

    real = module.tune_many
    monkeypatch.setattr(module, "tune_many", failing)
    kw = dict(n=1, steps=1, progress=False)
    with pytest.raises(RuntimeError, match="task0 failed: ValueError: gone"):
        train_prompts(lm_of(), some_tasks(2), **kw)
    with pytest.raises(RuntimeError, match="gone"):
        train_prompts(lm_of(), some_tasks(2), store=tmp_path, **kw)
    assert len(RunStore(tmp_path)) == 1
    monkeypatch.undo()
    assert len(train_prompts(lm_of(), some_tasks(2), store=tmp_path, **kw)) == 2


def test_prompts_of_another_model_are_not_read(tmp_path):
    lm, other = lm_of(), tiny64(seed=1)
    translator = Translator.fit(lm, random_pairs(lm, 3), epochs=1, progress=False)
    stranger, own = SoftPrompt.init(other, n=2), SoftPrompt.init(lm, n=2)
    short = dict(k=1, max_new_tokens=2)
    again = Translator.load(translator.save(tmp_path / "t"), lm)
    for each in (translator, again):
        with pytest.raises(ValueError, match="learned from prompts of tiny-llama, .*other_model=True"):
            each.translate([own, stranger], **short)
        assert len(each.translate([own, stranger], other_model=True, **short)) == 2
    unknown = SoftPrompt(stranger.vectors)
    assert translator.translate(unknown, **short).text == translator.translate(stranger, other_model=True, **short).text
    with pytest.warns(UserWarning, match="prompts of several models"):
        mixed = Translator.fit(lm, Pairs([*random_pairs(lm, 2), *random_pairs(other, 2)]), epochs=1, progress=False)
    assert len(mixed.translate([own, stranger], **short)) == 2


def test_pairs_come_back_as_they_were(tmp_path):
    lm = lm_of()
    pairs = random_pairs(lm, 3)
    again = Pairs.load(pairs.save(tmp_path / "p.safetensors"), lm)
    assert [(p.texts, p.task) for p in again] == [(p.texts, p.task) for p in pairs]
    assert torch.equal(again.points, pairs.points)
    assert pairs[0].prompt.base["fingerprint"]
    with pytest.raises(ValueError, match="give that model"):
        Pairs.load(tmp_path / "p.safetensors", tiny64(seed=1))


# the translator


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
@pytest.mark.parametrize("around", [("", ""), ("it says ", " : ")])
def test_its_loss_is_the_models_own_on_the_same_tokens(family, around):
    lm = lm_of(family)
    before, after = around
    settings = dict(epochs=1, lr=1e-30, weight_decay=0.0, progress=False)  # too small a step to change a weight
    t = Translator.fit(lm, random_pairs(lm, 2), before=before, after=after, **settings)
    words, texts = ["cat", "a dog"], ["say this", "x"]
    prompts = [SoftPrompt.init(lm, how="text", n=len(word), text=word) for word in words]
    got, count = t.logprobs(prompts, texts)
    for prompt, text, total, tokens in zip(prompts, texts, got, count):
        ends = [lm.token_ids(x) for x in (before, after, text)]
        target = [*ends[2], lm.tokenizer.eos_token_id]
        parts = [lm.embed_ids(ends[0]), prompt.vectors.double(), lm.embed_ids([*ends[1], *target])]
        logp = lm.model(inputs_embeds=torch.cat(parts)[None]).logits[0].log_softmax(-1)
        want = sum(logp[i - len(target) - 1, token] for i, token in enumerate(target))
        assert total.item() == pytest.approx(want.item(), **CLOSE)
        assert tokens == len(target)


@pytest.mark.parametrize("how", ["full", "lora"])
def test_it_learns_and_leaves_the_model_as_it_was(how, tmp_path):
    lm, pairs = tiny64(), random_pairs(lm_of(), 8)
    before = {n: p.clone() for n, p in lm.model.named_parameters()}
    t = Translator.fit(lm, pairs[:6], pairs[6:], how=how, epochs=12, batch_size=3, lr=5e-3, progress=False)
    assert t.history.loss.iloc[-1] < 0.85 * t.history.loss.iloc[0] and t.record["best"] == t.history.valid.min()
    assert all(torch.equal(p, before[n]) and not p.requires_grad for n, p in lm.model.named_parameters())
    shared = {p.data_ptr() for p in lm.model.parameters()} & {p.data_ptr() for p in t.lm.model.parameters()}
    assert bool(shared) == (how == "lora") and not any(p.requires_grad for p in t.lm.model.parameters())
    again = Translator.load(t.save(tmp_path / "t"), lm)
    a, b = (x.logprobs(pairs.prompts, [p.texts[0] for p in pairs])[0] for x in (t, again))
    assert a.tolist() == pytest.approx(b.tolist(), **CLOSE)
    assert again.config == t.config and len(again.history) == len(t.history)
    size = (tmp_path / "t" / "translator.safetensors").stat().st_size
    assert (size < 8 * sum(p.numel() for p in lm.model.parameters())) == (how == "lora")  # 8 bytes a weight
    with pytest.raises(ValueError, match="another model"):
        Translator.load(tmp_path / "t", tiny64(seed=1))


def test_the_kept_weights_are_those_of_the_best_epoch():
    lm, pairs = lm_of(), random_pairs(lm_of(), 8)
    t = Translator.fit(lm, pairs[:4], pairs[4:], epochs=15, batch_size=2, lr=2e-2, progress=False)
    total, count = t.logprobs(pairs[4:].prompts, [p.texts[0] for p in pairs[4:]])
    assert (-total.sum() / count.sum()).item() == pytest.approx(t.history.valid.min(), **CLOSE)


def test_an_interrupted_translator_says_so_and_a_study_does_not_keep_it(tmp_path, monkeypatch):
    from softprompt_nb.studies import translation as study
    from softprompt_nb.translation.translator import translator as own

    lm, epoch, done = lm_of(), own._epoch, []

    def stops(*a):
        done.append(1)
        if len(done) % 2 == 0:
            raise KeyboardInterrupt
        return epoch(*a)

    monkeypatch.setattr(own, "_epoch", stops)
    t = Translator.fit(lm, random_pairs(lm, 6), random_pairs(lm, 3), epochs=3, batch_size=4, progress=False)
    assert t.interrupted and len(t.history) == 1 and "interrupted" in repr(t) and math.isfinite(t.history.valid[0])
    c = study.StudyRun(translator=dict(epochs=3, batch_size=4), progress=False)
    with pytest.raises(KeyboardInterrupt):
        study._translators(c, lm, random_pairs(lm, 6), random_pairs(lm, 3), None, tmp_path)
    assert not (tmp_path / "translator").exists()
    monkeypatch.setattr(own, "_epoch", epoch)
    made = study._translators(c, lm, random_pairs(lm, 6), random_pairs(lm, 3), None, tmp_path)
    assert not made["translator"].interrupted and (tmp_path / "shuffled").is_dir()


def test_a_validation_loss_that_is_no_number_ends_no_training(monkeypatch):
    from softprompt_nb.translation.translator import translator as own

    monkeypatch.setattr(own, "_validate", lambda t, items: float("nan"))
    lm = lm_of()
    settings = dict(epochs=2, patience=5, batch_size=4, progress=False)
    assert len(Translator.fit(lm, random_pairs(lm, 4), random_pairs(lm, 2), **settings).history) == 2


def test_a_seed_decides_everything():
    lm, pairs = lm_of(), random_pairs(lm_of(), 6)
    settings = dict(epochs=2, batch_size=2, noise=0.5, progress=False)
    a, b, c = (Translator.fit(lm, pairs, seed=seed, **settings).history.loss.tolist() for seed in (0, 0, 1))
    assert a == pytest.approx(b, **CLOSE) and a != pytest.approx(c, rel=1e-3)


def test_sizes_of_passes_below_one_are_refused():
    lm = lm_of()
    pairs = random_pairs(lm, 2)
    t = Translator.fit(lm, pairs, epochs=1, progress=False)
    prompt = pairs.prompts[0]
    for ask in (
        lambda: t.logprobs([prompt], ["a"], batch_size=-1),
        lambda: t.candidates([prompt], 2, batch_size=0),
        lambda: prefer(t, [(prompt, "a", "b")], batch_size=0),
    ):
        with pytest.raises(ValueError, match="batch_size=.*at least 1"):
            ask()
    with pytest.raises(ValueError, match="max_new_tokens=.*at least 1"):
        t.candidates([prompt], 2, max_new_tokens=0)


def test_prompts_of_another_width_come_through_a_map(tmp_path):
    lm = lm_of()
    g = torch.Generator().manual_seed(0)
    pairs = Pairs(Pair(SoftPrompt(torch.randn(2, 20, generator=g)), (f"say {c}",), c) for c in "abcdef")
    t = Translator.fit(lm, pairs, epochs=10, batch_size=3, lr=5e-3, map_lr=1e-2, progress=False)
    assert t.map.shape == (20, lm.d_model) and t.history.loss.iloc[-1] < t.history.loss.iloc[0]
    again = Translator.load(t.save(tmp_path / "t"), lm)
    assert torch.equal(again.map, t.map)
    same_candidates(again.candidates(pairs.prompts, 2), t.candidates(pairs.prompts, 2))
    with pytest.raises(ValueError, match="width 20"):
        t.translate(SoftPrompt.init(lm, 2))
    with pytest.raises(ValueError, match="leave map out"):
        Translator.fit(lm, pairs, map=False, progress=False)


@pytest.mark.parametrize("search", ["beam", "sample"])
def test_candidates_are_sorted_distinct_and_have_their_probability(search):
    lm, pairs = lm_of(), random_pairs(lm_of(), 6)
    t = Translator.fit(lm, pairs, epochs=8, batch_size=3, lr=5e-3, progress=False)
    found = t.candidates(pairs.prompts, 4, search, max_new_tokens=8, batch_size=4)
    for p, cs in zip(pairs, found):
        logprobs = [c.logprob for c in cs]
        assert 1 <= len(cs) <= 4 and len({c.text for c in cs}) == len(cs)
        assert logprobs == sorted(logprobs, reverse=True)
        alone, count = t.logprobs([p.prompt] * len(cs), [c.text for c in cs])
        assert alone.tolist() == pytest.approx(logprobs, **CLOSE)
        assert count.tolist() == [c.tokens for c in cs]
    if search == "beam":
        same_candidates(t.candidates(pairs.prompts, 4, search, max_new_tokens=8, batch_size=6), found)


def test_draws_have_a_generator_of_their_own(monkeypatch):
    "The state of chance stays as it is all the while, and draws are those that transformers makes for the seed."
    lm, pairs = lm_of(), random_pairs(lm_of(), 3)
    t = Translator.fit(lm, pairs, epochs=2, progress=False)
    state = torch.get_rng_state()
    with monkeypatch.context() as patched:
        patched.setattr(torch, "manual_seed", None)  # nobody may call it
        found = t.candidates(pairs.prompts, 4, "sample", 0.7, max_new_tokens=6, seed=5)
        t.candidates(pairs.prompts, 2, "beam", max_new_tokens=6)
    assert torch.equal(torch.get_rng_state(), state)
    batch = pad_rows(t.lm, t.rows([""] * 3, end=False), "left", [0, 1, 2])
    inputs = assemble(t.lm, t.vectors(pairs.prompts), batch)
    settings = dict(do_sample=True, temperature=0.7, top_k=0, max_new_tokens=6, num_return_sequences=4)
    ends = dict(pad_token_id=lm.pad_id, eos_token_id=lm.tokenizer.eos_token_id)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        ids = with_settings(t.lm.model).generate(
            inputs_embeds=inputs.inputs_embeds, attention_mask=inputs.attention_mask, **settings, **ends
        )
    said = lm.tokenizer.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    for i, drawn in enumerate(found):
        assert {c.text for c in drawn} == {text.strip() for text in said[4 * i : 4 * i + 4]}


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda t, p: t.candidates(p.prompts, search="guess"), "beam"),
        (lambda t, p: t.translate(p.prompts, inputs=[["a"]] * 6), "give lm="),
        (lambda t, p: TranslatorConfig(how="half"), "full"),
        (lambda t, p: Translator.fit(lm_of(), Pairs(), progress=False), "no pairs"),
        (lambda t, p: Translator.load("/nowhere", lm_of()), "holds no"),
        (lambda t, p: prefer(t, []), "no preferences"),
        (lambda t, p: t.calibrate([], []), "at least 8"),
        (lambda t, p: text_divergence(lm_of(), p[0].prompt, ["a"], []), "no inputs"),
    ],
)
def test_bad_calls_are_said(call, words):
    pairs = random_pairs(lm_of(), 6)
    if "fit" not in _made:
        _made["fit"] = Translator.fit(lm_of(), pairs, epochs=1, progress=False)
    with pytest.raises(ValueError, match=words):
        call(_made["fit"], pairs)


def test_nothing_but_a_translator_is_replaced(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    t = Translator.fit(lm_of(), random_pairs(lm_of(), 2), epochs=1, progress=False)
    with pytest.raises(FileExistsError):
        t.save(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


# re-ranking


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
def test_divergence_is_that_of_the_whole_distributions(family):
    lm, texts, inputs = lm_of(family), ["say", "do it now"], ["ab", "cde"]
    p = SoftPrompt.init(lm, 3, "gaussian", seed=1)
    said = answers_of(lm, [p], [inputs], 5)[0]
    assert said == [generate(lm, p, x, 5, stop="\n")[0] for x in inputs]
    parts = divergence_parts(lm, p, texts, inputs, said)
    assert parts["all"].tolist() == text_divergence(lm, p, texts, inputs, said, end=True)
    assert parts["answer"].tolist() == text_divergence(lm, p, texts, inputs, said)
    for i, text in enumerate(texts):
        kl, at_end = [], []
        for x, y in zip(inputs, said):
            suffix = [*lm.token_ids(y), lm.tokenizer.eos_token_id]
            place = slice(-len(suffix) - 1, -1)
            behind = torch.cat([p.vectors.double(), lm.embed_ids([*lm.token_ids(x), *suffix])])
            a = lm.model(inputs_embeds=behind[None]).logits[0, place].log_softmax(-1)
            ids = [*lm.token_ids(f"{text}\n{x}"), *suffix]
            b = lm.model(torch.tensor([ids])).logits[0, place].log_softmax(-1)
            each = (a.exp() * (a - b)).sum(-1).tolist()
            kl += each if y == "" else each[:-1]
            at_end += [] if y == "" else each[-1:]
        assert parts.answer[i] == pytest.approx(np.mean(kl), **CLOSE)
        assert parts.end[i] == pytest.approx(np.mean(at_end), **CLOSE)
        assert parts["all"][i] == pytest.approx(np.mean(kl + at_end), **CLOSE)
        assert (parts.tokens[i], parts.ends[i]) == (len(kl), len(at_end))


def test_an_end_that_is_never_said_does_not_rule():
    """Two texts, one of which makes the model say the same as the prompt and differ at the end alone: without the end
    it is the prompt's equal; and an empty answer is its end."""
    lm, inputs = lm_of("gpt_neox"), ["ab", "cd"]
    p = SoftPrompt.init(lm, 3, "gaussian", seed=1)
    said = ["e", ""]
    parts = divergence_parts(lm, p, ["say"], inputs, said)
    assert (parts.tokens[0], parts.ends[0]) == (2, 1)
    nothing = divergence_parts(lm, p, ["say"], inputs, ["", ""])
    assert math.isnan(nothing.end[0]) and nothing.answer[0] == nothing["all"][0] > 0


@pytest.mark.parametrize("inputs", [["ab"], ["ab", "ab"], ["a", "ab"], ["xyz", "b"], list("abcdefgh")])
def test_what_a_texts_inputs_share_is_computed_once_and_changes_nothing(inputs):
    lm, texts = lm_of("gpt_neox"), ["", "say", "do it now and then"]
    p = SoftPrompt.init(lm, 3, "gaussian", seed=1)
    said = answers_of(lm, [p], [inputs], 4)[0]
    together, small = (text_divergence(lm, p, texts, inputs, said, batch_size=b) for b in (64, 2))
    assert together == pytest.approx(small, **CLOSE)
    if len(set(map(len, said))) == 1:  # else answers weigh by their lengths
        one_by_one = np.mean([text_divergence(lm, p, texts, [x], [y]) for x, y in zip(inputs, said)], axis=0)
        assert together == pytest.approx(one_by_one, **CLOSE)


def test_a_text_as_a_prompt_is_itself_the_most_faithful():
    lm = tiny("llama")  # in float32, so that the prompt is the text to the last digit
    p = SoftPrompt.init(lm, how="text", n=4, text="say\n")
    candidates = [Candidate("do", 0.0, 2), Candidate("say", -5.0, 3), Candidate("", -9.0, 1)]
    found, kl = rerank(lm, [p], [candidates], [["ab", "cd"]], max_new_tokens=4, prior=0.0)
    assert found[0][0].text == "say" and kl[0][0] < lm.vocab_size * EPS32 < kl[0][1] <= kl[0][2]


@pytest.mark.parametrize("prior", [0.0, 0.003, 0.03, 100.0])
def test_the_order_is_that_of_divergence_less_a_share_of_the_log_probability(prior):
    lm, inputs = lm_of(), ["ab", "cd"]
    cs = [Candidate("do", -1.0, 2), Candidate("say", -2.0, 3), Candidate("", -1.5, 1), Candidate("do it", -0.1, 3)]
    p = SoftPrompt.init(lm, 3, "gaussian", seed=1)
    said = answers_of(lm, [p], [inputs], 5)[0]
    divergences = text_divergence(lm, p, [c.text for c in cs], inputs, said)
    value = {c.text: prior * c.logprob - kl for c, kl in zip(cs, divergences)}
    found, kls = rerank(lm, [p], [cs], [inputs], max_new_tokens=5, prior=prior)
    order = [c.text for c in found[0]]
    assert order == sorted(value, key=value.get, reverse=True)
    assert kls[0] == pytest.approx(text_divergence(lm, p, order, inputs, said), **CLOSE)


def test_equally_faithful_candidates_stay_in_the_translators_order():
    lm = lm_of()
    p = SoftPrompt.init(lm, how="text", n=4, text="say\n")
    found, _ = rerank(lm, [p], [[Candidate("say", -3.0, 3), Candidate("say", -1.0, 3)]], [["ab"]], max_new_tokens=3)
    assert [c.logprob for c in found[0]] == [-1.0, -3.0]


def test_an_instruction_with_braces_is_put_as_it_is():
    assert instructed('answer in { " x " }', "in {0}") == 'answer in { " x " }\nin {0}' and instructed("", "in") == "in"


def test_refining_finds_the_word_that_the_model_says_and_never_loses(monkeypatch):
    "The prompt is the text itself, so its divergence is zero, and one swap from the wrong word is enough."
    lm = tiny("llama")  # in float32, so that the prompt is the text to the last digit
    t = Translator.fit(lm, random_pairs(lm, 2), epochs=1, progress=False)
    p = SoftPrompt(lm.embed_ids(lm.token_ids("put cat .\n")).detach())
    cs = [Candidate("put dog .", -1.0, 9), Candidate("put fox .", -2.0, 9)]
    inputs = ["ab", "cd"]
    monkeypatch.setattr(refining, "said_words", lambda *a: ["cat"])
    kl = text_divergence(lm, p, [c.text for c in cs], inputs)
    found, kls = refine(t, lm, [p], [cs], [kl], [inputs])
    assert found[0][0].text == "put cat ." and kls[0][0] < lm.vocab_size * EPS32
    assert kls[0] == sorted(kls[0]) and len(found[0]) == len(cs)
    same, again = refine(t, lm, [p], [cs], [kl], [inputs], rounds=0)
    assert again[0] == sorted(kl) and {c.text for c in same[0]} == {c.text for c in cs}


def test_said_words_are_in_answers_alone_and_counted_once_an_answer():
    assert said_words(["a b", "c"], ["cat cat b", "cat dog 7"]) == ["cat", "dog"] and said_words(["a"], ["a"]) == []


def test_preferences_move_the_odds_and_not_the_reference():
    lm, pairs = lm_of(), random_pairs(lm_of(), 6)
    t = Translator.fit(lm, pairs, epochs=3, batch_size=3, progress=False)
    chosen = [(p.prompt, p.texts[1], p.texts[0]) for p in pairs]
    before = mean_gap(t, chosen)
    new = prefer(t, chosen, epochs=5, batch_size=3, lr=1e-3)
    assert mean_gap(t, chosen) == pytest.approx(before, **CLOSE) and before < mean_gap(new, chosen)
    assert new.record["dpo_first"] == pytest.approx(math.log(2), **CLOSE)
    assert new.record["dpo_last"] < new.record["dpo_first"]


@given(st.integers(0, 10**6))
@settings(deadline=None, max_examples=15)
def test_confidence_is_calibrated_where_it_can_be(seed):
    g = np.random.default_rng(seed)
    lp = -g.exponential(2, 400)
    p = 1 / (1 + np.exp(-(2 + lp)))
    works = g.random(400) < p

    said = [Translation("", None, (Candidate("", logprob, 5),)) for logprob in lp]
    c = Translator.calibrate(SimpleNamespace(calibration=None), said[:200], works[:200]).calibration
    sure = [c(s.candidates) for s in said]
    assert np.abs(np.array(sure) - p).mean() < 0.1 and c(said[0].candidates, (0.1,)) is None
    assert sorted(sure) == [s for _, s in sorted(zip(lp, sure))]
    assert reliability(sure[200:], works[200:]).brier < 0.25


def test_a_confidence_where_everything_works_stays_finite():
    said = [Translation("", None, (Candidate("", -i, 5),), (0.1 * i,)) for i in range(10)]
    c = Translator.calibrate(SimpleNamespace(calibration=None), said, [True] * 10).calibration
    assert 0.9 < c(said[0].candidates, (0.1,)) <= 1 and c(said[0].candidates) is None and isinstance(c, Confidence)


def test_the_true_instruction_is_bounded_by_its_best_and_its_mean_wording(monkeypatch):
    "The best is chosen on training items: here the wording that is best on the test items is not."
    scores = {("w0", "train"): 0.2, ("w1", "train"): 0.9, ("w2", "train"): 0.1}
    scores |= {("w0", "test"): 0.0, ("w1", "test"): 0.4, ("w2", "test"): 0.5}

    def execute(lm, tasks, texts, items=None, template=""):
        side = ["train" if task.test == task.train else "test" for task in tasks]
        return [[scores[text, part]] for text, part in zip(texts, side)]

    monkeypatch.setattr(evaluating, "execute", execute)
    task = TaskSet("t", "held", ("w0", "w1", "w2"), (Example("a", " b"),), (Example("c", " d"),), ((" d",),))
    pairs = [SimpleNamespace(task="t", split="held", seed=i) for i in range(2)]
    table = evaluating.wordings(None, pairs, [task, task])
    best = table[table.method == "true instruction, best"]
    assert best.text.tolist() == ["w1", "w1"] and best.accuracy.tolist() == [0.4, 0.4]
    mean = table[table.method == "true instruction, mean"]
    assert mean.accuracy.tolist() == pytest.approx([0.3, 0.3])


def test_similarity_stands_beside_that_to_other_tasks():
    vectors = dict(x=[1.0, 0.0], y=[0.0, 1.0], z=[1.0, 1.0])
    found = evaluating.similarity_to_others(
        ["x", "y"], ["a", "b"], dict(a=["x"], b=["y", "z"]), lambda texts: np.array([vectors[text] for text in texts])
    )
    assert found == pytest.approx([math.sqrt(0.5), 0.0])  # x and the best of b; y and a's
    alone = evaluating.similarity_to_others(["x"], ["a"], dict(a=["x"]), lambda texts: np.eye(2)[: len(texts)])
    assert math.isnan(alone[0])


def test_who_judges_similarity(monkeypatch):
    "A lab model itself; another model's texts are left to the sentence embedder, or to the model with a warning."
    from softprompt_nb.load import load_lm
    from softprompt_nb.translation.translator import evaluate

    lm = load_lm("lab-base-xs")
    assert evaluate.embedder_for(lm)(["a word ."]).shape == (1, lm.d_model)
    lm.name = "somebody/else"
    monkeypatch.setattr(evaluate, "has_embedder", lambda: True)
    monkeypatch.setattr(evaluate, "sentence_embedder", lambda: "the embedder")
    assert evaluate.embedder_for(lm) == "the embedder"
    monkeypatch.setattr(evaluate, "has_embedder", lambda: False)
    with pytest.warns(UserWarning, match="sentence_embedder"):
        evaluate.embedder_for(lm)
