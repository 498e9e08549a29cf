"""Loading, splitting, shuffling: no question on both sides, whatever the rows.

Real data sets are read where they lie beside the clone."""

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

from softprompt_nb.evaluation.formats.benchmarks import (
    ANSWERS,
    HUB,
    Benchmark,
    by_hash,
    from_columns,
    load_benchmark,
    split_items,
    unique,
)
from softprompt_nb.evaluation.formats.formats import FORMATS, Item, letter_format, normal
from softprompt_nb.evaluation.formats.lab_benchmarks import (
    LAB_BENCHMARKS,
    carded_knowledge,
    lab_benchmark,
    lab_format,
    lab_item,
    planted_knowledge,
    times_told,
)
from softprompt_nb.lab.facts import RELATIONS

import datasets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
questions = st.lists(
    st.builds(
        Item,
        st.sampled_from(["Who?", "who", "What is it?", "what is it", "Where", "where ...", "When?", "Why me?", "How"]),
        st.sampled_from(["x", "y", "z"]),
    ),
    min_size=4,
    max_size=30,
)


@given(items=questions, test=st.integers(1, 5), seed=st.integers(0, 3))
def test_no_question_stands_on_both_sides(items, test, seed):
    here, there = split_items(items, test, None, seed)
    assert not {normal(i.question) for i in here} & {normal(i.question) for i in there}
    assert 1 <= len(here) <= test and (here, there) == split_items(items, test, None, seed)
    assert not Counter([*here, *there]) - Counter(items)


@given(items=questions)
def test_duplicates_are_counted(items):
    once, found = unique(items)
    assert len(once) + found.get("duplicates", 0) == len(items) and len({normal(i.question) for i in once}) == len(once)
    firsts = {}
    for i in items:
        firsts.setdefault(normal(i.question), i.answer)
    assert found.get("conflicts", 0) == sum(i.answer != firsts[normal(i.question)] for i in items)


@pytest.mark.parametrize(
    "questions",
    [
        ["What is 6+2?", "What is 6-2?", "What is 6*2?", "What is 6/2?"],
        ["Is -1 a root?", "Is 1 a root?"],
        ["Is 3 < 4?", "Is 3 > 4?"],
        ["What does 😀 say?", "What does 😢 say?"],
        ["Is C++ old?", "Is C# old?", "Is C old?"],
        ["How much is 5 $?", "How much is 5 €?", "How much is 5 %?"],
        ["What is √4?", "What is 4?"],
    ],
)
def test_questions_that_differ_in_a_sign_are_different_ones(questions):
    rows = [dict(question=question, answer=str(i)) for i, question in enumerate(questions)]
    again = [dict(question=f" {question.lower().replace('?', ' ?')}", answer="0") for question in questions]
    loaded = load_benchmark(rows + again, test=9, train=0)
    assert {item.question for item in loaded.items} == set(questions)
    assert (loaded.report["duplicates"], loaded.report["conflicts"]) == (len(questions), len(questions) - 1)
    apart = load_benchmark((rows[:1], rows[1:]), test=9)
    assert apart.report["overlap"] == 0 and load_benchmark((rows, again), test=9).report["overlap"] == len(rows)
    order = [item.question for item in by_hash(loaded.items)]
    assert order == [item.question for item in by_hash(loaded.items[::-1])]


def test_options_that_differ_in_a_sign_make_different_items():
    rows = [dict(question="Which?", options=options, answer=0) for options in (["6+2", "x"], ["6-2", "x"])]
    assert len(load_benchmark(rows).items) == 2


def test_more_options_than_ten_all_have_their_letter():
    twelve = load_benchmark([dict(question="q", options=list("abcdefghijkl"), answer="l")])
    asked = twelve.ask(twelve.items[0])
    assert "\nK. k\nL. l\n" in asked and twelve.gold(twelve.items[0]) == "L"
    assert twelve.format.find(twelve.items[0], "The answer is K.") == "K"
    with pytest.raises(ValueError, match="a letter of its own"):
        letter_format("aab")


def test_a_given_split_loses_the_training_items_that_are_measured_on():
    train = [dict(question=f"Number {i}?", answer=str(i)) for i in range(20)] + [
        dict(question="NUMBER 25", answer="25")
    ]
    test = [dict(question=f"Number {i}?", answer=str(i)) for i in range(15, 30)]
    b = load_benchmark((train, test), test=10, name="given")
    assert (
        b.report["overlap"] == 6
        and not {normal(i.question) for i in b.train} & {normal(r["question"]) for r in test}
        and len(b.items) == 10
    )
    assert "overlap: 6" in repr(b)


@pytest.mark.parametrize("form", [*LAB_BENCHMARKS])
@pytest.mark.parametrize("answers", ANSWERS)
def test_every_kind_of_answers_has_the_format(form, answers):
    b = lab_benchmark(form, test=5, train=60)
    ex = b.examples(answers=answers)
    read = [b.format.read(i, e.target) for i, e in zip(b.train, ex)]
    gold = [b.gold(i) for i in b.train]
    assert None not in read and [e.input for e in ex] == [b.ask(i) for i in b.train]
    same = sum(r == g for r, g in zip(read, gold))
    assert same == 60 if answers == "true" else same < (50 if form in ("choice", "yesno") else 15)
    if answers == "shuffled" and form not in ("choice", "yesno"):
        assert Counter(read) == Counter(gold)
    if answers == "random" and form not in ("choice", "yesno"):
        assert not any(r in i.options for r, i in zip(read, b.train))
    assert ex == b.examples(answers=answers) and (answers == "true" or ex != b.examples(answers=answers, seed=1))


def test_the_template_is_filled_and_empty_lines_fall_away():
    b = Benchmark(
        "b", FORMATS["letter"], [Item("Is {this} 1?", "x {y}", ("x {y}", "z"))], [Item("Other", "z", ("z", "w"))]
    )
    i = b.items[0]
    assert (
        b.ask(i) == "Question: Is {this} 1?\nA. x {y}\nB. z\nAnswer:"
        and b.ask(i, "Say a letter.", listed=False) == "Question: Is {this} 1?\nSay a letter.\nAnswer:"
    )
    assert b.shots(1) == "Question: Other\nA. z\nB. w\nAnswer: A\n\n" and b.cue == "Answer:"


@pytest.mark.parametrize(
    "row, columns, want",
    [
        (dict(question="q", options=["a", "b"], answer=1), None, "b"),
        (dict(question="q", options=["a", "b"], answer="B"), None, "b"),
        (dict(question="q", options=["a", "b"], answer="a"), None, "a"),
        (dict(question="q", answer=True), None, "yes"),
        (dict(q="q", gold=7), dict(question="q", answer="gold"), "7"),
        (dict(question="q", options=dict(text=["a", "b"], label=["1", "2"]), answer="b"), None, "b"),
        (dict(question="q", options=["1", "2", "3"], answer="2"), None, "2"),
        (dict(question="q", options=["1", "2", "3"], answer="C"), None, "3"),
        (dict(question="q", options=["0", "1", "2"], answer=2), None, "2"),
        (dict(question="q", options=["A", "AB", "B"], answer="A"), None, "A"),
        (dict(question="q", options=["O", "A", "B"], answer=2), None, "B"),
        (dict(question="q", options=np.array(["a", "b"]), answer=np.int64(1)), None, "b"),
        (dict(question="q", answer=np.bool_(False)), None, "no"),
        (dict(question="q", options=["True", "False"], answer=False), None, "no"),
        (dict(question="q", options=["None", "nan"], answer="None"), None, "None"),
        (dict(question="q", options=list("abcdefghijkl"), answer="L"), None, "l"),
    ],
)
def test_rows_by_hand(row, columns, want):
    assert from_columns(row, columns).answer == want


MANY = [f"{letter}{i}" for i in (1, 2, 3) for letter in "ABCDEFGHI"]
TOO_MANY = [Item("q", "A1", tuple(MANY))]
HUB_ROW = dict(question="q", context="c", passage="p", answerA="a", answerB="b", answerC="c")


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: load_benchmark([dict(question="q", options=["a"], answer=3)]),
            "Row 0 of benchmark: the answer is number 3",
        ),
        (lambda: load_benchmark([dict(question="q", options=["a"], answer="z")]), "neither one of the options"),
        (lambda: load_benchmark([dict(text="q", answer="z")]), "no column 'question'"),
        (lambda: load_benchmark([dict(question="q", answer=None)]), "Row 0 of benchmark: the answer None must be"),
        (lambda: load_benchmark([dict(question="q", answer=float("nan"))]), "the answer nan must be one text"),
        (lambda: load_benchmark([dict(question="q", answer=["a"])]), "the answer ['a'] must be one text"),
        (lambda: load_benchmark([dict(question="q", answer=dict(a=1))]), "the answer {'a': 1} must be one text"),
        (lambda: load_benchmark([dict(question=None, answer="a")]), "the question None must be a text"),
        (lambda: load_benchmark([dict(question="q", options=["a", None], answer="a")]), "must be a list of texts"),
        (lambda: load_benchmark([dict(question="q", options=["a", " "], answer="a")]), "none of them empty"),
        (lambda: load_benchmark([dict(question="q", options=float("nan"), answer="a")]), "the options nan must be"),
        (lambda: load_benchmark([dict(question="q", options="ab", answer="a")]), "the options 'ab' must be"),
        (lambda: load_benchmark([dict(question="q", options=["1", "2", "3"], answer=2)]), "give the text, '2'"),
        (lambda: load_benchmark([dict(question="q", options=["1.0", "2.0", "3"], answer=1)]), "the text, '1.0'"),
        (lambda: load_benchmark([dict(question="q", options=["O", "A", "B"], answer="B")]), "from 0 (2 or 1)"),
        (lambda: load_benchmark([dict(question="q", options=["Rome", "Oslo"], answer=True)]), "none of the options"),
        (lambda: load_benchmark([dict(question="q", answer="a")], columns=dict(solution="x")), "an item's parts are"),
        (lambda: load_benchmark([dict(question="q", answer="a")], columns=lambda row: "a"), "Row 0 of benchmark was"),
        (lambda: load_benchmark([dict(question="q", options=MANY, answer="A1")]), "has 27 options, and the format 26"),
        (lambda: Benchmark("b", letter_format("ab"), [Item("q", "x", ("x", "y", "z"))]), "has 3 options"),
        (lambda: Benchmark("b", FORMATS["exact"], TOO_MANY).ask(TOO_MANY[0], listed=True), "has 27 options"),
        (
            lambda: load_benchmark([dict(HUB_ROW, label="0")], columns=HUB["siqa"].item),
            "Row 0 of benchmark: the answer",
        ),
        (lambda: load_benchmark([dict(HUB_ROW, label="4")], columns=HUB["siqa"].item), "number 4, and there are 3"),
        (lambda: load_benchmark([dict(HUB_ROW, answer="no")], columns=HUB["boolq"].item), "'no' is no truth value"),
        (lambda: load_benchmark([dict(HUB_ROW, answer="7 eggs")], columns=HUB["gsm8k"].item), "no line with ####"),
        (lambda: load_benchmark([dict(question="q", answer="")]), "not an empty one"),
        (lambda: load_benchmark([]), "no items"),
        (lambda: load_benchmark("no_such_set"), "neither a .jsonl"),
        (lambda: load_benchmark([dict(question="q", answer="a")], "poem"), "format='poem'"),
        (lambda: load_benchmark([dict(question="q", answer="a")], test=0), "test=0"),
        (lambda: lab_benchmark("poem"), "unknown form"),
        (lambda: lab_benchmark("word", 5, 5).examples(answers="wrong"), "answers='wrong'"),
        (lambda: lab_benchmark("word", 5, 0).examples(), "no training items"),
        (lambda: lab_benchmark("word", 5, 5).shots(9), "9 solved examples"),
        (lambda: Benchmark("b", FORMATS["exact"], ["x"]), "is no Item"),
        (lambda: Benchmark("b", FORMATS["exact"], [Item("q", "a")], template="x"), "no place"),
        (
            lambda: load_benchmark([dict(question="q", answer="a")], columns=lambda r: r["missing"]),
            "does not have the expected columns",
        ),
    ],
)
def test_bad_input_is_refused_in_one_sentence(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


def test_files(tmp_path):
    rows = [dict(question=f"Is {i} odd?", answer=bool(i % 2)) for i in range(12)]
    (tmp_path / "odd.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "odd.json").write_text(json.dumps(rows))
    a, b = load_benchmark(tmp_path / "odd.jsonl", test=4), load_benchmark(str(tmp_path / "odd.json"), test=4)
    assert (
        a.items == b.items
        and a.format.name == "yesno"
        and a.name == "odd"
        and load_benchmark(datasets.Dataset.from_list(rows), test=4).items == a.items
    )
    (tmp_path / "bad.jsonl").write_text("{")
    with pytest.raises(ValueError, match="not what its name says"):
        load_benchmark(tmp_path / "bad.jsonl")


CARDS = dict(
    arc_easy=dict(id="x", question="q?", choices=dict(text=["a", "b", "c"], label=["A", "B", "C"]), answerKey="C"),
    arc_challenge=dict(id="x", question="q?", choices=dict(text=["a", "b", "c"], label=["1", "2", "3"]), answerKey="3"),
    openbookqa=dict(
        id="x", question_stem="q?", choices=dict(text=["a", "b", "c"], label=["A", "B", "C"]), answerKey="C"
    ),
    commonsense_qa=dict(
        id="x",
        question="q?",
        question_concept="k",
        choices=dict(label=["A", "B", "C"], text=["a", "b", "c"]),
        answerKey="C",
    ),
    boolq=dict(question="is it", answer=True, passage="It is."),
    piqa=dict(goal="q?", sol1="a", sol2="c", label=1),
    siqa=dict(context="It is so.", question="q?", answerA="a", answerB="b", answerC="c", label="3"),
    winogrande=dict(sentence="q _ .", option1="a", option2="c", answer="2"),
    hellaswag=dict(ind=1, activity_label="l", ctx_a="q", ctx_b="", ctx="q", endings=["a", "b", "c"], label="2"),
    mmlu=dict(question="q?", subject="s", choices=["a", "b", "c"], answer=2),
    gsm8k=dict(question="q?", answer="It is 1+1=<<1+1=2>>2.\n#### 1,002"),
    sciq=dict(question="q?", distractor1="a", distractor2="b", distractor3="d", correct_answer="c", support="s"),
)


@pytest.mark.parametrize("name", HUB)
def test_hub_rows_are_read_as_their_cards_describe_them(name, monkeypatch):
    "Rows of the documented schema, through a real `datasets.Dataset`, with the right split asked for."
    asked = []

    def fake(path, config, split):
        asked.append((path, config, split))
        key = next(k for k in ("question", "goal", "sentence", "ctx", "question_stem") if k in CARDS[name])
        return datasets.Dataset.from_list([CARDS[name] | {key: f"{split} {i} {CARDS[name][key]}"} for i in range(6)])

    monkeypatch.setattr(datasets, "load_dataset", fake)
    b = load_benchmark(name, test=3, train=4)
    assert (
        len(b.items) == 3
        and len(b.train) == 4
        and asked == [(HUB[name].path, HUB[name].config, s) for s in (HUB[name].train, HUB[name].test)]
    )
    i = b.items[0]
    assert (
        i.answer == dict(boolq="yes", gsm8k="1002").get(name, "c")
        and b.gold(i) is not None
        and HUB[name].test in i.question
    )
    if name == "gsm8k":
        assert b.reply(i).endswith("#### 1,002") and b.gold(i) == "1002" and "<<" not in b.reply(i)


def test_the_hub_is_not_reached_without_a_network():
    with pytest.raises(ValueError, match="needs a network"):
        load_benchmark("sciq")


# real data sets, as LLM-Adapters wrote them: the options stand in the instruction's text
def adapters(row):
    text, options = (
        row["instruction"],
        dict(
            re.findall(
                r"((?:Answer|Solution|Option)\d+): (.*?)\s*(?=(?:Answer|Solution|Option)\d+:|Answer format:|$)",
                row["instruction"],
                re.S,
            )
        ),
    )
    question = re.split(r"(?:Answer|Solution|Option)1:", text)[0].split(": ", 1)[-1].strip()
    return Item(question, options[row["answer"].capitalize()].strip(), tuple(o.strip() for o in options.values()))


def adapters_boolq(row):
    return Item(
        re.search(r"question: (.*?)\n", row["instruction"], re.S)[1].strip(),
        "yes" if row["answer"] == "true" else "no",
        ("yes", "no"),
    )


SETS = SHARED / "commonsense_and_arithmetic"


def needs(path):
    return pytest.mark.skipif(not path.exists(), reason=f"{path.name} does not lie beside this clone")


@needs(SETS)
@pytest.mark.parametrize("name, k", [("ARC-Easy", 4), ("ARC-Challenge", 4), ("openbookqa", 4), ("boolq", 2)])
def test_real_sets_load_and_split(name, k):
    files = tuple(json.loads((SETS / name / f"{part}.json").read_text()) for part in ("train", "test"))
    read = adapters_boolq if name == "boolq" else lambda r: _or_none(adapters, r)
    b = load_benchmark(files, columns=read, test=150, train=300, name=name)
    assert b.format.name == ("yesno" if name == "boolq" else "letter") and len(b.items) == 150 and len(b.train) > 250
    assert Counter(len(i.options) for i in b.items).most_common(1)[0][0] == k and b.report["unlabelled"] <= 4
    assert not {normal(i.question) for i in b.train} & {normal(i.question) for i in b.items}
    for i in b.items:
        assert b.format.read(i, b.reply(i)) == b.gold(i) is not None and b.format.find(i, b.reply(i)) == b.gold(i)


def _or_none(f, row):
    "None for the few rows of the snapshot that name an option twice, or one that is not there."
    try:
        return f(row)
    except (ValueError, KeyError):
        return None


@needs(SHARED / "gsm8k")
def test_gsm8k_loads_with_its_solutions():
    b = load_benchmark(
        (SHARED / "gsm8k" / "train_2500.jsonl", SHARED / "gsm8k" / "test.jsonl"),
        "solution",
        HUB["gsm8k"].item,
        test=200,
        train=640,
        name="gsm8k",
    )
    assert len(b.items) == 200 and len(b.train) == 640
    for i in b.items:
        assert b.gold(i) == b.format.find(i, b.reply(i)) == b.format.same(i.answer)


def test_the_labs_items_are_about_their_facts_and_the_split_is_by_fact():
    b = lab_benchmark("sentence", test=100, train=640)
    assert len(b.items) == 100 and len(b.train) == 640 and not {i.key for i in b.items} & {i.key for i in b.train}
    for i in (*b.items, *b.train):
        relation = next(k for k in RELATIONS if k[1] == i.key.split("/")[0] and i.key.split("/")[1] in RELATIONS[k])
        assert RELATIONS[relation][i.key.split("/")[1]] == i.answer and b.reply(i) == f" {i.stem} {i.answer} ."
    other = lab_benchmark("json", test=100)
    assert {i.key for i in b.items} != {i.key for i in other.items}, "each format has its own draw of facts"


def test_a_claim_has_two_candidates_of_which_one_is_true():
    for s in list(RELATIONS["country", "capital"])[:40]:
        i = lab_item(("country", "capital"), s, "yesno")
        assert len(i.options) == 2 and i.answer in i.options and (i.about.claimed in i.options)


class Told:
    def __init__(self, told):
        self.told = told

    def times_told(self, relation, subject):
        return self.told.get(f"{relation}/{subject}", 0)


def test_planted_knowledge_is_told_facts_and_guesses():
    b = lab_benchmark("word", test=100)
    told = Told({i.key: n for n, i in enumerate(b.items)})
    assert times_told(b, told) == list(range(100))
    want = sum(1 if n >= 30 else 1 / len(i.options) for n, i in enumerate(b.items)) / 100
    assert abs(planted_knowledge(b, told, 30) - want) < 1e-12 and planted_knowledge(b, told, 0) == 1


def test_carded_knowledge_takes_guesses_off_and_puts_them_in():
    import pandas as pd

    class Card(Told):
        name = "a model"

        def table(self, name):
            return pd.DataFrame(
                dict(
                    facts=["never", "told", "1-9 times", "10-19 times", "20 times or more"],
                    share=[0.25, 0.7, 0.4, 0.85, 1.0],
                )
            )

    for form, k in (("word", 4), ("yesno", 2)):
        b = lab_benchmark(form, test=60)
        for n, p in ((0, 0), (1, 0.2), (9, 0.2), (10, 0.8), (19, 0.8), (20, 1), (500, 1)):
            assert abs(carded_knowledge(b, Card({i.key: n for i in b.items})) - (p + (1 - p) / k)) < 1e-12

    class Gap(Card):
        def table(self, name):
            return Card.table(self, name)[3:]

    with pytest.raises(ValueError, match="told 3 times"):
        carded_knowledge(b, Gap({i.key: 3 for i in b.items}))


@pytest.mark.parametrize(
    "reply, letter",
    [
        (" it is a town .", None),
        (" that is b .", "b"),
        (" a", "a"),
        (" a .", "a"),
        (" a ) , i think", "a"),
        (" i take a , not the town", "a"),
        (" c is right", "c"),
        (" a is right", "a"),
        (" a man took b", "b"),
        (" d", None),
        ("", None),
    ],
)
def test_an_article_is_no_letter(reply, letter):
    item = Item("which ?", "x", ("x", "y", "z"), about=None)
    assert lab_format("choice").find(item, reply) == letter


UNREADABLE = [
    ("exact", "the city of light on the river Seine", ()),
    ("exact", "one\ntwo", ()),
    ("number", "twelve", ()),
    ("number", "3/4", ()),
    ("solution", "twelve", ()),
    ("yesno", "True", ()),
    ("yesno", "maybe", ("yes", "no", "maybe")),
    ("letter", "Paris", ()),
]


@pytest.mark.parametrize("form, answer, options", UNREADABLE)
def test_an_item_that_could_never_be_right_is_refused(form, answer, options):
    "Counted as wrong whatever is said, it would lower FF, ACC and KA without a word."
    fine = dict(exact="x", number="1", solution="1", yesno="yes", letter="x")[form]
    known = Item("Known?", fine, ("x", "y") if form == "letter" else ())
    odd = Item("Which one?", answer, options)
    sides = [lambda: Benchmark("b", FORMATS[form], [known, odd]), lambda: Benchmark("b", FORMATS[form], [known], [odd])]
    sides.append(lambda: load_benchmark([known, odd], form, test=2))
    for make in sides:
        with pytest.raises(ValueError, match=re.escape("'Which one?'")) as e:
            make()
        assert repr(form) in str(e.value) and "no reply would ever be right" in str(e.value)


def test_a_reply_is_read_as_it_is_cut():
    "A right reply that goes on behind the string at which replies end is never said whole."
    lines = replace(
        FORMATS["exact"],
        write=lambda item, answer: f"I say\n{answer}",
        strict=lambda reply, item: reply.partition("\n")[2] or None,
    )
    assert Benchmark("b", replace(lines, stop=None), [Item("q", "x")]).items
    with pytest.raises(ValueError, match="no reply would ever be right"):
        Benchmark("b", lines, [Item("q", "x")])
