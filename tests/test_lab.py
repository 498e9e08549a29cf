"""The lab's world: facts and tasks that are what they say."""

import random
import re

from softprompt_nb.data import Example
from softprompt_nb.lab import facts as F
from softprompt_nb.lab import world as W

import pytest
from hypothesis import given
from hypothesis import strategies as st

ALPHABET = "abcdefghijklmnopqrstuvwxyz"


# the world


def test_size():
    assert len(F.RELATIONS) >= 12 and sum(map(len, F.RELATIONS.values())) >= 500
    kinds = [task.kind for task in W.TASKS.values()]
    assert kinds.count("operation") >= 15 and kinds.count("review") >= 2 and len(kinds) >= 38
    assert all(len(task.instructions) >= 4 for task in W.TASKS.values())


def test_instructions_name_one_task():
    asked = [(instruction, task.name) for task in W.TASKS.values() for instruction in task.instructions]
    assert len({instruction for instruction, _ in asked}) == len(asked)


def test_facts_are_clean():
    for relation, rows in F.RELATIONS.items():
        for subject, value in rows.items():
            for text in (subject, value):
                assert text and text == text.lower().strip() and text != "-", (relation, subject, value)
            assert " " not in subject and len(value.split()) <= 2 and "_" not in value, (relation, subject, value)


def test_facts_have_one_answer():
    for task in W.TASKS.values():
        if task.closed:
            assert len({item.input for item in task.facts}) == len(task.facts), task.name


@pytest.mark.parametrize("table, word", [("a b\nx 1 2; x 3 4", "twice"), ("a b\nx 1", "columns")])
def test_bad_table(table, word):
    with pytest.raises(ValueError, match=word):
        F.parse(table)


@pytest.mark.parametrize(
    "subject, relation, value",
    [
        ("france", "capital", "paris"),
        ("japan", "language", "japanese"),
        ("egypt", "continent", "africa"),
        ("cow", "sound", "moo"),
        ("mouse", "plural", "mice"),
        ("go", "past", "went"),
        ("good", "comparative", "better"),
        ("lemon", "colour", "yellow"),
        ("dog", "french", "chien"),
        ("house", "spanish", "casa"),
    ],
)
def test_known_truths(subject, relation, value):
    facts = W.lab_task(relation).facts
    assert [item.target for item in facts if item.input.split(" : ")[1] == subject] == [f" {value}"]


def test_docs_example():
    assert Example("country : france", " paris") in W.lab_task("capital").facts


def test_opposites_are_mutual_or_one_way():
    opposite = F.RELATIONS["adjective", "opposite"]
    one_way = {word for word, other in opposite.items() if other in opposite and opposite[other] != word}
    assert one_way <= {"large", "thin", "easy", "light", "short", "old", "narrow"}, one_way


def test_entries():
    assert F.read_entries("a | b\n  c | d\n\ne | f") == [["a", "b", "c", "d"], ["e", "f"]]
    with pytest.raises(ValueError, match="goes on with nothing"):
        F.read_entries("  a | b")


@pytest.mark.parametrize("name", list(W.TASKS))
def test_splits_are_disjoint_and_repeat(name):
    task = W.lab_task(name)
    train = {item.input for seed in range(3) for item in task.examples(seed=seed, split="train")}
    test = {item.input for seed in range(3) for item in task.examples(seed=seed, split="test")}
    assert train and test and not train & test
    assert task.examples(seed=5, split="test") == task.examples(seed=5, split="test")
    if not task.closed:
        assert task.examples(20, seed=5) != task.examples(20, seed=6)
    items = task.examples(seed=1)
    assert len({item.input for item in items}) == len(items)


def _second_opinion(name, text):
    "The answer to an input, worked out from its text alone and not with the package's functions."
    key, x = text.removesuffix(" =").split(" : ", 1)
    o = x.split() if key in ("list", "letters", "numbers", "digits") else x
    if key in ("numbers", "digits"):
        a, b = map(int, o)
    joined = {
        "copy": lambda: x,
        "reverse": lambda: " ".join(reversed(o)),
        "first": lambda: o[0],
        "second": lambda: o[1],
        "last": lambda: o[len(o) - 1],
        "sort": lambda: " ".join(min(c for c in o if sum(d < c for d in o) == i) for i in range(len(o))),
        "count": lambda: str(x.count(" ") + 1),
        "duplicate": lambda: re.sub(r"(\S+)", r"\1 \1", x),
        "repeat": lambda: f"{x} {x}",
        "drop_first": lambda: x.split(" ", 1)[1],
        "drop_last": lambda: x.rsplit(" ", 1)[0],
        "swap_ends": lambda: re.sub(r"^(\S+)(.*) (\S+)$", r"\3\2 \1", x),
        "commas": lambda: x.replace(" ", ", "),
        "next_letters": lambda: x.translate(str.maketrans(ALPHABET, ALPHABET[1:] + "a")),
        "previous_letters": lambda: x.translate(str.maketrans(ALPHABET[1:] + "a", ALPHABET)),
        "uppercase": lambda: x.upper(),
        "spell": lambda: re.sub(r"(?<=.)(?=.)", " ", x),
        "first_letter": lambda: x[0],
        "last_letter": lambda: x[::-1][0],
        "length": lambda: str(sum(1 for _ in x)),
        "successor": lambda: str(int(x) + 1),
        "predecessor": lambda: str(int(x) - 1),
        "double": lambda: str(int(x) + int(x)),
        "half": lambda: str((int(x) - int(x[-1]) % 2) // 2),
        "times": lambda: str(sum([b] * a)),
        "join": lambda: str(int(x.replace(" ", ""))),
        "digit_sum": lambda: str(sum(map(int, o))),
        "parity": lambda: "odd" if x[-1] in "13579" else "even",
        "plus": lambda: str(a + b),
        "larger": lambda: str(a if a > b else b),
        "smaller": lambda: str(b if a > b else a),
        "minus": lambda: str(a - b if a > b else b - a),
    }
    return " " + joined[name]()


@pytest.mark.parametrize("name", list(W.OPERATION_TASKS))
def test_operations_by_a_second_opinion(name):
    for item in W.lab_task(name).examples(60, seed=9):
        assert item.target == _second_opinion(name, item.input), item


@given(st.integers(0, 10**6))
def test_reviews_are_consistent(seed):
    drawn = W.review(random.Random(seed))
    words = drawn["text"].split()
    good = drawn["opinion"] in W.GOOD
    assert drawn["opinion"] in words and drawn["topic"] in W.TOPICS
    assert set(words) & set(W.TOPICS[drawn["topic"]].split())
    assert good != (drawn["opinion"] in W.BAD)
    assert good == (drawn["sentiment"] == "positive") == (drawn["recommend"] == "yes")


def test_topics_share_no_noun():
    nouns = [noun for names in W.TOPICS.values() for noun in names.split()]
    assert len(nouns) == len(set(nouns))


def test_inputs_are_ambiguous():
    tasks = {}
    for task in W.TASKS.values():
        kind = task.examples(1)[0].input.split(" : ")[0]
        tasks.setdefault(kind, []).append(task.name)
    assert all(len(names) > 1 for names in tasks.values()), tasks


def test_bad_requests():
    with pytest.raises(ValueError, match="capital, language"):
        W.lab_task("capitol")
    with pytest.raises(ValueError, match="were asked for"):
        W.lab_task("capital").examples(10_000)
    assert W.lab_task("capital").examples(10_000, fewer=True) == W.lab_task("capital").examples()
    with pytest.raises(ValueError, match="'train', 'test' or None"):
        W.lab_task("capital").examples(split="valid")
    with pytest.raises(ValueError, match="ask for fewer"):
        W.with_shots(W.lab_task("sound"), W.lab_task("sound").examples(2), k=500)


def test_shots_come_from_train_and_leave_out_the_item():
    task = W.lab_task("sound")
    items = task.examples()
    for item, shown in zip(items, W.with_shots(task, items, k=4)):
        *shots, last = shown.input.split("\n")
        assert last == item.input and len(shots) == 4 and shown.target == item.target
        assert not any(shot.startswith(f"{item.input} ") for shot in shots)
        assert not any(W.is_test("sound", shot.rsplit(" ", 1)[0]) for shot in shots)
