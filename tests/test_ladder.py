"""Ladders against plain loops, one fixed evaluation set, choice by validation, and what happens when a process is cut off."""

import os
import subprocess
import sys
from dataclasses import replace

from softprompt_nb.conditional import NET_KINDS, ConditionalPrompt
from softprompt_nb.data import Encoded, Example
from softprompt_nb.engine.inference import target_logprobs
from softprompt_nb.evaluation.distance.capabilities import Capability, from_examples, plain_text, repetition
from softprompt_nb.evaluation.distance.ladder import ladder, loss_by_vector, start_of
from softprompt_nb.evaluation.distance.protocol import ProtocolStudy, stability, subspace
from softprompt_nb.experiments.runs import RunStore
from softprompt_nb.prompts import SoftPrompt
from softprompt_nb.training.pool import Pool
from softprompt_nb.training.tuning import tune

import numpy as np
import pandas as pd
import pytest
import torch
from families import tiny

TEXTS = [f"this is text number {i} , and it goes on for {i * i} words ." for i in range(300)]
SMALL = dict(
    sizes=(0, 1, 3), seeds=2, rates=(0.5, 0.1), steps=8, batch_size=4, train=24, valid=6, test=10, progress=False
)
_made = {}


def lm_of(name="gpt_neox"):
    if name not in _made:
        _made[name] = tiny(name)
    return _made[name]


def cap():
    return repetition("ab", texts=TEXTS, length=16)


def by_condition():
    "Say the letter that the condition names, whatever is read."

    def make(lm, split, n):
        for i in range(n):
            c = float(i % 2)
            yield Encoded([40 + i % 7, 41, 42, 43], 1, 0, [-100, 50 + int(c), 50 + int(c), 50 + int(c)], (c,))

    return Capability("letters", "letters", make, 1)


def test_a_ladder_is_what_plain_tunings_and_plain_losses_give():
    lm, c = lm_of(), cap()
    lad = ladder(lm, c, **SMALL)
    train, valid, test = (c.rows(lm, s, n) for s, n in (("train", 24), ("valid", 6), ("test", 10)))
    assert np.allclose(lad.nll[0, 0], -target_logprobs(lm, None, test)[0].double(), atol=1e-4) and np.array_equal(
        lad.nll[0, 0], lad.nll[1, 0]
    )
    for n in (1, 3):
        for s in (0, 1):
            runs = {
                r: tune(
                    lm,
                    SoftPrompt.init(lm, n, seed=s),
                    train,
                    valid=valid,
                    steps=8,
                    batch_size=4,
                    lr=r * lm.scale,
                    seed=s,
                    checkpoints=0,
                    eval_every=2,
                    progress=False,
                )
                for r in (0.5, 0.1)
            }
            best = min(runs, key=lambda r: runs[r].history.valid.min())
            mine = lad.runs[(lad.runs.n == n) & (lad.runs.seed == s)]
            assert mine[mine.chosen].rate.tolist() == [best]
            assert np.allclose(
                mine.sort_values("rate").valid, [runs[r].history.valid.min() for r in (0.1, 0.5)], atol=1e-3
            )
            assert np.allclose(
                lad.nll[s, lad.sizes.index(n)], -target_logprobs(lm, runs[best].prompt, test)[0], atol=1e-2
            )
            assert (lad.prompts[n, s].vectors - runs[best].prompt.vectors).abs().max() < 1e-2
    assert lad.units.tolist() == [sum(t != -100 for t in r.labels) for r in test]


def test_the_test_rows_take_no_part_in_any_choice(tmp_path):
    lm, c = lm_of(), cap()

    def other(lm, split, n):
        return c.make(lm, split, n) if split != "test" else (Encoded([7] * 9, 0, 0) for _ in range(n))

    a, b = ladder(lm, c, **SMALL), ladder(lm, replace(c, make=other), **SMALL)
    assert (
        a.runs.chosen.tolist() == b.runs.chosen.tolist()
        and np.allclose(a.runs.valid, b.runs.valid)
        and not np.allclose(a.nll[:, 1:].sum(), b.nll[:, 1:].sum())
    )
    assert all(torch.equal(a.prompts[k].vectors, b.prompts[k].vectors) for k in a.prompts)


def test_more_vectors_learn_what_one_cannot_and_the_envelope_falls():
    lm = lm_of("llama")
    lad = ladder(
        lm,
        repetition("ab", texts=TEXTS, length=12),
        sizes=(0, 1, 8),
        seeds=1,
        rates=(0.5, 2.0),
        steps=60,
        batch_size=8,
        train=48,
        valid=8,
        test=16,
        progress=False,
    )
    assert (
        lad.mean[0] > lad.mean[1] > lad.mean[2] and lad.share(0.5) <= 8 and (np.diff(lad.table().envelope) <= 0).all()
    )


def test_a_warm_start_is_the_prompt_of_the_rung_below():
    lm, c = lm_of(), cap()
    kw = SMALL | dict(seeds=1, rates=(0.5,))
    lad = ladder(lm, c, warm=True, **kw)
    below = lad.prompts[1, 0]
    start = SoftPrompt.init(lm, 3, seed=0)
    start = replace(start, vectors=torch.cat([start.vectors[:2], below.vectors]))
    run = tune(
        lm,
        start,
        c.rows(lm, "train", 24),
        valid=c.rows(lm, "valid", 6),
        steps=8,
        batch_size=4,
        lr=0.5 * lm.scale,
        seed=0,
        checkpoints=0,
        eval_every=2,
        progress=False,
    )
    assert (run.prompt.vectors - lad.prompts[3, 0].vectors).abs().max() < 1e-3
    assert not torch.allclose(ladder(lm, c, **kw).prompts[3, 0].vectors, lad.prompts[3, 0].vectors, atol=1e-2)


def test_nothing_is_done_twice_and_nothing_lost_after_an_interrupt(tmp_path, monkeypatch):
    lm, c = lm_of(), cap()
    whole, turn, turns = ladder(lm, c, **SMALL), Pool.turn, []

    def tired(self):
        turns.append(1)
        if len(turns) == 6:
            raise KeyboardInterrupt
        turn(self)

    monkeypatch.setattr(Pool, "turn", tired)
    with pytest.raises(KeyboardInterrupt):
        ladder(lm, c, store=tmp_path, save_every=2, **SMALL)
    assert (
        len(RunStore(tmp_path)) == 1 and len(list(tmp_path.glob("work/*/state.safetensors"))) == 8
    )  # no prompt is recorded, the others wait
    again = ladder(lm, c, store=tmp_path, save_every=2, **SMALL)
    assert len(turns) < 6 + 8  # they went on from step 4, not from the start
    assert np.allclose(again.nll, whole.nll, atol=1e-4) and again.runs.chosen.tolist() == whole.runs.chosen.tolist()
    monkeypatch.setattr(Pool, "turn", lambda self: pytest.fail("a recorded run was done again"))
    assert np.array_equal(ladder(lm, c, store=tmp_path, **SMALL).nll, again.nll)


KILLED = """
import os, sys
sys.path.insert(0, {tests!r})
from test_ladder import SMALL, cap, lm_of
from softprompt_nb.evaluation.distance.ladder import ladder
from softprompt_nb.training.pool import Pool
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
    p = subprocess.run(
        [sys.executable, "-c", KILLED.format(tests=os.path.dirname(__file__), store=store)],
        capture_output=True,
        text=True,
    )
    assert p.returncode == -9, p.stderr[-2000:]
    lm, c = lm_of(), cap()
    assert np.allclose(ladder(lm, c, store=store, **SMALL).nll, ladder(lm, c, **SMALL).nll, atol=1e-4)


def test_other_data_settings_and_models_are_other_runs(tmp_path):
    lm, c = lm_of(), cap()
    kw = SMALL | dict(sizes=(0, 1), seeds=1, rates=(0.5,))
    ladder(lm, c, store=tmp_path, **kw)
    for model, capability, change in (
        (lm, c, dict(steps=9)),
        (lm, c, dict(test=11)),
        (lm, repetition("ba", texts=TEXTS, length=16), {}),
        (tiny("gpt_neox", seed=1), c, {}),
        (lm, c, dict(how="zeros")),
        (lm, c, dict(seeds=[5])),
    ):
        before = len(RunStore(tmp_path))
        ladder(model, capability, store=tmp_path, **(kw | change))
        assert len(RunStore(tmp_path)) > before
    before = len(RunStore(tmp_path))
    ladder(lm, c, store=tmp_path, **kw)
    assert len(RunStore(tmp_path)) == before


def test_a_condition_tells_the_prompt_what_to_say():
    lm = lm_of(
        "llama"
    )  # random weights: no prompt brings it far, so networks are compared with the best that one prompt for both conditions can do
    kw = dict(sizes=(0, 4), seeds=1, steps=60, batch_size=8, train=32, valid=8, test=16, progress=False)
    plain = ladder(lm, by_condition(), rates=(4.0,), kind="plain", **kw)
    for kind in NET_KINDS:
        lad = ladder(lm, by_condition(), rates=(20.0,), kind=kind, net=dict(hidden=16, layers=1), **kw)
        assert isinstance(lad.prompts[4, 0], ConditionalPrompt) and lad.mean[1] < plain.mean[1] - 0.4, (
            kind
        )  # a coin's entropy is .69 nats


def test_loss_by_vector_is_a_plain_loop():
    lm = lm_of()
    rows, p = cap().rows(lm, "test", 5), SoftPrompt.init(lm, 4, seed=2)
    loss = lambda v: (-target_logprobs(lm, v, rows)[0].sum() / target_logprobs(lm, v, rows)[1].sum()).item()
    t = loss_by_vector(lm, p, rows)
    assert np.allclose(
        t.loss, [loss(torch.cat([p.vectors[:i], p.vectors[i + 1 :]])) for i in range(4)], atol=1e-3
    ) and np.allclose(t["all"], loss(p.vectors), atol=1e-3)
    assert np.allclose(
        loss_by_vector(lm, p, rows, "last").loss, [loss(p.vectors[3 - i :]) for i in range(4)], atol=1e-3
    )


def test_loss_by_vector_has_intervals_over_items():
    lm = lm_of()
    t = loss_by_vector(lm, SoftPrompt.init(lm, 3, seed=2), cap().rows(lm, "test", 5))
    assert (t["items"] == 5).all() and (t.low <= t.loss).all() and (t.loss <= t.high).all() and (t.low < t.high).all()


def test_a_rate_that_diverged_is_not_chosen():
    lm, kw = lm_of(), SMALL | dict(sizes=(0, 1), seeds=1)
    best = ladder(lm, cap(), **(kw | dict(rates=(0.5,))))
    both = ladder(
        lm, cap(), **(kw | dict(rates=(float("1e30"), 0.5)))
    )  # the first rate's loss is no number from the second step on
    assert both.runs.outcome.tolist() == ["diverged", "done"] and both.runs.chosen.tolist() == [False, True]
    assert np.allclose(both.nll, best.nll, atol=1e-5)


def test_studies_run_through_the_store(tmp_path):
    lm = lm_of()
    kw = dict(seeds=2, n=3, steps=6, train=16, valid=4, test=6, progress=False, store=tmp_path)
    s = stability(lm, cap(), lanes=(2, 8), rates=(0.5,), **kw)
    assert len(s.runs) == 4 and set(s.table().lanes) == {2, 8} and (s.table().seeds == 2).all()
    f = subspace(lm, cap(), ks=(1, 4), rates=(0.5, 0.1), batch_size=4, **kw)
    assert f.table().k.tolist() == [1, 4, lm.d_model] and len(f.runs) == 6 and abs(f.bare - s.bare) < 1e-6
    assert len(RunStore(tmp_path)) == 1 + 4 + 12
    assert "no prompt" in s.plot().get_legend_handles_labels()[1] and "| k |" in f._repr_markdown_()


def test_the_recommended_setting_follows_its_rule():
    runs = pd.DataFrame(
        [
            dict(lanes=l, rate=r, seed=s, loss=x + d * s, valid=x, outcome=o, jumps=j)
            for l, r, x, d, o, j in [
                (32, 0.5, 1.0, 0.2, "done", 0),
                (128, 0.5, 1.03, 0.01, "done", 0),
                (256, 0.5, 0.9, 0.0, "done", 3),
                (32, 1.5, 0.5, 0.0, "diverged", 0),
                (128, 1.5, 2.0, 0.0, "done", 0),
            ]
            for s in (0, 1)
        ]
    )
    assert ProtocolStudy("x", ("lanes", "rate"), runs, 3.0).recommended() == dict(lanes=128, rate=0.5)
    assert ProtocolStudy("x", ("lanes", "rate"), runs.assign(jumps=1), 3.0).recommended() is None


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
    lm = lm_of()
    with pytest.raises(ValueError, match="warm=True"):
        ladder(lm, by_condition(), warm=True, **SMALL)
    with pytest.raises(ValueError, match="how='first'"):
        loss_by_vector(lm, SoftPrompt.init(lm, 2), [Example("a", " b")], "first")
    with pytest.raises(ValueError, match="one vector"):
        loss_by_vector(lm, SoftPrompt.init(lm, 1), [Example("a", " b")])
    with pytest.raises(ValueError, match="does not take"):
        subspace(lm, by_condition(), progress=False)
    assert start_of(lm, plain_text(TEXTS), 2, 0, how=lambda lm, n, seed: torch.ones(n, lm.d_model)).vectors.mean() == 1
    assert from_examples([Example("a", " b")] * 3).conditions == 0
