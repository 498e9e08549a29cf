"""The grammar: tasks that do what their names say, checkers that can tell, and splits that hold out what they claim."""

import pickle
import random
from collections import Counter

from softprompt_nb.lab import grammar as G
from softprompt_nb.lab import world as W
from softprompt_nb.lab.facts import RELATIONS

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

TASKS = list(G.GRAMMAR.values())
ONE_PER_OPERATION = [G.grammar(operation=o)[0].name for o in G.COMPOSABLE]


def domain(task):
    return G.INPUT_DOMAINS[G.COMPOSABLE[task.operation].domain]


# size and names


def test_counts():
    n = Counter(t.split for t in TASKS)
    assert len(TASKS) >= 600 and n["train"] >= 400 and n["composition"] >= 60 and min(n[s] for s in G.TASK_SPLITS) > 20
    open_combinations = n["train"] + n["composition"] + n["validation"]
    assert 0.12 < n["composition"] / open_combinations < 0.18 and 0.06 < n["validation"] / open_combinations < 0.1
    assert 6 <= len(G.ANSWER_STYLES) <= 8 and len(G.HELD_OPERATIONS) == 4


def test_table_counts_the_tasks():
    by_split, by_form = G.grammar_table(), G.grammar_table("format")
    assert by_split.loc["all", "all"] == by_form.loc["all", "all"] == len(TASKS)
    assert by_split.loc["rotate", "operation"] == 8 and by_form.loc["pick", "commas"] == 0
    assert all(by_split.loc[o, s] == len(G.grammar(s, o)) for o in G.COMPOSABLE for s in G.TASK_SPLITS)


def test_names_and_instructions_are_unique():
    assert all(
        G.GRAMMAR[t.name] is t and t.kind == "composed" and t.name == ".".join([t.operation, *t.words, t.format])
        for t in TASKS
    )
    said = [i for t in TASKS for i in t.instructions]
    assert len(set(said)) == len(said) and min(len(t.instructions) for t in TASKS) >= 6


def test_an_instruction_is_made_of_two_sentences():
    for t in TASKS:
        first, second = G.COMPOSABLE[t.operation].say(t.words), G.ANSWER_STYLES[t.format].phrases[0]
        assert t.instruction() == f"{first} {second}" and "{" not in t.instruction() and "%" not in t.instruction()
        assert all(w in t.instruction().split() for w in t.words if w not in G.PLACES)


def test_text_is_one_piece_per_word():
    "Spaces stand around every sign, and no sign runs into another word."
    for name in ONE_PER_OPERATION:
        for t in G.grammar(operation=name.split(".")[0]):
            for text in (*t.instructions, t.examples(1)[0].target):
                assert all(w.isalpha() or w.isdigit() or w in ("->", *'[]"{}:.,?') for w in text.split()), text


# splits


def test_splits_are_disjoint_and_complete():
    names = [{t.name for t in G.grammar(s)} for s in G.TASK_SPLITS]
    assert sum(map(len, names)) == len(set().union(*names)) == len(TASKS)


def test_parts_of_held_out_combinations_stand_in_training():
    train = G.grammar("train")
    sentences, forms = {(t.operation, t.argument) for t in train}, {t.format for t in train}
    for t in G.grammar("composition") + G.grammar("validation"):
        assert (t.operation, t.argument) in sentences and t.format in forms, t.name
    words = {w for t in train for i in t.instructions for w in i.split()}
    assert (
        not {w for s in ("composition", "validation") for t in G.grammar(s) for i in t.instructions for w in i.split()}
        - words
    )


def test_held_out_words_fill_no_gap_in_training():
    seen = [t for t in TASKS if t.split in ("train", "validation", "composition")]
    assert not {w for t in seen for w in t.words} & G.HELD_WORDS and not {t.operation for t in seen} & set(
        G.HELD_OPERATIONS
    )
    assert {w for t in G.grammar("argument") for w in t.words} >= G.HELD_WORDS and {
        t.operation for t in G.grammar("operation")
    } == set(G.HELD_OPERATIONS)
    assert not G.HELD_WORDS & {*G.ADDED, *(w for p in G.LABELS for w in p)}


def test_held_out_operations_are_asked_for_in_known_words():
    known = {w for t in G.grammar("train") for i in t.instructions for w in i.split()}
    assert not {w for t in G.grammar("operation") for i in t.instructions for w in i.split()} - known


def test_splits_do_not_depend_on_the_process():
    known = {
        "insert.star.start.json": "composition",
        "insert.king.after.json": "composition",
        "sentiment.sun.moon.json": "validation",
        "insert.cat.start.brackets": "train",
        "insert.fox.start.plain": "argument",
        "parity.x.y.dot": "argument",
        "rotate.commas": "operation",
    }
    assert {name: G.composed(name).split for name in known} == known


# what a task does


def test_solve_agrees_with_what_is_drawn():
    rng = random.Random(0)
    for t in TASKS:
        for ex in (t.draw(rng) for _ in range(4)):
            assert (
                t.solve(ex.input) == ex.target
                and t.check(ex.input, ex.target) is True
                and ex.target.startswith(" ")
                and "  " not in ex.target
            )
        if t.closed:
            assert {e.input for e in t.facts} >= {ex.input}


def _words(operation, args, x):
    "What an operation leaves, with plain loops over the input's text."
    o, out = x.split(), []
    at = {"first": 0, "second": 1, "third": 2, "last": len(o) - 1}
    if operation in ("copy", "insert"):
        for w in o:
            out.append(w)
        if operation == "insert":
            out = {"start": [args[0]] + out, "end": out + [args[0]], "after": out[:1] + [args[0]] + out[1:]}[args[1]]
    elif operation == "reverse":
        for w in o:
            out.insert(0, w)
    elif operation in ("swap", "swap_start"):
        other = len(o) - 1 if operation == "swap" else 1
        for i in range(len(o)):
            out.append(o[other] if i == 0 else o[0] if i == other else o[i])
    elif operation == "twice":
        for w in o:
            out.append(w)
            out.append(w)
    elif operation in ("pick", "drop", "replace"):
        for i, w in enumerate(o):
            hit = i == at[args[0]]
            if operation == "replace":
                out.append(args[1] if hit else w)
            elif hit == (operation == "pick"):
                out.append(w)
    elif operation == "upper":
        out = [chr(ord(c) - 32) for c in o]
    elif operation == "next":
        out = ["a" if c == "z" else chr(ord(c) + 1) for c in o]
    elif operation in ("letter", "spell"):
        for i, c in enumerate(x):
            if operation == "spell" or i == (0 if args[0] == "first" else len(x) - 1):
                out.append(c)
    elif operation == "rotate":
        for i in range(len(o)):
            out.append(o[(i + 1) % len(o)])
    elif operation == "ends":
        out = [o[0], o[len(o) - 1]]
    elif operation == "last_twice":
        out = [o[len(o) - 1]] * 2
    else:
        plant = RELATIONS["thing", "category"].get(x) in ("plant", "flower", "tree")
        yes = {
            "sentiment": lambda: len(set(o) & set(W.GOOD)) == 1,
            "parity": lambda: x[-1] in "02468",
            "size": lambda: int(x) >= 51,
            "living": lambda: x in RELATIONS["animal", "class"] or plant,
        }[operation]()
        out = [args[0] if yes else args[1]]
    return out


def _written(form, words):
    s = ""
    for i, w in enumerate(words):
        s += (" , " if form == "commas" else " ") * (i > 0) + w
    return {
        "brackets": "[ " + s + " ]",
        "quotes": '" ' + s + ' "',
        "answer": "answer : " + s,
        "dot": s + " .",
        "json": '{ " answer " : " ' + s + ' " }',
        "arrow": "-> " + s,
    }.get(form, s)


@pytest.mark.parametrize("operation", list(G.COMPOSABLE))
def test_operations_by_a_second_opinion(operation):
    rng = random.Random(1)
    for t in G.grammar(operation=operation):
        for ex in (t.draw(rng) for _ in range(8)):
            x = ex.input.split(" : ", 1)[1].removesuffix(" =")
            assert ex.target == " " + _written(t.format, _words(operation, t.words, x)), (t.name, ex)


@pytest.mark.parametrize(
    "name, text, answer",
    [
        ("drop.first.brackets", "list : cat dog hen =", " [ dog hen ]"),
        ("reverse.commas", "list : a b c =", " c , b , a"),
        ("insert.cat.after.json", "list : a b c =", ' { " answer " : " a cat b c " }'),
        ("replace.second.king.dot", "list : 1 2 3 =", " 1 king 3 ."),
        ("sentiment.sun.moon.quotes", "review : the film was boring .", ' " moon "'),
        ("parity.yes.no.arrow", "number : 12 =", " -> yes"),
        ("living.up.down.plain", "word : horse =", " up"),
        ("size.true.false.answer", "number : 50 =", " answer : false"),
        ("next.plain", "letters : a z =", " b a"),
        ("last_twice.plain", "list : a b c =", " c c"),
    ],
)
def test_known_answers(name, text, answer):
    assert G.composed(name).solve(text) == answer


def test_no_two_tasks_behave_the_same():
    rng, seen = random.Random(2), {}
    inputs = {id(d): [d.ask(d.draw(rng)) for _ in range(40)] for d in G.INPUT_DOMAINS.values()}
    for t in TASKS:
        told = (id(domain(t)), *map(t.solve, inputs[id(domain(t))]))
        assert told not in seen, (t.name, seen[told])
        seen[told] = t.name


def test_labels_are_balanced():
    rng = random.Random(3)
    for name in G.TASK_QUESTIONS:
        t = G.composed(f"{name}.yes.no.plain")
        share = sum(t.draw(rng).target == " yes" for _ in range(2000)) / 2000
        assert 0.4 < share < 0.65, (name, share)
    assert not G.LIVING & G.OBJECTS


# items


@pytest.mark.parametrize("name", ONE_PER_OPERATION)
def test_items_are_split_and_repeat(name):
    t = G.composed(name)
    train, test = (t.examples(15, seed=s, split=s) for s in ("train", "test"))
    assert not {e.input for e in train} & {e.input for e in test} and all(W.is_test(t.name, e.input) for e in test)
    assert t.examples(10, seed=4) == t.examples(10, seed=4) != t.examples(10, seed=5)
    assert all(t.solve(e.input) == e.target for e in [*W.with_instruction(t, test, 3), *W.with_shots(t, test, 2)])


def test_closed_tasks_list_all_their_items():
    t = G.composed("parity.yes.no.plain")
    assert (
        t.closed and len(t.facts) == len({e.input for e in t.facts}) == 99 and t.facts[:2] == (t.facts[0], t.facts[1])
    )
    assert not G.composed("copy.plain").closed


def test_a_task_survives_pickling():
    for name in ONE_PER_OPERATION:
        assert pickle.loads(pickle.dumps(G.composed(name))) is G.composed(name)


def test_repr_says_what_it_does():
    assert repr(G.composed("copy.dot")).startswith(
        "Composed('copy.dot', "
    ) and "copy the list . answer with a dot at the end ." in repr(G.composed("copy.dot"))


# checking


@pytest.mark.parametrize(
    "answer, right",
    [
        (" [ dog hen ]", True),
        ("[  dog hen ] ", True),
        (" [ dog hen ]\nlist : a b c =", True),
        ("", False),
        ("\n [ dog hen ]", False),
        (" [ hen dog ]", False),
        (" dog hen", False),
        (" [ dog hen", False),
        (" [ dog hen ] .", False),
        (" [ Dog hen ]", False),
        (" [dog hen]", False),
    ],
)
def test_check(answer, right):
    assert G.composed("drop.first.brackets").check("list : cat dog hen =", answer) is right


def test_answers_of_other_forms_are_wrong():
    for operation in ("copy", "insert", "parity"):
        task = G.grammar(operation=operation)[0]
        same = [t for t in G.grammar(operation=operation) if t.argument == task.argument]
        text = task.examples(1)[0].input
        for a in same:
            for b in same:
                assert a.check(text, b.solve(text)) == (a is b)


@given(st.sampled_from(ONE_PER_OPERATION), st.text())
def test_check_takes_any_answer(name, answer):
    task = G.composed(name)
    ex = task.examples(1)[0]
    assert task.check(ex.input, answer) is (" ".join(answer.split("\n")[0].split()) == ex.target.strip())


@settings(max_examples=200)
@given(
    st.sampled_from(ONE_PER_OPERATION),
    st.sampled_from(["", "list : ", "letters : ", "word : ", "number : ", "review : "]),
    st.text(),
    st.sampled_from(["", " =", " ."]),
)
def test_solve_answers_or_says_why_not(name, key, text, end):
    try:
        assert G.composed(name).solve(key + text + end).startswith(" ")
    except ValueError as e:
        assert len(str(e)) > 20 and "\n" not in str(e)


@given(st.lists(st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=1, max_size=8), min_size=3, max_size=9))
def test_lists_of_any_words_and_length(o):
    text = f"list : {' '.join(o)} ="
    assert (
        G.composed("reverse.plain").solve(text).split() == o[::-1]
        and G.composed("rotate.plain").solve(text).split() == o[1:] + o[:1]
    )


# bad input


@pytest.mark.parametrize(
    "name, text",
    [
        ("copy.plain", "list : a b ="),
        ("copy.plain", "list : a b c"),
        ("copy.plain", "word : horse ="),
        ("copy.plain", ""),
        ("copy.plain", "list : a b c =\n"),
        ("upper.plain", "letters : a B ="),
        ("spell.plain", "word : two words ="),
        ("parity.yes.no.plain", "number : 0 ="),
        ("parity.yes.no.plain", "number : 100 ="),
        ("living.yes.no.plain", "word : sadness ="),
        ("sentiment.yes.no.plain", "review : the film was long ."),
        ("sentiment.yes.no.plain", "review : a great , awful film ."),
    ],
)
def test_bad_inputs(name, text):
    with pytest.raises(ValueError) as e:
        G.composed(name).solve(text)
    assert "\n" not in str(e.value)
    with pytest.raises(ValueError):
        G.composed(name).check(text, "yes")


def test_an_input_that_is_no_text():
    with pytest.raises(ValueError, match="not int"):
        G.composed("copy.plain").solve(3)


def test_unknown_names():
    with pytest.raises(ValueError, match="insert.cat.start.brackets"):
        G.composed("insert.cat.strt.brackets")
    with pytest.raises(ValueError, match="names read like"):
        G.composed("???")
    for bad in (dict(split="test"), dict(operation="sort"), dict(format="xml")):
        with pytest.raises(ValueError, match="unknown"):
            G.grammar(**bad)
    with pytest.raises(ValueError, match="unknown columns"):
        G.grammar_table("argument")


# tasks with any word


@given(seed=st.integers(0, 10**9))
@settings(max_examples=200, deadline=None)
def test_any_task_keeps_to_what_may_be_trained(seed):
    t = G.any_task(random.Random(seed), tuple(o for o in G.COMPOSABLE if o not in G.HELD_OPERATIONS))
    assert not G.HELD_WORDS & {*t.words} and (t.name not in G.GRAMMAR or G.GRAMMAR[t.name].split == "train")
    e = t.draw(random.Random(seed))
    assert t.check(e.input, e.target) and all(w in t.instruction() for w in t.words if w not in {*G.AT, *G.PLACES})


def test_any_task_has_the_words_of_no_list():
    drawn = [G.any_task(random.Random(i), tuple(G.TASK_QUESTIONS), ("plain",)) for i in range(400)]
    labels = Counter(t.words for t in drawn)
    assert {t.format for t in drawn} == {"plain"} and 0.25 < labels["yes", "no"] / 400 < 0.45 and len(labels) > 200
