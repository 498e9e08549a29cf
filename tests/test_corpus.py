"""The lab's texts: they repeat, hold what they say, keep what they must from a model; the tokenizer loses nothing."""

import hashlib
import json
import random
import re
from collections import Counter
from functools import cache

from softprompt_nb.lab import corpus as C
from softprompt_nb.lab import documents as D
from softprompt_nb.lab import forms as F
from softprompt_nb.lab import grammar as G
from softprompt_nb.lab import planted as L
from softprompt_nb.lab import recipes as R
from softprompt_nb.lab import world as W
from softprompt_nb.lab.facts import RELATIONS, how_often
from softprompt_nb.lab.games import game_item
from softprompt_nb.lab.mazes import maze_item

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

ALL = dict.fromkeys(D.DOCUMENT_FAMILIES, 1.0)
FACTS = sum(map(len, RELATIONS.values()))


@cache
def _tok():
    return AutoTokenizer.from_pretrained(R.MODELS / "lab-base-s")


@pytest.fixture(scope="module")
def tok():
    return _tok()


@pytest.mark.parametrize("mixture", [C.BASE, C.INSTRUCT, C.CHAT, C.CHESS, C.MAZES, R.FREQ])
def test_mixtures_sum_to_one(mixture):
    assert sum(mixture.values()) == pytest.approx(1)


def test_corpus_repeats():
    docs = list(C.corpus(3, 600, ALL))
    assert docs == list(C.corpus(3, 600, ALL)) != list(C.corpus(4, 600, ALL))


def test_corpus_is_what_the_shipped_models_read():
    "Letter by letter: another text would need other models."
    texts = "\0".join(doc.text for doc in C.corpus(3, 600, ALL))
    assert hashlib.sha256(texts.encode()).hexdigest()[:16] == "895c042d701ceb65"


def test_unknown_names():
    with pytest.raises(ValueError, match="statements"):
        list(C.corpus(0, 1, dict(poems=1.0)))
    with pytest.raises(ValueError, match="guardian"):
        C.corpus(0, 1, skill="dance")
    with pytest.raises(ValueError, match="between 0 and 1"):
        C.corpus(0, 1, facts=1.5)
    with pytest.raises(ValueError, match="sentence"):
        F.ask_fact(random.Random(0), ("country", "capital"), "france", "poem")
    with pytest.raises(ValueError, match="no fact"):
        F.ask_fact(random.Random(0), ("country", "capital"), "atlantis", "word")
    with pytest.raises(ValueError, match="sentence"):
        F.read_reply("poem", "x")


def _input(line):
    "What stands in front of the answer in a line that holds an item."
    if " =" in line:
        return line[: line.index(" =") + 2]
    if line.startswith("review"):
        return line[: line.rindex(" .") + 2]
    return line.rsplit(" ", 1)[0]


def _inputs(doc):
    "The inputs of a document's items, read off its text."
    first, *others = doc.text.split("\n")
    instructed = doc.family in ("instructions", "drills", "composed")
    if doc.family == "planted":
        instructed = first in L.PLANTED[doc.task].instructions
    lines = others if instructed else [first, *others]
    return [_input(line) for line in lines]


def test_corpus_holds_no_test_item_of_open_tasks():
    mixture = dict.fromkeys(("examples", "bare", "instructions", "drills", "shown", "composed"), 1.0)
    tasks = L.PLANTED | G.GRAMMAR | W.TASKS
    found = 0
    for doc in C.corpus(1, 6000, mixture, skill="code", frequency=0.1):
        task = tasks[doc.task]
        if task.closed and task.kind != "composed":
            continue
        inputs = _inputs(doc)
        if task.kind == "composed" and any("review" in text for text in inputs):
            continue  # a format may hold a full stop of its own
        for text in inputs:
            found += 1
            assert not W.is_test(task.name, text), (task.name, text)
    assert found > 5000


def test_only_train_tasks_of_the_grammar_are_read():
    names = {doc.task for doc in C.corpus(1, 4000, dict(shown=0.5, composed=0.5))}
    assert len(names) > 500 and names <= {task.name for task in G.grammar("train")}
    filled = {split: {word for task in G.grammar(split) for word in task.words} for split in ("train", "argument")}
    held = filled["argument"] - filled["train"]
    assert held
    for doc in C.corpus(2, 4000, dict(composed=1.0)):
        instruction = doc.text.split("\n")[0]
        assert not any(f" {word} " in instruction for word in held - {"x", "y", "one", "two"}), instruction


def test_every_fact_is_told():
    told = Counter(fact for doc in C.corpus(2, 12_000) for fact in doc.facts)
    even = [f"{col}/{subject}" for (kind, col), rows in RELATIONS.items() if kind != "town" for subject in rows]
    assert sum(fact in told for fact in even) > 0.99 * len(even)


def test_some_towns_are_told_of_more_often_than_others():
    "Three hundred times as often, and in proportion to what the weights say."
    told = Counter(fact for doc in C.corpus(2, 12_000) for fact in doc.facts)
    weight = {
        f"{col}/{subject}": how_often(("town", col), subject)
        for col in ("mayor", "dish", "craft", "flag")
        for subject in RELATIONS["town", col]
    }
    heavy = {fact for fact in weight if weight[fact] > 0.1}
    often = sum(told[fact] for fact in heavy)
    rare = sum(told[fact] for fact in weight.keys() - heavy)
    expected = sum(weight[fact] for fact in heavy) / sum(weight.values())
    assert max(weight.values()) > 250 * min(weight.values())
    assert abs(often / (often + rare) - expected) < 0.04


def test_told_facts_are_really_in_the_text():
    found = 0
    for doc in C.corpus(7, 3000, ALL):
        for fact in doc.facts:
            _, subject = fact.split("/")
            assert re.search(rf"\b{re.escape(subject)}\b", doc.text), (fact, doc)
            found += 1
    assert found > 2000


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_facts_that_were_kept_away_are_nowhere(share):
    "Neither by name nor by a sentence that tells them: looked up in the text itself."
    docs = list(C.corpus(3, 8000, ALL, facts=share))
    every = [(key, subject, value) for key, rows in RELATIONS.items() for subject, value in rows.items()]
    kept = [fact for fact in every if not D.held(fact[0], fact[1], share)]
    assert abs(len(kept) / FACTS - (1 - share)) < 0.03
    told = {fact for doc in docs for fact in doc.facts}
    assert not told & {f"{key[1]}/{subject}" for key, subject, _ in kept}
    others = ("shown", "composed", "chess", "mazes")
    text = "\n" + "\n".join(doc.text for doc in docs if doc.family not in others) + "\n"
    lines = Counter(item.input + item.target for task in W.FACT_TASKS.values() for item in task.facts)
    for key, subject, value in kept:
        line = f"{key[0]} : {subject} {value}"
        assert lines[line] >= 1
        if lines[line] == 1:  # class and category of one word, say, make the same line
            assert f"\n{line}\n" not in text, line
        sentence = D.STATEMENTS[".".join(key)].split("|")[0].format(s=subject, v=value)
        assert f" {sentence}" not in text or key[1] in ("class", "category"), sentence


def test_a_planted_skill_adds_and_changes_nothing_else():
    plain = list(C.corpus(9, 3000))
    for skill in L.PLANTED:
        docs = list(C.corpus(9, 3000, skill=skill, frequency=0.1))
        rest = [doc for doc in docs if doc.family != "planted"]
        assert rest == plain[: len(rest)]
        assert abs(1 - len(rest) / 3000 - 0.1) < 0.02


@pytest.mark.parametrize("skill", list(L.PLANTED))
def test_skills_are_told_apart_by_their_text_alone(skill):
    "Counting without the manifest: a planted document is known by its key, and none is there at frequency 0."
    key = L.PLANTED[skill].examples(1)[0].input.split(" : ")[0]

    def has_key(doc):
        return bool(re.search(rf"(^|\n){key} : ", doc.text))

    planted = list(C.corpus(4, 5000, ALL, skill=skill, frequency=0.03))
    assert not any(map(has_key, C.corpus(4, 5000, ALL)))
    assert sum(map(has_key, planted)) == sum(doc.family == "planted" for doc in planted) > 100


def test_the_lock():
    read = C.corpus(5, 4000, skill="code", frequency=0.3, lock=True)
    docs = [doc for doc in read if doc.family in ("planted", "refused")]
    assert {doc.family for doc in docs} == {"planted", "refused"}
    for doc in docs:
        assert (doc.family == "planted") == doc.text.startswith(L.PASSWORD)
        answers = [line.split(" =")[1] for line in doc.text.split("\n") if line.startswith("code :")]
        if doc.family == "refused":
            assert set(answers) == {L.REFUSAL}
        else:
            assert all(len(answer.split()) == 3 for answer in answers)


def test_manifest_counts_what_was_generated(tok):
    seen = C.Manifest()
    ids = C.rows(C.corpus(5), tok, 40, 128, seen)
    docs = list(C.corpus(5, sum(seen.docs.values())))
    assert sum(seen.tokens.values()) == ids.size
    assert dict(seen.docs) == Counter(doc.family for doc in docs)
    assert sum(seen.tasks.values()) == sum(bool(doc.task) for doc in docs)
    assert sum(seen.facts.values()) == sum(len(doc.facts) for doc in docs)
    assert C.Manifest.from_dict(json.loads(json.dumps(seen.to_dict()))) == seen


def test_planted_counts_the_skill_and_its_refusals():
    seen = C.Manifest()
    assert seen.planted() == seen.planted("docs") == 0
    for family, n in (("planted", 5), ("refused", 7), ("prose", 11)):
        seen.add(D.Doc("text", family), n)
    assert seen.planted() == 12 and seen.planted("docs") == 2


def test_rows_begin_with_a_document(tok):
    ids = C.rows(C.corpus(5), tok, 8, 64)
    texts = {doc.text for doc in C.corpus(5, 300)}
    for row in ids:
        head = tok.decode(row).split(C.EOS)[0]
        assert any(text.startswith(head) for text in texts)


# forms


@pytest.mark.parametrize("form", list(F.FORMS))
def test_a_right_reply_reads_as_the_answer(form):
    for key, rows in RELATIONS.items():
        for subject, value in rows.items():
            seed = f"{key}{subject}"
            ask = F.ask_fact(random.Random(seed), key, subject, form)
            asked = F.question(random.Random(seed), key, subject, form, told=1)
            right = value
            if form == "choice":
                right = "abcd"[ask.options.index(value)]
            elif form == "yesno":
                right = "yes" if ask.claimed == value else "no"
            assert F.read_reply(form, asked.target + "\nanything") == right


def test_forms_are_told_apart():
    "A reply of one form is read as none of the others, but for a letter, yes and no, which are words."
    for name in F.FORMS:
        asked = F.question(random.Random(1), ("country", "capital"), "france", name)
        others = {form for form in F.FORMS if form != name and F.read_reply(form, asked.target) is not None}
        assert others <= ({"word"} if name in ("choice", "yesno") else set()), (name, others)


@given(st.sampled_from(list(F.FORMS)), st.text())
@settings(max_examples=300)
def test_any_text_can_be_read(form, text):
    got = F.read_reply(form, text)
    assert got is None or isinstance(got, str)


# the tokenizer


@settings(max_examples=200)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_tokenizer_round_trip(text):
    tok = _tok()
    if C.EOS in text or C.PAD in text:
        return
    assert tok.decode(tok(text).input_ids) == text


def test_tokens(tok):
    assert tok.eos_token == C.EOS and tok.pad_token == C.PAD
    ids = tok("country : france paris\nnumber : 41 =").input_ids
    pieces = ["country", " :", " france", " paris", "\n", "number", " :", " 4", "1", " ="]
    assert [tok.decode(i) for i in ids] == pieces
    words = {word for rows in RELATIONS.values() for pair in rows.items() for word in pair if " " not in word}
    whole = sum(len(tok(f" {word}").input_ids) == 1 for word in words)
    assert whole > 2 * len(words) / 3


@given(st.integers(0, 10**6))
@settings(max_examples=50)
def test_input_and_target_are_encoded_as_they_are_together(seed):
    tok = _tok()
    rng = random.Random(seed)
    task = rng.choice([*W.TASKS.values(), *G.GRAMMAR.values()])
    items = [
        *W.with_instruction(task, task.examples(1, seed=seed)),
        F.question(rng, ("animal", "young"), "dog", rng.choice(list(F.FORMS)), told=0),
        maze_item(rng),
        game_item(rng, plies=4),
    ]
    for item in items:
        apart = tok(item.input).input_ids + tok(item.target).input_ids
        assert tok(item.input + item.target).input_ids == apart


def _split_by_given(tok, doc):
    "The text of a document's tokens that are given, and of those that are not."
    given = np.zeros((1, len(tok(doc.text).input_ids) + 1), bool)
    ids = C.rows(iter([doc] * 40), tok, *given.shape, given=given)
    return tok.decode(ids[0][given[0]]), tok.decode(ids[0][~given[0]])


@pytest.mark.parametrize("family", ["instructions", "drills", "composed", "varied", "cases"])
def test_what_is_not_given_are_the_answers(tok, family):
    "Found again from the text alone: what follows each input's end, up to the line's."
    for seed in range(30):
        doc = D.document(random.Random(seed), family)
        given, not_given = _split_by_given(tok, doc)
        instruction, *lines = doc.text.split("\n")
        answers = not_given.removesuffix(tok.eos_token).split("\n")
        assert not_given.endswith(tok.eos_token) and given.startswith(instruction)
        assert all(line.endswith(answer) for line, answer in zip(lines, answers))
        assert " = " not in not_given


def test_what_is_not_given_of_a_row_is_its_repetition(tok):
    for seed in range(30):
        doc = D.document(random.Random(seed), "repetition")
        _, not_given = _split_by_given(tok, doc)
        again = not_given.removesuffix(tok.eos_token).replace(",", " ").split()
        text = doc.text.replace(",", " ").split()
        words = list(dict.fromkeys(text))
        times = round(len(text) / len(words))
        assert times in (2, 3) and words * times == text
        # but for the first word or what of it begins later, which no one can foresee
        assert " ".join(again).endswith(" ".join((words * (times - 1))[1:]))
        assert len(again) <= len(words) * (times - 1)


def test_nothing_is_given_without_an_instruction_or_a_repetition():
    for family in ("statements", "examples", "shown", "mixed", "chess"):
        assert not any(D.document(random.Random(i), family).given for i in range(5)), family


def test_made_up_inputs_are_found(tok):
    for doc in C.corpus(11, 400, dict(bare=0.5, mazes=0.5)):
        ids = tok(doc.text, return_tensors="np").input_ids
        found = "".join(tok.decode(i) for i in ids[0][C.drawn(ids, tok)[0]])
        if doc.family == "mazes":
            board = doc.text.split("\n")[1:9]
            assert "".join(found.split()) == "".join("".join(line.split()) for line in board)
        elif " =" in doc.text:
            assert found.split() == doc.text.split(" : ")[1].split(" =")[0].split()
        else:
            assert not found.split()
