"""Many prompts at once: each lane is what `tune` gives for it alone, and what happens in one stays there."""

import json
import math

import pytest
import torch
from families import LAB, tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from softprompt_nb.data import Example
from softprompt_nb.engine.inference import exact_match, generate, loss_on, score_options, target_logprobs
from softprompt_nb.load import load_lm
from softprompt_nb.prompts import SoftPrompt
from softprompt_nb.training.callbacks import Callback, EarlyStop, JSONLLog
from softprompt_nb.training.many import free_memory, kept_bytes, lanes_that_fit, tune_many
from softprompt_nb.training.step import Settings, prepare
from softprompt_nb.training.tuning import TuningDiverged, tune

EXAMPLES = [Example(c * 3, f" {c}!") for c in "abcdefghij"]
OTHERS = [Example(f"{c} and {c}", " yes it is"[: 3 + i]) for i, c in enumerate("klmnopq")]
_made = {}


def lm_of(name):
    if name not in _made:
        _made[name] = load_lm(name) if name in LAB else tiny(name)
    return _made[name]


def lane_settings():
    "Ragged in every way: lengths, tasks, seeds, rates, batches, steps, regularisers, places."
    return dict(
        n=[3, 7, 1, 12],
        data=[EXAMPLES, OTHERS, EXAMPLES[:4], OTHERS],
        seed=[0, 1, 2, 3],
        lr=[None, 0.01, None, 0.05],
        batch_size=[4, 8, 3, 5],
        steps=[12, 20, 9, 20],
        regularizer=[None, lambda v: 0.1 * v.square().sum(), None, lambda v: (v * torch.randn(len(v), 1)).sum() * 0.01],
        at=["start", "start", "before_answer", 1],
    )


def both_ways(lm, **kw):
    c = lane_settings()
    prompts = [SoftPrompt.init(lm, n, seed=n, at=at) for n, at in zip(c.pop("n"), c.pop("at"))]
    data = c.pop("data")
    many = tune_many(lm, prompts, data, valid=[OTHERS[:3]] * 4, eval_every=4, progress=False, **c, **kw)
    alone = [
        tune(lm, p, d, valid=OTHERS[:3], eval_every=4, progress=False, **{k: v[i] for k, v in c.items()})
        for i, (p, d) in enumerate(zip(prompts, data))
    ]
    return many, alone


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox", *LAB])
def test_a_lane_is_the_tuning_alone(name):
    for a, b in zip(*both_ways(lm_of(name))):
        assert list(a.history) == list(b.history) and len(a.history) == len(b.history)
        assert (a.history.loss - b.history.loss).abs().max() < 1e-4 and (
            a.history.valid - b.history.valid
        ).abs().max() < 1e-4
        assert (
            a.checkpoint_steps == b.checkpoint_steps
            and (a.trajectory - b.trajectory).abs().max() < 1e-3 * b.trajectory.abs().max()
        )
        assert a.record["prompt_of_step"] == b.record["prompt_of_step"] and a.prompt.at == b.prompt.at


@pytest.mark.parametrize("name", LAB)
def test_a_long_run_of_real_lanes_stays_with_the_tunings_alone(name):
    from softprompt_nb.lab.world import lab_task

    lm = lm_of(name)
    tasks = ["capital", "reverse", "opposite"]
    data = [lab_task(t).examples(32, split="train") for t in tasks]
    prompts = [SoftPrompt.init(lm, n, seed=n) for n in (10, 4, 16)]
    many = tune_many(lm, prompts, data, steps=80, batch_size=16, progress=False)
    for p, d, r in zip(prompts, data, many):
        assert (
            tune(lm, p, d, steps=80, batch_size=16, progress=False).history.loss - r.history.loss
        ).abs().max() < 1e-4


def test_lanes_in_a_queue_are_the_same_and_no_more_than_allowed():
    lm, seen = lm_of("gpt2"), []
    prompts = [SoftPrompt.init(lm, 2 + i, seed=i) for i in range(7)]
    steps = [5, 11, 3, 8, 8, 2, 6]

    class Count(Callback):
        live = 0

        def before_fit(self, t):
            Count.live += 1
            seen.append(Count.live)

        def after_fit(self, t):
            Count.live -= 1

    queued = tune_many(lm, prompts, EXAMPLES, steps=steps, max_lanes=3, callbacks=[Count()], progress=False)
    free = tune_many(lm, prompts, EXAMPLES, steps=steps, max_lanes=7, progress=False)
    assert max(seen) == 3 and Count.live == 0 and len(seen) == 7
    for a, b in zip(queued, free):
        assert (a.history.loss - b.history.loss).abs().max() < 1e-5


def test_diverging_failing_and_stopping_lanes_leave_the_others_untouched():
    lm = lm_of("llama")
    prompts = [SoftPrompt.init(lm, 4, seed=i) for i in range(5)]
    bad = prompts[1].vectors.clone()
    bad[0, 0] = math.inf

    def breaks(v):
        raise ZeroDivisionError("oh")

    class Breaks(Callback):
        def after_step(self, t):
            if t.step == 3:
                raise OSError("no such tracker")

    kw = dict(steps=10, batch_size=4, progress=False)
    with pytest.warns(
        UserWarning,
        match="3 of 5 lanes.*lane 1 diverged.*smaller lr.*lane 2 failed .ZeroDivisionError: oh.*lane 4 failed .OSError",
    ):
        many = tune_many(
            lm,
            [prompts[0], SoftPrompt(bad), *prompts[2:]],
            EXAMPLES,
            regularizer=[None, None, breaks, None, None],
            callbacks=lambda i: [EarlyStop(below=100.0)] if i == 3 else [Breaks()] if i == 4 else [],
            **kw,
        )
    alone = tune_many(lm, prompts[:1], EXAMPLES, **kw)[0]
    assert [r.record["outcome"] for r in many] == ["done", "diverged", "failed", "stopped", "failed"] and [
        len(r.history) for r in many
    ] == [10, 0, 0, 1, 3]
    assert (many[0].history.loss - alone.history.loss).abs().max() < 1e-5
    assert json.dumps(many[2].record, allow_nan=True) and "1 diverged" in repr(many) and len(many.table()) == 5


def test_an_error_of_the_model_keeps_what_was_done(monkeypatch):
    from softprompt_nb.training import step

    lm, real, calls = lm_of("gpt2"), step.prompted_losses, []

    def sometimes(*a):
        calls.append(1)
        if len(calls) == 7:
            raise RuntimeError("the driver went away")
        return real(*a)

    monkeypatch.setattr(step, "prompted_losses", sometimes)
    with pytest.warns(UserWarning, match="2 of 4 lanes.*the driver went away"):
        runs = tune_many(
            lm,
            [SoftPrompt.init(lm, 3, seed=i) for i in range(4)],
            EXAMPLES,
            steps=[5, 10, 10, 10],
            max_lanes=2,
            progress=False,
        )
    assert [r.record["outcome"] for r in runs] == ["done", "failed", "failed", "done"] and [
        len(r.history) for r in runs
    ] == [5, 6, 1, 10]


def test_lack_of_memory_sends_lanes_back_to_the_queue(monkeypatch):
    from softprompt_nb.training import step

    lm, real, widths = lm_of("gpt2"), step.prompted_losses, []

    def small(lm, prompts, *a):
        if len(prompts) > 2:
            raise torch.OutOfMemoryError("out of memory")
        widths.append(len(prompts))
        return real(lm, prompts, *a)

    prompts = [SoftPrompt.init(lm, 3, seed=i) for i in range(5)]
    noisy = lambda v: (v * torch.randn_like(v)).sum() * 0.01
    want = tune_many(lm, prompts, EXAMPLES, steps=6, regularizer=noisy, max_lanes=1, progress=False)
    monkeypatch.setattr(step, "prompted_losses", small)
    got = tune_many(lm, prompts, EXAMPLES, steps=6, regularizer=noisy, max_lanes=5, progress=False)
    assert set(widths) <= {1, 2} and all(
        (a.history.loss - b.history.loss).abs().max() < 1e-5 for a, b in zip(got, want)
    )
    monkeypatch.setattr(
        step, "prompted_losses", lambda *a: (_ for _ in ()).throw(torch.OutOfMemoryError("out of memory"))
    )
    with pytest.raises(torch.OutOfMemoryError):
        tune(lm, prompts[0], EXAMPLES, progress=False)


def test_the_number_of_lanes_follows_memory(monkeypatch):
    from softprompt_nb.training import many

    lm = lm_of("gpt2")
    lanes = [prepare(lm, SoftPrompt.init(lm, n), EXAMPLES, None, Settings(batch_size=4)) for n in (2, 30, 4)]
    small, large = kept_bytes(lm, lanes[0]), kept_bytes(lm, lanes[1])
    assert 1.5 * small < large and free_memory(lm.device) > 2**20
    for room, fit in ((10**12, 3), (2 * large * 2, 2), (1, 1)):
        monkeypatch.setattr(many, "free_memory", lambda d: room)
        assert lanes_that_fit(lm, lanes) == fit


class StopAt(Callback):
    def __init__(self, step):
        self.step = step

    def after_step(self, t):
        if t.step == self.step:
            raise KeyboardInterrupt


class Momentum:
    "A regulariser with a memory and with chance in it."

    def __init__(self):
        self.last = 0.0

    def __call__(self, v):
        x = (v * torch.randn_like(v)).sum() * 0.01 + 0.1 * self.last
        self.last = x.item()
        return x

    def state(self):
        return dict(last=self.last)

    def restore(self, state):
        self.last = state["last"]


@settings(max_examples=15, deadline=None)
@given(cut=st.lists(st.integers(1, 14), max_size=4), save_every=st.integers(1, 6), valid=st.booleans())
def test_a_tuning_cut_anywhere_is_the_whole_tuning_bit_for_bit(tmp_path_factory, cut, save_every, valid):
    lm, file = lm_of("gpt2"), tmp_path_factory.mktemp("state") / "a.safetensors"
    kw = dict(steps=14, batch_size=4, valid=OTHERS if valid else None, eval_every=3, progress=False)
    p = SoftPrompt.init(lm, 4)
    want = tune(lm, p, EXAMPLES, regularizer=Momentum(), **kw)
    for c in cut:
        tune(lm, p, EXAMPLES, regularizer=Momentum(), callbacks=[StopAt(c)], state=file, save_every=save_every, **kw)
    got = (
        tune(lm, p, EXAMPLES, regularizer=Momentum(), state=file, save_every=save_every, **kw)
        if not cut
        else tune(
            lm, p, EXAMPLES, regularizer=Momentum(), callbacks=[StopAt(99)], state=file, save_every=save_every, **kw
        )
    )
    assert (
        torch.equal(got.prompt.vectors, want.prompt.vectors)
        and got.history.equals(want.history)
        and torch.equal(got.trajectory, want.trajectory)
        and got.checkpoint_steps == want.checkpoint_steps
    )
    again = tune(lm, p, EXAMPLES, regularizer=Momentum(), state=file, **kw)
    assert again.history.equals(want.history) and torch.equal(again.prompt.vectors, want.prompt.vectors)


def test_watchers_and_logs_go_on_where_the_state_was(tmp_path):
    lm, p = lm_of("gpt2"), SoftPrompt.init(tiny("gpt2"), 4)
    log = tmp_path / "log.jsonl"
    kw = dict(steps=20, lr=1e-9, progress=False, save_every=3)
    watch = lambda *more: [EarlyStop(patience=9, min_delta=10.0), JSONLLog(log), *more]
    whole = tune(lm, p, EXAMPLES, callbacks=[EarlyStop(patience=9, min_delta=10.0)], **kw)
    tune(lm, p, EXAMPLES, callbacks=watch(StopAt(5)), state=tmp_path / "s", **kw)
    on = tune(lm, p, EXAMPLES, callbacks=watch(StopAt(99)), state=tmp_path / "s", **kw)
    assert on.record["ended"] == whole.record["ended"] and on.history.equals(whole.history)
    assert [json.loads(l)["step"] for l in log.read_text().splitlines()] == list(range(1, len(whole.history) + 1))


def test_a_state_of_another_tuning_is_refused(tmp_path):
    lm, p, file = lm_of("gpt2"), SoftPrompt.init(tiny("gpt2"), 4), tmp_path / "s"
    kw = dict(steps=4, progress=False, state=file)
    tune(lm, p, EXAMPLES, **kw)
    for change, words in (
        (dict(steps=6), "settings .steps 4 there, 6 here"),
        (dict(lr=0.3), "lr None there, 0.3 here"),
        (dict(regularizer=Momentum()), "regularizer"),
    ):
        with pytest.raises(ValueError, match=f"another tuning.*{words}"):
            tune(lm, p, EXAMPLES, **kw | change)
    with pytest.raises(ValueError, match="differ in data"):
        tune(lm, p, OTHERS, **kw)
    with pytest.raises(ValueError, match="differ in start"):
        tune(lm, SoftPrompt.init(lm, 4, seed=9), EXAMPLES, **kw)
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(ValueError, match="damaged"):
        tune(lm, p, EXAMPLES, **kw)


def test_a_diverged_tuning_is_not_tried_again(tmp_path):
    lm, calls = lm_of("gpt2"), []

    def explodes(v):
        calls.append(1)
        return v.sum() * (math.nan if len(calls) > 5 else 0.0)

    for _ in range(2):
        with pytest.raises(TuningDiverged, match="step 6") as e:
            tune(
                lm,
                SoftPrompt.init(lm, 4),
                EXAMPLES,
                steps=9,
                regularizer=explodes,
                state=tmp_path / "s",
                progress=False,
            )
    assert len(calls) == 6 and len(e.value.run.history) == 5


def test_a_full_disk_does_not_end_a_tuning(tmp_path, monkeypatch):
    from softprompt_nb.training import state

    def full(*a, **kw):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(state, "write_tensors", full)
    with pytest.warns(UserWarning, match="could not be written.*No space left"):
        run = tune(
            lm_of("gpt2"),
            SoftPrompt.init(lm_of("gpt2"), 4),
            EXAMPLES,
            steps=9,
            state=tmp_path / "s",
            save_every=2,
            progress=False,
        )
    assert run.record["outcome"] == "done"


def test_a_range_or_an_array_has_an_entry_for_each_lane(tmp_path):
    import numpy as np

    lm = lm_of("gpt2")
    runs = tune_many(
        lm,
        [SoftPrompt.init(lm, 3)] * 3,
        EXAMPLES,
        seed=range(3),
        lr=np.array([0.01, 0.02, 0.03]),
        steps=torch.tensor([2, 3, 4]),
        state=tmp_path,
        progress=False,
    )
    assert runs.table()[["seed", "lr", "steps_done"]].values.tolist() == [
        [0, 0.01, 2],
        [1, 0.02, 3],
        [2, 0.03, 4],
    ] and runs[1:].table().seed.tolist() == [1, 2]


def test_lanes_may_be_continued_one_by_one(tmp_path):
    lm = lm_of("gpt2")
    prompts = [SoftPrompt.init(lm, 3, seed=i) for i in range(4)]
    kw = dict(steps=[4, 12, 12, 12], max_lanes=2, save_every=4, progress=False)
    cut = tune_many(lm, prompts, EXAMPLES, state=tmp_path, callbacks=lambda i: [StopAt(6)] if i == 1 else [], **kw)
    assert [r.record["outcome"] for r in cut] == ["done", "interrupted", "interrupted", "interrupted"] and [
        r.record["steps_done"] for r in cut
    ] == [4, 6, 2, 0]
    on, whole = tune_many(lm, prompts, EXAMPLES, state=tmp_path, **kw), tune_many(lm, prompts, EXAMPLES, **kw)
    for a, b in zip(on, whole):
        assert len(a.history) == len(b.history) and (a.history.loss - b.history.loss).abs().max() < 1e-5


@pytest.mark.parametrize(
    "args,kw,words",
    [
        (([], EXAMPLES), {}, "no prompts"),
        ((3, [EXAMPLES] * 2), {}, "2 entries for 3 prompts"),
        ((2, EXAMPLES), dict(lr=[1.0, 2.0, 3.0]), "lr has 3 entries"),
        ((2, EXAMPLES), dict(max_lanes=0), "at least 1"),
        ((2, [EXAMPLES, []]), {}, "Lane 1: There are no examples"),
        ((2, EXAMPLES), dict(steps=[3, 0]), "at least 1"),
        ((2, [EXAMPLES, [Example("x" * 127, "y")]]), {}, "Lane 1: Row 0.*limit of 128"),
        ((2, EXAMPLES), dict(shared_prefix=[True, False]), "same for all lanes"),
    ],
)
def test_bad_arguments_are_refused(args, kw, words):
    lm, (n, data) = lm_of("gpt2"), args
    with pytest.raises(ValueError, match=words):
        tune_many(lm, [SoftPrompt.init(lm, 3)] * n if n else [], data, progress=False, **kw)
    with pytest.raises(ValueError, match="prompts is a SoftPrompt.*use tune"):
        tune_many(lm, SoftPrompt.init(lm, 3), EXAMPLES)
    with pytest.raises(TypeError, match="takes no stepz"):
        tune_many(lm, [SoftPrompt.init(lm, 3)], EXAMPLES, stepz=3)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox"])
def test_different_prompts_for_different_rows(name):
    lm = lm_of(name)
    ps = [
        SoftPrompt.init(lm, 3, seed=1),
        None,
        SoftPrompt.init(lm, 9, seed=2, at="before_answer"),
        SoftPrompt.init(lm, 5, seed=3, at=1),
        torch.randn(4, lm.d_model) * lm.scale,
    ]
    rows = [ps[i % 5] for i in range(12)]
    data = [(EXAMPLES + OTHERS)[i] for i in range(12)]
    total, count = target_logprobs(lm, rows, data, batch_size=5)
    texts = [e.input for e in data]
    said = generate(lm, rows, texts, 6, batch_size=5)
    scores = score_options(lm, rows, texts, [" a", " bcd"])
    for i, (p, e) in enumerate(zip(rows, data)):
        one, n = target_logprobs(lm, p, [e])
        assert (
            torch.isclose(one[0], total[i], rtol=1e-4)
            and n[0] == count[i]
            and said[i] == generate(lm, p, e.input, 6)[0]
        )
        assert torch.allclose(score_options(lm, p, [e.input], [" a", " bcd"])[0], scores[i], rtol=1e-4)
    assert loss_on(lm, rows, data).n == 12 and exact_match(lm, rows, data).n == 12
    with pytest.raises(ValueError, match="11 prompts for 12 rows"):
        loss_on(lm, rows[:11], data)


def test_different_prompts_fall_back_to_whole_rows_when_decoding():
    lm = tiny("llama")
    ps = [SoftPrompt.init(lm, 3, seed=1), SoftPrompt.init(lm, 9, seed=2)]
    want = generate(lm, ps, ["abc", "q"], 6)
    lm.plans = {(True, True, False, True, False): "head"}
    assert generate(lm, ps, ["abc", "q"], 6) == want
