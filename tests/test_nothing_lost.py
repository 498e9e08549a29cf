"""What was done is not lost, what cannot be done is said before the first step, and settings are plain values."""

import json
from functools import cache

from softprompt_nb.conditional import ConditionalPrompt
from softprompt_nb.data import Encoded, Example, encode_at
from softprompt_nb.engine.forward import assemble
from softprompt_nb.engine.inference import generate, score_options
from softprompt_nb.prompts import SoftPrompt, as_prompt
from softprompt_nb.training import many, step
from softprompt_nb.training.callbacks import Callback, EarlyStop, JSONLLog
from softprompt_nb.training.many import lanes_that_fit, tune_many
from softprompt_nb.training.step import Settings, is_out_of_memory, prepare
from softprompt_nb.training.tuning import TuningDiverged, tune

import numpy as np
import pandas as pd
import pytest
import torch
from families import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

# targets of one to ten letters, so that a mean of means is not the mean
EXAMPLES = [Example(letter * (1 + i % 3), (" " + letter * 9)[: 2 + i]) for i, letter in enumerate("abcdefghij")]
TOO_LONG = Example("x" * 200, " y")


@cache
def lm_of(dtype=torch.float32):
    return tiny("gpt_neox", dtype=dtype)


def quick(lm, prompt=None, examples=EXAMPLES, **options):
    defaults = dict(steps=6, batch_size=4, progress=False)
    return tune(lm, prompt or SoftPrompt.init(lm, 4), examples, **defaults | options)


def same(run, other):
    "Are two runs in float64 the same numbers, but for the order of sums?"
    assert list(run.history) == list(other.history) and len(run.history) == len(other.history)
    worst = (run.history.drop(columns="step") - other.history.drop(columns="step")).abs().max().max()
    return worst < 1e-9 and (run.trajectory - other.trajectory).abs().max().item() < 1e-9


# ---- a batch in pieces


def rows_of(lm, kind):
    "Examples as texts, or encoded with labels at places of their own, the first token's among them."
    if kind == "texts":
        return EXAMPLES
    rows = encode_at(lm, EXAMPLES, 0)
    return [Encoded(row.ids, row.n_input, 0, [*row.ids[: 1 + i % 3], *[-100] * (len(row.ids) - 1 - i % 3)])
            for i, row in enumerate(rows)]  # fmt: skip


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 9), st.integers(1, 10), st.sampled_from(["texts", "labels"]), st.sampled_from(["start", 1]))
def test_pieces_of_a_batch_are_the_batch(micro_batch, batch_size, kind, at):
    lm = lm_of(torch.float64)
    rows = rows_of(lm, kind)
    prompt = SoftPrompt.init(lm, 3, at=at if kind == "texts" else 0)
    options = dict(batch_size=batch_size, lr=0.01, regularizer=lambda vectors: 0.1 * vectors.square().sum())
    whole = quick(lm, prompt, rows, **options)
    assert same(quick(lm, prompt, rows, micro_batch=micro_batch, **options), whole)


def test_pieces_of_a_batch_weigh_every_target_token_alike():
    "By hand: the first step's loss is the mean over all target tokens, and not over the pieces' means."
    lm = lm_of(torch.float64)
    prompt = SoftPrompt.init(lm, 3)
    run = quick(lm, prompt, steps=1, batch_size=10, micro_batch=3)
    sums, counts = [], []
    for example in EXAMPLES:
        row = step.pad_rows(lm, encode_at(lm, [example], "start"))
        inputs = assemble(lm, prompt.vectors, row)
        logits = lm.model(inputs_embeds=inputs.inputs_embeds).logits[0, :-1]
        labels = inputs.labels[0, 1:]
        sums.append(torch.nn.functional.cross_entropy(logits, labels, reduction="sum").item())
        counts.append((labels != -100).sum().item())
    assert abs(run.history.loss[0] - sum(sums) / sum(counts)) < 1e-9
    assert len(set(counts)) > 5


def test_lanes_in_pieces_of_their_own_are_the_tunings_alone():
    lm = lm_of(torch.float64)
    prompts = [SoftPrompt.init(lm, n, seed=n) for n in (2, 5, 3)]
    lanes = dict(batch_size=[4, 9, 2], micro_batch=[3, 2, None], steps=[6, 4, 5])
    runs = tune_many(lm, prompts, EXAMPLES, valid=EXAMPLES[:3], eval_every=2, progress=False, **lanes)
    for i, run in enumerate(runs):
        own = {name: values[i] for name, values in lanes.items() if name != "micro_batch"}
        assert same(run, quick(lm, prompts[i], valid=EXAMPLES[:3], eval_every=2, **own))


def test_a_prompt_that_depends_on_its_row_in_pieces():
    lm = lm_of(torch.float64)
    rows = [Encoded(row.ids, row.n_input, row.at, condition=(i / 9.0, 1.0)) for i, row in
            enumerate(encode_at(lm, EXAMPLES, "start"))]  # fmt: skip
    prompt = ConditionalPrompt.init(lm, 3, 2)
    assert same(quick(lm, prompt, rows, micro_batch=3), quick(lm, prompt, rows))


def test_a_state_goes_on_with_another_micro_batch(tmp_path):
    lm = lm_of(torch.float64)
    whole = quick(lm)
    quick(lm, callbacks=[StopAt(3)], state=tmp_path / "s", save_every=1)
    assert same(quick(lm, state=tmp_path / "s", micro_batch=1), whole)


# ---- memory


class Small:
    "Passes of the model that lack memory for more than some rows."

    def __init__(self, rows, error, monkeypatch):
        self.rows, self.error, self.seen = rows, error, []
        for name in ("prompted_losses", "target_losses", "target_logprobs"):
            monkeypatch.setattr(step, name, self.limited(getattr(step, name)))

    def limited(self, real):
        def call(lm, prompts, batch, *args, **options):
            size = args[0] if real.__name__ == "target_logprobs" else len(batch)
            if size > self.rows:
                raise self.error
            self.seen.append(size)
            return real(lm, prompts, batch, *args, **options)

        return call


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"),
        MemoryError(),
    ],
)
def test_lack_of_memory_takes_no_step_twice_and_none_away(error, monkeypatch):
    lm = lm_of(torch.float64)
    options = dict(valid=EXAMPLES[:5], eval_every=2, checkpoints=3)
    want = quick(lm, **options)
    small = Small(2, error, monkeypatch)
    with pytest.warns(UserWarning, match="4 rows do not fit in memory together: they pass the model 2 at a time"):
        found = quick(lm, **options)
    assert same(found, want) and max(small.seen) == 2 and found.checkpoint_steps == want.checkpoint_steps
    prompts = [SoftPrompt.init(lm, 4, seed=i) for i in range(3)]
    with pytest.warns(UserWarning, match="do not fit"):
        lanes = tune_many(lm, prompts, EXAMPLES, steps=6, batch_size=4, progress=False, max_lanes=3, **options)
    assert same(lanes[0], want)


def test_other_errors_are_no_lack_of_memory():
    assert not any(map(is_out_of_memory, (RuntimeError("shape mismatch"), ValueError("out of memory"), OSError(28))))


def test_what_fits_is_found_without_filling_memory(monkeypatch):
    lm = lm_of()
    rows = EXAMPLES * 40
    lanes = [prepare(lm, SoftPrompt.init(lm, 4), rows, None, Settings(batch_size=400)) for _ in range(3)]
    exact = many.kept_bytes(lm, lanes[0])
    guess = many._few_rows_say(lm, lanes[0])
    assert many._most_bytes(lm, lanes[0]) > exact and 0.5 * exact < guess < 2 * exact
    measured = []

    def spied(lm, rows, lm_=None):
        measured.append(len(rows[0]))
        return step.losses_of([lanes[0]], rows, lm)

    monkeypatch.setattr(many, "losses_of", lambda tunings, rows, lm: spied(lm, rows))
    monkeypatch.setattr(many, "free_memory", lambda device: exact // 10)
    assert lanes_that_fit(lm, lanes) == 1 and max(measured) <= 2
    monkeypatch.setattr(many, "free_memory", lambda device: 7 * exact)
    assert lanes_that_fit(lm, lanes) == 3 and max(measured) == 400

    def full(*args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(many, "losses_of", full)
    assert lanes_that_fit(lm, lanes) == 1


# ---- nothing done is lost


class StopAt(Callback):
    def __init__(self, number, error=KeyboardInterrupt):
        self.number, self.error = number, error

    def after_step(self, tuning):
        if tuning.step == self.number:
            raise self.error


class AtTheEnd(Callback):
    def after_fit(self, tuning):
        raise ConnectionError("tracker went away")


class AtTheStart(Callback):
    def before_fit(self, tuning):
        raise ConnectionError("no tracker")


class Abort(BaseException):
    "What no loop is to catch."


@pytest.mark.parametrize("error", [ConnectionError, SystemExit, Abort, StopIteration, KeyError])
def test_an_error_of_a_callback_carries_the_run(error):
    lm = lm_of()
    with pytest.raises(error) as caught:
        quick(lm, callbacks=[StopAt(5, error)])
    run, want = caught.value.run, quick(lm, callbacks=[StopAt(5)])
    assert torch.equal(run.trajectory, want.trajectory) and run.history.equals(want.history)
    assert torch.equal(run.prompt.vectors, want.prompt.vectors) and run.record["steps_done"] == 5
    assert "5 of 6 steps" in caught.value.__notes__[0]


def test_an_error_behind_the_last_step_leaves_the_run_whole():
    lm = lm_of()
    want = quick(lm)
    with pytest.raises(ConnectionError) as caught:
        quick(lm, callbacks=[AtTheEnd()])
    run = caught.value.run
    assert run.record["outcome"] == "done" and torch.equal(run.prompt.vectors, want.prompt.vectors)
    with pytest.warns(UserWarning, match="lane 0 done, but ConnectionError: tracker went away"):
        runs = tune_many(lm, [SoftPrompt.init(lm, 4)], EXAMPLES, steps=6, batch_size=4, progress=False,
                         callbacks=AtTheEnd())  # fmt: skip
    assert runs[0].record["outcome"] == "done"


def test_errors_of_regulariser_model_and_start_carry_the_run(monkeypatch, tmp_path):
    lm = lm_of()
    calls = []

    def breaks(vectors):
        calls.append(1)
        if len(calls) == 4:
            raise ZeroDivisionError("oh")
        return 0 * vectors.sum()

    with pytest.raises(ZeroDivisionError) as caught:
        quick(lm, regularizer=breaks)
    assert caught.value.run.record["steps_done"] == 3
    with pytest.raises(ConnectionError) as caught:
        quick(lm, callbacks=[AtTheStart()])
    assert caught.value.run.record["steps_done"] == 0
    log = JSONLLog(tmp_path / "no such folder" / "log.jsonl")
    with pytest.raises(FileNotFoundError):  # and not what closing a file that was never opened raises
        quick(lm, callbacks=[log])
    real = step.prompted_losses

    def sometimes(*args):
        calls.append(1)
        if len(calls) > 9:
            raise RuntimeError("the driver went away")
        return real(*args)

    monkeypatch.setattr(step, "prompted_losses", sometimes)
    calls.clear()
    with pytest.raises(RuntimeError, match="driver") as caught:
        quick(lm, steps=20)
    assert caught.value.run.record["steps_done"] == 9 and not caught.value.run.history.isna().any().any()


def test_a_second_interrupt_carries_all_runs(monkeypatch):
    lm = lm_of()
    again = StopAt(4, KeyboardInterrupt)
    monkeypatch.setattr(StopAt, "after_fit", lambda self, tuning: again.after_step(tuning))
    with pytest.raises(KeyboardInterrupt) as caught:
        tune_many(lm, [SoftPrompt.init(lm, 4)] * 2, EXAMPLES, steps=6, callbacks=[again], progress=False)
    assert [run.record["steps_done"] for run in caught.value.runs] == [4, 4]
    with pytest.raises(KeyboardInterrupt) as caught:
        quick(lm, callbacks=[again])
    assert caught.value.run.record["steps_done"] == 4


def test_a_state_of_another_tuning_fails_its_own_lane_only(tmp_path):
    lm = lm_of()
    prompts = [SoftPrompt.init(lm, 4, seed=i) for i in range(3)]
    options = dict(steps=4, progress=False, state=tmp_path)
    tune_many(lm, prompts, EXAMPLES, **options)
    (tmp_path / "lane-0000.safetensors").unlink()
    with pytest.warns(UserWarning, match="1 of 3 lanes.*lane 1 failed .ValueError.*another tuning"):
        runs = tune_many(lm, [prompts[0], prompts[2], prompts[2]], EXAMPLES, **options)
    assert [run.record["outcome"] for run in runs] == ["done", "failed", "done"]


def test_divergence_stays_one_where_a_callback_fails_too():
    lm = lm_of()
    bad = SoftPrompt.init(lm, 4).vectors.clone()
    bad[0, 0] = torch.inf
    with pytest.raises(TuningDiverged):
        quick(lm, SoftPrompt(bad), callbacks=[AtTheEnd()])


# ---- everything is looked at before the first step


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(valid=[EXAMPLES[0], TOO_LONG]), "valid: Row 1 has .* limit of 128"),
        (dict(valid=[Example("a", "")]), "valid: Row 0: the target"),
        (dict(valid="no_such_file.csv"), None),
        (dict(valid=[Example("a", 3)]), "valid: row 0 .* two texts"),
        (dict(callbacks=[EarlyStop]), "is no callback"),
        (dict(callbacks=[print]), "is no callback"),
        (dict(callbacks="early"), "callbacks is a str"),
        (dict(regularizer="l2"), "regularizer is a str"),
        (dict(save_every=0), "save_every=0"),
        (dict(save_every=2.5), "save_every=2.5"),
        (dict(examples="country : france"), "examples: 'country : france' is neither a file"),
        (dict(examples=[("a", " b", "c")]), "Row 0 is tuple"),
        (dict(prompt=3), "prompt is a int.*SoftPrompt.init"),
    ],
)
def test_bad_input_is_refused_before_the_first_step(options, words):
    lm, steps = lm_of(), []

    def count(vectors):
        steps.append(1)
        return 0 * vectors.sum()

    kind = ValueError if words else FileNotFoundError
    with pytest.raises(kind, match=words) as caught:
        quick(lm, **dict(regularizer=count) | options)
    assert not steps and "\n" not in str(caught.value)


def test_a_lane_with_bad_held_out_rows_is_named():
    lm = lm_of()
    valid = [EXAMPLES[:2], [TOO_LONG]]
    with pytest.raises(ValueError, match="Lane 1: valid: Row 0 has .* limit of 128"):
        tune_many(lm, [SoftPrompt.init(lm, 4)] * 2, EXAMPLES, valid=valid, progress=False)
    fits = [Example("x" * 120, " y")]  # beside four vectors, and not beside ten
    prompts = [SoftPrompt.init(lm, n) for n in (4, 10)]
    with pytest.raises(ValueError, match="Lane 1: valid: Row 0"):
        tune_many(lm, prompts, EXAMPLES, valid=fits, steps=1, progress=False)


def test_float16_is_refused_and_bfloat16_is_not():
    with pytest.raises(ValueError, match="in float16.*dtype='bfloat16' or dtype='float32'"):
        quick(tiny("llama", dtype=torch.float16))
    assert quick(tiny("llama", dtype=torch.bfloat16), steps=1).record["dtype"] == "bfloat16"
    with pytest.raises(ValueError, match="lm is a str"):
        quick("lab-instruct-s", SoftPrompt.init(lm_of(), 4))


# ---- settings


PLAIN = dict(
    steps=[np.int64(3), np.float64(3.0), torch.tensor(3), 3.0],
    batch_size=[np.int32(4), np.uint8(4)],
    lr=[np.float32(0.1), np.float64(0.1), torch.tensor(0.1), np.array(0.1)],
    seed=[np.int64(1), torch.tensor(1)],
    warmup=[np.int64(2)],
    weight_decay=[np.float32(0.5)],
    checkpoints=[np.int64(3)],
    eval_every=[np.int64(2)],
    end=[np.bool_(False)],
    micro_batch=[np.int64(2)],
)


@settings(max_examples=10, deadline=None)
@given(st.fixed_dictionaries({}, optional={name: st.sampled_from(values) for name, values in PLAIN.items()}))
def test_settings_of_numpy_tune_and_are_saved(tmp_path_factory, chosen):
    lm = lm_of()
    run = quick(lm, **dict(steps=2) | chosen)
    kept = run.record["settings"]
    assert json.loads(json.dumps(kept)) == kept and json.dumps(run.record)
    again = SoftPrompt.load(run.prompt.save(tmp_path_factory.mktemp("p") / "p"), lm)
    assert again.info == run.prompt.info
    plain = {name: getattr(value, "item", lambda value=value: value)() for name, value in chosen.items()}
    want = quick(lm, **dict(steps=2) | plain)
    assert torch.equal(run.trajectory, want.trajectory)


@pytest.mark.parametrize(
    "options",
    [
        dict(steps=2.5),
        dict(steps="80"),
        dict(steps=True),
        dict(batch_size=0),
        dict(lr="0.1"),
        dict(lr=float("nan")),
        dict(lr=0),
        dict(seed=1.5),
        dict(warmup=-1),
        dict(checkpoints=-1),
        dict(eval_every=0),
        dict(weight_decay=-1.0),
        dict(end="no"),
        dict(shared_prefix=None),
        dict(micro_batch=0),
        dict(micro_batch=1.5),
    ],
)
def test_settings_that_mean_nothing_are_refused(options):
    (name,) = options
    for many_or_one in (lambda **kw: quick(lm_of(), **kw), lambda **kw: tune_many(
            lm_of(), [SoftPrompt.init(lm_of(), 2)], EXAMPLES, progress=False, **kw)):  # fmt: skip
        with pytest.raises(ValueError, match=f"^{name}="):
            many_or_one(**options)


def test_beginnings_from_numpy_and_from_a_text_alone(tmp_path):
    lm = lm_of()
    prompt = SoftPrompt.init(lm, n=np.int64(3), seed=np.int64(1), at=np.int64(1))
    assert type(prompt.at) is int and torch.equal(prompt.vectors, SoftPrompt.init(lm, 3, seed=1).vectors)
    assert SoftPrompt.load(prompt.save(tmp_path / "p"), lm).info == dict(init="vocab", seed=1)
    by_text = SoftPrompt.init(lm, 3, text="abc")
    assert torch.equal(by_text.vectors, SoftPrompt.init(lm, 3, "text", text="abc").vectors)
    vectors = np.ones((3, lm.d_model))
    assert SoftPrompt.init(lm, how=vectors).n == SoftPrompt.init(lm, 3, vectors.tolist()).n == 3
    assert len(SoftPrompt.init(lm)) == 10
    for options, words in (
        (dict(how="vocab", text="abc"), "how='vocab' makes no use of text='abc'"),
        (dict(how=vectors, text="abc"), "a tensor makes no use"),
        (dict(how=vectors, n=4), "n=4, but the given tensor has 3"),
        (dict(text=["abc"]), "text is a list"),
        (dict(text=""), "at least one token"),
        (dict(n=2.5), "n=2.5"),
        (dict(seed="1"), "seed='1'"),
        (dict(at=-1), "at=-1"),
    ):
        with pytest.raises(ValueError, match=words):
            SoftPrompt.init(lm, **options)
    with pytest.raises(ValueError, match="vectors are a list"):
        SoftPrompt([[1.0]])


def test_a_readme_that_people_wrote_stays(tmp_path):
    lm = lm_of()
    folder = SoftPrompt.init(lm, 3).save(tmp_path / "p")
    (folder / "README.md").write_text("what it is for")
    other = SoftPrompt.init(lm, 5)
    other.save(folder)
    assert (folder / "README.md").read_text() == "what it is for"
    assert torch.equal(SoftPrompt.load(folder, lm).vectors, other.vectors)
    odd = SoftPrompt(other.vectors, info=dict(lr=np.float32(0.5), path=tmp_path, sizes=(np.int64(1), 2)))
    assert SoftPrompt.load(odd.save(folder), lm).info == dict(lr=0.5, path=str(tmp_path), sizes=[1, 2])


def test_what_plainly_is_meant_is_taken(tmp_path):
    lm = lm_of()
    first = quick(lm)
    folder = first.prompt.save(tmp_path / "p")
    want = quick(lm, first.prompt)
    pairs = [(example.input, example.target) for example in EXAMPLES]
    rows = [dict(input=x, target=y) for x, y in pairs]
    pd.DataFrame(rows).to_csv(tmp_path / "x.csv", index=False)
    for prompt in (first, folder, str(folder)):
        for examples in (pairs, rows, tmp_path / "x.csv", str(tmp_path / "x.csv"), pd.DataFrame(rows), iter(pairs)):
            assert torch.equal(quick(lm, prompt, examples).trajectory, want.trajectory)
    stopped = quick(lm, first, valid=EXAMPLES[0], callbacks=EarlyStop(below=100.0, patience=np.int64(3)))
    assert stopped.record["outcome"] == "stopped" and as_prompt(first, lm) is first.prompt
    options = dict(steps=6, batch_size=4, progress=False)
    for examples in (pairs, rows, tmp_path / "x.csv", [pairs, EXAMPLES], [str(tmp_path / "x.csv"), rows]):
        runs = tune_many(lm, [first, folder], examples, callbacks=EarlyStop(patience=99), lr=np.array(0.1), **options)
        assert torch.equal(runs[0].trajectory, runs[1].trajectory)
    with pytest.raises(ValueError, match="lr is a dict"):
        tune_many(lm, [first, folder], EXAMPLES, lr={0: 0.1, 1: 0.2}, **options)
    for wrong in (dict(patience=2.5), dict(below="low"), dict(patience=0), dict(below=1, min_delta=None)):
        with pytest.raises(ValueError, match="give a "):
            EarlyStop(**wrong)
    with pytest.raises(ValueError, match="column='smoth': a step has step, loss, smooth"):
        quick(lm, callbacks=EarlyStop(below=0.0, column="smoth"))


def test_one_text_where_a_list_is_meant_is_no_row_a_letter():
    lm = lm_of()
    run = quick(lm)
    for texts, options in ((["abc"], " a"), ("abc", [" a", " b"])):
        with pytest.raises(ValueError, match="is a str: give a list of"):
            score_options(lm, run.prompt, texts, options)
    for given_, kind in ((run, "Run"), (3, "int"), ("folder", "str")):
        with pytest.raises(ValueError, match=f"prompt is a {kind}: give a SoftPrompt .such as run.prompt"):
            score_options(lm, given_, ["abc"], [" a", " b"])
        with pytest.raises(ValueError, match=f"prompt is a {kind}"):
            generate(lm, given_, "abc", 3)


def test_an_error_of_the_model_in_one_lane_ends_that_lane_alone():
    lm = tiny("gpt2", dtype=torch.float64)
    (poison,) = lm.token_ids("~")
    plain = [[Example(f"{letter}{i}", " x") for i in range(4)] for letter in "abc"]
    poisoned = [plain[0], [*plain[1][:3], Example("b~", " x")], plain[2]]
    prompts = [SoftPrompt.init(lm, n=2, seed=seed) for seed in range(3)]
    settings = dict(steps=6, batch_size=1, progress=False, max_lanes=3)
    want = tune_many(lm, prompts, plain, **settings)

    def refuse(module, args):
        if (args[0] == poison).any():
            raise RuntimeError("no such row")

    handle = lm.embedding.register_forward_pre_hook(refuse)
    try:
        with pytest.warns(UserWarning, match="1 of 3 lanes did not come to a good end: lane 1 failed .*no such row"):
            runs = tune_many(lm, prompts, poisoned, **settings)
    finally:
        handle.remove()
    assert [run.record["outcome"] for run in runs] == ["done", "failed", "done"]
    assert runs[1].prompt.n == 2 and len(runs[1].history) < 6
    for lane in (0, 2):
        assert torch.allclose(runs[lane].prompt.vectors, want[lane].prompt.vectors, rtol=1e-6, atol=1e-7)
