"Rank agreement against scipy; curves whose figures are known; the study through the store."

import math
import re

from softprompt_nb.evaluation.formats.curve import FormatCurve, checkpoints_for, format_curve, prompts_at
from softprompt_nb.evaluation.formats.lab_benchmarks import lab_benchmark
from softprompt_nb.evaluation.formats.ranking import agreement_difference, kendall_tau, rank_agreement, spearman_rho
from softprompt_nb.experiments.runs import RunStore, content_hash
from softprompt_nb.experiments.sweep import sweep
from softprompt_nb.load import load_lm
from softprompt_nb.measure import mean, proportion, verdict
from softprompt_nb.studies.format import (
    LAB_PAIRS,
    FormatConfig,
    FormatStudy,
    _cached_benchmark,
    named_benchmark,
    paper_configs,
    study_configs,
)

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

scores = st.integers(3, 9).flatmap(lambda k: st.tuples(*[st.lists(st.integers(0, 5), min_size=k, max_size=k)] * 2))


@settings(deadline=None)
@given(pair=scores)
def test_tau_and_rho_are_scipys(pair):
    a, b = (np.array(x, float) for x in pair)
    constant = len(set(pair[0])) == 1 or len(set(pair[1])) == 1
    tau, none = kendall_tau(a, b)
    assert none == constant and spearman_rho(a, b)[1] == constant
    if constant:
        assert tau == 0 == spearman_rho(a, b)[0]
    else:
        assert (
            abs(tau - stats.kendalltau(a, b, variant="b").statistic) < 1e-12
            and abs(spearman_rho(a, b)[0] - stats.spearmanr(a, b).statistic) < 1e-12
        )
    assert (kendall_tau(np.stack([a, b]), np.stack([b, b]))[0] == [kendall_tau(a, b)[0], kendall_tau(b, b)[0]]).all()


def draw(p, n, seed):
    rng = np.random.default_rng(seed)
    return {f"m{k}": (rng.random(n) < x).astype(float) for k, x in enumerate(p)}


def test_agreement_by_plain_loops():
    base, post = draw(np.linspace(0.2, 0.7, 6), 80, 0), draw(np.linspace(0.3, 0.9, 6), 80, 1)
    a = rank_agreement(base, post, draws=200, seed=3)
    x, y = ([v.mean() for v in s.values()] for s in (base, post))
    assert (
        abs(a.tau - stats.kendalltau(x, y).statistic) < 1e-12 and abs(a.rho - stats.spearmanr(x, y).statistic) < 1e-12
    )
    for k, m in enumerate(base):
        assert abs(a.jackknife[m] - stats.kendalltau(np.delete(x, k), np.delete(y, k)).statistic) < 1e-12
    pick = np.random.default_rng(3).integers(0, 80, (200, 80))
    loop = [
        stats.kendalltau([v[p].mean() for v in base.values()], [v[p].mean() for v in post.values()]).statistic
        for p in pick
    ]
    assert np.allclose(a.draws, np.nan_to_num(loop)) and abs(a.tau.low - np.quantile(a.draws, 0.025)) < 1e-12
    assert a.top1 == (np.argmax(x) == np.argmax(y)) and "15 pairs" in repr(a)


def test_ties_at_the_top_share():
    a = rank_agreement(dict(a=[1, 1], b=[1, 1], c=[0, 0]), dict(a=[1, 1], b=[0, 0], c=[0, 1]), draws=5)
    assert a.top1 == 0.5


def test_scores_without_an_order_predict_nothing_and_say_so():
    same, post = {f"m{k}": [0.0] * 20 for k in range(4)}, draw([0.1, 0.4, 0.6, 0.9], 20, 0)
    a = rank_agreement(same, post, draws=50)
    assert a.tau == 0 and a.undefined == 1 and "no order in 100%" in repr(a)
    gain = agreement_difference(post, same, post, draws=50)
    assert gain == 1 and gain.low > 0.5


def test_benchmarks_are_averaged_as_a_leaderboard_does():
    base, post = ({b: draw(np.linspace(0.2, 0.8, 5), 60, s + k) for k, b in enumerate("xy")} for s in (0, 10))
    a = rank_agreement(base, post, draws=20)
    x, y = ([np.mean([s[b][m].mean() for b in s]) for m in base["x"]] for s in (base, post))
    assert list(a.table.index) == ["x", "y", "mean of all"] and abs(a.tau - stats.kendalltau(x, y).statistic) < 1e-12
    assert (
        abs(
            float(a.table.tau["y"])
            - stats.kendalltau([v.mean() for v in base["y"].values()], [v.mean() for v in post["y"].values()]).statistic
        )
        < 1e-12
    )
    assert (
        rank_agreement({m: proportion(v > 0) for m, v in base["x"].items()}, post["x"], 5).tau
        == rank_agreement(base["x"], post["x"], 5).tau
    )


good = dict(a=[1, 0], b=[0, 0], c=[1, 1])


@pytest.mark.parametrize(
    "base, post, message",
    [
        ({}, good, "no scores"),
        (dict(a=[1], b=[0]), dict(a=[1], b=[0]), "at least 3"),
        (good, dict(a=[1], b=[1], d=[1]), "other models"),
        (good, dict(x=good), "One side is given by benchmark"),
        (dict(a=[1, 0], b=[0], c=[1, 1]), good, "different numbers of items"),
        (dict(x=good), dict(y=good), "benchmarks differ"),
        (good, dict(good, a=[math.nan, 1]), "finite"),
    ],
)
def test_bad_scores_are_refused(base, post, message):
    with pytest.raises(ValueError, match=message):
        rank_agreement(base, post)


def planted(ff, known, items=60):
    f, k = np.arange(items) < ff, np.arange(items) % 4 < known
    return np.stack([f, f & k, k]).astype(float)


def test_figures_of_a_planted_curve():
    rise = {0: 0, 10: 30, 20: 58, 40: 60}
    c = FormatCurve(
        "m",
        "b",
        {
            (a, n, s, step): planted(ff, 2 + (a == "true" and step == 40))
            for a in ("true", "shuffled")
            for n in (10,)
            for s in (0, 1)
            for step, ff in rise.items()
        },
    )
    assert (
        c.saturation() == 20
        and c.saturation(share=0.4) == 10
        and c.saturation().low <= 20 <= c.saturation().high
        and c.saturation().seeds == (0, 1)
    )
    assert (
        abs(c.moved() - 0.25) < 1e-12
        and c.moved(answers="shuffled") == 0
        and c.moved(end=20) == 0
        and abs(c.beyond_format() - 0.25) < 1e-12
        and c.beyond_format(step=20) == 0
    )
    slope = np.polyfit(np.log2([10, 20, 40]), [0.5, 0.5, 0.75], 1)[0]
    assert (
        abs(c.flatness() - slope) < 1e-12
        and abs(c.flatness(answers="shuffled") - 0) < 1e-12
        and c.flatness().low <= slope <= c.flatness().high
    )
    t = c.table().set_index(["answers", "step"])
    assert (
        abs(t.loc[("true", 20), "FF"] - 58 / 60) < 1e-12
        and math.isnan(t.loc[("true", 0), "KA"])
        and (t.seeds == 2).all()
    )
    assert math.isnan(FormatCurve("m", "b", {("true", 1, 0, s): planted(0, 1) for s in (0, 1)}).saturation())
    for bad, message in (
        (lambda: c.moved(end=33), "Step 33"),
        (lambda: c.rows("true", 3, 0), "No measurement"),
        (lambda: c.saturation(n=4), "n=4"),
        (lambda: c.flatness("x"), "metric='x'"),
        (lambda: c.beyond_format(control="random"), "no such answers"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            bad()


@given(steps=st.lists(st.integers(0, 200), min_size=1, max_size=6).filter(lambda s: max(s) > 0))
def test_checkpoints_meet_all_steps(steps):
    k = checkpoints_for(steps)
    assert set(steps) <= {0} | {round(i * max(steps) / k) for i in range(1, k + 1)}


def test_a_curve_on_the_lab_is_single_tunings():
    from softprompt_nb.evaluation.formats.knowledge import format_and_knowledge
    from softprompt_nb.prompts import SoftPrompt
    from softprompt_nb.training.tuning import tune

    lm = load_lm("lab-instruct-s", dtype="float64")
    b = lab_benchmark("quoted", test=16, train=64)
    c = format_curve(lm, b, (0, 4, 12), (2, 10), ("true", "shuffled"), progress=False)
    assert (
        set(c.groups()) == {("true", 2), ("true", 10), ("shuffled", 10)}
        and c.instruction.way == "instruction"
        and len(c.table()) == 9
    )
    run = tune(
        lm,
        SoftPrompt.init(lm, 10),
        b.examples(answers="shuffled"),
        steps=12,
        checkpoints=checkpoints_for((0, 4, 12)),
        progress=False,
    )
    lane = c.runs["shuffled", 10, 0]
    rounding = 12 * torch.finfo(torch.float32).eps * run.trajectory.abs().max()  # prompts are float32, for 12 steps
    assert (lane.trajectory - run.trajectory).abs().max() <= rounding
    one = format_and_knowledge(lm, prompts_at(run, [12])[12], b)
    assert (c.rows("shuffled", 10, 12)[0] == one.records.formed.to_numpy(float)).mean() > 0.9
    assert (c.rows("true", 10, 0) == c.rows("shuffled", 10, 0)).all()
    with pytest.raises(ValueError, match="no checkpoint at step 5"):
        prompts_at(run, [5])
    for kw, message in (
        (dict(steps=(0,)), "at least one above 0"),
        (dict(sizes=(0,)), "sizes="),
        (dict(answers=("x",)), "answers='x'"),
    ):
        with pytest.raises(ValueError, match=message):
            format_curve(lm, b, **kw)


def test_a_study_goes_through_the_store_once_and_comes_back(tmp_path):
    pairs = {"lab-instruct-s": "lab-instruct-s"}
    cells = study_configs(pairs, ["lab:quoted"], steps=(0, 8), controls=(), test=8, train=32)
    store = RunStore(tmp_path / "runs")
    done = sweep(cells, store, workers=0, progress=False)
    assert (
        len(done.done) == 4 and not done.failed
    )  # the model is its own post-trained version here, so one of the five cells is there twice
    again = sweep(cells, store, workers=0, progress=False)
    assert len(again.there) == 4 and not again.done
    s = FormatStudy.from_store(store, cells, pairs)
    r = store[cells[-1]]
    assert (
        abs(s.grid("FF", "soft").iloc[0, 0] - r.metrics["FF"]) < 1e-12
        and r.prompt(load_lm("lab-instruct-s")).n == 10
        and r.history.step.tolist() == [0, 8]
        and len(r.info["replies"]) == 8
    )
    back = FormatStudy.load(s.save(tmp_path / "s.json"))
    for a, b in zip(s.cells, back.cells):
        assert (a["bits"] == b["bits"]).all() and {k: v for k, v in a.items() if k != "bits"} == {
            k: v for k, v in b.items() if k != "bits"
        }
    assert back.curve("lab-instruct-s", "lab:quoted").steps("true", 10) == [0, 8]
    with pytest.raises(ValueError, match="at least 3"):
        s.agreements()
    with pytest.raises(ValueError, match="has a record yet"):
        FormatStudy.from_store(store, [FormatConfig(test=9)])
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(ValueError, match="no saved study"):
        FormatStudy.load(tmp_path / "x.json")


def test_configurations_of_the_lab_and_of_the_paper():
    cells, paper = study_configs(), paper_configs()
    assert len({content_hash(c) for c in cells}) == len(cells) == len(LAB_PAIRS) * 7 * 6 and len(LAB_PAIRS) >= 7
    assert (
        all(c.n == 10 and max(c.steps) == 80 and c.batch_size == 8 and c.train == 640 for c in paper if c.way == "soft")
        and len({c.model for c in paper}) == 14
        and len({c.benchmark for c in paper}) == 7
    )
    for change, message in ((dict(way="x"), "way='x'"), (dict(steps=()), "steps=")):
        with pytest.raises(ValueError, match=message):
            FormatConfig(**change)
    with pytest.raises(ValueError, match="unknown form"):
        named_benchmark("lab:poem")


@pytest.mark.parametrize("name", ["seed", "n"])
def test_a_study_with_several_cells_of_a_kind_shows_none_of_them_alone(name):
    def cell(value, right, way="soft"):
        bits = np.zeros((1, 3, 10), bool)
        bits[0, 0], bits[0, 1:, :right] = True, True
        own = dict(model="m", benchmark="b", way=way, answers="true", n=10, seed=0, shots=3, steps=[80], bits=bits)
        return own | {name: value}

    study = FormatStudy({"m": "p"}, [cell(0, 9), cell(1, 1)])
    with pytest.raises(ValueError, match=f"2 times .*{name} 1"):
        study.grid("ACC")
    one = FormatStudy({"m": "p"}, [cell(0, 9), cell(0, 9)])  # a model that is its own post-trained version
    assert one.grid("ACC").loc["m", "b"] == 0.9
    asked = FormatStudy({"m": "p"}, [cell(0, 9, "instruction"), cell(1, 9, "instruction")])
    if name == "n":  # without a prompt, its length says nothing
        assert asked.grid("ACC", "instruction").loc["m", "b"] == 0.9


def test_a_benchmark_in_a_changed_file_is_loaded_anew(tmp_path):
    file = tmp_path / "sums.jsonl"
    file.write_text('{"question": "1 + 1", "answer": "2"}')
    first = _cached_benchmark(str(file))
    assert first is _cached_benchmark(str(file))
    file.write_text('{"question": "1 + 2", "answer": "3"}')
    assert _cached_benchmark(str(file)).items[0].answer == "3" and first.items[0].answer == "2"


SETTINGS = [
    ("steps", [40]),
    ("lr", 0.1),
    ("train", 32),
    ("batch_size", 4),
    ("how", "random"),
    ("normalize", "tokens"),
    ("data_seed", 1),
    ("test", 5),
    ("dtype", "bfloat16"),
]


@pytest.mark.parametrize("name, value", SETTINGS)
def test_cells_of_several_settings_are_no_one_cell(name, value):
    "The first was shown for all of them, and a curve took steps of each."
    bits = np.zeros((1, 3, 10), bool)
    own = dict(model="m", benchmark="b", way="soft", answers="true", n=10, seed=0, shots=3, steps=[80], bits=bits)
    one = own | dict(lr=None, train=640, batch_size=8, how="vocab", normalize=None, data_seed=0, test=10, dtype=None)
    study = FormatStudy({"m": "m"}, [one, one | {name: value}])
    for ask in (lambda: study.grid("ACC"), lambda: study.scores("soft")):
        with pytest.raises(ValueError, match=f"{name} .*; {name}"):
            ask()
    with pytest.raises(ValueError, match="no single curve .*" + ("length" if name == "steps" else name)):
        study.curve("m", "b")
    apart = FormatStudy({"m": "m"}, [one, one | {name: value, "model": "other"}])
    assert apart.grid("ACC").loc["m", "b"] == 0 and apart.curve("m", "b").steps("true", 10) == [80]
    old = FormatStudy({"m": "m"}, [own, dict(own)])  # as studies were kept before their settings stood beside them
    assert old.grid("ACC").loc["m", "b"] == 0
    if name in ("data_seed", "test"):
        with pytest.raises(ValueError, match=f"different items .*{name}"):
            apart.agreements()


def test_a_control_at_fewer_steps_stands_in_one_curve_with_the_true_answers():
    bits = np.zeros((2, 3, 10), bool)
    own = dict(model="m", benchmark="b", way="soft", answers="true", n=10, seed=0, shots=3)
    cells = [own | dict(steps=[0, 20, 80], bits=np.zeros((3, 3, 10), bool))]
    cells.append(own | dict(answers="shuffled", steps=[0, 80], bits=bits))
    assert FormatStudy({"m": "m"}, cells).curve("m", "b").groups() == [("true", 10), ("shuffled", 10)]
    cells[1] |= dict(steps=[0, 40])
    with pytest.raises(ValueError, match="length 80; length 40"):
        FormatStudy({"m": "m"}, cells).curve("m", "b")


def test_only_seeds_with_both_ends_have_moved():
    "A seed at step 0 alone was compared with another at step 80, and counted as a second seed there."
    bits = {("true", 10, 0, 0): planted(60, 1), ("true", 10, 0, 80): planted(60, 2), ("true", 10, 1, 0): planted(60, 4)}
    curve = FormatCurve("m", "b", bits | {("shuffled", 10, 1, 0): planted(60, 1)})
    moved = curve.moved()
    assert moved.value == pytest.approx(0.25) and moved.seeds == (0,)
    assert curve.table().set_index(["answers", "step"]).seeds.to_dict() == {
        ("true", 0): 2,
        ("true", 80): 1,
        ("shuffled", 0): 1,
    }
    beyond = curve.beyond_format()
    assert beyond.value == pytest.approx(0.75) and beyond.seeds == (1,)
    steps = {("true", 10, 0, s): planted(60 if s else 30, 2) for s in (0, 10, 20, 80)} | {
        ("true", 10, 1, 10): planted(0, 0)
    }
    whole = FormatCurve("m", "b", steps)
    alone = FormatCurve("m", "b", {key: rows for key, rows in steps.items() if key[2] == 0})
    for figure in ("saturation", "flatness", "moved"):
        ours, theirs = (
            getattr(each, figure)("FF") if figure != "saturation" else each.saturation() for each in (whole, alone)
        )
        assert (ours.value, ours.low, ours.high, ours.seeds) == (theirs.value, theirs.low, theirs.high, (0,))
    apart = FormatCurve("m", "b", {("true", 10, 0, 80): planted(60, 2), ("true", 10, 1, 0): planted(60, 4)})
    with pytest.raises(ValueError, match=r"all of the steps \[0, 80\] \(seed 0: \[80\]; seed 1: \[0\]\)"):
        apart.moved()
    unlike = FormatCurve("m", "b", {("true", 10, 0, 80): planted(60, 2), ("shuffled", 10, 1, 80): planted(60, 4)})
    with pytest.raises(ValueError, match="no seed has both"):
        unlike.beyond_format()


def test_there_is_no_interval_where_none_can_be_had():
    "Single numbers had intervals without a width, and the order of three models was always agreed."
    one = rank_agreement(dict(a=0.1, b=0.2, c=0.3, d=0.4), dict(a=0.2, b=0.1, c=0.5, d=0.6), draws=20)
    assert one.tau.value == pytest.approx(2 / 3) and math.isnan(one.tau.low) and math.isnan(one.rho.high)
    post = draw(np.linspace(0.1, 0.9, 4), 60, 1)
    half = rank_agreement(dict(m0=0.1, m1=0.2, m2=0.3, m3=0.4), post, draws=20)
    assert half.tau.n == 1 and math.isnan(half.tau.low) and "nan" in repr(half)
    three = rank_agreement(*[{name: post[name] for name in ("m0", "m1", "m3")}] * 2, draws=20)
    assert three.tau == 1 and verdict(three.tau) == "undecided" and verdict(rank_agreement(post, post).tau) == "agreed"
    trio = {name: post[name] for name in ("m0", "m1", "m3")}
    assert math.isnan(agreement_difference(trio, trio, trio, draws=20).low)
    mixed = rank_agreement(dict(x=post, y=dict.fromkeys(post, 0.5)), dict(x=post, y=dict.fromkeys(post, 0.5)), draws=20)
    assert (
        not math.isnan(mixed.table.tau["x"].low) and math.isnan(mixed.table.tau["y"].low) and math.isnan(mixed.tau.low)
    )


def test_a_weighted_mean_is_no_mean_of_its_items():
    "Its items without their weights put the models in another order."
    weighted = {f"m{k}": mean([0.0, 1.0], weights=[10 - k, k]) for k in range(1, 5)}
    plain = {name: score.value for name, score in weighted.items()}
    agreement = rank_agreement(weighted, plain, draws=20)
    assert agreement.tau == 1 and math.isnan(agreement.tau.low)
    alike = {f"m{k}": mean(values) for k, values in enumerate(np.random.default_rng(0).random((4, 30)))}
    assert not math.isnan(rank_agreement(alike, alike, draws=20).tau.low)
