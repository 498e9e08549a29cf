"""Names of configurations, records that are whole and what was written, and stores that others write to as well."""

import dataclasses
import json
import shutil
import threading
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

from softprompt_nb.data import Example
from softprompt_nb.experiments import configs
from softprompt_nb.experiments import runs as module
from softprompt_nb.experiments.configs import TuneConfig
from softprompt_nb.experiments.runs import Result, RunStore, content_hash
from softprompt_nb.experiments.sweep import Serial, sweep
from softprompt_nb.measure import Measured, over_runs
from softprompt_nb.prompts import SoftPrompt
from softprompt_nb.training import pool

import numpy as np
import pandas as pd
import pytest
import torch
from families import reconfigured, tiny
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from toys import Trouble, Walk, double


@dataclass(frozen=True)
class Any:
    value: object = None
    device: object = field(default=None, compare=False)

    def run(self, work):
        return Result(dict(x=1))


class Newer(Any):
    version = 2


class Other(Any):
    pass


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=6),
    lambda v: (
        st.lists(v, max_size=3)
        | st.dictionaries(st.text(max_size=3).filter(lambda k: not k.startswith("@")), v, max_size=3)
        | st.builds(Example, v, v)
    ),
    max_leaves=8,
)


def same(a, b):
    "Python's equality, but that truth values are no numbers, and that a tuple is the list of its items."
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, Example) and isinstance(b, Example):
        return same(a.input, b.input) and same(a.target, b.target)
    return type(a) in (int, float) and type(b) in (int, float) and a == b or type(a) is type(b) and a == b


@settings(max_examples=300, deadline=None)
@given(plain, plain)
def test_names_are_equal_exactly_for_equal_configurations(a, b):
    assert (content_hash(Any(a)) == content_hash(Any(b))) == same(a, b)


@settings(max_examples=100, deadline=None)
@given(plain)
def test_names_survive_a_way_through_json_and_reordering(v):
    def turned(v):
        if isinstance(v, dict):
            return {k: turned(v[k]) for k in reversed(v)}
        if isinstance(v, (list, tuple)):
            return tuple(turned(x) for x in v)
        if isinstance(v, Example):
            return Example(turned(v.input), turned(v.target))
        return float(v) if type(v) is int and abs(v) < 2**53 else v

    assert content_hash(Any(turned(v))) == content_hash(Any(v))
    written = module.plain_config(Any(v))
    assert json.loads(json.dumps(written)) == written


def test_what_takes_part_in_a_name():
    a = content_hash(Any(1))
    assert a == content_hash(Any(1.0)) == content_hash(Any(np.int64(1))) == content_hash(Any(1, device="cuda"))
    assert len({a, *map(content_hash, (Any(True), Any("1"), Any([1]), Newer(1), Other(1)))}) == 6
    assert content_hash(Any(Path("a") / "b")) == content_hash(Any("a/b")) and content_hash(Any(-0.0)) == content_hash(
        Any(0)
    )
    assert content_hash(Any(double)) != content_hash(Any(json.dumps)) and content_hash(
        Any(float("inf"))
    ) != content_hash(Any(float("-inf")))


def test_a_name_is_for_ever():
    "Stores that exist already are found again only while this holds."
    assert (
        content_hash(Walk(3, 7)) == "44cfafa89a443480"
        and content_hash(Any([1.5, None, True, "é", dict(b=2, a=Example("x", " y")), double])) == "b4b0df062f55a175"
    )


@pytest.mark.parametrize(
    "bad, said",
    [
        (lambda: 0, "<lambda>"),
        (torch.zeros(2), "Tensor"),
        (np.zeros(2), "ndarray"),
        ({1, 2}, "set"),
        (float("nan"), "NaN"),
        ({1: 2}, "key 1"),
        ({"@x": 1}, "'@x'"),
        (SimpleNamespace(), "SimpleNamespace"),
        (b"x", "bytes"),
        (torch.float32, "dtype"),
        (Trouble().run, "method"),
    ],
)
def test_what_has_no_name_is_refused_with_the_field(bad, said):
    for v, where in (
        (bad, "'value'"),
        ([0, bad], "'value'[1]"),
        (dict(k=bad), "'value'['k']"),
        (Example("", bad), "'value'.target"),
    ):
        with pytest.raises(ValueError) as e:
            content_hash(Any(v))
        assert f"The field {where}" in str(e.value) and said in str(e.value)


def test_functions_are_named_by_where_they_are_found(monkeypatch):
    def inner():
        pass

    with pytest.raises(ValueError, match="%%writefile"):
        content_hash(Any(inner))
    monkeypatch.setattr(double, "__module__", "__main__")
    with pytest.raises(ValueError, match="no other process can import it"):
        content_hash(Any(double))


def test_what_is_no_configuration_is_refused():
    @dataclass
    class Soft:
        def run(self, work):
            pass

    for bad in (7, Any, Example("a", " b"), dict(n=1)):
        with pytest.raises(ValueError, match="is no configuration"):
            content_hash(bad)
    with pytest.raises(ValueError, match="frozen=True"):
        content_hash(Soft())


# records


@dataclass(frozen=True)
class Gives:
    "A run that gives what the test says."

    name: str
    results = {}

    def run(self, work):
        return self.results[self.name]


def recorded(store, **kw):
    Gives.results["x"] = Result(**kw)
    return store.run(Gives("x"))


column = st.one_of(
    st.lists(st.floats(width=64), min_size=3, max_size=3),
    st.lists(st.integers(-(2**60), 2**60), min_size=3, max_size=3),
    st.lists(st.booleans(), min_size=3, max_size=3),
    st.lists(st.text(max_size=3), min_size=3, max_size=3),
)


@settings(max_examples=40, deadline=None)
@given(
    columns=st.dictionaries(st.text(min_size=1, max_size=4), column, max_size=3),
    metric=st.floats(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.bool]),
)
def test_a_record_gives_back_what_went_in_bit_for_bit(tmp_path_factory, columns, metric, dtype):
    df, x = pd.DataFrame(columns), (torch.randn(3, 2) * 9).to(dtype)
    r = recorded(
        RunStore(tmp_path_factory.mktemp("s")),
        metrics=dict(m=metric),
        history=df,
        arrays=dict(x=x),
        info=dict(deep=[dict(v=metric)]),
    )
    pd.testing.assert_frame_equal(r.history, df, check_exact=True)
    assert torch.equal(r.arrays["x"], x) and r.arrays["x"].dtype == dtype
    assert (
        (r.metrics["m"] == metric and r.info["deep"][0]["v"] == metric) or np.isnan(metric) and np.isnan(r.metrics["m"])
    )


def test_a_prompt_comes_back_on_its_model_only(tmp_path):
    lm = tiny("gpt_neox")
    r = recorded(RunStore(tmp_path), metrics={}, prompt=(p := SoftPrompt.init(lm, 3)))
    assert torch.equal(r.prompt(lm).vectors, p.vectors)
    with pytest.raises(ValueError, match="was trained on"):
        r.prompt(tiny("gpt_neox", seed=1))


def test_the_record_says_on_what_it_ran(tmp_path):
    e = recorded(RunStore(tmp_path), metrics={}).environment
    assert (
        {"softprompt_nb", "torch", "python", "transformers"} <= e["versions"].keys()
        and e["threads"] == torch.get_num_threads()
        and e["peak_memory_bytes"] > 1e7
    )
    assert e["started"] <= e["finished"] and e["started"].endswith("+00:00") and e["seconds"] >= 0 and not e["resumed"]


CHANGES = {
    "a metric": lambda f: (f / "record.json").write_text(
        (f / "record.json").read_text().replace('"steps": 6', '"steps": 7', 1)
    ),
    "cut": lambda f: (f / "record.json").write_text((f / "record.json").read_text()[:-20]),
    "no object": lambda f: (f / "record.json").write_text("[]"),
    "empty": lambda f: (f / "record.json").write_text(""),
    "no history": lambda f: (f / "history.json").unlink(),
    "no prompt": lambda f: shutil.rmtree(f / "prompt"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_record_that_was_changed_is_found_out(tmp_path, change):
    store, config = RunStore(tmp_path), Walk()
    before = store.run(config).metrics
    store.run(Walk(1))
    id = content_hash(config)
    CHANGES[change](tmp_path / id)
    for read in (lambda: store[config], lambda: store.run(config), lambda: list(store)):
        with pytest.raises(ValueError, match=f"record {id} was changed or damaged .*store.set_aside"):
            read()
    with pytest.warns(UserWarning, match="set_aside"):
        assert len(store.table()) == 1
    kept = store.set_aside(id)
    assert kept.is_dir() and config not in store and store.missing([config, Walk(1)]) == [config]
    assert store.run(config).metrics == before and len(store.table()) == 2


@pytest.mark.parametrize(
    "name, read",
    [
        ("history.json", lambda r: r.history),
        ("arrays.safetensors", lambda r: r.arrays),
        ("prompt/adapter_model.safetensors", lambda r: r.prompt(tiny("gpt_neox"))),
    ],
)
def test_a_file_that_was_changed_is_found_out(tmp_path, name, read):
    file = tmp_path / RunStore(tmp_path).run(Walk()).id / name
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    with pytest.raises(ValueError, match=f"{name} is not the file that was written"):
        read(RunStore(tmp_path)[Walk()])


def test_a_record_under_another_name_is_found_out(tmp_path):
    store = RunStore(tmp_path)
    shutil.copytree(tmp_path / store.run(Walk()).id, tmp_path / "0123456789abcdef")
    with pytest.raises(ValueError, match="checksum"):
        store["0123456789abcdef"]


# stores


def test_the_store_as_a_container(tmp_path):
    store = RunStore(tmp_path / "deep" / "er")
    r = store.run(Walk())
    assert (
        len(store) == 1
        and Walk() in store
        and r.id in store
        and Walk(9) not in store
        and [x.id for x in store] == [r.id]
    )
    assert store[r.id[:5]].id == store[Walk()].id == r.id and "1 run, 0 failed" in repr(store)
    assert "Walk(seed=0, steps=6): far=" in repr(r) and r.config == {"@class": "Walk", "seed": 0, "steps": 6}
    for bad in ("zz", "", Walk(9)):
        with pytest.raises(KeyError):
            store[bad]
    for bad in ("../deep", "work", "0123456789abcdef"):
        with pytest.raises(KeyError):
            store.set_aside(bad)


def test_tidy_removes_what_a_killed_process_left_of_a_finished_run_and_nothing_else(tmp_path):
    store = RunStore(tmp_path)
    id = store.run(Walk(0)).id
    work = tmp_path / "work"
    (work / f"{id}.lock").touch()  # killed between the removal of the folder and that of the lock
    unfinished = content_hash(Walk(1))
    (work / unfinished).mkdir()
    (work / f"{unfinished}.lock").touch()
    store.tidy()
    assert sorted(p.name for p in work.iterdir()) == [unfinished, f"{unfinished}.lock"]


def test_the_table_is_tidy_and_sorted(tmp_path):
    store = RunStore(tmp_path)
    for seed in (10, 2, 1):
        store.run(Walk(seed))
    recorded(store, metrics=dict(seed=5, y=over_runs([1, 2, 3]), t=torch.tensor(2.0)))
    t = store.table()
    assert t[t.run == "Walk"].seed.tolist() == [1, 2, 10] and t.id.is_unique
    assert t[t.run == "Gives"][["y", "y_n", "t", "seed"]].values.tolist() == [[2, 3, 2, 5]]
    assert list(RunStore(tmp_path / "none").table().columns) == []


def test_the_first_record_wins(tmp_path):
    store, id = RunStore(tmp_path), content_hash(Walk())
    with store.claim(id) as work:
        for x in (1, 2):
            assert module.attempt(store, Walk(), work, Result(dict(x=x))) == ("done", "")
    assert store[Walk()].metrics == dict(x=1)


def test_one_process_at_a_time_has_a_claim(tmp_path):
    store, id = RunStore(tmp_path), content_hash(Walk())
    with store.claim(id) as mine:
        with RunStore(tmp_path).claim(id) as theirs:
            assert mine and theirs is None
        (mine.folder / "state").touch()
    with store.claim(id) as again:
        assert again.resumed and (again.folder / "state").exists()
    seen = []
    with store.claim(id):
        t = threading.Thread(target=lambda: seen.append(store.run(Walk()).id))
        t.start()
        t.join(0.3)
        assert not seen
    t.join()
    assert seen == [id] and not list((tmp_path / "work").iterdir())


def test_without_locks_it_goes_on_and_the_first_record_wins(tmp_path, monkeypatch):
    class NoLock(module.FileLock):
        def _acquire(self):
            raise OSError(module.errno.ENOLCK, "No locks available")

    monkeypatch.setattr(module, "FileLock", NoLock)
    store = RunStore(tmp_path)
    with store.claim(content_hash(Walk())) as a, store.claim(content_hash(Walk())) as b:
        assert a.folder != b.folder
    assert store.run(Walk()).metrics["steps"] == 6 and not list((tmp_path / "work").glob("*-*"))


def test_a_claim_clears_what_a_killed_writer_left_and_nothing_else(tmp_path):
    store, id = RunStore(tmp_path), content_hash(Walk())
    with store.claim(id) as work:
        (work.folder / f".{id}-0a1b2c3d").mkdir()
        (work.folder / ".state.safetensors-0a1b2c3d").touch()
        (work.folder / ".mine").touch()
    with store.claim(id) as work:
        assert [p.name for p in work.folder.iterdir()] == [".mine"]
    with store.claim(content_hash(Walk(1))) as live:
        store.run(Walk())
        (tmp_path / "work" / id).mkdir()
        store.tidy()
        assert live.folder.is_dir() and not (tmp_path / "work" / id).exists()


def test_compare_says_which_columns_there_are(tmp_path):
    store = RunStore(tmp_path)
    for seed in range(3):
        for steps in (2, 4):
            store.run(Walk(seed, steps))
    ax = store.compare("far", x="steps")
    assert ax.get_legend().get_texts()[0].get_text() == "mean of 3 runs" and ax.get_xlabel() == "steps"
    with pytest.raises(ValueError, match="no column 'near': give one of"):
        store.compare("near", x="steps")


# tuning as a configuration


def test_a_tuning_is_a_function_of_its_configuration(tmp_path):
    config = TuneConfig(data="lab:plural", n=2, steps=4, test=6, checkpoints=2)
    a, b = (RunStore(tmp_path / s).run(config) for s in "ab")
    assert (
        a.metrics == b.metrics
        and a.data["files"]["arrays.safetensors"] == b.data["files"]["arrays.safetensors"]
        and a.history.equals(b.history)
    )
    assert (
        a.metrics["exact_match_n"] == 6
        and a.metrics["outcome"] == "done"
        and len(a.history) == 4
        and a.arrays["trajectory"].shape[1:] == (2, 128)
    )
    assert repr(config) == "TuneConfig(data='lab:plural', n=2, test=6, steps=4, checkpoints=2)"


def test_a_record_of_other_weights_is_said(tmp_path):
    def write(seed):
        lm = tiny("llama", seed=seed)
        lm.model.save_pretrained(tmp_path / "model")
        lm.tokenizer.save_pretrained(tmp_path / "model")

    data = tuple(Example(f"ab c {i}", " z") for i in range(6))
    config = TuneConfig(model=str(tmp_path / "model"), data=data, n=1, steps=1, test=2)
    write(0)
    store = RunStore(tmp_path / "runs")
    first, name = store.run(config), content_hash(config)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write(0)  # the same weights, written anew
        assert store.run(config).metrics == store[config].metrics == first.metrics
    write(1)
    for ask in (store.run, store.__getitem__):
        with pytest.warns(UserWarning, match=f"record {name} is of other weights.*set_aside"):
            ask(config)
    with pytest.warns(UserWarning, match="other weights"):
        assert sweep([config], store, workers=0, progress=False).there == [name]
    store.set_aside(name)
    assert store.run(config).metrics["loss"] != first.metrics["loss"]
    assert content_hash(config) == name


def model_folder(folder, seed=0, **settings):
    lm = tiny("llama", seed=seed)
    lm = reconfigured(lm, **settings) if settings else lm
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return str(folder)


@dataclass(frozen=True)
class Judged:
    judge: str
    x: int = 0

    def run(self, work):
        return Result(dict(y=self.x))


@pytest.mark.parametrize("part", ["config.json", "tokenizer.json", "generation_config.json"])
def test_a_record_of_other_settings_is_said(tmp_path, part):
    store, folder = RunStore(tmp_path / "runs"), tmp_path / "model"
    configs = [Judged(model_folder(folder), x) for x in range(3)]
    for config in configs[:2]:
        store.run(config)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model_folder(folder)
        assert len(store.table()) == 2 and "models" not in store.table()
        assert store[content_hash(configs[0])].metrics == dict(y=0)
    if part == "config.json":
        model_folder(folder, rms_norm_eps=0.1)
    else:
        (folder / part).write_text((folder / part).read_text().replace("eos", "eod"))
    name = content_hash(configs[0])
    for ask in (configs[0], name, name[:8]):
        with pytest.warns(UserWarning, match=f"record {name} is of other weights or settings .*judge/{part}"):
            store[ask]
    with pytest.warns(UserWarning, match="other weights or settings"):
        sweep(configs[:1], store, workers=0, progress=False)
    with pytest.warns(UserWarning, match="2 of 2 records of"):
        store.table()
    store.run(configs[2])
    with pytest.warns(UserWarning, match="2 of 3 records of .*the column models tells them apart"):
        table = store.table()
    assert table.models.nunique() == 2 and table.models[0] == table.models[1]
    shutil.rmtree(folder)
    with pytest.warns(UserWarning, match="of 3 records of .* than the record"):
        assert table.equals(store.table())


def test_a_record_from_before_settings_were_kept_is_compared_by_its_weights(tmp_path):
    folder = model_folder(tmp_path / "model")
    now = module.models_in(Judged(folder))
    then = {name: value for name, value in now.items() if name.endswith(".safetensors")}
    assert module._other_parts(then, now) == []
    model_folder(tmp_path / "model", seed=1)
    assert module._other_parts(then, module.models_in(Judged(folder))) == ["judge/model.safetensors"]
    (tmp_path / "model" / "model.safetensors").rename(tmp_path / "model" / "other.safetensors")
    assert "judge/other.safetensors" in module._other_parts(then, module.models_in(Judged(folder)))


def test_the_commit_of_a_hub_name_and_a_model_of_the_lab_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "model_source", lambda name: ([], {"owner/a": commit}.get(name)))
    store, commit = RunStore(tmp_path), "1" * 40
    store.run(Judged("owner/a"))
    commit = "2" * 40
    with pytest.warns(UserWarning, match="judge/commit"):
        store.run(Judged("owner/a"))
    monkeypatch.undo()
    assert {"model.safetensors", "config.json"} <= set(module.models_in(TuneConfig()))


def test_examples_of_ones_own_are_split_without_overlap(tmp_path):
    data = tuple(Example(f"say {w}", f" {w}") for w in "one two three four five six seven eight".split())
    train, test = configs.split_examples(data, 4, 3, 0)
    assert (
        len(train) == 4
        and len(test) == 3
        and not set(train) & set(test)
        and configs.split_examples(data, None, 3, 0)[0][:4] == train
    )
    r = RunStore(tmp_path).run(TuneConfig(data=data, train=4, test=3, n=1, steps=2))
    assert r.metrics["loss_n"] == 3 and r.info["examples"] == 4
    with pytest.raises(ValueError, match="There are 8 Examples"):
        configs.split_examples(data, 6, 3, 0)
    with pytest.raises(ValueError, match="'lab:'"):
        configs.split_examples("capital", 6, 3, 0)


def test_a_tuning_that_diverges_is_a_result(tmp_path):
    r = RunStore(tmp_path).run(TuneConfig(data="lab:plural", n=1, steps=3, lr=1e30, warmup=0, test=4))
    assert r.metrics["outcome"] == "diverged" and "smaller lr" in r.info["ended"]


def test_tunings_together_are_as_tunings_alone(tmp_path):
    configs = [TuneConfig(data="lab:plural", n=n, seed=n, steps=s, test=6) for n, s in ((1, 4), (3, 6), (2, 5))] + [
        TuneConfig(data="lab:plurall"),
        TuneConfig(data="lab:plural", n=2, steps=3, lr=1e30, warmup=0, test=4),
    ]
    alone, together = (sweep(configs, tmp_path / str(k), Serial(), together=k, progress=False) for k in (1, 8))
    assert len(together.done) == 4 and together.failures.data.tolist() == ["lab:plurall"]
    for c in configs[:3]:
        a, b = alone.store[c], together.store[c]
        assert (
            b.environment["together"] == 5
            and a.metrics["loss"] == pytest.approx(b.metrics["loss"], abs=1e-4)
            and (a.history.loss - b.history.loss).abs().max() < 1e-4
        )
    assert together.store[configs[-1]].metrics["outcome"] == "diverged"


def test_a_tuning_goes_on_from_its_state(tmp_path, monkeypatch):
    config, steps = TuneConfig(data="lab:plural", n=2, steps=7, test=6, save_every=3), []
    whole = RunStore(tmp_path / "whole").run(config)

    class Stop(BaseException):
        pass

    def stops(active, real=pool.step_together):
        steps.append(active[0].step)
        if steps == [0, 1, 2, 3, 4]:
            raise Stop
        return real(active)

    monkeypatch.setattr(pool, "step_together", stops)
    store = RunStore(tmp_path / "broken")
    with pytest.raises(Stop):
        store.run(config)
    again = store.run(config)
    assert steps == [0, 1, 2, 3, 4, 3, 4, 5, 6] and again.environment["resumed"]
    assert (
        again.metrics == whole.metrics
        and again.history.equals(whole.history)
        and again.data["files"]["arrays.safetensors"] == whole.data["files"]["arrays.safetensors"]
    )


def test_an_interrupted_tuning_is_none(tmp_path, monkeypatch):
    real = configs.tune

    def tune(*a, **k):
        run = real(*a, **k)
        run.record["outcome"] = "interrupted"
        return run

    monkeypatch.setattr(configs, "tune", tune)
    with pytest.raises(KeyboardInterrupt):
        RunStore(tmp_path).run(TuneConfig(data="lab:plural", n=1, steps=1, test=4))
    assert len(RunStore(tmp_path)) == 0 and not len(RunStore(tmp_path).failed())


def namesakes(*modules, inner=False):
    "One class for each module, all of one name and with the same fields."
    made = []
    for number, home in enumerate(modules):

        def run(self, work, number=number):
            return Result(dict(number=number))

        of_run = {} if inner else dict(run=run)
        twin = dataclasses.make_dataclass("Config", [("n", int, 1)], frozen=True, namespace=of_run)
        twin.__module__ = home
        made.append(twin)
    return made


@pytest.mark.filterwarnings("error")
def test_classes_of_one_name_share_no_record(tmp_path):
    first, second = namesakes("ma", "mb")
    store = RunStore(tmp_path)
    assert content_hash(first()) == content_hash(second())
    assert store.run(first()).metrics["number"] == store.run(first()).metrics["number"] == 0
    asks = (
        store.run,
        store.__getitem__,
        store.__contains__,
        lambda c: store.missing([c]),
        lambda c: sweep([c], store, workers=0),
    )
    for ask in asks:
        with pytest.raises(ValueError, match="Config is a class of mb, and .* of ma: .* moved_from = 'ma'"):
            ask(second())
    with pytest.raises(ValueError, match="Configuration 1: Config is a class of mb"):
        RunStore(tmp_path / "empty").missing([first(), second()])
    second.moved_from = "ma"
    assert store.run(second()).metrics["number"] == 0


@pytest.mark.filterwarnings("error")
def test_a_part_of_another_module_is_another_configuration(tmp_path):
    first, second = namesakes("ma", "mb", inner=True)
    store = RunStore(tmp_path)
    store.run(Any([first()]))
    assert Any([first()]) in store
    with pytest.raises(ValueError, match="Config is a class of mb"):
        store.run(Any([second()]))


def test_a_class_of_a_script_is_known_by_its_name(tmp_path, recwarn):
    script, worker, elsewhere, ours, moved = namesakes(
        "__main__", "__mp_main__", "study", "softprompt_nb.studies.a", "softprompt_nb.b"
    )
    store = RunStore(tmp_path / "script")
    store.run(script())
    assert store.run(worker()).metrics["number"] == 0 and not recwarn.list
    assert store.run(elsewhere()).metrics["number"] == 0
    assert "taken for the same class" in str(recwarn.pop().message)
    store = RunStore(tmp_path / "ours")
    store.run(ours())
    recwarn.clear()
    assert store.run(moved()).metrics["number"] == 3 and not recwarn.list
    with pytest.raises(ValueError, match="Config is a class of study"):
        store.run(elsewhere())


def test_records_from_before_classes_were_noted_are_found(tmp_path):
    first, second = namesakes("ma", "mb")
    store = RunStore(tmp_path)
    file = tmp_path / store.run(first()).id / "record.json"
    record = json.loads(file.read_text())
    del record["environment"]["classes"], record["checksum"]
    file.write_text(json.dumps(record | dict(checksum=module._sha(record))))
    assert store.run(second()).metrics["number"] == 0


@dataclass(frozen=True)
class Clashes:
    id: str = "mine"
    seconds: int = 60
    lr: float = 0.1
    models: str = "two"

    def run(self, work):
        return Result(dict(seconds=1.5, device="abacus", lr=0.2, acc=Measured(0.5, 0.2, 0.8, 10), acc_n=99))


def test_no_column_of_the_table_takes_the_place_of_another(tmp_path):
    store = RunStore(tmp_path)
    with pytest.warns(UserWarning, match="'acc_n' .* kept as 'metric.acc_n'"):
        record = store.run(Clashes())
    row = store.table().iloc[0]
    assert (row["config.id"], row["config.seconds"], row["config.lr"], row["config.models"]) == ("mine", 60, 0.1, "two")
    assert (row["metric.seconds"], row["metric.device"], row["lr"]) == (1.5, "abacus", 0.2)
    assert (row["acc_n"], row["metric.acc_n"], row["id"]) == (10, 99, record.id)
    assert row["device"] == "cpu" and row["seconds"] == record.environment["seconds"]


@settings(deadline=None)
@given(st.lists(st.sampled_from("abcdefgh"), min_size=5, max_size=30), st.integers(0, 5))
def test_a_row_that_stands_there_twice_is_on_one_side(letters, seed):
    assume(len(set(letters)) >= 3)
    data = [Example(letter, f" {letter}") for letter in letters]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        train, test = configs.split_examples(data, None, 2, seed)
        with pytest.raises(ValueError, match=f"There are {len(set(letters))} Examples"):
            configs.split_examples(data, len(set(letters)), 1, seed)
    assert len(test) == 2 and len({*train, *test}) == len(train) + len(test) == len(set(letters))
    assert len(said) == 2 * (len(set(letters)) < len(letters))


def test_rows_that_all_differ_are_drawn_as_before():
    data = [Example(str(i), f" {i}") for i in range(12)]
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3)).tolist()
    assert configs.split_examples(tuple(data), 5, 4, 3) == ([data[i] for i in order[4:9]], [data[i] for i in order[:4]])


RAN_ON = [
    dict(revision="a1", embedding_fingerprint="t-w", dtype="float32"),
    dict(revision="a1", embedding_fingerprint="t-w", dtype="float32"),
    dict(revision="softprompt-file", embedding_fingerprint="t-v", dtype="float32"),
    dict(revision="a1", embedding_fingerprint="t-w", dtype="bfloat16"),
]


@dataclass(frozen=True)
class RanOn:
    number: int
    model: str = "smollm2-135m-instruct"
    dtype: str | None = None

    def run(self, work):
        return Result(dict(x=1), info=RAN_ON[self.number])


def test_a_table_says_which_weights_of_a_public_model_and_which_formats_it_mixes(tmp_path):
    store = RunStore(tmp_path)
    ids = [store.run(RanOn(number)).id for number in range(4)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not {"models", "number_format"} & {*store.table(ids[:2])}
    with pytest.warns(UserWarning, match="1 of 3 records of 'smollm2-135m-instruct' .* other weights .softprompt-file"):
        table = store.table(ids[:3])
    assert table.models[0] == table.models[1] != table.models[2]
    with pytest.warns(UserWarning, match="2 in float32, 1 in bfloat16"):
        table = store.table([*ids[:2], ids[3]])
    assert table.number_format.tolist() == ["float32", "float32", "bfloat16"] and "models" not in table
    chosen = [store.run(RanOn(number, dtype=RAN_ON[number]["dtype"])).id for number in (0, 3)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store.table(chosen)


@dataclass(frozen=True)
class Asked:
    benchmark: str
    x: int = 0

    def run(self, work):
        return Result(dict(y=self.x))


def test_a_record_of_another_content_of_its_file_is_said(tmp_path):
    "A benchmark's file that was changed gave the numbers of the old questions without a word."
    store, file = RunStore(tmp_path / "runs"), tmp_path / "questions.jsonl"
    file.write_text('{"question": "1 + 1", "answer": "2"}')
    configs = [Asked(str(file), x) for x in range(2)]
    names = [content_hash(config) for config in configs]
    store.run(configs[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        file.write_text(file.read_text())  # the same, written anew
        store.run(configs[0]), store.table()
        store.run(Asked("lab:word"))
    assert "files" not in store[Asked("lab:word")].environment
    file.write_text('{"question": "1 + 2", "answer": "3"}')
    for ask in (configs[0], names[0]):
        with pytest.warns(UserWarning, match=f"record {names[0]} is of another content than .*questions.*set_aside"):
            store[ask]
    with pytest.warns(UserWarning, match="another content"):
        assert sweep(configs, store, workers=0, progress=False).there == names[:1]
    with pytest.warns(UserWarning, match="1 of 2 records in this table are of another content of .* than it has now"):
        store.table()
    assert content_hash(configs[0]) == names[0]
    file.unlink()
    with pytest.warns(UserWarning, match="1 of 2 records in this table .* than the record"):
        store.table()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store[configs[0]]


def test_a_folder_of_data_is_told_by_its_files(tmp_path):
    for part in ("train", "test"):
        (tmp_path / f"{part}.json").write_text(f'["{part}"]')
    then = module.files_in(Asked(str(tmp_path)))
    (tmp_path / "test.json").write_text('["other"]')
    changed = module._other_files(then, module.files_in(Asked(str(tmp_path))))
    assert len(then) == 2 and changed == [(tmp_path / "test.json").as_posix()]
    assert module.files_in(Asked("x" * 5000)) == module.files_in(Asked("one\ntwo")) == module.files_in(Asked("")) == {}
