"""Many prompts at once: each lane is what `tune` gives for it alone, and what happens in one stays there."""

import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from functools import cache, partial

from softprompt_nb.data import Example, encode_context
from softprompt_nb.engine.inference import exact_match, generate, loss_on, score_options, target_logprobs
from softprompt_nb.load import load_lm
from softprompt_nb.prompts import SoftPrompt
from softprompt_nb.tda.penalties import Signature, Weighted
from softprompt_nb.training.callbacks import Callback, EarlyStop, JSONLLog, Track
from softprompt_nb.training.many import free_memory, kept_bytes, lanes_that_fit, tune_many
from softprompt_nb.training.state import _held, belongs, load_state, save_state
from softprompt_nb.training.step import Settings, prepare
from softprompt_nb.training.tuning import TuningDiverged, tune

import pytest
import torch
from families import LAB, tiny
from hypothesis import given, settings
from hypothesis import strategies as st

EXAMPLES = [Example(letter * 3, f" {letter}!") for letter in "abcdefghij"]
OTHERS = [Example(f"{letter} and {letter}", " yes it is"[: 3 + i]) for i, letter in enumerate("klmnopq")]


@cache
def lm_of(name, dtype=torch.float32):
    return load_lm(name, dtype=dtype) if name in LAB else tiny(name, dtype=dtype)


def _norm(layer, x):
    return torch.nn.functional.rms_norm(x, x.shape[-1:], layer.weight, layer.variance_epsilon)


@cache
def exact(name):
    "A model in float64 through and through: some architectures normalise in float32 whatever the dtype."
    lm = lm_of(name, torch.float64)
    for module in lm.model.modules():
        if type(module).__name__ == "LlamaRMSNorm":
            module.forward = partial(_norm, module)
    return lm


def gap(run, other, column="loss"):
    "The largest difference between two histories."
    return (run.history[column] - other.history[column]).abs().max()


def same(run, other):
    "Are two runs in float64 the same numbers, but for the order of sums?"
    assert list(run.history) == list(other.history) and len(run.history) == len(other.history)
    assert run.trajectory.dtype == other.trajectory.dtype == torch.float64
    assert run.checkpoint_steps == other.checkpoint_steps
    columns = [name for name in run.history if name != "step"]
    worst = max(gap(run, other, name) for name in columns)
    moved = (run.trajectory - other.trajectory).abs().max().item()
    return (len(run.history) == 0 or worst < 1e-9) and moved < 1e-9


def lane_settings():
    "Ragged in every way: lengths, tasks, seeds, rates, batches, steps, regularisers, places."
    return dict(
        n=[3, 7, 1, 12],
        data=[EXAMPLES, OTHERS, EXAMPLES[:4], OTHERS],
        seed=[0, 1, 2, 3],
        lr=[None, 0.01, None, 0.05],
        batch_size=[4, 8, 3, 5],
        steps=[12, 20, 9, 20],
        regularizer=[
            None,
            lambda vectors: 0.1 * vectors.square().sum(),
            None,
            lambda vectors: (vectors * torch.randn(len(vectors), 1)).sum() * 0.01,
        ],
        at=["start", "start", "before_answer", 1],
    )


def both_ways(lm, **options):
    "The same four lanes trained together, and one by one."
    columns = lane_settings()
    places = zip(columns.pop("n"), columns.pop("at"))
    prompts = [SoftPrompt.init(lm, n, seed=n, at=at) for n, at in places]
    data = columns.pop("data")
    fixed = dict(eval_every=4, progress=False)
    many = tune_many(lm, prompts, data, valid=[OTHERS[:3]] * 4, **fixed, **columns, **options)
    alone = []
    for i, (prompt, examples) in enumerate(zip(prompts, data)):
        chosen = {name: values[i] for name, values in columns.items()}
        alone.append(tune(lm, prompt, examples, valid=OTHERS[:3], **fixed, **chosen))
    return many, alone


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox", *LAB])
def test_a_lane_is_the_tuning_alone(name):
    for lane, alone in zip(*both_ways(exact(name))):
        assert same(lane, alone)
        assert lane.record["prompt_of_step"] == alone.record["prompt_of_step"]
        assert lane.prompt.at == alone.prompt.at


@pytest.mark.parametrize("name", LAB)
def test_a_long_run_of_real_lanes_stays_with_the_tunings_alone(name):
    from softprompt_nb.lab.world import lab_task

    lm = exact(name)
    data = [lab_task(task).examples(32, split="train") for task in ("capital", "reverse", "opposite")]
    prompts = [SoftPrompt.init(lm, n, seed=n) for n in (10, 4, 16)]
    options = dict(steps=80, batch_size=16, progress=False)
    many = tune_many(lm, prompts, data, **options)
    for prompt, examples, lane in zip(prompts, data, many):
        assert same(lane, tune(lm, prompt, examples, **options))


def test_lanes_in_a_queue_are_the_same_and_no_more_than_allowed():
    lm, seen = exact("gpt2"), []
    prompts = [SoftPrompt.init(lm, 2 + i, seed=i) for i in range(7)]
    steps = [5, 11, 3, 8, 8, 2, 6]

    class Count(Callback):
        live = 0

        def before_fit(self, tuning):
            Count.live += 1
            seen.append(Count.live)

        def after_fit(self, tuning):
            Count.live -= 1

    queued = tune_many(lm, prompts, EXAMPLES, steps=steps, max_lanes=3, callbacks=[Count()], progress=False)
    free = tune_many(lm, prompts, EXAMPLES, steps=steps, max_lanes=7, progress=False)
    assert max(seen) == 3 and Count.live == 0 and len(seen) == 7
    assert all(same(lane, other) for lane, other in zip(queued, free))


class NoBetter(Callback):
    "Stops where the loss has not fallen for some steps; all it knows is in a list."

    def __init__(self, lm):
        self.lm, self.losses = lm, []

    def after_step(self, tuning):
        assert tuning.lm is self.lm
        self.losses.append(tuning.row["loss"])
        if len(self.losses) >= 10 and self.losses[-1] > min(self.losses[:-5]):
            tuning.stop = "no better"


def test_a_watcher_with_a_list_has_one_in_each_lane():
    lm = exact("llama")
    starts = [SoftPrompt.init(lm, 3, seed=i) for i in range(3)]
    options = dict(steps=30, batch_size=4, progress=False)
    alone = [tune(lm, start, EXAMPLES, callbacks=[NoBetter(lm)], **options) for start in starts]
    watcher = NoBetter(lm)
    many = tune_many(lm, starts, EXAMPLES, callbacks=[watcher], **options)
    assert all(same(lane, run) for lane, run in zip(many, alone)) and not watcher.losses
    assert len({len(run.history) for run in alone}) > 1  # so that stopping is seen at all


def test_a_watcher_that_cannot_be_copied_is_named_and_a_tracker_is_not_copied():
    lm = lm_of("gpt2")
    starts = [SoftPrompt.init(lm, 2, seed=i) for i in range(2)]
    watcher = NoBetter(lm)
    watcher.file = (i for i in range(3))
    with pytest.raises(ValueError, match="NoBetter cannot be copied .*lambda lane"):
        tune_many(lm, starts, EXAMPLES, steps=2, callbacks=[watcher], progress=False)

    class Rows(list):
        log = list.append

    rows = Rows()
    tune_many(lm, starts, EXAMPLES, steps=2, callbacks=[Track(rows)], progress=False)
    assert len(rows) == 4


class Quoting(Callback):
    "A watcher that turns its tuning's regulariser up by what that remembers."

    def __init__(self, term):
        self.term = term

    def after_step(self, tuning):
        assert tuning.regularizer is self.term
        self.term.last += tuning.row["loss"]


def test_one_regulariser_with_a_memory_is_one_in_each_lane():
    lm = exact("llama")
    starts = [SoftPrompt.init(lm, 3, seed=i) for i in range(3)]
    options = dict(steps=6, batch_size=4, seed=0, progress=False)
    term = Momentum()
    plain = [tune(lm, start, EXAMPLES, regularizer=Momentum(), **options) for start in starts]
    for regularizer in (term, [term] * 3):
        many = tune_many(lm, starts, EXAMPLES, regularizer=regularizer, **options)
        assert all(same(lane, run) for lane, run in zip(many, plain))
    inner = tune_many(lm, starts, EXAMPLES, regularizer=Weighted(term, weight=1.0), **options)
    want = [tune(lm, start, EXAMPLES, regularizer=Weighted(Momentum(), weight=1.0), **options) for start in starts]
    assert all(same(lane, run) for lane, run in zip(inner, want)) and term.last == 0.0
    watched = []
    for start in starts:
        own = Momentum()
        watched.append(tune(lm, start, EXAMPLES, regularizer=own, callbacks=[Quoting(own)], **options))
    many = tune_many(lm, starts, EXAMPLES, regularizer=term, callbacks=[Quoting(term)], **options)
    assert all(same(lane, run) for lane, run in zip(many, watched)) and term.last == 0.0
    terms = [Momentum() for _ in starts]  # these are each lane's own already
    many = tune_many(lm, starts, EXAMPLES, regularizer=terms, callbacks=lambda lane: [Quoting(terms[lane])], **options)
    assert all(same(lane, run) for lane, run in zip(many, watched)) and all(own.last for own in terms)
    with pytest.raises(ValueError, match="Quoting has the regulariser of all lanes.*a list with one"):
        tune_many(lm, starts, EXAMPLES, regularizer=term, callbacks=lambda lane: [Quoting(term)], **options)


def test_a_regulariser_that_cannot_be_copied_is_named_and_models_in_it_are_not_copied():
    lm = lm_of("gpt2")
    starts = [SoftPrompt.init(lm, 2, seed=i) for i in range(2)]
    seen = []

    class Judged:
        judge = None

        def __call__(self, vectors):
            seen.append(self.judge)
            return vectors.square().sum()

    term = Judged()
    term.judge = lm_of("llama")
    tune_many(lm, starts, EXAMPLES, steps=1, regularizer=term, progress=False)
    assert len(seen) == 2 and all(judge is lm_of("llama") for judge in seen)
    term.file = (i for i in range(3))
    with pytest.raises(ValueError, match="Judged cannot be copied .*a list with one of its own"):
        tune_many(lm, starts, EXAMPLES, steps=1, regularizer=term, progress=False)


def test_diverging_failing_and_stopping_lanes_leave_the_others_untouched():
    lm = exact("llama")
    prompts = [SoftPrompt.init(lm, 4, seed=i) for i in range(5)]
    bad = prompts[1].vectors.clone()
    bad[0, 0] = math.inf

    def breaks(vectors):
        raise ZeroDivisionError("oh")

    class Breaks(Callback):
        def after_step(self, tuning):
            if tuning.step == 3:
                raise OSError("no such tracker")

    watchers = {3: [EarlyStop(below=100.0)], 4: [Breaks()]}
    options = dict(steps=10, batch_size=4, progress=False)
    words = "3 of 5 lanes.*lane 1 diverged.*smaller lr.*lane 2 failed .ZeroDivisionError: oh.*lane 4 failed .OSError"
    with pytest.warns(UserWarning, match=words):
        many = tune_many(
            lm,
            [prompts[0], SoftPrompt(bad), *prompts[2:]],
            EXAMPLES,
            regularizer=[None, None, breaks, None, None],
            callbacks=lambda lane: watchers.get(lane, []),
            **options,
        )
    alone = tune(lm, prompts[0], EXAMPLES, **options)
    assert outcomes(many) == ["done", "diverged", "failed", "stopped", "failed"]
    assert [len(run.history) for run in many] == [10, 0, 0, 1, 3]
    assert same(many[0], alone)
    assert json.dumps(many[2].record, allow_nan=True)
    assert "1 diverged" in repr(many) and len(many.table()) == 5


def outcomes(runs):
    return [run.record["outcome"] for run in runs]


def test_an_error_of_the_model_keeps_what_was_done(monkeypatch):
    from softprompt_nb.training import step

    lm, real, calls = lm_of("gpt2"), step.prompted_losses, []

    def sometimes(*args):
        calls.append(1)
        if 7 <= len(calls) <= 9:  # the pass of both lanes, and that of each by itself
            raise RuntimeError("the driver went away")
        return real(*args)

    monkeypatch.setattr(step, "prompted_losses", sometimes)
    prompts = [SoftPrompt.init(lm, 3, seed=i) for i in range(4)]
    with pytest.warns(UserWarning, match="2 of 4 lanes.*the driver went away"):
        runs = tune_many(lm, prompts, EXAMPLES, steps=[5, 10, 10, 10], max_lanes=2, progress=False)
    assert outcomes(runs) == ["done", "failed", "failed", "done"]
    assert [len(run.history) for run in runs] == [5, 6, 1, 10]


def test_lack_of_memory_sends_lanes_back_to_the_queue(monkeypatch):
    from softprompt_nb.training import step

    lm, real, widths = exact("gpt2"), step.prompted_losses, []

    def small(lm, prompts, *args):
        if len(prompts) > 2:
            raise torch.OutOfMemoryError("out of memory")
        widths.append(len(prompts))
        return real(lm, prompts, *args)

    def none(*args):
        raise torch.OutOfMemoryError("out of memory")

    def noisy(vectors):
        return (vectors * torch.randn_like(vectors)).sum() * 0.01

    prompts = [SoftPrompt.init(lm, 3, seed=i) for i in range(5)]
    want = tune_many(lm, prompts, EXAMPLES, steps=6, regularizer=noisy, max_lanes=1, progress=False)
    monkeypatch.setattr(step, "prompted_losses", small)
    found = tune_many(lm, prompts, EXAMPLES, steps=6, regularizer=noisy, max_lanes=5, progress=False)
    assert set(widths) <= {1, 2}
    assert all(same(lane, other) for lane, other in zip(found, want))
    monkeypatch.setattr(step, "prompted_losses", none)
    monkeypatch.setattr(step, "target_losses", none)
    with pytest.warns(UserWarning, match="8 rows do not fit"), pytest.raises(torch.OutOfMemoryError):
        tune(lm, prompts[0], EXAMPLES, progress=False)


def test_the_number_of_lanes_follows_memory(monkeypatch):
    from softprompt_nb.training import many

    lm = lm_of("gpt2")
    lanes = [prepare(lm, SoftPrompt.init(lm, n), EXAMPLES, None, Settings(batch_size=4)) for n in (2, 30, 4)]
    small, large = kept_bytes(lm, lanes[0]), kept_bytes(lm, lanes[1])
    assert 1.5 * small < large and free_memory(lm.device) > 2**20
    for room, fit in ((10**12, 3), (2 * large * 2, 2), (1, 1)):
        monkeypatch.setattr(many, "free_memory", lambda device, room=room: room)
        assert lanes_that_fit(lm, lanes) == fit


class StopAt(Callback):
    def __init__(self, step):
        self.step = step

    def after_step(self, tuning):
        if tuning.step == self.step:
            raise KeyboardInterrupt


class Momentum:
    "A regulariser with a memory and with chance in it."

    def __init__(self):
        self.last = 0.0

    def __call__(self, vectors):
        pull = (vectors * torch.randn_like(vectors)).sum() * 0.01 + 0.1 * self.last
        self.last = pull.item()
        return pull

    def state(self):
        return dict(last=self.last)

    def restore(self, state):
        self.last = state["last"]


@settings(max_examples=15, deadline=None)
@given(cut=st.lists(st.integers(1, 14), max_size=4), save_every=st.integers(1, 6), valid=st.booleans())
def test_a_tuning_cut_anywhere_is_the_whole_tuning(tmp_path_factory, cut, save_every, valid):
    file = tmp_path_factory.mktemp("state") / "a.safetensors"
    options = dict(valid=OTHERS if valid else None, save_every=save_every)
    want = remembering("gpt2", **options)
    for step in cut:
        remembering("gpt2", callbacks=[StopAt(step)], state=file, **options)
    assert same(remembering("gpt2", state=file, **options), want)
    assert same(remembering("gpt2", state=file, **options), want)  # it is at its end, and its file says so


def test_a_tuning_goes_on_bit_for_bit(tmp_path):
    file = tmp_path / "a.safetensors"
    want = remembering("gpt2")
    remembering("gpt2", callbacks=[StopAt(9)], state=file, save_every=4)
    found = remembering("gpt2", state=file, save_every=4)
    assert torch.equal(found.prompt.vectors, want.prompt.vectors)
    assert found.history.equals(want.history)
    assert torch.equal(found.trajectory, want.trajectory)


def remembering(name, **options):
    "Fourteen steps with a regulariser that has a memory and draws numbers."
    lm = exact(name)
    fixed = dict(steps=14, batch_size=4, eval_every=3, progress=False, regularizer=Momentum())
    return tune(lm, SoftPrompt.init(lm, 4), EXAMPLES, **fixed, **options)


def test_watchers_and_logs_go_on_where_the_state_was(tmp_path):
    lm = exact("gpt2")
    start = SoftPrompt.init(lm, 4)
    log = tmp_path / "log.jsonl"
    options = dict(steps=20, lr=1e-9, progress=False, save_every=3)

    def watchers(*more):
        return [EarlyStop(patience=9, min_delta=10.0), *more]

    whole = tune(lm, start, EXAMPLES, callbacks=watchers(), **options)
    for step in (5, 99):
        callbacks = watchers(JSONLLog(log), StopAt(step))
        resumed = tune(lm, start, EXAMPLES, callbacks=callbacks, state=tmp_path / "s", **options)
    assert resumed.record["ended"] == whole.record["ended"]
    assert same(resumed, whole)
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert steps == list(range(1, len(whole.history) + 1))


def steps_of(log, **at):
    "Steps of a log's lines that have some values."
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    return [row["step"] for row in rows if at.items() <= row.items()]


def test_a_log_that_others_write_into_loses_none_of_their_lines(tmp_path):
    lm = exact("gpt2")
    start, log = SoftPrompt.init(lm, 4), tmp_path / "log.jsonl"

    def first(*more, **options):
        callbacks = [JSONLLog(log), *more]
        return tune(lm, start, EXAMPLES, steps=6, progress=False, callbacks=callbacks, state=tmp_path / "s", **options)

    first(StopAt(5), save_every=2)  # cut behind the state of step 4
    tune(lm, start, OTHERS, steps=3, progress=False, callbacks=[JSONLLog(log)])
    for _ in range(2):  # it goes on, and is asked for again once it is done
        first(save_every=2)
        assert steps_of(log) == [1, 2, 3, 4, 5, 1, 2, 3, 6]
    tune(lm, start, OTHERS, steps=2, progress=False, callbacks=[JSONLLog(log)])
    before = log.read_text()
    first(save_every=2)
    assert log.read_text() == before


def test_a_line_that_was_cut_by_a_kill_is_written_whole(tmp_path):
    lm, log = exact("gpt2"), tmp_path / "log.jsonl"
    options = dict(steps=6, progress=False, state=tmp_path / "s", save_every=2)
    tune(lm, SoftPrompt.init(lm, 4), EXAMPLES, callbacks=[JSONLLog(log), StopAt(5)], **options)
    log.write_bytes(log.read_bytes()[:-9])
    tune(lm, SoftPrompt.init(lm, 4), EXAMPLES, callbacks=[JSONLLog(log)], **options)
    assert steps_of(log) == [1, 2, 3, 4, 5, 6]


def test_lanes_with_one_log_or_tracker_say_which_they_are(tmp_path):
    lm, log, kept, scalars = lm_of("gpt2"), tmp_path / "log.jsonl", [], []

    class Writer:
        add_scalar = staticmethod(lambda *told: scalars.append(told))

    class Tracker:
        log = staticmethod(kept.append)

    starts = [SoftPrompt.init(lm, 2, seed=i) for i in range(3)]
    callbacks = [JSONLLog(log), Track(Tracker()), Track(Writer())]
    runs = tune_many(lm, starts, EXAMPLES, steps=2, callbacks=callbacks, progress=False)
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    for lane, run in enumerate(runs):
        of_lane = [row for row in rows if row["lane"] == lane]
        assert [row["loss"] for row in of_lane] == list(run.history.loss)
        assert [row["loss"] for row in kept if row["lane"] == lane] == list(run.history.loss)
        assert [value for name, value, _ in scalars if name == f"loss/lane {lane}"] == list(run.history.loss)
    assert len(rows) == 6


def test_logs_have_the_loss_on_valid_of_the_step_where_it_stops(tmp_path):
    lm, log, kept = lm_of("gpt2"), tmp_path / "log.jsonl", []

    class Tracker:
        log = staticmethod(kept.append)

    callbacks = [JSONLLog(log), Track(Tracker()), EarlyStop(below=100.0)]
    run = tune(lm, SoftPrompt.init(lm, 2), EXAMPLES, valid=OTHERS, callbacks=callbacks, progress=False)
    (line,) = log.read_text().splitlines()
    assert json.loads(line)["valid"] == run.history.valid[0] == kept[-1]["valid"] and len(kept) == 2


def test_a_state_of_another_tuning_is_refused(tmp_path):
    lm, file = lm_of("gpt2"), tmp_path / "s"
    start = SoftPrompt.init(lm, 4)
    options = dict(steps=4, progress=False, state=file)
    tune(lm, start, EXAMPLES, **options)
    for change, words in (
        (dict(steps=6), "settings .steps 4 there, 6 here"),
        (dict(lr=0.3), "lr None there, 0.3 here"),
        (dict(regularizer=Momentum()), "regularizer"),
    ):
        with pytest.raises(ValueError, match=f"another tuning.*{words}"):
            tune(lm, start, EXAMPLES, **options | change)
    with pytest.raises(ValueError, match="differ in data"):
        tune(lm, start, OTHERS, **options)
    with pytest.raises(ValueError, match="differ in start"):
        tune(lm, SoftPrompt.init(lm, 4, seed=9), EXAMPLES, **options)
    with pytest.raises(ValueError, match="differ in start"):  # the same start in float64 is another tuning
        tune(exact("gpt2"), SoftPrompt(start.vectors.double()), EXAMPLES, **options)
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(ValueError, match="damaged"):
        tune(lm, start, EXAMPLES, **options)


def test_a_diverged_tuning_is_not_tried_again(tmp_path):
    lm, calls = lm_of("gpt2"), []

    def explodes(vectors):
        calls.append(1)
        return vectors.sum() * (math.nan if len(calls) > 5 else 0.0)

    options = dict(steps=9, regularizer=explodes, state=tmp_path / "s", progress=False)
    for _ in range(2):
        with pytest.raises(TuningDiverged, match="step 6") as caught:
            tune(lm, SoftPrompt.init(lm, 4), EXAMPLES, **options)
    assert len(calls) == 6 and len(caught.value.run.history) == 5


class StopsAt(Callback):
    "Asks to stop at a step, and keeps no state."

    def __init__(self, step):
        self.at = step

    def after_step(self, tuning):
        if tuning.step == self.at:
            tuning.stop = "as it was told"


@pytest.mark.parametrize("valid", [None, OTHERS])
@pytest.mark.parametrize("watch", [EarlyStop(below=100.0), StopsAt(5)])
def test_a_tuning_that_a_callback_stopped_goes_on_without_it(watch, valid, tmp_path):
    options = dict(valid=valid, save_every=4)
    whole = remembering("gpt2", **options)
    file, log = tmp_path / "s", tmp_path / "log.jsonl"
    cut = remembering("gpt2", callbacks=[watch, JSONLLog(log)], state=file, **options)
    assert cut.record["outcome"] == "stopped" and len(cut.history) < 14
    again = remembering("gpt2", callbacks=[watch, JSONLLog(log)], state=file, **options)
    assert same(again, cut) and again.record["ended"] == cut.record["ended"]
    assert torch.equal(again.prompt.vectors, cut.prompt.vectors)
    for _ in range(2):  # it goes on, and is asked for again once it is done
        found = remembering("gpt2", callbacks=[JSONLLog(log)], state=file, **options)
        assert same(found, whole) and found.record["outcome"] == "done"
        assert found.record["prompt_of_step"] == whole.record["prompt_of_step"]
        assert torch.equal(found.prompt.vectors, whole.prompt.vectors)
    assert steps_of(log) == list(range(1, 15))


def test_a_tuning_that_a_callback_stopped_stops_there_where_the_callback_still_does(tmp_path):
    lm, start = exact("gpt2"), SoftPrompt.init(exact("gpt2"), 4)
    options = dict(steps=20, lr=1e-9, progress=False, state=tmp_path / "s")

    def steps(*callbacks):
        run = tune(lm, start, EXAMPLES, callbacks=callbacks, **options)
        return len(run.history), run.record["outcome"]

    assert steps(EarlyStop(patience=4, min_delta=10.0)) == (5, "stopped")
    assert steps(EarlyStop(patience=3, min_delta=10.0)) == (5, "stopped")
    assert steps(EarlyStop(patience=7, min_delta=10.0)) == (8, "stopped")
    assert steps(StopsAt(11), EarlyStop(patience=30)) == (11, "stopped")
    assert steps(StopsAt(11)) == (11, "stopped") and steps(StopsAt(13)) == (13, "stopped")
    assert steps(StopsAt(20)) == steps(StopsAt(20)) == (20, "stopped") and steps() == (20, "done")
    many = tune_many(lm, [start], EXAMPLES, steps=6, progress=False, state=tmp_path / "m", callbacks=[StopsAt(3)])
    assert len(many[0].history) == 3
    many = tune_many(lm, [start], EXAMPLES, steps=6, progress=False, state=tmp_path / "m")
    assert same(many[0], tune(lm, start, EXAMPLES, steps=6, progress=False))


def test_a_full_disk_does_not_end_a_tuning(tmp_path, monkeypatch):
    from softprompt_nb.training import state

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(state, "write_tensors", full)
    lm = lm_of("gpt2")
    options = dict(steps=9, state=tmp_path / "s", save_every=2, progress=False)
    with pytest.warns(UserWarning, match="could not be written.*No space left"):
        run = tune(lm, SoftPrompt.init(lm, 4), EXAMPLES, **options)
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
    table = runs.table()[["seed", "lr", "steps_done"]]
    assert table.values.tolist() == [[0, 0.01, 2], [1, 0.02, 3], [2, 0.03, 4]]
    assert runs[1:].table().seed.tolist() == [1, 2]


def test_lanes_may_be_continued_one_by_one(tmp_path):
    lm = exact("gpt2")
    prompts = [SoftPrompt.init(lm, 3, seed=i) for i in range(4)]
    options = dict(steps=[4, 12, 12, 12], max_lanes=2, save_every=4, progress=False)

    def stops_lane_1(lane):
        return [StopAt(6)] if lane == 1 else []

    cut = tune_many(lm, prompts, EXAMPLES, state=tmp_path, callbacks=stops_lane_1, **options)
    assert outcomes(cut) == ["done", "interrupted", "interrupted", "interrupted"]
    assert [run.record["steps_done"] for run in cut] == [4, 6, 2, 0]
    resumed = tune_many(lm, prompts, EXAMPLES, state=tmp_path, **options)
    whole = tune_many(lm, prompts, EXAMPLES, **options)
    assert all(same(lane, other) for lane, other in zip(resumed, whole))


@pytest.mark.parametrize(
    "args, options, words",
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
def test_bad_arguments_are_refused(args, options, words):
    lm = lm_of("gpt2")
    lanes, data = args
    prompts = [SoftPrompt.init(lm, 3)] * lanes if lanes else []
    with pytest.raises(ValueError, match=words):
        tune_many(lm, prompts, data, progress=False, **options)
    with pytest.raises(ValueError, match="prompts is a SoftPrompt.*use tune"):
        tune_many(lm, SoftPrompt.init(lm, 3), EXAMPLES)
    with pytest.raises(TypeError, match="takes no stepz"):
        tune_many(lm, [SoftPrompt.init(lm, 3)], EXAMPLES, stepz=3)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox"])
def test_different_prompts_for_different_rows(name):
    lm = exact(name)
    kinds = [
        SoftPrompt.init(lm, 3, seed=1),
        None,
        SoftPrompt.init(lm, 9, seed=2, at="before_answer"),
        SoftPrompt.init(lm, 5, seed=3, at=1),
        torch.randn(4, lm.d_model) * lm.scale,
    ]
    prompts = [kinds[i % 5] for i in range(12)]
    data = (EXAMPLES + OTHERS)[:12]
    texts = [example.input for example in data]
    options = [" a", " bcd"]
    total, count = target_logprobs(lm, prompts, data, batch_size=5)
    answers = generate(lm, prompts, texts, 6, batch_size=5)
    scores = score_options(lm, prompts, texts, options)
    for i, (prompt, text) in enumerate(zip(prompts, texts)):
        alone, tokens = target_logprobs(lm, prompt, [data[i]])
        assert torch.isclose(alone[0], total[i], rtol=1e-9, atol=0) and tokens[0] == count[i]
        assert answers[i] == generate(lm, prompt, text, 6)[0]
        assert torch.allclose(score_options(lm, prompt, [text], options)[0], scores[i], rtol=1e-9, atol=0)
    assert loss_on(lm, prompts, data).n == 12 and exact_match(lm, prompts, data).n == 12
    with pytest.raises(ValueError, match="11 prompts for 12 rows"):
        loss_on(lm, prompts[:11], data)


def test_different_prompts_fall_back_to_whole_rows_when_decoding():
    lm = tiny("llama")
    prompts = [SoftPrompt.init(lm, 3, seed=1), SoftPrompt.init(lm, 9, seed=2)]
    want = generate(lm, prompts, ["abc", "q"], 6)
    assert "cached" in lm.plans.values()
    lm.plans = dict.fromkeys(lm.plans, "plain")
    assert generate(lm, prompts, ["abc", "q"], 6) == want


def pull(weight):
    def term(vectors):
        return weight * vectors.square().sum()

    return term


class Pull:
    def __init__(self, goal):
        self.goal, self.calls = goal, 0

    def __call__(self, vectors):
        self.calls += 1
        return (vectors - self.goal).square().sum()


def scaled(vectors, weight):
    return weight * vectors.square().sum()


@pytest.mark.parametrize(
    "term",
    [
        pull,
        lambda weight: Pull(torch.full((2, 32), weight)),
        lambda weight: partial(scaled, weight=weight),
        lambda weight: lambda vectors, weight=weight: scaled(vectors, weight),
    ],
)
def test_a_state_belongs_to_the_numbers_that_a_regulariser_holds(term, tmp_path):
    lm = lm_of("llama")
    start, options = SoftPrompt.init(lm, 2), dict(steps=6, batch_size=4, progress=False)
    file = dict(state=tmp_path / "s", save_every=1)
    tune(lm, start, EXAMPLES, **file, regularizer=term(0.5), callbacks=[StopAt(3)], **options)
    with pytest.raises(ValueError, match="differ in regularizer_values"):
        tune(lm, start, EXAMPLES, **file, regularizer=term(2.0), **options)
    resumed = tune(lm, start, EXAMPLES, **file, regularizer=term(0.5), **options)
    whole = tune(lm, start, EXAMPLES, regularizer=term(0.5), **options)
    assert torch.equal(resumed.prompt.vectors, whole.prompt.vectors)


def test_a_state_belongs_to_number_format_template_and_configuration(tmp_path):
    lm, coarse = tiny("llama"), tiny("llama", dtype=torch.bfloat16)
    options = dict(steps=2, batch_size=4, progress=False, state=tmp_path / "s")
    lm.tokenizer.chat_template = "{% for m in messages %}<u>{{m.content}}{% endfor %}<a>"
    start = SoftPrompt.init(lm, 2, at="chat")
    tune(lm, start, EXAMPLES, **options)
    lm.tokenizer.chat_template = "{% for m in messages %}Q {{m.content}}{% endfor %} A"
    with pytest.raises(ValueError, match="differ in chat_template"):
        tune(lm, start, EXAMPLES, **options)
    options["state"] = tmp_path / "t"
    tune(lm, SoftPrompt(start.vectors), EXAMPLES, **options)
    with pytest.raises(ValueError, match="differ in .*dtype"):
        tune(coarse, SoftPrompt(start.vectors), EXAMPLES, **options)
    other = tiny("llama")
    other.model.config.rms_norm_eps = 0.5
    with pytest.raises(ValueError, match="differ in configuration"):
        tune(other, SoftPrompt(start.vectors), EXAMPLES, **options)


def test_a_state_belongs_to_the_tokens_that_its_texts_had(tmp_path):
    lm = tiny("llama")
    options = dict(steps=2, batch_size=4, progress=False, valid=EXAMPLES[:2], state=tmp_path / "s")
    start = SoftPrompt.init(lm, 2)
    tune(lm, start, EXAMPLES, **options)
    other = tiny("llama", bos=True)  # the same weights
    with pytest.raises(ValueError, match="differ in tokens, valid_tokens"):
        tune(other, SoftPrompt(start.vectors), EXAMPLES, **options)


def test_rows_with_an_encoded_input_have_a_state(tmp_path):
    lm = tiny("llama")
    rows = [Example(encode_context(lm, example.input), example.target) for example in EXAMPLES]
    options = dict(steps=2, batch_size=4, progress=False, state=tmp_path / "s")
    start = SoftPrompt.init(lm, 2)
    whole = tune(lm, start, rows, **options)
    assert torch.equal(tune(lm, start, rows, **options).prompt.vectors, whole.prompt.vectors)


@dataclass
class Near:
    goal: torch.Tensor

    def __call__(self, vectors):
        return (vectors - self.goal).square().mean()


def near(middle):
    goal = torch.zeros(40, 32)
    goal[10:30] = middle  # which repr leaves out
    return Near(goal)


def documented(weight):
    "Functions that differ in what is written in them alone."

    def one(vectors):
        "A text."
        return sum(1.0 * vector.norm() for vector in vectors)

    def other(vectors):
        "Another text."
        return sum(100.0 * vector.norm() for vector in vectors)

    other.__qualname__ = one.__qualname__
    return one if weight == 1 else other


LAMBDAS = {
    "operator": lambda weight: (lambda v: v.mean() + 2) if weight == 1 else (lambda v: v.mean() * 2),
    "tuple": lambda weight: (
        (lambda v: sum(w * v.norm() for w in (1.0, 2.0)))
        if weight == 1
        else (lambda v: sum(w * v.norm() for w in (3.0, 4.0)))
    ),
    "text": lambda weight: (lambda v: v.norm("fro")) if weight == 1 else (lambda v: v.norm("nuc")),
    "text in a generator": lambda weight: (
        (lambda v: sum(x[None].norm("fro") for x in v))
        if weight == 1
        else (lambda v: sum(x[None].norm("nuc") for x in v))
    ),
    "method in a generator": lambda weight: (
        (lambda v: sum(x.norm() for x in v)) if weight == 1 else (lambda v: sum(x.mean() for x in v))
    ),
}


def doubled(vectors):
    return vectors.norm() * 2


def tripled(vectors):
    return vectors.norm() * 3


def through(vectors):
    return doubled(vectors)


def helper(weight, monkeypatch):
    "A function that another one calls calls another."
    monkeypatch.undo()
    if weight == 2:
        monkeypatch.setattr(sys.modules[__name__], "doubled", tripled)
    return lambda vectors: through(vectors)


def kind_of(weight):
    "Objects whose classes differ in a method, or in a number, alone."

    class One:
        def __call__(self, vectors):
            return self.value(vectors)

        def value(self, vectors):
            return vectors.norm() * 2

    class Other(One):
        def value(self, vectors):
            return vectors.norm() * 3

    Other.__qualname__ = One.__qualname__
    return (One if weight == 1 else Other)()


def strength_of(weight):
    class One:
        strength = weight

        def __call__(self, vectors):
            return vectors.norm() * self.strength

    return One()


WEIGHTS = [1.0, 2.0]


def listed(weight, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "WEIGHTS", [1.0, float(weight)])
    return lambda vectors: sum(each * vectors.norm() for each in WEIGHTS)


def held_in(weight):
    "A list that a closure holds and only reads."
    weights = [1.0, float(weight)]
    return lambda vectors: sum(each * vectors.norm() for each in weights)


OTHERS_OF_A_KIND = dict(
    helper=helper,
    method=kind_of,
    strength=strength_of,
    listed=listed,
    held=held_in,
    builtin=lambda weight: partial(torch.mean if weight == 1 else torch.sum),
    set=lambda weight: partial(scaled, weight={float(weight)}),
)


TERMS = dict(near=near, documented=documented, **LAMBDAS, **OTHERS_OF_A_KIND)


@pytest.mark.parametrize("name", TERMS)
def test_a_state_belongs_to_all_that_a_regulariser_computes(name, tmp_path, monkeypatch):
    lm = lm_of("llama")
    path = tmp_path / "s.safetensors"
    term = partial(TERMS[name], monkeypatch=monkeypatch) if TERMS[name] in (helper, listed) else TERMS[name]

    def begun(weight):
        return prepare(lm, SoftPrompt.init(lm, 40), EXAMPLES, None, Settings(steps=5), term(weight))

    save_state(begun(1), path)
    with pytest.raises(ValueError, match="differ in regularizer_values"):
        load_state(begun(2), path)
    load_state(begun(1), path)


def test_a_list_that_a_regulariser_fills_is_its_memory(tmp_path):
    lm, seen = lm_of("llama"), []

    def term(vectors):
        seen.append(vectors.norm().item())
        return vectors.norm()

    options = dict(steps=4, batch_size=4, progress=False, state=tmp_path / "s", save_every=1, regularizer=term)
    start = SoftPrompt.init(lm, 2)
    tune(lm, start, EXAMPLES, callbacks=[StopAt(2)], **options)
    assert len(tune(lm, start, EXAMPLES, **options).history) == 4


def test_the_words_and_lines_of_a_regulariser_do_not_count():
    "A text about it, a line between, and having been called often change nothing."
    one = {}
    exec("def term(v):\n    'A text.'\n    return sum(x.norm() for x in v)", one)
    other = {}
    exec("def term(v):\n\n    'Other words.'\n\n    return sum(x.norm() for x in v)", other)
    for _ in range(200):
        other["term"](torch.ones(2, 2))
    assert _held(one["term"]) == _held(other["term"])


def test_a_regulariser_is_the_same_in_another_process():
    program = """
from dataclasses import dataclass, replace
from functools import partial
import torch
from softprompt_nb.training.state import _held, _name_of
@dataclass
class Own:
    term: object
    weights: set
    def __call__(self, v):
        return v.sum() if v.dtype in {'a', 'bc', 'def', 'gh'} else self.term(v)
own = Own(partial(lambda v, w: v.norm() * w, w=3.0), {'ij', 'kl', 'mn'})
print(_held(own), _name_of(own))
"""
    told = set()
    for seed in "12":
        alike = dict(env=os.environ | dict(PYTHONHASHSEED=seed), capture_output=True, check=True, text=True)
        told.add(subprocess.run([sys.executable, "-c", program], **alike).stdout)
    assert len(told) == 1 and "0x" not in told.pop()


def test_a_state_of_a_dataclass_from_before_its_values_were_noted_goes_on(tmp_path):
    lm, path = lm_of("llama"), tmp_path / "s.safetensors"
    term = Weighted(Signature(), weight=0.5)

    def begun(term):
        return prepare(lm, SoftPrompt.init(lm, 4), EXAMPLES, None, Settings(steps=5), term)

    old = begun(term)
    old.origin = belongs(old) | dict(regularizer=repr(term), regularizer_values=None)
    save_state(old, path)
    load_state(begun(term), path)
    with pytest.raises(ValueError, match="differ in regularizer, regularizer_values"):
        load_state(begun(replace(term, weight=0.7)), path)
