"""When items are solved against greedy generation; runs through a store; the comparison of arms against numbers
worked out by hand."""

from softprompt_nb.data import Example
from softprompt_nb.engine.inference import generate
from softprompt_nb.experiments.runs import RunStore, content_hash
from softprompt_nb.files import read_results
from softprompt_nb.lab.world import lab_task
from softprompt_nb.load import load_lm
from softprompt_nb.prompts import SoftPrompt
from softprompt_nb.studies.structure import (
    ShapeConfig,
    arms,
    compare_arms,
    paper_claims,
    paper_study,
    results,
    shape_configs,
    solved_at,
    solves,
    study,
)
from softprompt_nb.training.tuning import tune

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from scipy.stats import wilcoxon

ITEMS = lab_task("plural").examples(4, split="train")


def test_solved_is_what_greedy_generation_says():
    lm = load_lm("lab-instruct-s")
    run = tune(lm, SoftPrompt.init(lm, 5), ITEMS, steps=24, checkpoints=24, progress=False)
    said = torch.tensor(
        [
            [
                a == e.target
                for a, e in zip(generate(lm, SoftPrompt(v), [e.input for e in ITEMS], max_new_tokens=8), ITEMS)
            ]
            for v in run.trajectory
        ]
    )
    got = solves(lm, run.trajectory, ITEMS)
    assert torch.equal(got, said) and got.any() and not got[0].all()
    right = [s for s, ok in zip(run.checkpoint_steps, said.all(1).tolist()) if ok]
    for rows in (1, 9, 1000):
        assert solved_at(lm, run.trajectory, run.checkpoint_steps, ITEMS, rows=rows) == (right[0] if right else None)
    assert solved_at(lm, run.trajectory[:1], [0], ITEMS) is None


def test_arms_differ_in_the_term_alone_and_have_names_for_a_store():
    configs = shape_configs(["lab-instruct-s"], ["lab:plural", "lab:capital"], range(3), trains=(1, 10))
    assert len(configs) == 2 * 3 * 2 * len(arms()) and len({content_hash(c) for c in configs}) == len(configs)
    one = [c for c in configs if (c.data, c.seed, c.train) == ("lab:plural", 1, 10)]
    assert {c.arm for c in one} == set(arms()) and len({(c.seed, c.data_seed, c.prompt_seed, c.n) for c in one}) == 1


def test_a_run_records_both_sides_and_the_shape(tmp_path):
    data = tuple(Example(f"plural of {w} is", f" {w}s") for w in "dog cat cow pig hen fox owl bee lion bear".split())
    configs = shape_configs(
        ["lab-instruct-s"],
        [data],
        range(2),
        trains=(1, 3),
        terms={k: arms()[k] for k in ("CE", "TSLoss")},
        n=4,
        steps=6,
        batch_size=2,
        test=4,
        checkpoints=6,
        kept=3,
    )
    table = study(configs, tmp_path / "s", tmp_path / "t.json", progress=False)
    assert (
        len(table) == 8
        and table.iterations.between(0, 7).all()
        and (table.iterations == 7).equals(~table.solved.astype(bool))
        and set(table.train) == {1, 3}
    )
    r = RunStore(tmp_path / "s")[configs[1]]
    assert (
        r.arrays["trajectory"].shape[:2] == (4, 4)
        and r.info["checkpoint_steps"] == [0, 2, 4, 6]
        and r.metrics["exact_match_n"] == 4
        and "weight" in r.history
    )
    kept = read_results(tmp_path / "t.json").data
    assert kept.arm.tolist() == table.arm.tolist() and np.allclose(kept.loss, table.loss, rtol=1e-3)
    c = compare_arms(table)
    assert set(c.index.get_level_values("arm")) == {"TSLoss"} and (c.pairs == 4).all()
    alone = configs[0].run(type("Work", (), dict(folder=tmp_path))()).metrics
    assert alone["loss"].value == pytest.approx(
        table[(table.arm == "CE") & (table.train == 1) & (table.seed == 0)].loss.item(), rel=1e-4
    )


def table_of(rng, arms=("CE", "A", "B"), seeds=8):
    rows = [
        dict(
            model="m",
            data=d,
            train=10,
            seed=s,
            arm=a,
            iterations=int(rng.integers(5, 40)),
            loss=rng.normal(),
            exact_match=rng.random(),
        )
        for d in ("x", "y")
        for s in range(seeds)
        for a in arms
    ]
    return pd.DataFrame(rows).sample(frac=1, random_state=1)


def test_comparison_is_what_the_differences_say():
    t = table_of(np.random.default_rng(0))
    c = compare_arms(t)
    wide = t.pivot(index=["data", "seed"], columns="arm", values="loss")
    diff = (wide.A - wide.CE).to_numpy()
    row = c.loc["loss", "A"]
    assert (
        row.difference == pytest.approx(diff.mean())
        and row.dz == pytest.approx(diff.mean() / diff.std(ddof=1))
        and row.better == (diff < 0).mean()
        and row.pairs == 16
    )
    assert row.p == pytest.approx(wilcoxon(diff).pvalue) and row.low < row.difference < row.high
    half = stats.t.ppf(0.975, 15) * diff.std(ddof=1) / 4
    assert row.high - row.low == pytest.approx(2 * half, rel=0.002)
    steps = t.pivot(index=["data", "seed"], columns="arm", values="iterations")
    assert c.loc["iterations (ratio)", "B"].difference == pytest.approx(np.exp(np.log(steps.B / steps.CE).mean()))
    p = c.loc["loss"].p
    assert sorted(c.loc["loss"].p_holm) == pytest.approx(
        sorted([min(1, 2 * p.min()), min(1, max(2 * p.min(), p.max()))])
    )


def test_no_difference_is_no_finding_and_a_gap_is_one():
    t = table_of(np.random.default_rng(1), ("CE", "A"))
    same = t[t.arm == "CE"]
    c = compare_arms(
        pd.concat(
            [
                same,
                same.assign(arm="same"),
                same.assign(
                    arm="half", iterations=same.iterations / 2, loss=same.loss - 1 - 0.1 * np.arange(len(same))
                ),
            ]
        ),
    )
    assert c.loc["loss", "same"].p == 1 and c.loc["loss", "same"].dz == 0 and c.loc["loss", "same"].equal == 1
    assert (
        c.loc["iterations (ratio)", "half"].difference == pytest.approx(0.5)
        and c.loc["loss", "half"].p_holm < 0.01
        and c.loc["loss", "half"].better == 1
    )


def test_pairs_of_one_start_count_as_one():
    t = table_of(np.random.default_rng(3), ("CE", "A"))
    once, twice = compare_arms(t), compare_arms(pd.concat([t, t.assign(train=1)]))
    columns = ["difference", "low", "high", "p", "dz"]
    assert np.allclose(once[columns], twice[columns]), "the same numbers again are no more evidence"
    assert (twice.pairs == 2 * twice.units).all() and (once.units == 16).all()
    starts = compare_arms(t, unit=["model", "seed"])
    assert (starts.units == 8).all() and np.allclose(starts.difference, once.difference)


def test_a_run_that_diverged_is_worse_than_any_and_said():
    t = table_of(np.random.default_rng(8), ("CE", "A", "B"))
    t["loss"] = t.seed + 0.0 - (t.arm == "A")
    whole = compare_arms(t)
    assert "diverged" not in whole and whole.loc["loss", "A"].better == 1
    t.loc[(t.arm == "A") & (t.seed < 5), "loss"] = np.nan
    t.loc[(t.arm == "CE") & (t.seed == 7), "loss"] = np.nan
    c = compare_arms(t)
    row = c.loc["loss", "A"]
    assert (row.pairs, row.units, row.diverged, row.base_diverged) == (16, 4, 10, 2)
    assert row.difference == -1 and row.better == 6 / 16 and row.equal == 0
    assert np.isnan([row.low, row.high, row.p, row.p_holm]).all(), "the survivors are no sample of the pairs"
    columns = ["pairs", "units", "difference", "low", "high", "p", "better", "equal"]
    assert c.loc["exact_match"][columns].equals(whole.loc["exact_match"][columns])
    never = compare_arms(t.assign(loss=t.loss.where(t.arm != "A"))).loc["loss", "A"]
    assert (never.units, never.diverged, never.better) == (0, 16, 0) and np.isnan(never.difference)
    assert ("loss", "A") not in compare_arms(t.assign(loss=np.nan)).index, "what was not measured is not compared"


def test_no_claim_is_agreed_over_survivors():
    t = table_of(np.random.default_rng(9), tuple(arms()), seeds=10)
    rng = np.random.default_rng(10)
    t["loss"] = rng.normal(size=len(t)) - 5 * (t.arm == "TSLoss")
    t["compact"], t["stable"], t["outcome"] = rng.normal(size=len(t)), rng.normal(size=len(t)), "done"
    claim = "(ours) less loss on other items"
    assert paper_claims(t).verdict[claim] == "agreed"
    t.loc[(t.arm == "TSLoss") & (t.seed < 5), "loss"] = np.nan
    claims = paper_claims(t)
    assert claims.verdict[claim] == "undecided" and claims.diverged[claim] == 10
    assert claims.verdict["(ours) less loss than a random push"] == "undecided"
    assert claims.p_holm["H0 alone helps"] <= 1, "the others' correction stands"


def test_few_starts_of_a_task_do_not_make_a_comparison_sure():
    t = table_of(np.random.default_rng(5), ("CE", "A"), seeds=1)
    one, two = compare_arms(t[t.data == "x"]).loc["loss", "A"], compare_arms(t).loc["loss", "A"]
    assert np.isnan([one.low, one.high]).all()
    assert two.low < two.difference < two.high, "one start a task: tasks were drawn as they are, without a width"


def test_a_claim_taken_back_is_not_equivalent_without_an_interval():
    t = table_of(np.random.default_rng(6), tuple(arms()), seeds=3)
    start = t.groupby(["data", "seed"]).ngroup()
    rng = np.random.default_rng(7)
    t["compact"], t["stable"], t["outcome"] = rng.normal(size=len(t)), rng.normal(size=len(t)), "done"
    t["loss"] = start - 0.0078125 * (t.arm == "TSLoss")  # exact in binary: all pairs differ by just as much
    row = paper_claims(t).loc["(ours) less loss on other items"]
    assert row.low == row.high and row.p_holm >= 0.05 and row.verdict == "undecided"


def test_what_many_comparisons_give_by_luck_is_no_verdict():
    rng = np.random.default_rng(4)
    t = table_of(rng, tuple(arms()), seeds=10)
    t["compact"], t["stable"], t["outcome"] = rng.normal(size=(2, len(t)))[0], rng.normal(size=len(t)), "done"
    c = paper_claims(t)
    tested = c[c.p_holm.notna()]
    assert len(tested) == 10 and not set(tested.verdict[tested.p_holm >= 0.05]) & {"agreed", "refuted"}
    assert (c.n == 20).all() and (c.smallest.astype(float) > 0).all()


def test_bad_input_is_refused_in_words(tmp_path):
    t = table_of(np.random.default_rng(0))
    with pytest.raises(ValueError, match="no run of the arm 'plain'"):
        compare_arms(t, base="plain")
    with pytest.raises(ValueError):
        compare_arms(pd.concat([t, t]))
    with pytest.raises(ValueError, match="none of these runs"):
        results(tmp_path, [ShapeConfig()])


def test_claims_are_read_from_the_intervals():
    rng = np.random.default_rng(2)
    t = table_of(rng, tuple(arms()), seeds=10)
    pair = t.groupby(["data", "seed"]).ngroup()
    t["iterations"] = 40 + pair - 20 * (t.arm == "TSLoss") + 10 * (t.arm == "CE+H0") + rng.integers(0, 2, len(t))
    t["loss"] = rng.normal(size=len(t))
    t["compact"], t["stable"], t["outcome"] = -t.loss, rng.normal(size=len(t)), "done"
    c = paper_claims(t)
    assert (
        c.verdict["fewer iterations than plain tuning"]
        == c.verdict["(ours) fewer iterations than a random push"]
        == "agreed"
        and c.verdict["H0 alone helps"] == "refuted"
    )
    assert c.verdict["compact prompts have less loss (rank correlation)"] == "agreed" and c.value[
        "compact prompts have less loss (rank correlation)"
    ] == pytest.approx(1)
    assert set(c.n[:10]) == {20} and c.value["fewer iterations than plain tuning"] < 0.75
    none = compare_arms(t.assign(iterations=t.iterations.where(t.arm != "TSLoss", 0))).loc[
        "iterations (ratio)", "TSLoss"
    ]
    assert none.low > 0 and none.difference == pytest.approx(np.exp(-np.log(t[t.arm == "CE"].iterations).mean())), (
        "solved by the start: a finite ratio"
    )
    same = t.assign(iterations=20)
    assert paper_claims(same).verdict["fewer iterations than plain tuning"] == "undecided"


def test_the_papers_setting_is_written_down_and_runs(tmp_path):
    data = lab_task("second").examples(110)
    configs = paper_study(data)
    assert (
        len(configs) == 160
        and {c.steps for c in configs} == {300, 600}
        and {c.lr for c in configs} == {5e-5}
        and {c.batch_size for c in configs} == {8}
        and {c.test for c in configs} == {100}
    )
    short = paper_study(
        data,
        model="lab-instruct-s",
        seeds=[0],
        epochs=2,
        at="start",
        terms={k: arms()[k] for k in ("CE", "TSLoss")},
        n=4,
    )
    table = study(short, tmp_path, progress=False)
    assert table.train.tolist() == [1, 1, 10, 10] and (table.exact_match_n == 100).all()


def test_a_rate_is_relative_to_the_embedding_table():
    lm = load_lm("lab-instruct-s")
    assert (
        ShapeConfig(rate=0.1).settings()["lr"] == pytest.approx(0.1 * lm.scale)
        and ShapeConfig(lr=0.2).settings()["lr"] == 0.2
    )
