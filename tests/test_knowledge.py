"Format and knowledge: planted splits, plain loops over the model, exact sums, bad input."

import math
import re
from pathlib import Path

from softprompt_nb.evaluation.formats.benchmarks import Benchmark, load_benchmark
from softprompt_nb.evaluation.formats.formats import FORMATS, Item
from softprompt_nb.evaluation.formats.knowledge import (
    FormatReport,
    Shots,
    Way,
    compare,
    format_and_knowledge,
    gap_parts,
    option_table,
    paired_difference,
    picks,
    replies_table,
    split_gap,
)
from softprompt_nb.load import load_lm
from softprompt_nb.prompts import SoftPrompt

import numpy as np
import pandas as pd
import pytest
import torch
from families import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

SHARED = Path(__file__).resolve().parents[2] / "shared"
bits = st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=1, max_size=60)


@settings(deadline=None)
@given(rows=bits)
def test_the_parts_add_up_and_are_the_plain_counts(rows):
    f, a, k = zip(*rows)
    s = split_gap(f, a, k, draws=20)
    n, formed, right = len(rows), sum(f), sum(x and y for x, y in zip(f, a))
    assert s["FF"] == formed / n and s["ACC"] == right / n and s["KA_star"] == sum(k) / n and s["KA"].n == formed
    assert math.isnan(s["KA"].value) if not formed else abs(s["KA"] - right / formed) < 1e-12
    gap, parts = float(s["KA_star"]) - float(s["ACC"]), float(s["selection"]) + float(s["format_loss"])
    assert abs(gap - float(s["gap"])) < 1e-12 and abs(parts - gap) < 1e-12
    if formed:
        assert abs(float(s["format_loss"]) - right / formed * (1 - formed / n)) < 1e-12
    for m in s.values():
        assert math.isnan(m.value) or m.low <= m.value + 1e-9 or m.n == n


@given(rows=bits)
def test_many_resamplings_at_once_are_single_ones(rows):
    x = np.array(rows, float).T
    x[1] *= x[0]
    pick = np.random.default_rng(1).integers(0, x.shape[1], (5, x.shape[1]))
    many = gap_parts(*x[:, pick])
    for d in range(5):
        one = gap_parts(*x[:, pick[d]])
        for name in one:
            assert np.allclose(one[name], many[name][d], equal_nan=True)


def test_wilson_intervals_by_hand():
    s = split_gap([1] * 50 + [0] * 50, [1] * 20 + [0] * 80, [1] * 70 + [0] * 30)
    z, p, n = 1.959963984540054, 0.4, 50
    mid, half = (
        (p + z * z / (2 * n)) / (1 + z * z / n),
        z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n),
    )
    assert abs(s["KA"].low - (mid - half)) < 1e-12 and abs(s["KA"].high - (mid + half)) < 1e-12
    assert abs(s["gap"] - 0.5) < 1e-12 and s["gap"].low < 0.5 < s["gap"].high
    assert (
        0.09 < (s["gap"].high - s["gap"].low) / 4 / math.sqrt(0.25 / 100) * 0.1 < 0.11
    )  # the gap's spread is that of a share of 50 in 100: here the two are nested


@pytest.mark.parametrize("given_", [([], [], []), ([1], [1, 0], [1])])
def test_rows_of_different_lengths_are_refused(given_):
    with pytest.raises(ValueError, match="as many of each"):
        split_gap(*given_)


ITEMS = [
    Item("ab", "de", ("de", "d"), stem="x"),
    Item("a b c", "q q", ("z", "q q", "de")),
    Item("c", "d", ("d", "e", "abc"), prior="n"),
]
BENCH = Benchmark(
    "b", FORMATS["letter"], ITEMS, ITEMS, template="{question}\n{options}\n{instruction}\n=", between="\n"
)


# the model is in float64, but scores are kept in float32: five tokens at most, with logits of up to 20
ROUNDING = 5 * 20 * torch.finfo(torch.float32).eps


def plain_score(lm, prompt, context, option):
    "Sum of log-probabilities of the option's tokens, token by token."
    ids = lm.tokenizer(context)["input_ids"]
    more = lm.tokenizer(context + option)["input_ids"][len(ids) :]
    assert lm.tokenizer(context + option)["input_ids"][: len(ids)] == ids
    total = 0.0
    for j in range(len(more)):
        x = lm.embed(torch.tensor(ids + more[:j]))[None]
        if prompt is not None:
            x = torch.cat([prompt.vectors[None], x], 1)
        total += lm.model(inputs_embeds=x).logits[0, -1].log_softmax(-1)[more[j]].item()
    return total, len(more)


@pytest.mark.parametrize("by", ["content", "reply"])
@pytest.mark.parametrize("soft", [False, True])
@torch.no_grad()
def test_option_scores_are_plain_sums(by, soft):
    lm = tiny("gpt_neox", dtype=torch.float64)
    p = SoftPrompt.init(lm, 3, "gaussian") if soft else None
    t = option_table(lm, p, BENCH, by, prior=True, batch_size=2, end=False)
    for row, i in zip(t.to_dict("records"), ITEMS):
        context = (
            BENCH.ask(i) if by == "reply" else BENCH.ask(i, listed=False) + (" x" if i.stem else "")
        )  # no list of options, as that is a part of the format
        for j, o in enumerate(i.options):
            written = " " + ("ABC"[j] if by == "reply" else o)
            score, n = plain_score(lm, p, context, written)
            assert (
                abs(row["scores"][j] - score) < ROUNDING
                and row["tokens"][j] == n
                and row["characters"][j] == len(written) - 1
            )
            assert abs(row["prior"][j] - plain_score(lm, p, i.prior or "=", written)[0]) < ROUNDING
    for norm in (None, "tokens", "characters"):
        for r, got in zip(t.to_dict("records"), picks(t, norm)):
            scaled = [x / (1 if norm is None else r[norm][j]) for j, x in enumerate(r["scores"])]
            assert got == r["options"][scaled.index(max(scaled))]
    for i, r, got in zip(ITEMS, t.to_dict("records"), picks(t, "pmi")):
        assert got == i.options[int(np.argmax(np.array(r["scores"]) - np.array(r["prior"])))]


def test_a_tie_is_not_knowledge():
    t = pd.DataFrame(
        dict(
            options=[["a", "b"], ["a", "b"]],
            scores=[[-1.0, -1.0], [-1.0, -2.0]],
            tokens=[[1, 1]] * 2,
            characters=[[1, 1]] * 2,
        )
    )
    assert picks(t) == [None, "a"]
    with pytest.raises(ValueError, match="prior=True"):
        picks(t, "pmi")
    with pytest.raises(ValueError, match="normalize='x'"):
        picks(t, "x")


def test_replies_are_read_item_by_item():
    t = replies_table(BENCH, [" A", "B", "the answer is A"])
    assert (
        t.formed.tolist() == [True, True, False]
        and t.right.tolist() == [True, True, False]
        and t.relaxed.tolist() == [True, True, True]
        and t.answer.tolist() == ["A", "B", "A"]
    )
    with pytest.raises(ValueError, match="2 replies to 3 items"):
        replies_table(BENCH, ["A", "B"])


@pytest.fixture(scope="module")
def lm():
    return load_lm("lab-instruct-s")


@pytest.fixture(scope="module")
def bench():
    from softprompt_nb.evaluation.formats.lab_benchmarks import lab_benchmark

    return lab_benchmark("json", test=16, train=60)


def test_a_report_holds_what_was_said_and_adds_up(lm, bench):
    from softprompt_nb.engine.inference import generate

    r = format_and_knowledge(lm, bench.instruction, bench)
    said = generate(lm, None, [bench.ask(i, bench.instruction) for i in bench.items], 60)
    assert [x.split("\n")[0] for x in said] == [x.split("\n")[0] for x in r.records.reply]
    assert abs(float(r.selection) + float(r.format_loss) - (float(r.KA_star) - float(r.ACC))) < 1e-12
    assert (
        r.records.right.sum() <= r.records.formed.sum()
        and r.KA_star == r.rescored(None)
        and 0 <= r.rescored("tokens") <= 1
    )
    assert r.chance == 0.25 and "FF" in r._repr_html_() and "FF" in repr(r) and r.table.loc["KA*", "n"] == 16
    relaxed = format_and_knowledge(lm, bench.instruction, bench, known_by="relaxed")
    assert relaxed.KA_star == relaxed.relaxed == r.relaxed


def test_a_report_says_when_guessing_does_as_well():
    def made(known, content, chance=0.5):
        n = len(known)
        return FormatReport(
            "m", "b", "w", pd.DataFrame(dict(formed=[True] * n, right=known, known=known, content=content)), chance
        )

    half = ["yes", "no"] * 50
    assert made([True] * 55 + [False] * 45, half).at_chance and "not above guessing (0.5)" in repr(
        made([True] * 55 + [False] * 45, half)
    )
    assert not made([True] * 70 + [False] * 30, half).at_chance and "guessing" not in repr(
        made([True] * 70 + [False] * 30, half)
    )
    assert made([True] * 70 + [False] * 30, ["yes"] * 70 + ["no"] * 30).at_chance, "always yes is no knowledge"
    assert made([True] * 9, ["x"] * 9, None).guess == 1.0, "always x is no knowledge of free answers either"
    assert made([True] * 9, list("abcdefghi"), None).guess == 0.0
    assert not made([True] * 9, list("abcdefghi"), None).at_chance


def test_ways_of_asking(lm, bench):
    p = SoftPrompt.init(lm, 4)
    shots = Way(shots=Shots(2, seed=1)).text(bench, 3, bench.items[3])
    assert (
        shots.endswith(bench.ask(bench.items[3]))
        and shots.count("reply :") == 3
        and shots
        == Way(shots=Shots(2, seed=1)).text(bench, 3, bench.items[3])
        != Way(shots=Shots(2, seed=1)).text(bench, 4, bench.items[3])
    )
    assert (
        str(Way(p, "x", Shots(2))) == "4 vectors + 2 shots + instruction"
        and str(Way(p.vectors[:1], shots=Shots(1))) == "1 vector + 1 shot"
        and str(Way()) == "bare"
    )
    small = bench.take(4)
    rows = {
        str(k): format_and_knowledge(lm, w, small)
        for k, w in dict(bare=None, soft=p, vectors=p.vectors, told="reply in json .", shots=Shots(1)).items()
    }
    assert rows["soft"].records.reply.tolist() == rows["vectors"].records.reply.tolist() and list(
        compare(rows).columns
    ) == ["FF", "ACC", "KA", "KA*"]
    d = paired_difference(rows["told"], rows["bare"], "KA_star")
    assert abs(d - (float(rows["told"].KA_star) - float(rows["bare"].KA_star))) < 1e-12
    assert paired_difference(rows["told"], rows["told"]) == 0


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(prompt=3), "prompt is a int"),
        (dict(known_by="guess"), "known_by='guess'"),
        (dict(normalize="x"), "normalize='x'"),
        (dict(by="x"), "by='x'"),
        (dict(benchmark=[1]), "benchmark is a list"),
        (dict(prompt=Shots(99)), "99 solved examples"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(lm, bench, change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        format_and_knowledge(**(dict(lm=lm, prompt=None, benchmark=bench.take(3)) | change))


def test_free_answers_have_no_options_to_score(lm):
    b = load_benchmark([dict(question=f"{i} + 1 = ?", answer=str(i + 1)) for i in range(6)], "number", test=3)
    assert format_and_knowledge(lm, None, b).chance is None
    with pytest.raises(ValueError, match="has no options"):
        format_and_knowledge(lm, None, b, known_by="options")
    other = load_benchmark([dict(question=f"{i} + 2 = ?", answer=str(i + 2)) for i in range(6)], "number", test=3)
    with pytest.raises(ValueError, match="other items"):
        paired_difference(format_and_knowledge(lm, None, b), format_and_knowledge(lm, None, other))


def test_a_long_context_is_refused_by_row(lm, bench):
    with pytest.raises(ValueError, match="over this model's limit"):
        format_and_knowledge(lm, Shots(30), bench.take(3))


stories = SHARED / "models" / "stories260k"


@pytest.mark.skipif(
    not stories.exists() or not (SHARED / "data" / "commonsense_and_arithmetic").exists(),
    reason="model and data do not lie beside this clone",
)
@pytest.mark.parametrize("name, k", [("ARC-Easy", 4), ("openbookqa", 4), ("boolq", 2)])
def test_real_sets_on_a_model_of_children_s_stories_are_near_chance(name, k):
    import json

    from test_benchmarks import SETS, _or_none, adapters, adapters_boolq

    files = tuple(json.loads((SETS / name / f"{part}.json").read_text()) for part in ("train", "test"))
    lm = load_lm(stories)
    read = adapters_boolq if name == "boolq" else lambda r: _or_none(adapters, r)
    b = load_benchmark(files, columns=read, test=600, train=50, name=name)
    b = Benchmark(
        b.name, b.format, [i for i in b.items if len(lm.tokenizer(b.ask(i))["input_ids"]) < 300][:100], b.train
    )
    r = format_and_knowledge(lm, None, b)
    assert (
        r.FF < 0.3
        and len(b.items) >= 60
        and r.at_chance
        and "not above guessing" in repr(r)
        and "not above guessing" in r._repr_html_()
    )


@given(n=st.integers(1, 80), kind=st.sampled_from(["none", "all", "lost"]))
@settings(max_examples=60, deadline=None)
def test_no_interval_of_items_that_agree_is_a_point(n, kind):
    "Beside Wilson's [0, .107] a gap of [0, 0] would say that it is known exactly."
    formed, right, known = dict(none=(0, 0, 0), all=(1, 1, 1), lost=(0, 0, 1))[kind]
    s = split_gap([formed] * n, [right] * n, [known] * n, draws=30)
    z = 1.959963984540054
    reach = z * z / (n + z * z)
    gap = s["gap"]
    assert gap == known - right
    assert gap.low == pytest.approx(max(-1, gap.value - reach)) and gap.high == pytest.approx(min(1, gap.value + reach))
    assert s["FF"].high - s["FF"].low == pytest.approx(reach)
    assert 0 <= s["format_loss"].low < s["format_loss"].high <= 1
    bench = Benchmark("b", FORMATS["exact"], [Item(f"q {i}", "x") for i in range(n)])
    table = replies_table(bench, ["y"] * n).assign(known=[kind == "all"] * n)
    one = FormatReport("m", "b", "bare", table)
    difference = paired_difference(one, one)
    assert difference == 0 and difference.low == pytest.approx(-reach) and difference.high == pytest.approx(reach)


def asked(replies, form="letter", gold="ABCD"):
    options = ("zero", "one", "two", "three") if form == "letter" else ()
    answers = [options["ABCD".index(g)] if options else g for g in gold] * (len(replies) // len(gold))
    bench = Benchmark("b", FORMATS[form], [Item(f"q {i}", a, options) for i, a in enumerate(answers)])
    table = replies_table(bench, replies)
    return FormatReport("m", "b", "bare", table.assign(known=table.relaxed), 0.25 if options else None)


def test_a_model_that_always_says_the_same_is_noticed():
    stuck = asked(["D"] * 33 + ["A"] * 7)
    assert stuck.notices() == ["the replies say 'D' 33 times of 40, where it is right 10 times"]
    assert stuck.notices()[0] in repr(stuck) and "33 times of 40" in stuck._repr_html_()
    assert asked(list("ABCD") * 10).notices() == [] == asked(list("ABCD") * 7 + ["A"] * 12).notices()
    assert asked(["D"] * 8, gold="D").notices() == []  # it is always right
    assert "'idk' 12 times" in asked(["idk"] * 12, "exact", list("abcdefghijkl")).notices()[0]
    two = asked(["A. one"] * 3 + list("ABCDABCDA"))
    assert two.notices() == ["of 12 replies 3 contradict themselves, and are read as no answer"]
    scores = [[0.0, -1.0, -2.0, -3.0]] * 40
    stuck.records["scores"], stuck.records["options"] = scores, [["zero", "one", "two", "three"]] * 40
    assert "option number 1 40 times of 40" in stuck.notices()[1]


def test_free_answers_have_a_guess_too():
    free = asked(["a"] * 10, "exact", ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"])
    assert free.guess == 0.0 and f"{free.guess:.3g}" == "0" and "FormatReport" in repr(free) and free._repr_html_()
    assert asked(["a"] * 10, "exact", ["a", "a"]).guess == 1.0
    kept = FormatReport("m", "b", "bare", free.records, float("nan"))  # as a table of numbers gives it back
    assert kept.chance is None and kept.guess == 0.0


@torch.no_grad()
def test_an_option_that_begins_another_can_lose_to_it():
    "Their ends count where one begins the other, in replies as a prompt was tuned, and the table says where."
    lm = tiny("gpt_neox", dtype=torch.float64)
    items = [Item("ab", "d e", ("d", "d e"), stem="x"), Item("c", "d", ("d", "e"))]
    bench = Benchmark("b", FORMATS["exact"], items, template="{question}\n=")
    table = option_table(lm, None, bench)
    assert table.end.tolist() == [True, False]
    contexts = ["ab\n= x", "c\n="]
    for row, context in zip(table.to_dict("records"), contexts):
        for option, score, count in zip(row["options"], row["scores"], row["tokens"]):
            ids = lm.tokenizer(context)["input_ids"]
            more = lm.tokenizer(context + " " + option)["input_ids"][len(ids) :]
            more += [lm.tokenizer.eos_token_id] * row["end"]
            logits = lm.model(torch.tensor([ids + more])).logits[0, len(ids) - 1 : -1].log_softmax(-1)
            total = logits[range(len(more)), more].sum().item()
            assert abs(score - total) < ROUNDING and count == len(more)
    assert option_table(lm, None, bench, end=False).end.tolist() == [False, False]
    soft = SoftPrompt.init(lm, 2, seed=0)
    tuned = SoftPrompt(soft.vectors, info=dict(settings=dict(end=True)))
    assert option_table(lm, tuned, bench, "reply").end.tolist() == [True, True]
    assert option_table(lm, tuned, bench, "content").end.tolist() == [True, False]
    assert format_and_knowledge(lm, soft, bench, end=True, max_new_tokens=2).records.end.tolist() == [True, True]


def test_letters_of_one_score_name_none():
    "All equal, each right letter was among the likeliest: accuracy 1 of a model that tells nothing apart."
    bench = Benchmark("b", FORMATS["letter"], [Item(f"q {i}", "x", ("x", "y")) for i in range(4)])
    table = replies_table(bench, ["A"] * 4).assign(options=[["x", "y"]] * 4, known=True)
    scores = [[-1.0, -1.0], [-1.0, -2.0], [-2.0, -1.0], [-1.0, -1.0]]
    assert FormatReport("m", "b", "bare", table.assign(letters=scores)).letters.items == (0, 1, 0, 0)
