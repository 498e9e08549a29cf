"""The loop: deterministic, frozen model, nothing lost at an interrupt, a failure said in one sentence."""

import json
import math

import pytest
import torch
from families import tiny

from softprompt_nb.data import Example, collate
from softprompt_nb.engine.forward import prompted_loss
from softprompt_nb.engine.inference import loss_on
from softprompt_nb.prompts import SoftPrompt
from softprompt_nb.training.callbacks import Callback, EarlyStop, JSONLLog, Track
from softprompt_nb.training.step import RELATIVE_LR, Settings
from softprompt_nb.training.tuning import TuningDiverged, tune

EXAMPLES = [Example(c * 3, f" {c}!") for c in "abcdefghij"]


@pytest.fixture(scope="module")
def lm():
    return tiny("gpt_neox")


def quick(lm, **kw):
    return tune(lm, SoftPrompt.init(lm, 4), EXAMPLES, **dict(dict(steps=12, batch_size=4, progress=False), **kw))


def test_a_run_is_a_function_of_its_arguments(lm):
    a, b, c = quick(lm), quick(lm), quick(lm, seed=1)
    assert (
        torch.equal(a.trajectory, b.trajectory)
        and a.history.equals(b.history)
        and not torch.equal(a.prompt.vectors, c.prompt.vectors)
    )


def test_the_loop_is_adamw_on_the_prompt_alone(lm):
    run = quick(lm, batch_size=10, steps=5, lr=0.01, warmup=1, schedule="constant")
    v = SoftPrompt.init(lm, 4).vectors.clone().requires_grad_()
    opt, batch = torch.optim.AdamW([v], lr=0.01, weight_decay=0.0), collate(lm, EXAMPLES)
    for _ in range(5):
        opt.zero_grad()
        prompted_loss(lm, v, batch, shared_prefix=False).backward()
        opt.step()
    assert (run.prompt.vectors - v).abs().max() < 1e-4 and all(p.grad is None for p in lm.model.parameters())


def test_it_learns_and_the_start_is_untouched(lm):
    p = SoftPrompt.init(lm, 4)
    before = p.vectors.clone()
    run = tune(lm, p, EXAMPLES, steps=60, progress=False)
    assert (
        torch.equal(p.vectors, before)
        and run.record["final_loss"] < 0.95 * run.record["first_loss"]
        and loss_on(lm, run.prompt, EXAMPLES) < loss_on(lm, p, EXAMPLES)
    )


def test_history_trajectory_and_record(lm):
    run = quick(lm, checkpoints=3)
    assert (
        list(run.history.step) == list(range(1, 13))
        and run.checkpoint_steps == [0, 4, 8, 12]
        and run.trajectory.shape == (4, 4, lm.d_model)
    )
    assert torch.equal(run.trajectory[-1], run.prompt.vectors) and torch.equal(
        run.trajectory[0], SoftPrompt.init(lm, 4).vectors
    )
    assert (
        math.isclose(run.record["settings"]["lr"], RELATIVE_LR * lm.scale)
        and run.record["norm_end"] > 0
        and json.dumps(run.record)
        and json.dumps(run.prompt.info)
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
    firsts = [lm.tokenizer(e.input)["input_ids"][0] for e in EXAMPLES]
    assert sorted(seen[:10]) == sorted(firsts) and sorted(seen[10:]) == sorted(firsts)


def test_a_regularizer_adds_its_gradient(lm):
    plain, pulled = quick(lm), quick(lm, regularizer=lambda v: 100 * v.square().sum())
    assert pulled.prompt.vectors.norm() < 0.9 * plain.prompt.vectors.norm() and "regularizer" in pulled.history


def test_valid_keeps_the_best_prompt(lm):
    run = quick(lm, valid=EXAMPLES[:5], eval_every=3, lr=5.0 * lm.scale)
    v = run.history.valid.dropna()
    assert list(v.index + 1) == [3, 6, 9, 12] and run.record["prompt_of_step"] == v.idxmin() + 1
    assert abs(loss_on(lm, run.prompt, EXAMPLES[:5]).value - v.min()) < 1e-5


@pytest.mark.parametrize("at", ["before_answer", 1])
def test_valid_uses_the_prompts_place(lm, at):
    run = tune(lm, SoftPrompt.init(lm, 4, at=at), EXAMPLES, steps=3, valid=EXAMPLES[:3], eval_every=3, progress=False)
    assert abs(loss_on(lm, run.prompt, EXAMPLES[:3]).value - run.history.valid.iloc[-1]) < 1e-5


class Interrupt(Callback):
    def after_step(self, t):
        if t.step == 7:
            raise KeyboardInterrupt


def test_an_interrupt_keeps_the_best_so_far_and_says_so(lm, capsys):
    run = quick(lm, callbacks=[Interrupt()])
    assert "step 7" in capsys.readouterr().out and len(run.history) == 7 and run.record["outcome"] == "interrupted"
    best = run.history.smooth.idxmin() + 1
    assert run.record["prompt_of_step"] == best and run.prompt.info["steps"] == best


def test_a_loss_that_is_no_number_stops_with_advice(lm):
    calls = []

    def explodes(v):
        calls.append(1)
        return v.sum() * (math.nan if len(calls) > 5 else 0.0)

    with pytest.raises(TuningDiverged, match="step 6.*learning rate.*Try a smaller lr") as e:
        quick(lm, regularizer=explodes)
    assert len(e.value.run.history) == 5 and e.value.run.prompt.vectors.isfinite().all()


def test_early_stop_and_logs(lm, tmp_path):
    kept = []

    class Tracker:
        def log(self, row):
            kept.append(row)

    class Writer:
        def __init__(self):
            self.seen = []

        def add_scalar(self, k, v, step):
            self.seen.append((k, step))

    w = Writer()
    run = quick(lm, callbacks=[EarlyStop(below=100.0), JSONLLog(tmp_path / "log.jsonl"), Track(Tracker()), Track(w)])
    lines = [json.loads(l) for l in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert len(run.history) == 1 and run.record["outcome"] == "stopped" and lines == kept and ("loss", 1) in w.seen
    with pytest.raises(ValueError, match="below="):
        EarlyStop()
    with pytest.raises(ValueError, match="neither log"):
        Track(3)
    flat = quick(lm, steps=12, lr=1e-9, callbacks=[EarlyStop(patience=3, min_delta=10.0)])
    assert len(flat.history) < 12


def test_low_precision_model_keeps_a_float32_prompt():
    lm = tiny("llama", dtype=torch.bfloat16)
    run = quick(lm)
    assert (
        run.prompt.vectors.dtype == torch.float32
        and run.trajectory.dtype == torch.float32
        and not torch.equal(run.prompt.vectors, run.prompt.vectors.bfloat16().float())
    )


@pytest.mark.parametrize(
    "kw,words",
    [
        (dict(steps=0), "at least 1"),
        (dict(batch_size=0), "at least 1"),
        (dict(lr=-1.0), "above zero"),
        (dict(schedule="step"), "'cosine'"),
    ],
)
def test_bad_settings_are_refused(lm, kw, words):
    with pytest.raises(ValueError, match=words):
        quick(lm, **kw)


def test_bad_prompts_and_data_are_refused(lm):
    p = SoftPrompt.init(lm, 4)
    for args, words in (
        ((torch.zeros(4, 32), EXAMPLES), "SoftPrompt.init"),
        ((SoftPrompt(torch.zeros(4, 7)), EXAMPLES), "7 wide"),
        ((p, []), "no examples"),
        ((p, [Example("x" * 124, "y")]), "limit of 128"),
    ):
        with pytest.raises(ValueError, match=words):
            tune(lm, *args, progress=False)
    with pytest.raises(TypeError):
        Settings(step=3)
