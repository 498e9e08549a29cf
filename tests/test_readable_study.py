"""The study of readable prompts: every method as a run, and what the tables say."""

import math
from dataclasses import replace
from itertools import product

from softprompt_nb.data import Example
from softprompt_nb.experiments.runs import RunStore, plain_config
from softprompt_nb.experiments.sweep import sweep
from softprompt_nb.lm import FrozenLM
from softprompt_nb.load import load_lm
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
from scipy.stats import ttest_1samp
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

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
    done = sweep(configs, tmp_path, workers=0, progress=False)
    assert len(done.done) == len(configs)
    table = hard_table(done.store, configs).set_index("method")
    assert set(table.index) == {*SEARCHES, "hand", "nearest tokens", "description"}
    assert table[["accuracy", "nats", "retention", "kl", "rank"]].notna().all().all()
    own = table.loc[[*SEARCHES, "hand"]]
    assert ((own.retention - 1).abs() < 1e-6).all()
    assert (own.kl < 1e-6).all()
    assert table.kl["nearest tokens"] > 1e-3
    assert own.spent[list(SEARCHES)].between(250, 600).all()
    assert table["rank"].between(1, 8).all()
    assert len(sweep(configs, tmp_path, workers=0, progress=False).there) == len(configs)
    assert set(table.measure) == {"labels"} and not table.end.any()
    other = [replace(config, measure="exact") for config in configs[:1]]
    store = sweep(other, tmp_path, workers=0, progress=False).store
    with pytest.raises(ValueError, match="those of one measure"):
        hard_table(store)
    assert hard_table(store, other).measure.tolist() == ["exact"]


def test_runs_from_before_keep_their_names():
    assert "measure" not in plain_config(HardConfig(measure="exact"))
    assert plain_config(HardConfig())["measure"] is None  # the answers decide
    with pytest.raises(ValueError, match="measure='words'"):
        HardConfig(measure="words")


def test_bad_configurations_are_refused(tmp_path):
    with pytest.raises(ValueError, match="method='pezz'"):
        HardConfig("pezz")
    with pytest.raises(ValueError, match="description"):
        HardConfig(data=(Example("a", " b"),))
    with pytest.raises(ValueError, match="none of these runs"):
        hard_table(RunStore(tmp_path), [HardConfig()])
    with pytest.raises(ValueError, match="none to choose on"):
        HardConfig(data="lab:class", train=200).parts()


METHODS = ("PEZ", "GCG", "RLPrompt", "random search")
TASKS = ("lab:a", "lab:b")


def searched(method, task, seed, fluency, gain, lost):
    on = fluency * (method != "random search")
    return dict(
        method=method,
        data=task,
        seed=seed,
        fluency=fluency,
        accuracy=0.8 - on * lost + 0.01 * seed,
        nats=10 - on * gain + 0.1 * seed,
        retention=1.0,
        kl=0.0,
        commonest=0.2 + 0.4 * on,
        rank=1.0 + (seed > 1),
        text="x",
    )


def unsearched(method, task, seed, nats, kl):
    return dict(
        method=method,
        data=task,
        seed=seed,
        fluency=0.0,
        accuracy=0.9,
        nats=nats,
        retention=0.8,
        kl=kl,
        commonest=0.2,
        rank=1.0,
        text="y",
    )


def made(gain, lost, methods=METHODS, seeds=range(4)):
    """A study in which weight 1 lowers the nats by `gain` and the accuracy by `lost`.

    With random search it does nothing."""
    rows = []
    for method, task, seed, fluency in product(methods, TASKS, seeds, (0.0, 1.0)):
        rows.append(searched(method, task, seed, fluency, gain, lost))
    for method, nats, kl in (("hand", 2.0, 0.0), ("nearest tokens", 12.0, 0.5), ("description", 2.5, 0.6)):
        for task, seed in product(TASKS, seeds):
            rows.append(unsearched(method, task, seed, nats, kl))
    return pd.DataFrame(rows)


def test_weights_are_compared_pair_by_pair():
    table = made(3.0, 0.01)
    by_weight = by_lambda(table).set_index(["method", "fluency"])
    assert float(by_weight.loc[("PEZ", 1.0)].nats_change) == pytest.approx(-3)
    assert float(by_weight.loc[("PEZ", 1.0)].accuracy_change) == pytest.approx(-0.01)
    assert abs(by_weight.loc[("random search", 1.0)].nats_change.value) < 1e-9
    assert (by_weight.pairs == 8).all()
    assert changes(table, "nats", ["PEZ", "GCG"], 1.0) == pytest.approx([-3] * 16)


def test_a_run_that_is_not_done_takes_its_partner_out_of_the_comparison():
    table = made(3.0, 0.01)
    missing = (table.method == "PEZ") & (table.seed == 0) & (table.fluency == 0)
    cut = table[~missing]
    assert len(changes(cut, "nats", ["PEZ"], 1.0)) == 6
    assert by_lambda(cut).set_index(["method", "fluency"]).pairs[("PEZ", 1.0)] == 6


@pytest.mark.parametrize("gain, lost, holds", [(3.0, 0.01, True), (3.0, 0.05, False), (1.0, 0.01, False)])
def test_tenfold_is_what_it_says(gain, lost, holds):
    found = tenfold(made(gain, lost)).set_index(["method", "data"])
    assert (found.loc["PEZ"].holds == holds).all()
    assert found.loc["PEZ"].times.iloc[0] == pytest.approx(math.exp(gain))
    assert not found.loc["random search"].holds.any()
    assert len(found) == 8
    assert tenfold(made(2.0, 0.0), times=5).holds.sum() == 6


def test_tenfold_compares_a_weight_with_its_own_seeds():
    table = made(3.0, 0.01)
    hard = (table.method == "PEZ") & (table.fluency == 0) & (table.seed > 0)
    table.loc[hard, ["accuracy", "nats"]] = [0.1, 30.0]  # seeds that the weight lacks
    cut = table[~((table.method == "PEZ") & (table.fluency > 0) & (table.seed > 0))]
    pez = tenfold(cut).set_index("method").loc["PEZ"]
    assert pez.lost.tolist() == pytest.approx([0.01] * 2) and pez.times.tolist() == pytest.approx([math.exp(3)] * 2)
    assert pez.holds.all()
    apart = cut[~((cut.method == "PEZ") & (cut.fluency == 0) & (cut.seed == 0))]
    assert "PEZ" not in set(tenfold(apart).method)  # no seed has both


def test_areas_are_those_of_rectangles():
    found = hypervolumes(made(3.0, 0.0))
    worst = 10.3

    def area(on):
        each = [(0.8 + 0.01 * seed) * (worst - (10 - 3 * on + 0.1 * seed)) for seed in range(4)]
        return sum(each) / 4

    assert float(found.hypervolume["PEZ"]) == pytest.approx(area(1))
    assert float(found.hypervolume["random search"]) == pytest.approx(area(0))
    assert float(found.difference["PEZ"]) == pytest.approx(area(1) - area(0))
    assert found.larger["PEZ"] == "2 of 2"
    assert found.difference["random search"] is None
    with pytest.raises(ValueError, match="no method 'x'"):
        hypervolumes(made(1.0, 0.0), against="x")


def test_claims_are_decided_by_their_intervals():
    verdict = prompt_claims(made(3.0, 0.05)).verdict
    assert verdict["PEZ: fluency lowers the judge's perplexity (nats)"] == "agreed"
    assert verdict["PEZ: fluency costs accuracy"] == "agreed"
    assert verdict["fluency makes prompts repeat a token (share of the commonest)"] == "agreed"
    assert verdict["(ours) fluency makes the task easier to tell (share told right)"] == "undecided"
    assert verdict["(ours) a soft prompt's nearest tokens are another prompt (KL)"] == "agreed"
    worse = prompt_claims(made(-3.0, -0.05)).verdict
    assert worse["GCG: fluency lowers the judge's perplexity (nats)"] == "refuted"
    assert worse["GCG: fluency costs accuracy"] == "refuted"
    without = prompt_claims(made(1.0, 0.0, methods=("PEZ", "random search"))).verdict
    assert without["RLPrompt: fluency costs accuracy"] == "not measured"


def test_seeds_of_a_task_are_no_further_tasks():
    "The same numbers under ten times as many seeds are no more certain."
    table = made(3.0, 0.05, seeds=(0,))
    on = (table.method == "PEZ") & (table.fluency == 1.0)
    table.loc[on & (table.data == TASKS[0]), ["accuracy", "nats"]] -= 0.02
    many = pd.concat([table.assign(seed=seed) for seed in range(10)])
    one, ten = (by_lambda(each).set_index(["method", "fluency"]).loc[("PEZ", 1.0)] for each in (table, many))
    for column in ("accuracy", "nats", "accuracy_change", "nats_change"):
        assert (one[column].low, one[column].high) == pytest.approx((ten[column].low, ten[column].high))
        assert one[column].n == ten[column].n == 2
    assert (one.pairs, ten.pairs, one.tasks, ten.tasks) == (2, 20, 2, 2)
    one, ten = (hypervolumes(each).loc["PEZ"] for each in (table, many))
    for column in ("hypervolume", "difference"):
        assert (one[column].low, one[column].high) == pytest.approx((ten[column].low, ten[column].high))
    assert one.larger == ten.larger == "2 of 2"
    one, ten = prompt_claims(table), prompt_claims(many)
    assert one.p.astype(float).tolist() == pytest.approx(ten.p.astype(float).tolist(), nan_ok=True)


def test_claims_are_corrected_for_their_number():
    "An interval on one side of none is no verdict where ten were read; p is Student's, and Holm's by hand."
    table = made(3.0, 0.0)
    names = [f"lab:{name}" for name in "abcd"]
    table = pd.concat([table[table.data == TASKS[0]].assign(data=name) for name in names])
    on = (table.method == "PEZ") & (table.fluency == 1.0)
    for name, change in zip(names, (0.05, 0.1, 0.15, 0.35)):
        table.loc[on & (table.data == name), "accuracy"] -= change
    claims = prompt_claims(table)
    row = claims.loc["PEZ: fluency costs accuracy"]
    p = ttest_1samp([-0.05, -0.1, -0.15, -0.35], 0).pvalue
    assert row.p == pytest.approx(p, rel=1e-6) and 0.05 < p < 0.1  # its own interval holds none
    by_hand = sorted(claims.p.astype(float))
    expected = max(min(1, value * (len(by_hand) - i)) for i, value in enumerate(by_hand[: by_hand.index(row.p) + 1]))
    assert row.p_holm == pytest.approx(expected)
    table.loc[on & (table.data == names[3]), "accuracy"] += 0.15  # now the four are .05, .1, .15, .2
    row = prompt_claims(table).loc["PEZ: fluency costs accuracy"]
    assert row.high < 0 and row.p < 0.05 <= row.p_holm and row.verdict == "undecided"


def test_an_interval_of_one_task_is_a_point_and_decides_nothing():
    claims = prompt_claims(made(3.0, 0.05, seeds=(0,)).query("data == 'lab:a'"))
    assert not {"agreed", "refuted"} & set(claims.verdict[claims.n < 2])


def test_pictures_show_every_method():
    table = made(3.0, 0.05)
    legend = plot_trade(table).get_legend()
    assert [entry.get_text() for entry in legend.get_texts()] == [
        *METHODS,
        "written by hand",
        "soft prompt's nearest tokens",
    ]
    assert [len(points.get_offsets()) for points in plot_desiderata(table).collections] == [64, 8, 8]


def test_the_study_on_gpt2_is_ready_to_run():
    tasks = {name: [Example(f"{name} {i}", " y") for i in range(300)] for name in ("one", "two")}
    configs = gpt2_configs(tasks, lambdas=(0.0, 1.0), seeds=(0,), budget=10)
    assert len(configs) == 2 * (2 + 2 * len(SEARCHES))
    assert {config.description for config in configs} == {"one", "two"}
    for config in configs:
        assert config.distractors == ("two" if config.description == "one" else "one",)
        assert config.budget == 10
        assert "gpt2" in config.model
        assert config.judge != config.model


def test_a_word_with_its_space_is_no_piece_where_the_decoder_takes_the_space():
    words = ["<unk>", "<eos>", *("\u2581" + word for word in "the cat sat on a mat".split()), "ing"]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    tok = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", eos_token="<eos>", pad_token="<eos>")
    lm = FrozenLM(tiny("llama").model, tok, name="spaces")
    assert oddities(lm, range(2, 8))["pieces"] == 0
    assert oddities(lm, [2, 8])["pieces"] == 0.5


def test_every_method_is_judged_among_the_same_labels():
    lm = load_lm("lab-base-xs")
    train = [Example(f"say {i}:", " " + ("red", "blue")[i % 2]) for i in range(15)] + [Example("say 99:", " 1")]
    valid = [Example(f"say {i}:", " " + ("red", "blue")[i % 2]) for i in range(20, 40)]
    own = dict(data=tuple(train + valid), description="say a colour", distractors=("x",), budget=300)
    for method in ("hand", "random search"):
        found = HardConfig(method, **own).found(lm, train, valid)
        assert sorted(found.record["labels"]) == [" 1", " blue", " red"]
