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
    sizes = Counter(task.split for task in TASKS)
    assert len(TASKS) >= 600 and sizes["train"] >= 400 and sizes["composition"] >= 60
    assert min(sizes[split] for split in G.TASK_SPLITS) > 20
    known_parts = sizes["train"] + sizes["composition"] + sizes["validation"]
    assert 0.12 < sizes["composition"] / known_parts < 0.18
    assert 0.06 < sizes["validation"] / known_parts < 0.1
    assert 6 <= len(G.ANSWER_STYLES) <= 8 and len(G.HELD_OPERATIONS) == 4


def test_table_counts_the_tasks():
    by_split = G.grammar_table()
    by_form = G.grammar_table("format")
    assert by_split.loc["all", "all"] == by_form.loc["all", "all"] == len(TASKS)
    assert by_split.loc["rotate", "operation"] == 8 and by_form.loc["pick", "commas"] == 0
    for operation in G.COMPOSABLE:
        for split in G.TASK_SPLITS:
            assert by_split.loc[operation, split] == len(G.grammar(split, operation))


def test_names_and_instructions_are_unique():
    for task in TASKS:
        assert G.GRAMMAR[task.name] is task and task.kind == "composed"
        assert task.name == ".".join([task.operation, *task.words, task.format])
        assert len(task.instructions) >= 6
    asked = [instruction for task in TASKS for instruction in task.instructions]
    assert len(set(asked)) == len(asked)


def test_an_instruction_is_made_of_two_sentences():
    for task in TASKS:
        first = G.COMPOSABLE[task.operation].say(task.words)
        second = G.ANSWER_STYLES[task.format].phrases[0]
        instruction = task.instruction()
        assert instruction == f"{first} {second}" and "{" not in instruction and "%" not in instruction
        assert all(word in instruction.split() for word in task.words if word not in G.PLACES)


def test_text_is_one_piece_per_word():
    "Spaces stand around every sign, and no sign runs into another word."
    signs = ("->", *'[]"{}:.,?')
    for task in TASKS:
        for text in (*task.instructions, task.examples(1)[0].target):
            assert all(word.isalpha() or word.isdigit() or word in signs for word in text.split()), text


# splits


def test_splits_are_disjoint_and_complete():
    names = [{task.name for task in G.grammar(split)} for split in G.TASK_SPLITS]
    assert sum(map(len, names)) == len(set().union(*names)) == len(TASKS)


def _instruction_words(*splits):
    "Every word of the instructions of some splits."
    tasks = [task for split in splits for task in G.grammar(split)]
    return {word for task in tasks for instruction in task.instructions for word in instruction.split()}


def test_parts_of_held_out_combinations_stand_in_training():
    train = G.grammar("train")
    sentences = {(task.operation, task.argument) for task in train}
    forms = {task.format for task in train}
    for task in G.grammar("composition") + G.grammar("validation"):
        assert (task.operation, task.argument) in sentences and task.format in forms, task.name
    assert _instruction_words("composition", "validation") <= _instruction_words("train")


def test_held_out_words_fill_no_gap_in_training():
    known = [task for task in TASKS if task.split in ("train", "validation", "composition")]
    assert not {word for task in known for word in task.words} & G.HELD_WORDS
    assert not {task.operation for task in known} & set(G.HELD_OPERATIONS)
    assert {word for task in G.grammar("argument") for word in task.words} >= G.HELD_WORDS
    assert {task.operation for task in G.grammar("operation")} == set(G.HELD_OPERATIONS)
    assert not G.HELD_WORDS & {*G.ADDED, *(label for pair in G.LABELS for label in pair)}


def test_held_out_operations_are_asked_for_in_known_words():
    assert _instruction_words("operation") <= _instruction_words("train")


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
    for task in TASKS:
        drawn = [task.draw(rng) for _ in range(4)]
        for item in drawn:
            assert task.solve(item.input) == item.target and task.check(item.input, item.target) is True
            assert item.target.startswith(" ") and "  " not in item.target
        if task.closed:
            assert {item.input for item in task.facts} >= {item.input for item in drawn}


def _list_words(operation, args, items):
    "What an operation leaves of a list, with plain loops."
    places = {"first": 0, "second": 1, "third": 2, "last": len(items) - 1}
    found = []
    if operation == "insert":
        inserted = {"start": 0, "end": len(items), "after": 1}[args[1]]
    for i, item in enumerate(items):
        if operation == "insert" and i == inserted:
            found.append(args[0])
        if operation == "reverse":
            found.insert(0, item)
        elif operation == "swap" and i in (0, len(items) - 1):
            found.append(items[len(items) - 1 - i])
        elif operation == "swap_start" and i in (0, 1):
            found.append(items[1 - i])
        elif operation == "rotate":
            found.append(items[(i + 1) % len(items)])
        elif operation == "twice":
            found += [item, item]
        elif operation == "replace" and i == places[args[0]]:
            found.append(args[1])
        elif operation in ("pick", "drop"):
            if (i == places[args[0]]) == (operation == "pick"):
                found.append(item)
        elif operation == "ends":
            if i in (0, len(items) - 1):
                found.append(item)
        elif operation == "last_twice":
            if i == len(items) - 1:
                found += [item, item]
        else:
            found.append(item)
    if operation == "insert" and inserted == len(items):
        found.append(args[0])
    return found


def _is_so(question, text):
    "The answer to a question with two labels: is it the first case?"
    if question == "sentiment":
        return len(set(text.split()) & set(W.GOOD)) == 1
    if question == "parity":
        return text[-1] in "02468"
    if question == "size":
        return int(text) >= 51
    plant = RELATIONS["thing", "category"].get(text) in ("plant", "flower", "tree")
    return text in RELATIONS["animal", "class"] or plant


def _words(operation, args, text):
    "What an operation leaves, worked out from the input's text and not with the package's functions."
    if operation in G.TASK_QUESTIONS:
        return [args[0] if _is_so(operation, text) else args[1]]
    if operation == "upper":
        return [chr(ord(letter) - 32) for letter in text.split()]
    if operation == "next":
        return ["a" if letter == "z" else chr(ord(letter) + 1) for letter in text.split()]
    if operation == "spell":
        return [text[i] for i in range(len(text))]
    if operation == "letter":
        return [text[0 if args[0] == "first" else len(text) - 1]]
    return _list_words(operation, args, text.split())


def _written(form, words):
    "The words in a form of the answer."
    between = " , " if form == "commas" else " "
    text = words[0]
    for word in words[1:]:
        text += between + word
    frames = {
        "brackets": "[ " + text + " ]",
        "quotes": '" ' + text + ' "',
        "answer": "answer : " + text,
        "dot": text + " .",
        "json": '{ " answer " : " ' + text + ' " }',
        "arrow": "-> " + text,
    }
    return frames.get(form, text)


@pytest.mark.parametrize("operation", list(G.COMPOSABLE))
def test_operations_by_a_second_opinion(operation):
    rng = random.Random(1)
    for task in G.grammar(operation=operation):
        for item in [task.draw(rng) for _ in range(8)]:
            text = item.input.split(" : ", 1)[1].removesuffix(" =")
            right = _written(task.format, _words(operation, task.words, text))
            assert item.target == f" {right}", (task.name, item)


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
    rng = random.Random(2)
    inputs = {}
    for kind in G.INPUT_DOMAINS.values():
        inputs[id(kind)] = [kind.ask(kind.draw(rng)) for _ in range(40)]
    seen = {}
    for task in TASKS:
        kind = id(domain(task))
        behaviour = (kind, *map(task.solve, inputs[kind]))
        assert behaviour not in seen, (task.name, seen[behaviour])
        seen[behaviour] = task.name


def test_labels_are_balanced():
    rng = random.Random(3)
    for name in G.TASK_QUESTIONS:
        task = G.composed(f"{name}.yes.no.plain")
        share = sum(task.draw(rng).target == " yes" for _ in range(2000)) / 2000
        assert 0.4 < share < 0.65, (name, share)
    assert not G.LIVING & G.OBJECTS


# items


@pytest.mark.parametrize("name", ONE_PER_OPERATION)
def test_items_are_split_and_repeat(name):
    task = G.composed(name)
    train = task.examples(15, seed="train", split="train")
    test = task.examples(15, seed="test", split="test")
    assert not {item.input for item in train} & {item.input for item in test}
    assert all(W.is_test(task.name, item.input) for item in test)
    assert task.examples(10, seed=4) == task.examples(10, seed=4) != task.examples(10, seed=5)
    for told in [*W.with_instruction(task, test, 3), *W.with_shots(task, test, 2)]:
        assert task.solve(told.input) == told.target


def test_closed_tasks_list_all_their_items():
    task = G.composed("parity.yes.no.plain")
    assert task.closed and len(task.facts) == len({item.input for item in task.facts}) == 99
    assert task.facts[:2] == (task.facts[0], task.facts[1])
    assert not G.composed("copy.plain").closed


def test_a_task_survives_pickling():
    for name in ONE_PER_OPERATION:
        assert pickle.loads(pickle.dumps(G.composed(name))) is G.composed(name)


def test_repr_says_what_it_does():
    shown = repr(G.composed("copy.dot"))
    assert shown.startswith("Composed('copy.dot', ")
    assert "copy the list . answer with a dot at the end ." in shown


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
        tasks = G.grammar(operation=operation)
        same = [task for task in tasks if task.argument == tasks[0].argument]
        text = tasks[0].examples(1)[0].input
        for task in same:
            for other in same:
                assert task.check(text, other.solve(text)) == (task is other)


@given(st.sampled_from(ONE_PER_OPERATION), st.text())
def test_check_takes_any_answer(name, answer):
    task = G.composed(name)
    item = task.examples(1)[0]
    first_line = " ".join(answer.split("\n")[0].split())
    assert task.check(item.input, answer) is (first_line == item.target.strip())


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
def test_lists_of_any_words_and_length(items):
    text = f"list : {' '.join(items)} ="
    assert G.composed("reverse.plain").solve(text).split() == items[::-1]
    assert G.composed("rotate.plain").solve(text).split() == items[1:] + items[:1]


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
    names = tuple(name for name in G.COMPOSABLE if name not in G.HELD_OPERATIONS)
    task = G.any_task(random.Random(seed), names)
    assert not G.HELD_WORDS & {*task.words}
    assert task.name not in G.GRAMMAR or G.GRAMMAR[task.name].split == "train"
    item = task.draw(random.Random(seed))
    assert task.check(item.input, item.target)
    assert all(word in task.instruction() for word in task.words if word not in {*G.AT, *G.PLACES})


def test_any_task_has_the_words_of_no_list():
    drawn = [G.any_task(random.Random(i), tuple(G.TASK_QUESTIONS), ("plain",)) for i in range(400)]
    labels = Counter(task.words for task in drawn)
    assert {task.format for task in drawn} == {"plain"}
    assert 0.25 < labels["yes", "no"] / 400 < 0.45 and len(labels) > 200
