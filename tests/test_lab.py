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
    kinds = [t.kind for t in W.TASKS.values()]
    assert kinds.count("operation") >= 15 and kinds.count("review") >= 2 and len(kinds) >= 38
    assert all(len(t.instructions) >= 4 for t in W.TASKS.values())


def test_instructions_name_one_task():
    said = [(i, t.name) for t in W.TASKS.values() for i in t.instructions]
    assert len({i for i, _ in said}) == len(said)


def test_facts_are_clean():
    for (key, col), rows in F.RELATIONS.items():
        for s, v in rows.items():
            assert s == s.lower().strip() and v == v.lower().strip() and s and v and " " not in s, (key, col, s, v)
            assert len(v.split()) <= 2 and "_" not in v and "-" not in (s, v)


def test_facts_have_one_answer():
    for t in W.TASKS.values():
        if t.closed:
            assert len({e.input for e in t.facts}) == len(t.facts), t.name


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
    task = W.lab_task(relation)
    assert [e.target for e in task.facts if e.input.split(" : ")[1] == subject] == [f" {value}"]


def test_docs_example():
    assert Example("country : france", " paris") in W.lab_task("capital").facts


def test_opposites_are_mutual_or_one_way():
    pairs = F.RELATIONS["adjective", "opposite"]
    back = [a for a, b in pairs.items() if b in pairs and pairs[b] != a]
    assert set(back) <= {"large", "thin", "easy", "light", "short", "old", "narrow"}, back


@pytest.mark.parametrize("name", list(W.TASKS))
def test_splits_are_disjoint_and_repeat(name):
    t = W.lab_task(name)
    train, test = ([e.input for s in range(3) for e in t.examples(seed=s, split=split)] for split in ("train", "test"))
    assert train and test and not set(train) & set(test)
    assert t.examples(seed=5, split="test") == t.examples(seed=5, split="test")
    if not t.closed:
        assert t.examples(20, seed=5) != t.examples(20, seed=6)
    assert len({e.input for e in t.examples(seed=1)}) == len(t.examples(seed=1))


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
    for e in W.lab_task(name).examples(60, seed=9):
        assert e.target == _second_opinion(name, e.input), e


@given(st.integers(0, 10**6))
def test_reviews_are_consistent(seed):
    r = W.review(random.Random(seed))
    assert (
        r["opinion"] in r["text"].split()
        and r["topic"] in W.TOPICS
        and any(w in W.TOPICS[r["topic"]].split() for w in r["text"].split())
    )
    assert (
        (r["sentiment"] == "positive")
        == (r["recommend"] == "yes")
        == (r["opinion"] in W.GOOD)
        != (r["opinion"] in W.BAD)
    )


def test_topics_share_no_noun():
    nouns = [w for v in W.TOPICS.values() for w in v.split()]
    assert len(nouns) == len(set(nouns))


def test_inputs_are_ambiguous():
    by_key = {}
    for t in W.TASKS.values():
        by_key.setdefault(t.examples(1)[0].input.split(" : ")[0], []).append(t.name)
    assert all(len(v) > 1 for v in by_key.values()), by_key


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
    t = W.lab_task("sound")
    for e, shown in zip(t.examples(), W.with_shots(t, t.examples(), k=4)):
        *shots, last = shown.input.split("\n")
        assert last == e.input and len(shots) == 4 and shown.target == e.target
        assert all(not s.startswith(e.input + " ") and not W.is_test("sound", s.rsplit(" ", 1)[0]) for s in shots)
