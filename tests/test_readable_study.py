"""The study of readable prompts: every method as a run, and what the tables say."""

import math

from softprompt_nb.data import Example
from softprompt_nb.experiments.runs import RunStore
from softprompt_nb.experiments.sweep import sweep
from softprompt_nb.studies.readable import (
    SEARCHES,
    HardConfig,
    by_lambda,
    changes,
    gpt2_configs,
    hard_configs,
    hard_table,
    hypervolumes,
    oddities,
    plot_desiderata,
    plot_trade,
    prompt_claims,
    tenfold,
)

import pandas as pd
import pytest
from families import tiny

SMALL = dict(budget=300, train=6, valid=6, test=6, judge="lab-base-xs", reader="lab-base-xs", model="lab-base-xs", n=3)


def test_what_is_odd_is_counted():
    lm = tiny("gpt2")
    ids = [1, *lm.tokenizer("aab")["input_ids"]]
    assert oddities(lm, ids, [Example("q", "b"), Example("q", "xa")]) == dict(
        commonest=0.5, special=0.25, pieces=0.75, answers=0.25
    )
    with pytest.raises(ValueError, match="no tokens"):
        oddities(lm, [])


def test_every_method_is_a_run_with_the_same_measures(tmp_path):
    configs = hard_configs(["lab:class"], [0.1], [3], **SMALL)
    assert len(configs) == len(SEARCHES) + 2
    s = sweep(configs, tmp_path, workers=0, progress=False)
    assert len(s.done) == len(configs)
    t = hard_table(s.store, configs).set_index("method")
    assert (
        set(t.index) == {*SEARCHES, "hand", "nearest tokens", "description"}
        and t[["accuracy", "nats", "retention", "kl", "rank"]].notna().all().all()
    )
    own = t.loc[[*SEARCHES, "hand"]]
    assert ((own.retention - 1).abs() < 1e-6).all() and (own.kl < 1e-6).all() and t.kl["nearest tokens"] > 1e-3
    assert own.spent[list(SEARCHES)].between(250, 600).all() and (t["rank"].between(1, 8)).all()
    assert len(sweep(configs, tmp_path, workers=0, progress=False).there) == len(configs)


def test_bad_configurations_are_refused(tmp_path):
    with pytest.raises(ValueError, match="method='pezz'"):
        HardConfig("pezz")
    with pytest.raises(ValueError, match="description"):
        HardConfig(data=(Example("a", " b"),))
    with pytest.raises(ValueError, match="none of these runs"):
        hard_table(RunStore(tmp_path), [HardConfig()])
    with pytest.raises(ValueError, match="none to choose on"):
        HardConfig(data="lab:class", train=200).parts()


def made(gain, lost, methods=("PEZ", "GCG", "RLPrompt", "random search"), seeds=range(4)):
    "A study in which weight 1 lowers the nats by `gain` and the accuracy by `lost`, but for random search, where it does nothing."
    rows = []
    for m in methods:
        for d in ("lab:a", "lab:b"):
            for s in seeds:
                for f in (0.0, 1.0):
                    on = f * (m != "random search")
                    rows.append(
                        dict(
                            method=m,
                            data=d,
                            seed=s,
                            fluency=f,
                            accuracy=0.8 - on * lost + 0.01 * s,
                            nats=10 - on * gain + 0.1 * s,
                            retention=1.0,
                            kl=0.0,
                            commonest=0.2 + 0.4 * on,
                            rank=1.0 + (s > 1),
                            text="x",
                        )
                    )
    for m, nats, kl in (("hand", 2.0, 0.0), ("nearest tokens", 12.0, 0.5), ("description", 2.5, 0.6)):
        rows += [
            dict(
                method=m,
                data=d,
                seed=s,
                fluency=0.0,
                accuracy=0.9,
                nats=nats,
                retention=0.8,
                kl=kl,
                commonest=0.2,
                rank=1.0,
                text="y",
            )
            for d in ("lab:a", "lab:b")
            for s in seeds
        ]
    return pd.DataFrame(rows)


def test_weights_are_compared_pair_by_pair():
    t = made(3.0, 0.01)
    b = by_lambda(t).set_index(["method", "fluency"])
    assert (
        float(b.loc[("PEZ", 1.0)].nats_change) == pytest.approx(-3)
        and float(b.loc[("PEZ", 1.0)].accuracy_change) == pytest.approx(-0.01)
        and abs(b.loc[("random search", 1.0)].nats_change.value) < 1e-9
    )
    assert (b.pairs == 8).all() and changes(t, "nats", ["PEZ", "GCG"], 1.0) == pytest.approx([-3] * 16)
    cut = t.drop(
        t.index[(t.method == "PEZ") & (t.seed == 0) & (t.fluency == 0)]
    )  # a run that is not done takes its partner out of the comparison
    assert (
        len(changes(cut, "nats", ["PEZ"], 1.0)) == 6
        and by_lambda(cut).set_index(["method", "fluency"]).pairs[("PEZ", 1.0)] == 6
    )


@pytest.mark.parametrize("gain, lost, holds", [(3.0, 0.01, True), (3.0, 0.05, False), (1.0, 0.01, False)])
def test_tenfold_is_what_it_says(gain, lost, holds):
    t = tenfold(made(gain, lost)).set_index(["method", "data"])
    assert (
        (t.loc["PEZ"].holds == holds).all()
        and t.loc["PEZ"].times.iloc[0] == pytest.approx(math.exp(gain))
        and not t.loc["random search"].holds.any()
    )
    assert len(t) == 8 and tenfold(made(2.0, 0.0), times=5).holds.sum() == 6


def test_areas_are_those_of_rectangles():
    h = hypervolumes(made(3.0, 0.0))
    worst = 10.3
    area = lambda on: sum((0.8 + 0.01 * s) * (worst - (10 - 3 * on + 0.1 * s)) for s in range(4)) / 4
    assert float(h.hypervolume["PEZ"]) == pytest.approx(area(1)) and float(
        h.hypervolume["random search"]
    ) == pytest.approx(area(0))
    assert (
        float(h.difference["PEZ"]) == pytest.approx(area(1) - area(0))
        and h.larger["PEZ"] == "8 of 8"
        and h.difference["random search"] is None
    )
    with pytest.raises(ValueError, match="no method 'x'"):
        hypervolumes(made(1.0, 0.0), against="x")


def test_claims_are_decided_by_their_intervals():
    c = prompt_claims(made(3.0, 0.05)).verdict
    assert (
        c["PEZ: fluency lowers the judge's perplexity (nats)"]
        == c["PEZ: fluency costs accuracy"]
        == c["fluency makes prompts repeat a token (share of the commonest)"]
        == "agrees"
    )
    assert (
        c["(ours) fluency makes the task easier to tell (share told right)"] == "undecided"
        and c["(ours) a soft prompt's nearest tokens are another prompt (KL)"] == "agrees"
    )
    worse = prompt_claims(made(-3.0, -0.05)).verdict
    assert (
        worse["GCG: fluency lowers the judge's perplexity (nats)"] == worse["GCG: fluency costs accuracy"] == "opposite"
    )
    assert (
        prompt_claims(made(1.0, 0.0, methods=("PEZ", "random search"))).verdict["RLPrompt: fluency costs accuracy"]
        == "not measured"
    )
    one = prompt_claims(
        made(3.0, 0.05, seeds=(0,)).query("data == 'lab:a'")
    )  # an interval of one pair is a point, and decides nothing
    assert not {"agrees", "opposite"} & set(one.verdict[one.n < 4])


def test_pictures_show_every_method():
    t = made(3.0, 0.05)
    assert [x.get_text() for x in plot_trade(t).get_legend().get_texts()] == [
        "PEZ",
        "GCG",
        "RLPrompt",
        "random search",
        "written by hand",
        "soft prompt's nearest tokens",
    ]
    assert [len(p.get_offsets()) for p in plot_desiderata(t).collections] == [64, 8, 8]


def test_the_study_on_gpt2_is_ready_to_run():
    some = lambda x: [Example(f"{x} {i}", " y") for i in range(300)]
    own = gpt2_configs({"one": some("a"), "two": some("b")}, lambdas=(0.0, 1.0), seeds=(0,), budget=10)
    assert (
        len(own) == 2 * (2 + 2 * len(SEARCHES))
        and {c.description for c in own} == {"one", "two"}
        and all(c.distractors == ("two" if c.description == "one" else "one",) and c.budget == 10 for c in own)
    )
    assert all("gpt2" in c.model and c.judge != c.model for c in own)
