"""Ladders against plain loops, one evaluation set, choice by validation, and what happens when a process is cut off."""

import os
import subprocess
import sys
from dataclasses import replace

from softprompt_nb.conditional import NET_KINDS, ConditionalPrompt
from softprompt_nb.data import Encoded, Example
from softprompt_nb.engine.inference import loss_on, target_logprobs
from softprompt_nb.evaluation.distance.capabilities import (
    Capability,
    chess,
    from_examples,
    plain_text,
    repetition,
    targets,
)
from softprompt_nb.evaluation.distance.costs import ENOUGH
from softprompt_nb.evaluation.distance.ladder import ladder, loss_by_vector
from softprompt_nb.evaluation.distance.protocol import ProtocolStudy, stability, subspace
from softprompt_nb.evaluation.distance.rungs import place_in, start_of
from softprompt_nb.experiments.runs import RunStore
from softprompt_nb.files import read_tensors
from softprompt_nb.load import load_lm
from softprompt_nb.prompts import SoftPrompt
from softprompt_nb.training.pool import Pool
from softprompt_nb.training.tuning import tune

import numpy as np
import pandas as pd
import pytest
import torch
from families import reconfigured, tiny

TEXTS = [f"this is text number {i} , and it goes on for {i * i} words ." for i in range(300)]
SMALL = dict(
    sizes=(0, 1, 3), seeds=2, rates=(0.5, 0.1), steps=8, batch_size=4, train=24, valid=6, test=10, progress=False
)
COUNTS = dict(train=24, valid=6, test=10)
_made = {}


def lm_of(name="gpt_neox"):
    "A tiny model that computes in float64, so that the order of its sums does not show."
    if name not in _made:
        _made[name] = tiny(name, dtype=torch.float64)
    return _made[name]


def cap():
    return repetition("ab", texts=TEXTS, length=16)


def same(x, y, length=16):
    "Equal but for float32, in which prompts, and sums of a row's losses (of `length` targets), are kept."
    rounding = length * torch.finfo(torch.float32).eps
    return np.allclose(np.asarray(x, float), np.asarray(y, float), rtol=rounding, atol=rounding)


def by_condition():
    "Say the letter that the condition names, whatever is read."

    def make(lm, split, n):
        for i in range(n):
            letter = 50 + i % 2
            yield Encoded([40 + i % 7, 41, 42, 43], 1, 0, [-100, letter, letter, letter], (float(i % 2),))

    return Capability("letters", "letters", make, 1)


def alone(lm, start, rows, rate, seed):
    "The tuning of one rung of SMALL by itself."
    return tune(
        lm,
        start,
        rows["train"],
        valid=rows["valid"],
        steps=8,
        batch_size=4,
        lr=rate * lm.scale,
        seed=seed,
        checkpoints=0,
        eval_every=2,
        progress=False,
    )


def rows_of(lm):
    return {split: cap().rows(lm, split, n) for split, n in COUNTS.items()}


def losses(lm, prompt, rows):
    total, _ = target_logprobs(lm, prompt, rows)
    return -total.double()


def test_no_prompt_is_measured_on_the_same_rows():
    lm = lm_of()
    lad, rows = ladder(lm, cap(), **SMALL), rows_of(lm)["test"]
    assert same(lad.nll[0, 0], losses(lm, None, rows))
    assert np.array_equal(lad.nll[0, 0], lad.nll[1, 0])
    assert lad.units.tolist() == [len(targets(row)) for row in rows]


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_rung_is_what_plain_tunings_and_plain_losses_give(n, seed):
    lm = lm_of()
    lad, rows = ladder(lm, cap(), **SMALL), rows_of(lm)
    runs = {rate: alone(lm, SoftPrompt.init(lm, n, seed=seed), rows, rate, seed) for rate in SMALL["rates"]}
    valid = {rate: run.history.valid.min() for rate, run in runs.items()}
    best = min(valid, key=valid.get)
    mine = lad.runs[(lad.runs.n == n) & (lad.runs.seed == seed)]
    assert mine[mine.chosen].rate.tolist() == [best]
    assert same(mine.set_index("rate").valid[list(valid)], list(valid.values()))
    assert same(lad.nll[seed, lad.sizes.index(n)], losses(lm, runs[best].prompt, rows["test"]))
    assert same(lad.prompts[n, seed].vectors, runs[best].prompt.vectors)


def test_the_test_rows_take_no_part_in_any_choice():
    lm, plain = lm_of(), cap()

    def other(lm, split, n):
        return (Encoded([7] * 9, 0, 0) for _ in range(n)) if split == "test" else plain.make(lm, split, n)

    one, two = ladder(lm, plain, **SMALL), ladder(lm, replace(plain, make=other), **SMALL)
    assert one.runs.chosen.tolist() == two.runs.chosen.tolist()
    assert same(one.runs.valid, two.runs.valid)
    assert not np.allclose(one.nll[:, 1:].sum(), two.nll[:, 1:].sum())
    for place in one.prompts:
        assert same(one.prompts[place].vectors, two.prompts[place].vectors)


def test_more_vectors_learn_what_one_cannot_and_the_envelope_falls():
    run = dict(sizes=(0, 1, 8), seeds=1, rates=(0.5, 2.0), steps=60, batch_size=8, progress=False)
    lad = ladder(lm_of("llama"), repetition("ab", texts=TEXTS, length=12), train=48, valid=8, test=16, **run)
    assert lad.mean[0] > lad.mean[1] > lad.mean[2] and lad.share(0.5) <= 8
    assert (np.diff(lad.table().envelope) <= 0).all()


def test_a_warm_start_is_the_prompt_of_the_rung_below():
    lm = lm_of()
    one_rate = SMALL | dict(seeds=1, rates=(0.5,))
    lad = ladder(lm, cap(), warm=True, **one_rate)
    fresh = SoftPrompt.init(lm, 3, seed=0)
    start = replace(fresh, vectors=torch.cat([fresh.vectors[:2], lad.prompts[1, 0].vectors]))
    run = alone(lm, start, rows_of(lm), 0.5, 0)
    assert same(run.prompt.vectors, lad.prompts[3, 0].vectors)
    cold = ladder(lm, cap(), **one_rate)
    assert not torch.allclose(cold.prompts[3, 0].vectors, lad.prompts[3, 0].vectors, atol=1e-2)


def test_nothing_is_done_twice_and_nothing_lost_after_an_interrupt(tmp_path, monkeypatch):
    lm, capability = lm_of(), cap()
    whole, turn, turns = ladder(lm, capability, **SMALL), Pool.turn, []

    def tired(self):
        turns.append(1)
        if len(turns) == 14:
            raise KeyboardInterrupt
        turn(self)

    monkeypatch.setattr(Pool, "turn", tired)
    with pytest.raises(KeyboardInterrupt):
        ladder(lm, capability, store=tmp_path, save_every=2, **SMALL)
    # no prompt and the first size are recorded, the second size waits
    assert sorted(record.config["n"] for record in RunStore(tmp_path)) == [0, 1, 1, 1, 1]
    assert len(list(tmp_path.glob("work/*/state.safetensors"))) == 4
    again = ladder(lm, capability, store=tmp_path, save_every=2, **SMALL)
    assert len(turns) < 14 + 8  # they went on from step 4, not from the start
    assert same(again.nll, whole.nll)
    assert again.runs.chosen.tolist() == whole.runs.chosen.tolist()
    monkeypatch.setattr(Pool, "turn", lambda self: pytest.fail("a recorded run was done again"))
    assert np.array_equal(ladder(lm, capability, store=tmp_path, **SMALL).nll, again.nll)


def test_where_sharing_saves_nothing_each_tuning_is_recorded_when_it_ends(tmp_path, monkeypatch):
    lm, turn, turns = lm_of(), Pool.turn, []
    whole = ladder(lm, cap(), **SMALL)

    def tired(self):
        turns.append(1)
        if len(turns) == 8 + 3:  # in the second tuning
            raise KeyboardInterrupt
        turn(self)

    monkeypatch.setitem(ENOUGH, "cpu", 1.0)
    monkeypatch.setattr(Pool, "turn", tired)
    with pytest.raises(KeyboardInterrupt):
        ladder(lm, cap(), store=tmp_path, **SMALL)
    assert sorted(record.config["n"] for record in RunStore(tmp_path)) == [0, 1]
    monkeypatch.setattr(Pool, "turn", turn)
    assert same(ladder(lm, cap(), store=tmp_path, **SMALL).nll, whole.nll)


def test_slow_steps_are_saved_by_the_clock(tmp_path, monkeypatch):
    lm, steps = lm_of(), []
    monkeypatch.setattr(Pool, "turn", lambda self, turn=Pool.turn: steps.append(1) or slow(self, turn))

    def slow(pool, turn):
        pool.save_seconds = 0.0
        if len(steps) == 3:
            raise KeyboardInterrupt
        turn(pool)

    with pytest.raises(KeyboardInterrupt):
        ladder(lm, cap(), store=tmp_path, **SMALL)
    states = [read_tensors(path)[1]["step"] for path in tmp_path.glob("work/*/state.safetensors")]
    assert states == [2] * 4  # nothing is due by its number before step 20


def test_the_price_stands_before_the_first_step(capsys, monkeypatch):
    lm, said = lm_of(), []
    monkeypatch.setattr(Pool, "turn", lambda self, turn=Pool.turn: said.append(capsys.readouterr().out) or turn(self))
    ladder(lm, cap(), **(SMALL | dict(progress=True)))
    assert "8 tunings of 64 steps in all" in said[0] and "s with 1" in said[0] and "s with 3 vectors" in said[0]
    assert not any("tunings" in each for each in said[1:])


def test_the_last_prompt_instead_of_the_best(tmp_path):
    lm, rows = lm_of(), rows_of(lm_of())
    run = SMALL | dict(sizes=(0, 3), seeds=1, rates=(40.0,), steps=8)  # so hot that the last is not the best
    best, last = (ladder(lm, cap(), store=tmp_path, keep=keep, **run) for keep in ("best", "last"))
    start = SoftPrompt.init(lm, 3, seed=0)
    plain = tune(
        lm, start, rows["train"], steps=8, batch_size=4, lr=40.0 * lm.scale, seed=0, checkpoints=0, progress=False
    )
    assert same(last.prompts[3, 0].vectors, plain.prompt.vectors)
    assert last.runs.step.tolist() == [8] and last.runs.valid[0] >= best.runs.valid[0]
    assert len(RunStore(tmp_path)) == 3  # no prompt, and one run for each choice


KILLED = """
import os, sys
sys.path.insert(0, {tests!r})
from test_ladder import SMALL, cap, lm_of
from softprompt_nb.evaluation.distance.ladder import ladder
from softprompt_nb.training.tuning import Pool
turn, turns = Pool.turn, []
def dies(self):
    turns.append(1)
    if len(turns) == 6: os.kill(os.getpid(), 9)
    turn(self)
Pool.turn = dies
ladder(lm_of(), cap(), store={store!r}, save_every=2, **SMALL)
"""


def test_a_killed_process_is_resumed_by_another(tmp_path):
    store = str(tmp_path / "store")
    code = KILLED.format(tests=os.path.dirname(__file__), store=store)
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.returncode == -9, process.stderr[-2000:]
    resumed, undisturbed = ladder(lm_of(), cap(), store=store, **SMALL), ladder(lm_of(), cap(), **SMALL)
    assert same(resumed.nll, undisturbed.nll)


ONE = SMALL | dict(sizes=(0, 1), seeds=1, rates=(0.5,))


@pytest.mark.parametrize(
    "change",
    [
        dict(steps=9),
        dict(test=11),
        dict(capability=repetition("ba", texts=TEXTS, length=16)),
        dict(lm=1),
        dict(how="zeros"),
        dict(seeds=[5]),
    ],
)
def test_other_data_settings_and_models_are_other_runs(tmp_path, change):
    plain = dict(lm=lm_of(), capability=cap()) | ONE
    ladder(store=tmp_path, **plain)
    before = len(RunStore(tmp_path))
    if "lm" in change:
        change = dict(lm=tiny("gpt_neox", dtype=torch.float64, seed=change["lm"]))
    ladder(store=tmp_path, **(plain | change))
    after = len(RunStore(tmp_path))
    assert after > before
    ladder(store=tmp_path, **plain)
    assert len(RunStore(tmp_path)) == after


def test_a_condition_tells_the_prompt_what_to_say():
    # random weights: no prompt brings it far, so networks are compared with the best that one prompt for both
    # conditions can do
    lm = lm_of("llama")
    run = dict(sizes=(0, 4), seeds=1, steps=60, batch_size=8, train=32, valid=8, test=16, progress=False)
    plain = ladder(lm, by_condition(), rates=(4.0,), kind="plain", **run)
    for kind in NET_KINDS:
        lad = ladder(lm, by_condition(), rates=(20.0,), kind=kind, net=dict(hidden=16, layers=1), **run)
        assert isinstance(lad.prompts[4, 0], ConditionalPrompt), kind
        assert lad.mean[1] < plain.mean[1] - 0.4, kind  # a coin's entropy is .69 nats


def test_loss_by_vector_is_a_plain_loop():
    lm = lm_of()
    rows, prompt = cap().rows(lm, "test", 5), SoftPrompt.init(lm, 4, seed=2)
    vectors = prompt.vectors

    def loss(kept):
        total, count = target_logprobs(lm, kept, rows)
        return (-total.sum() / count.sum()).item()

    table = loss_by_vector(lm, prompt, rows)
    without = [torch.cat([vectors[:i], vectors[i + 1 :]]) for i in range(4)]
    assert same(table.loss, [loss(kept) for kept in without], 16 * 5)
    assert same(table["all"], [loss(vectors)] * 4, 16 * 5)
    table = loss_by_vector(lm, prompt, rows, "last")
    assert same(table.loss, [loss(vectors[3 - i :]) for i in range(4)], 16 * 5)


def test_loss_by_vector_has_intervals_over_items():
    lm = lm_of()
    table = loss_by_vector(lm, SoftPrompt.init(lm, 3, seed=2), cap().rows(lm, "test", 5))
    assert (table["items"] == 5).all()
    assert (table.low <= table.loss).all() and (table.loss <= table.high).all() and (table.low < table.high).all()


def test_a_rate_that_diverged_is_not_chosen():
    lm = tiny("gpt_neox")  # in float32, where this rate's loss is no number from the second step on
    best = ladder(lm, cap(), **ONE)
    both = ladder(lm, cap(), **(ONE | dict(rates=(float("1e30"), 0.5))))
    assert both.runs.outcome.tolist() == ["diverged", "done"]
    assert both.runs.chosen.tolist() == [False, True]
    assert same(both.nll, best.nll, 16 * 8)  # eight steps, each on sums of 16 targets


def test_studies_run_through_the_store(tmp_path):
    lm = lm_of()
    run = dict(seeds=2, n=3, steps=6, train=16, valid=4, test=6, progress=False, store=tmp_path)
    steady = stability(lm, cap(), batch_sizes=(2, 8), rates=(0.5,), **run)
    table = steady.table()
    assert len(steady.runs) == 4 and set(table.batch_size) == {2, 8} and (table.seeds == 2).all()
    narrow = subspace(lm, cap(), ks=(1, 4), rates=(0.5, 0.1), batch_size=4, **run)
    assert narrow.table().k.tolist() == [1, 4, lm.d_model] and len(narrow.runs) == 6
    assert narrow.bare == steady.bare  # no prompt is measured once
    assert len(RunStore(tmp_path)) == 1 + 4 + 12
    assert "no prompt" in steady.plot().get_legend_handles_labels()[1] and "| k |" in narrow._repr_markdown_()


def test_the_recommended_setting_follows_its_rule():
    settings = [  # rows a step, rate, validation loss, difference between the seeds, outcome, jumps
        (32, 0.5, 1.0, 0.2, "done", 0),
        (128, 0.5, 1.03, 0.01, "done", 0),
        (256, 0.5, 0.9, 0.0, "done", 3),
        (32, 1.5, 0.5, 0.0, "diverged", 0),
        (128, 1.5, 2.0, 0.0, "done", 0),
    ]
    rows = []
    for size, rate, valid, apart, outcome, jumps in settings:
        for seed in (0, 1):
            row = dict(batch_size=size, rate=rate, seed=seed, loss=valid + apart * seed)
            rows.append(row | dict(valid=valid, outcome=outcome, jumps=jumps))
    runs, by = pd.DataFrame(rows), ("batch_size", "rate")
    assert ProtocolStudy("x", by, runs, 3.0).recommended() == dict(batch_size=128, rate=0.5)
    assert ProtocolStudy("x", by, runs.assign(jumps=1), 3.0).recommended() is None


@pytest.mark.parametrize(
    "change, says",
    [
        (dict(sizes=(4, 1)), "two different sizes"),
        (dict(sizes=(0,)), "two different sizes"),
        (dict(seeds=0), "one seed"),
        (dict(rates=()), "one rate"),
        (dict(kind="rnn"), "kind='rnn'"),
        (dict(kind="mlp"), "has no condition"),
        (dict(sizes=(0, 500)), "over this model's limit"),
    ],
)
def test_bad_input(change, says):
    with pytest.raises(ValueError, match=says):
        ladder(lm_of(), cap(), **(SMALL | change))


def test_more_bad_input():
    lm, example = lm_of(), [Example("a", " b")]
    with pytest.raises(ValueError, match="warm=True"):
        ladder(lm, by_condition(), warm=True, **SMALL)
    with pytest.raises(ValueError, match="reading='first'"):
        loss_by_vector(lm, SoftPrompt.init(lm, 2), example, "first")
    with pytest.raises(ValueError, match="one vector"):
        loss_by_vector(lm, SoftPrompt.init(lm, 1), example)
    with pytest.raises(ValueError, match="does not take"):
        subspace(lm, by_condition(), progress=False)
    with pytest.raises(ValueError, match="one seed"):
        stability(lm, cap(), seeds=0, progress=False)


def test_a_start_may_be_a_function():
    lm = lm_of()
    ones = start_of(lm, plain_text(TEXTS), 2, 0, how=lambda lm, n, seed: torch.ones(n, lm.d_model))
    assert ones.vectors.mean() == 1
    assert from_examples([Example("a", " b")] * 3).conditions == 0


@pytest.mark.parametrize("at", ["start", "before_answer"])
def test_a_ladders_prompts_know_their_place(at):
    "What a prompt loses on plain examples is what the ladder measured, as it goes where it was trained."
    lm = lm_of()
    pairs = {split: [Example(f"say {i} :", f" {i % 3}") for i in range(8)] for split in ("train", "valid", "test")}
    lad = ladder(lm, from_examples(pairs, at=at), **(SMALL | dict(sizes=(0, 2), seeds=1, rates=(0.5,), steps=4)))
    prompt = lad.prompts[2, 0]
    assert prompt.at == at
    assert same(loss_on(lm, prompt, pairs["test"]), lad.mean[1])


def test_prompts_of_random_places_say_between_which():
    lm = lm_of()
    lad = ladder(lm, plain_text(TEXTS, length=16, at="random"), **(SMALL | dict(sizes=(0, 2), seeds=1, steps=2)))
    prompt = lad.prompts[2, 0]
    low, high = prompt.info["places"]
    assert prompt.at == "start" and 0 <= low < high < 16
    rows = [Encoded([1, 2, 3], 1, 1), Encoded([1, 2, 3], 2, 2)]
    assert place_in(rows) == "before_answer" and place_in([Encoded([1, 2, 3], 2, 1)] * 2) == 1
    assert place_in([Encoded([1, 2, 3], 3, 1), Encoded([1, 2, 3], 3, 2)]) is None


def test_a_reconfigured_model_gets_its_own_rungs(tmp_path):
    lm = tiny("llama")
    other = reconfigured(lm, rms_norm_eps=0.1)
    assert lm.fingerprint == other.fingerprint and lm.name == other.name
    small = SMALL | dict(sizes=(0, 1), seeds=1, rates=(0.5,), steps=2)
    first, second = (ladder(each, cap(), store=tmp_path, **small) for each in (lm, other))
    assert len(RunStore(tmp_path)) == 4 and not same(first.nll, second.nll)
    assert same(second.nll, ladder(other, cap(), **small).nll)
    again = ladder(lm, cap(), store=tmp_path, **small)
    assert len(RunStore(tmp_path)) == 4 and same(again.nll, first.nll)


def test_runs_are_in_the_ladders_own_unit_whatever_the_store_has(tmp_path):
    lm = load_lm("lab-base-xs")
    few = dict(seeds=1, steps=2, batch_size=2, train=4, valid=2, test=6, progress=False, store=tmp_path)
    for per in ("token", "move"):
        task = chess(per=per, plies=6)
        found = ladder(lm, task, sizes=(0, 1), rates=(1.0,), **few)
        assert found.runs.loss[0] == pytest.approx(found.table().loss[1], abs=1e-12)
        study = subspace(lm, task, ks=(1,), rates=(1.0,), n=1, **few)
        assert study.bare == pytest.approx(found.table().loss[0], abs=1e-12)
