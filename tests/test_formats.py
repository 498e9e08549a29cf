"Answer formats: what they write they read, no text makes them raise, no relaxed reading sees the right answer."

import json
import random

from softprompt_nb.evaluation.formats.formats import (
    FORMATS,
    Format,
    Item,
    letter_format,
    normal,
    plain_number,
)
from softprompt_nb.evaluation.formats.lab_benchmarks import LAB_BENCHMARKS, lab_benchmark, lab_format, lab_item
from softprompt_nb.evaluation.formats.replies import mentioned
from softprompt_nb.lab.facts import RELATIONS

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

OPTIONS = Item("which ?", "b c", ("a", "b c", "d"))
LAB = {f: lab_item(("town", "mayor"), next(iter(RELATIONS["town", "mayor"])), f) for f in LAB_BENCHMARKS}
ALL = [(f, OPTIONS) for f in FORMATS.values()] + [(lab_format(f), i) for f, i in LAB.items()]
named = pytest.mark.parametrize("fmt, item", ALL, ids=[f.name for f, _ in ALL])
words = st.text(st.characters(codec="utf-8", categories=("L", "N")), min_size=1, max_size=12)
pieces = st.sampled_from(
    [
        "{",
        "}",
        "[",
        '"',
        ":",
        "answer",
        "Answer:",
        "answer is",
        "yes",
        "no",
        "a",
        "(b)",
        "B.",
        "####",
        "-",
        "1,000",
        "3.50",
        "\n",
        " ",
        "\x00",
        "\ud800",
        "٣",
        "é",
        "\\",
        "paris",
    ]
)


@named
@settings(max_examples=150, deadline=None)
@given(text=st.one_of(st.text(max_size=80), st.lists(pieces, max_size=12).map("".join)))
def test_any_text_is_read_without_an_exception(fmt, item, text):
    for found in (fmt.read(item, text), fmt.find(item, text)):
        assert found is None or (isinstance(found, str))


@named
def test_hostile_texts_are_read_without_an_exception(fmt, item):
    for text in (
        "[" * 100_000,
        '{"answer": ' + "[" * 100_000,
        '{ " x " : ' * 20_000,
        "9" * 20_000,
        "#### " + "9" * 20_000,
        '{"answer": 1e999}',
        '{"answer": NaN}',
        " " * 50_000 + "x",
        "a" * 30_000,
        "the " * 8_000 + ".",
        "A, " * 7_000,
        "b c and " * 3_000,
        "The answer is A or " * 1_000,
        "1 and 2, " * 2_000,
        "wait, " * 4_000,
        "<answer>" * 3_000,
        "\n" * 20_000,
    ):
        for found in (fmt.read(item, text), fmt.find(item, text)):
            assert found is None or isinstance(found, str)


@pytest.mark.parametrize("name", ["exact", "json"])
@given(answer=words)
def test_what_a_format_writes_it_reads(name, answer):
    fmt, item = FORMATS[name], Item("q", answer)
    assert fmt.read(item, " " + fmt.write(item, answer)) == fmt.same(answer)


@given(n=st.integers(-(10**9), 10**9), d=st.integers(0, 999))
def test_numbers_are_equal_by_value(n, d):
    written = f"{n:,}.{d:03d}"
    number = FORMATS["number"].read(OPTIONS, written)
    assert float(number) == float(written.replace(",", "")) and number == FORMATS["solution"].read(
        OPTIONS, f"some steps\n#### {written}"
    )
    assert (
        plain_number(number) == number
        and FORMATS["number"].find(OPTIONS, f"1 and then 2, so the answer is {written} eggs") == number
    )


@given(k=st.integers(1, 10), data=st.data())
def test_a_letter_counts_only_if_the_question_has_it(k, data):
    item = Item("q", "o0", tuple(f"o{i}" for i in range(k)))
    letter = data.draw(st.sampled_from("ABCDEFGHIJKLM"))
    for written in (letter, f" {letter}", f"({letter})", f"{letter}."):
        assert FORMATS["letter"].read(item, written) == (letter if letter in "ABCDEFGHIJ"[:k] else None)
    assert FORMATS["letter"].read(item, f"{letter} {letter}") is None


@pytest.mark.parametrize(
    "reply, strict, relaxed",
    [
        ("B", "B", "B"),
        ("the answer is (B), I think", None, "B"),
        ("Answer: B", None, "B"),
        ("b c", None, "B"),
        ("not a but d", None, "C"),
        ("A good question", None, "A"),
        ("E", None, None),
        ("", None, None),
    ],
)
def test_letters_by_hand(reply, strict, relaxed):
    assert (FORMATS["letter"].read(OPTIONS, reply), FORMATS["letter"].find(OPTIONS, reply)) == (strict, relaxed)


@pytest.mark.parametrize(
    "reply, strict, relaxed",
    [
        (" Yes.", "yes", "yes"),
        ("no", "no", "no"),
        ("Yes, because", None, "yes"),
        ("the answer is false", None, "no"),
        ("nothing is known", None, None),
        ("not yes", None, None),
    ],
)
def test_yes_and_no_by_hand(reply, strict, relaxed):
    assert (FORMATS["yesno"].read(OPTIONS, reply), FORMATS["yesno"].find(OPTIONS, reply)) == (strict, relaxed)


@pytest.mark.parametrize(
    "reply, strict, relaxed",
    [
        ('{"answer": "The Hague"}', "hague", "hague"),
        (' {"answer": 3} ', "3", "3"),
        ('{"answer": "x", "why": "y"}', None, "answer x why y"),
        ('so: {"answer": "x"} ok', None, "x"),
        ('{"answer": true}', None, "true"),
        ('answer: "x"', None, "x"),
    ],
)
def test_objects_by_hand(reply, strict, relaxed):
    fmt = FORMATS["json"]
    assert fmt.read(OPTIONS, reply) == strict
    if relaxed in ("hague", "3", "x"):
        assert fmt.find(OPTIONS, reply) == relaxed


@given(options=st.lists(words, min_size=2, max_size=5, unique_by=lambda w: w.casefold()), data=st.data())
def test_a_mention_is_found_if_it_is_the_only_one(options, data):
    options = [f"o{w}o" for w in options]  # no option is a part of a word of the sentence
    if any(a != b and a.casefold() == b.casefold() for a in options for b in options):
        return
    one = data.draw(st.sampled_from(options))
    assert mentioned(f"well , it is {one} .", options) == one
    if len(options) > 1:
        assert mentioned(" ".join(options[:2]), options) is None


def test_a_shorter_option_inside_a_longer_one_is_not_mentioned():
    assert mentioned("in new york , i think", ["york", "new york"]) == "new york"


@given(text=st.text(max_size=40))
def test_normal_forms_are_stable(text):
    assert normal(normal(text)) == normal(text) == normal(f"  {text.upper().lower()}") or normal(text) != normal(
        text.upper().lower()
    )


@given(text=st.lists(st.sampled_from([*"-+*/^=#$. ()59acx", " the ", "²", "½", "C++"]), max_size=9).map("".join))
def test_normal_forms_with_signs_are_stable(text):
    assert normal(normal(text, signs=True), signs=True) == normal(text, signs=True)
    same = FORMATS["exact"].same
    assert same(same(text)) == same(text)


@pytest.mark.parametrize("name", ["exact", "json"])
@pytest.mark.parametrize(
    "gold, equal, others",
    [
        ("-1", ["-1", "\u22121", "-1.0"], ["1", "+1"]),
        ("1", ["+1", "1.00", "01"], ["-1"]),
        ("0.5", [".5", "0.50"], ["0/5", "0-5", "0 5"]),
        ("C++", ["c++", "the C++"], ["C", "C#"]),
        ("1/2", ["1 / 2"], ["1-2", "1 2", "12"]),
        ("10^5", ["10⁵"], ["105"]),
        ("-5 degrees", ["−5 degrees."], ["5 degrees"]),
        ("The well-known man", ["well known man"], ["unknown man"]),
    ],
)
def test_short_answers_keep_the_signs_that_change_them(name, gold, equal, others):
    fmt, item = FORMATS[name], Item("q", gold)
    read = {other: fmt.read(item, fmt.write(item, other)) for other in (gold, *equal, *others)}
    assert {other for other in read if read[other] == read[gold]} == {gold, *equal}


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Item("q", ""), "not an empty one"),
        (lambda: Item("q", "a", ("b", "c")), "not among the options"),
        (lambda: Item("q", "a", ("a", "a")), "same option twice"),
        (lambda: Item(3, "a"), "must be texts"),
        (lambda: Item("q", "a", "abc"), "must be a list of texts"),
        (lambda: Item("q", "a", ("a", None)), "must be a list of texts"),
    ],
)
def test_bad_items_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("form", LAB_BENCHMARKS)
def test_the_labs_formats_read_what_they_write_for_every_candidate(form):
    b = lab_benchmark(form, test=120, train=10)
    for i in b.items:
        read = {o: b.format.read(i, b.reply(i, o)) for o in i.options}
        assert None not in read.values() and b.gold(i) == read[i.answer]
        assert sum(r == b.gold(i) for r in read.values()) == 1, "only one candidate is right"


def test_the_labs_formats_accept_only_their_own_replies_where_forms_differ():
    items = {
        f: lab_item(
            ("town", "dish"),
            "sontin" if "sontin" in RELATIONS["town", "dish"] else next(iter(RELATIONS["town", "dish"])),
            f,
        )
        for f in LAB_BENCHMARKS
    }
    written = {f: lab_format(f).write(i, i.answer) for f, i in items.items()}
    for f, g in ((f, g) for f in ("json", "answer", "quoted", "sentence") for g in LAB_BENCHMARKS if f != g):
        assert lab_format(f).read(items[f], " " + written[g]) is None, (f, g)
    assert json.loads(written["json"]) and random.Random(0).random() < 1 and isinstance(lab_format("json"), Format)
    with pytest.raises(ValueError, match="unknown form"):
        lab_format("poem")


def test_own_letters():
    assert (
        letter_format("xyz").read(OPTIONS, "y") == "y"
        and letter_format("xyz").write(OPTIONS, "b c") == "y"
        and letter_format("xyz").read(OPTIONS, "B") is None
    )
