"""The loop: deterministic, frozen model, nothing lost at an interrupt, a failure said in one sentence."""

import json
import math

from softprompt_nb.data import Example, collate
from softprompt_nb.engine.forward import prompted_loss
from softprompt_nb.engine.inference import loss_on
from softprompt_nb.files import read_tensors
from softprompt_nb.prompts import SoftPrompt
from softprompt_nb.training.callbacks import Callback, EarlyStop, JSONLLog, Track
from softprompt_nb.training.many import tune_many
from softprompt_nb.training.step import RELATIVE_LR, Settings, ShuffledBatches
from softprompt_nb.training.tuning import TuningDiverged, tune

import pytest
import torch
from families import tiny

EXAMPLES = [Example(letter * 3, f" {letter}!") for letter in "abcdefghij"]


@pytest.fixture(scope="module")
def lm():
    return tiny("gpt_neox")


@pytest.fixture(scope="module")
def exact_lm():
    "The same model in float64, for what has to be the same number."
    return tiny("gpt_neox", dtype=torch.float64)


def quick(lm, **options):
    defaults = dict(steps=12, batch_size=4, progress=False)
    return tune(lm, SoftPrompt.init(lm, 4), EXAMPLES, **defaults | options)


def test_a_run_is_a_function_of_its_arguments(lm):
    run, again, other = quick(lm), quick(lm), quick(lm, seed=1)
    assert torch.equal(run.trajectory, again.trajectory)
    assert run.history.equals(again.history)
    assert not torch.equal(run.prompt.vectors, other.prompt.vectors)


def test_the_loop_is_adamw_on_the_prompt_alone(exact_lm):
    lm = exact_lm
    run = quick(lm, batch_size=10, steps=5, lr=0.01, warmup=1, schedule="constant")
    vectors = SoftPrompt.init(lm, 4).vectors.clone().requires_grad_()
    optimizer = torch.optim.AdamW([vectors], lr=0.01, weight_decay=0.0)
    batch = collate(lm, EXAMPLES)
    for _ in range(5):
        optimizer.zero_grad()
        prompted_loss(lm, vectors, batch, shared_prefix=False).backward()
        optimizer.step()
    assert run.prompt.vectors.dtype == torch.float64
    assert (run.prompt.vectors - vectors).abs().max() < 1e-9
    assert all(weight.grad is None for weight in lm.model.parameters())


def test_it_learns_and_the_start_is_untouched(lm):
    start = SoftPrompt.init(lm, 4)
    before = start.vectors.clone()
    run = tune(lm, start, EXAMPLES, steps=60, progress=False)
    assert torch.equal(start.vectors, before)
    assert run.record["final_loss"] < 0.95 * run.record["first_loss"]
    assert loss_on(lm, run.prompt, EXAMPLES) < loss_on(lm, start, EXAMPLES)


def test_history_trajectory_and_record(lm):
    run = quick(lm, checkpoints=3)
    assert list(run.history.step) == list(range(1, 13))
    assert run.checkpoint_steps == [0, 4, 8, 12]
    assert run.trajectory.shape == (4, 4, lm.d_model)
    assert torch.equal(run.trajectory[-1], run.prompt.vectors)
    assert torch.equal(run.trajectory[0], SoftPrompt.init(lm, 4).vectors)
    assert math.isclose(run.record["settings"]["lr"], RELATIVE_LR * lm.scale)
    assert run.record["norm_end"] > 0
    assert json.dumps(run.record) and json.dumps(run.prompt.info)


def test_batches_are_shuffled_passes():
    batches = ShuffledBatches(range(7), size=3, seed=5)
    drawn = [row for _ in range(7) for row in next(batches)]
    generator = torch.Generator().manual_seed(5)
    assert drawn == [row for _ in range(3) for row in torch.randperm(7, generator=generator).tolist()]
    assert ShuffledBatches(range(2), size=9).size == 2
    shared = torch.Generator().manual_seed(5)
    assert next(ShuffledBatches(range(7), 3, shared)) == drawn[:3] and not torch.equal(
        shared.get_state(), torch.Generator().manual_seed(5).get_state()
    )


def test_every_example_is_seen_once_a_pass(lm):
    seen = []

    class Seen(Callback):
        def before_fit(self, tuning):
            tuning.batches = spy(tuning.batches)

    def spy(batches):
        for rows in batches:
            seen.extend(row.ids[0] for row in rows)
            yield rows

    quick(lm, steps=5, batch_size=4, callbacks=[Seen()])
    firsts = [lm.token_ids(example.input)[0] for example in EXAMPLES]
    assert sorted(seen[:10]) == sorted(firsts)
    assert sorted(seen[10:]) == sorted(firsts)


def test_a_regularizer_adds_its_gradient(lm):
    plain = quick(lm)
    pulled = quick(lm, regularizer=lambda vectors: 100 * vectors.square().sum())
    assert pulled.prompt.vectors.norm() < 0.9 * plain.prompt.vectors.norm()
    assert "regularizer" in pulled.history


def test_valid_keeps_the_best_prompt(exact_lm):
    run = quick(exact_lm, valid=EXAMPLES[:5], eval_every=3, lr=5.0 * exact_lm.scale)
    valid = run.history.valid.dropna()
    assert list(valid.index + 1) == [3, 6, 9, 12]
    assert run.record["prompt_of_step"] == valid.idxmin() + 1
    assert abs(loss_on(exact_lm, run.prompt, EXAMPLES[:5]).value - valid.min()) < 1e-9


@pytest.mark.parametrize("at", ["before_answer", 1])
def test_valid_uses_the_prompts_place(exact_lm, at):
    start = SoftPrompt.init(exact_lm, 4, at=at)
    run = tune(exact_lm, start, EXAMPLES, steps=3, valid=EXAMPLES[:3], eval_every=3, progress=False)
    assert abs(loss_on(exact_lm, run.prompt, EXAMPLES[:3]).value - run.history.valid.iloc[-1]) < 1e-9


class Interrupt(Callback):
    def after_step(self, tuning):
        if tuning.step == 7:
            raise KeyboardInterrupt


def test_an_interrupt_keeps_the_best_so_far_and_says_so(lm, capsys):
    run = quick(lm, callbacks=[Interrupt()])
    assert "step 7" in capsys.readouterr().out
    assert len(run.history) == 7 and run.record["outcome"] == "interrupted"
    best = run.history.smooth.idxmin() + 1
    assert run.record["prompt_of_step"] == best and run.prompt.info["steps"] == best


class StopsAt(Callback):
    "Asks to stop at a step, and keeps what `valid` was when it was told of the end."

    def __init__(self, step):
        self.step = step

    def after_step(self, tuning):
        if tuning.step == self.step:
            tuning.stop = "enough"

    def after_fit(self, tuning):
        self.valid = tuning.row.get("valid")


@pytest.mark.parametrize("step", [2, 3, 5, 12])
def test_the_step_where_a_callback_stops_is_measured_on_valid(exact_lm, step, tmp_path):
    options = dict(valid=EXAMPLES[:5], eval_every=3)
    stops = StopsAt(step)
    run = quick(exact_lm, callbacks=[stops], state=tmp_path / "s", **options)
    valid = run.history.valid.dropna()
    due = [3, 6, 9, 12]
    assert list(valid.index + 1) == sorted({*[k for k in due if k <= step], step})
    assert run.record["outcome"] == "stopped" and run.record["prompt_of_step"] == valid.idxmin() + 1 > 0
    last = SoftPrompt(run.trajectory[-1])
    assert abs(loss_on(exact_lm, last, EXAMPLES[:5]).value - valid.iloc[-1]) < 1e-9
    assert stops.valid == valid.iloc[-1]
    again = quick(exact_lm, callbacks=[StopsAt(step)], state=tmp_path / "s", **options)
    assert again.history.equals(run.history) and torch.equal(again.prompt.vectors, run.prompt.vectors)


def test_lanes_that_stop_are_measured_on_valid_as_the_tunings_alone(exact_lm):
    starts = [SoftPrompt.init(exact_lm, 4, seed=i) for i in range(3)]
    options = dict(steps=6, batch_size=4, valid=EXAMPLES[:5], eval_every=4, progress=False)
    stops = [2, 5, 3]
    many = tune_many(exact_lm, starts, EXAMPLES, callbacks=lambda lane: [StopsAt(stops[lane])], **options)
    for lane, start, step in zip(many, starts, stops):
        run = tune(exact_lm, start, EXAMPLES, callbacks=[StopsAt(step)], **options)
        assert len(lane.history) == len(run.history) == step
        assert lane.record["prompt_of_step"] == run.record["prompt_of_step"] > 0
        assert (lane.history.valid - run.history.valid).abs().max() < 1e-9 and lane.history.valid.notna().iloc[-1]


def test_lack_of_memory_for_the_last_evaluation_takes_no_further_step(exact_lm, monkeypatch):
    from softprompt_nb.training import step

    real, calls = step.target_logprobs, []

    def sometimes(*args, **options):
        calls.append(1)
        if len(calls) <= 7:  # passes of 64 rows down to 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*args, **options)

    monkeypatch.setattr(step, "target_logprobs", sometimes)
    options = dict(batch_size=4, valid=EXAMPLES[:5], callbacks=[StopsAt(2)])
    with pytest.warns(UserWarning, match="do not fit in memory"):
        run = quick(exact_lm, **options)
    assert len(calls) == 8 and len(run.history) == 2 and run.history.valid.notna().iloc[-1]


def test_before_the_first_look_at_valid_an_interrupt_gives_the_best_by_the_running_mean(lm):
    run = quick(lm, callbacks=[Interrupt()], valid=EXAMPLES[:5])
    best = run.history.smooth.idxmin() + 1
    assert run.record["prompt_of_step"] == best and "valid" not in run.history
    want = quick(lm, callbacks=[Interrupt()])
    assert torch.equal(run.prompt.vectors, want.prompt.vectors)


def test_a_loss_that_is_no_number_stops_with_advice(lm):
    calls = []

    def explodes(vectors):
        calls.append(1)
        return vectors.sum() * (math.nan if len(calls) > 5 else 0.0)

    with pytest.raises(TuningDiverged, match="step 6.*learning rate.*Try a smaller lr") as caught:
        quick(lm, regularizer=explodes)
    assert len(caught.value.run.history) == 5
    assert caught.value.run.prompt.vectors.isfinite().all()


def test_early_stop_and_logs(lm, tmp_path):
    kept = []

    class Tracker:
        def log(self, row):
            kept.append(row)

    class Writer:
        def __init__(self):
            self.seen = []

        def add_scalar(self, name, value, step):
            self.seen.append((name, step))

    writer = Writer()
    log = JSONLLog(tmp_path / "log.jsonl")
    run = quick(lm, callbacks=[EarlyStop(below=100.0), log, Track(Tracker()), Track(writer)])
    lines = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert len(run.history) == 1 and run.record["outcome"] == "stopped"
    assert lines == kept and ("loss", 1) in writer.seen
    with pytest.raises(ValueError, match="below="):
        EarlyStop()
    with pytest.raises(ValueError, match="neither log"):
        Track(3)
    flat = quick(lm, steps=12, lr=1e-9, callbacks=[EarlyStop(patience=3, min_delta=10.0, column="loss")])
    assert len(flat.history) < 12 and "loss loss has not improved" in flat.record["ended"]


def test_what_looks_at_held_out_examples_is_refused_without_them(lm):
    looks = EarlyStop(column="valid", patience=3)
    with pytest.raises(ValueError, match="EarlyStop looks at the loss on valid, and there is none"):
        quick(lm, callbacks=[looks])
    starts = [SoftPrompt.init(lm, 4)] * 2
    with pytest.raises(ValueError, match="Lane 1: EarlyStop looks at the loss on valid"):
        tune_many(lm, starts, EXAMPLES, valid=[EXAMPLES[:2], None], callbacks=[looks], steps=2, progress=False)
    for valid in ([], ()):
        with pytest.raises(ValueError, match="valid has no examples"):
            quick(lm, valid=valid)
    with pytest.raises(ValueError, match="Lane 1: valid has no examples"):
        tune_many(lm, starts, EXAMPLES, valid=[EXAMPLES[:2], []], steps=2, progress=False)
    run = quick(lm, valid=EXAMPLES[:2], eval_every=1, callbacks=[EarlyStop(column="valid", patience=3, min_delta=10.0)])
    assert len(run.history) == 4 and "valid loss has not improved" in run.record["ended"]


def test_low_precision_model_keeps_a_float32_prompt():
    lm = tiny("llama", dtype=torch.bfloat16)
    run = quick(lm)
    assert run.prompt.vectors.dtype == run.trajectory.dtype == torch.float32
    assert not torch.equal(run.prompt.vectors, run.prompt.vectors.bfloat16().float())


def test_a_float64_prompt_of_a_float64_model_stays_in_float64(lm, exact_lm, tmp_path):
    state = tmp_path / "state.safetensors"
    run = quick(exact_lm, state=state)
    tensors, _ = read_tensors(state)
    kinds = {tensors[name].dtype for name in ("vectors", "best", "kept", "adamw.exp_avg", "adamw.exp_avg_sq")}
    assert run.prompt.vectors.dtype == run.trajectory.dtype == torch.float64
    assert kinds == {torch.float64}
    single = quick(lm)
    assert single.trajectory.dtype == torch.float32
    wide = SoftPrompt(SoftPrompt.init(lm, 4).vectors.double())  # a model in float32 trains in float32
    assert tune(lm, wide, EXAMPLES, steps=1, progress=False).trajectory.dtype == torch.float32


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(steps=0), "at least 1"),
        (dict(batch_size=0), "at least 1"),
        (dict(lr=-1.0), "above zero"),
        (dict(schedule="step"), "'cosine'"),
    ],
)
def test_bad_settings_are_refused(lm, options, words):
    with pytest.raises(ValueError, match=words):
        quick(lm, **options)


def test_bad_prompts_and_data_are_refused(lm):
    start = SoftPrompt.init(lm, 4)
    for args, words in (
        ((torch.zeros(4, 32), EXAMPLES), "SoftPrompt.init"),
        ((SoftPrompt(torch.zeros(4, 7)), EXAMPLES), "7 wide"),
        ((start, []), "no examples"),
        ((start, [Example("x" * 124, "y")]), "limit of 128"),
    ):
        with pytest.raises(ValueError, match=words):
            tune(lm, *args, progress=False)
    with pytest.raises(TypeError):
        Settings(step=3)
