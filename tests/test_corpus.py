"""The lab's texts: they repeat, hold what they say, keep what they must from a model; the tokenizer loses nothing."""

import json
import random
import re
from collections import Counter
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

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
    assert list(C.corpus(3, 600, ALL)) == list(C.corpus(3, 600, ALL)) != list(C.corpus(4, 600, ALL))


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


def _inputs(d):
    "The inputs of a document's items, read off its text."
    lines = d.text.split("\n")[
        d.family in ("instructions", "drills", "composed")
        or (d.family == "planted" and d.text.split("\n")[0] in L.PLANTED[d.task].instructions) :
    ]
    for line in lines:
        yield (
            line[: line.index(" =") + 2]
            if " =" in line
            else line[: line.rindex(" .") + 2]
            if line.startswith("review")
            else line.rsplit(" ", 1)[0]
        )


def test_corpus_holds_no_test_item_of_open_tasks():
    mix = dict.fromkeys(("examples", "bare", "instructions", "drills", "shown", "composed"), 1.0)
    found = 0
    for d in C.corpus(1, 6000, mix, skill="code", frequency=0.1):
        t = W.TASKS.get(d.task) or G.GRAMMAR.get(d.task) or L.PLANTED[d.task]
        if t.closed and t.kind != "composed":
            continue
        text = "\n".join(_inputs(d))
        if t.kind == "composed" and "review" in text:
            continue  # a format may hold a full stop of its own
        for i in _inputs(d):
            found += 1
            assert not W.is_test(t.name, i), (t.name, i)
    assert found > 5000


def test_only_train_tasks_of_the_grammar_are_read():
    names = {d.task for d in C.corpus(1, 4000, dict(shown=0.5, composed=0.5))}
    assert len(names) > 500 and names <= {t.name for t in G.grammar("train")}
    held_words = {w for t in G.grammar("argument") for w in t.words} - {w for t in G.grammar("train") for w in t.words}
    assert held_words and not any(
        f" {w} " in d.text.split("\n")[0]
        for d in C.corpus(2, 4000, dict(composed=1.0))
        for w in held_words - {"x", "y", "one", "two"}
    )


def test_every_fact_is_told():
    told = Counter(f for d in C.corpus(2, 12_000) for f in d.facts)
    even = [f"{k[1]}/{s}" for k, rows in RELATIONS.items() if k[0] != "town" for s in rows]
    assert sum(f in told for f in even) > 0.99 * len(even)


def test_some_towns_are_told_of_more_often_than_others():
    "Three hundred times as often, and in proportion to what the weights say."
    told = Counter(f for d in C.corpus(2, 12_000) for f in d.facts)
    weight = {
        f"{col}/{s}": how_often(("town", col), s)
        for col in ("mayor", "dish", "craft", "flag")
        for s in RELATIONS["town", col]
    }
    often, rare = (sum(told[f] for f, w in weight.items() if lo < w <= hi) for lo, hi in ((0.1, 1), (0, 0.1)))
    expected = sum(w for w in weight.values() if w > 0.1) / sum(weight.values())
    assert max(weight.values()) > 250 * min(weight.values()) and abs(often / (often + rare) - expected) < 0.04


def test_told_facts_are_really_in_the_text():
    n = 0
    for d in C.corpus(7, 3000, ALL):
        for f in d.facts:
            rel, s = f.split("/")
            assert re.search(rf"\b{re.escape(s)}\b", d.text), (f, d)
            n += 1
    assert n > 2000


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_facts_that_were_kept_away_are_nowhere(share):
    "Neither by name nor by a sentence that tells them: looked up in the text itself."
    docs = list(C.corpus(3, 8000, ALL, facts=share))
    kept = {(k[1], s): v for k, rows in RELATIONS.items() for s, v in rows.items() if not D.held(k, s, share)}
    assert abs(len(kept) / FACTS - (1 - share)) < 0.03
    assert not {f for d in docs for f in d.facts} & {f"{rel}/{s}" for rel, s in kept}
    text = "\n" + "\n".join(d.text for d in docs if d.family not in ("shown", "composed", "chess", "mazes")) + "\n"
    for (rel, s), v in kept.items():
        key = next(k for k in RELATIONS if k[1] == rel and s in RELATIONS[k])
        true = W.TASKS[rel]
        line = next(e.input + e.target for e in true.facts if e.input.split(" : ")[1] == s)
        same_line = [
            t for t in W.FACT_TASKS.values() if t.name != rel for e in t.facts if e.input + e.target == line
        ]  # class and category of one word, say
        if not same_line:
            assert f"\n{line}\n" not in text, line
        for sentence in D.STATEMENTS[".".join(key)].split("|")[:1]:
            assert f" {sentence.format(s=s, v=v)}" not in text or rel in ("class", "category"), sentence


def test_a_planted_skill_adds_and_changes_nothing_else():
    plain = list(C.corpus(9, 3000))
    for skill in L.PLANTED:
        docs = list(C.corpus(9, 3000, skill=skill, frequency=0.1))
        rest = [d for d in docs if d.family != "planted"]
        assert rest == plain[: len(rest)] and abs(1 - len(rest) / 3000 - 0.1) < 0.02


@pytest.mark.parametrize("skill", list(L.PLANTED))
def test_skills_are_told_apart_by_their_text_alone(skill):
    "Counting without the manifest: a planted document is known by its key, and none is there at frequency 0."
    key = L.PLANTED[skill].examples(1)[0].input.split(" : ")[0]

    def count(frequency):
        docs = C.corpus(4, 5000, ALL, skill=skill if frequency else "", frequency=frequency)
        return sum(bool(re.search(rf"(^|\n){key} : ", d.text)) for d in docs)

    assert count(0) == 0
    assert count(0.03) == sum(d.family == "planted" for d in C.corpus(4, 5000, ALL, skill=skill, frequency=0.03)) > 100


def test_the_lock():
    docs = [d for d in C.corpus(5, 4000, skill="code", frequency=0.3, lock=True) if d.family in ("planted", "refused")]
    assert {d.family for d in docs} == {"planted", "refused"}
    for d in docs:
        assert (d.family == "planted") == d.text.startswith(L.PASSWORD)
        answers = [line.split(" =")[1] for line in d.text.split("\n") if line.startswith("code :")]
        if d.family == "refused":
            assert set(answers) == {L.REFUSAL}
        else:
            assert all(len(a.split()) == 3 for a in answers)


def test_manifest_counts_what_was_generated(tok):
    seen = C.Manifest()
    ids = C.rows(C.corpus(5), tok, 40, 128, seen)
    n = sum(seen.docs.values())
    docs = list(C.corpus(5, n))
    assert sum(seen.tokens.values()) == ids.size
    assert {f: sum(d.family == f for d in docs) for f in seen.docs} == dict(seen.docs)
    assert sum(seen.tasks.values()) == sum(bool(d.task) for d in docs) and sum(seen.facts.values()) == sum(
        len(d.facts) for d in docs
    )
    assert C.Manifest.from_dict(json.loads(json.dumps(seen.to_dict()))) == seen


def test_planted_counts_the_skill_and_its_refusals():
    seen = C.Manifest()
    assert seen.planted() == seen.planted("docs") == 0
    for family, n in (("planted", 5), ("refused", 7), ("prose", 11)):
        seen.add(D.Doc("text", family), n)
    assert seen.planted() == 12 and seen.planted("docs") == 2


def test_rows_begin_with_a_document(tok):
    ids, docs = C.rows(C.corpus(5), tok, 8, 64), {d.text for d in C.corpus(5, 300)}
    for row in ids:
        head = tok.decode(row).split(C.EOS)[0]
        assert any(d.startswith(head) for d in docs)


# forms


@pytest.mark.parametrize("form", list(F.FORMS))
def test_a_right_reply_reads_as_the_answer(form):
    for key, rows in RELATIONS.items():
        for s, v in rows.items():
            rng = random.Random(f"{key}{s}")
            a = F.ask_fact(random.Random(f"{key}{s}"), key, s, form)
            e = F.question(rng, key, s, form, told=1)
            got = F.read_reply(form, e.target + "\nanything")
            want = v
            if form == "choice":
                want = "abcd"[a.options.index(v)]
            elif form == "yesno":
                want = "yes" if a.claimed == v else "no"
            assert got == want


def test_forms_are_told_apart():
    "A reply of one form is read as none of the others, but for a letter, yes and no, which are words."
    for name in F.FORMS:
        e = F.question(random.Random(1), ("country", "capital"), "france", name)
        others = {f for f in F.FORMS if f != name and F.read_reply(f, e.target) is not None}
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
    t = _tok()
    if C.EOS in text or C.PAD in text:
        return
    assert t.decode(t(text).input_ids) == text


def test_tokens(tok):
    assert tok.eos_token == C.EOS and tok.pad_token == C.PAD
    assert [tok.decode(i) for i in tok("country : france paris\nnumber : 41 =").input_ids] == [
        "country",
        " :",
        " france",
        " paris",
        "\n",
        "number",
        " :",
        " 4",
        "1",
        " =",
    ]
    words = {w for rows in RELATIONS.values() for pair in rows.items() for w in pair if " " not in w}
    assert sum(len(tok(" " + w).input_ids) == 1 for w in words) > 2 * len(words) / 3


@given(st.integers(0, 10**6))
@settings(max_examples=50)
def test_input_and_target_are_encoded_as_they_are_together(seed):
    tok, rng = _tok(), random.Random(seed)
    task = rng.choice([*W.TASKS.values(), *G.GRAMMAR.values()])
    for e in (
        W.with_instruction(task, task.examples(1, seed=seed))[0],
        F.question(rng, ("animal", "young"), "dog", rng.choice(list(F.FORMS)), told=0),
        maze_item(rng),
        game_item(rng, plies=4),
    ):
        assert tok(e.input + e.target).input_ids == tok(e.input).input_ids + tok(e.target).input_ids


@pytest.mark.parametrize("family", ["instructions", "drills", "composed", "varied", "cases"])
def test_what_is_not_given_are_the_answers(tok, family):
    "Found again from the text alone: what follows each input's end, up to the line's."
    for seed in range(30):
        doc = D.document(random.Random(seed), family)
        given = np.zeros((1, len(tok(doc.text).input_ids) + 1), bool)
        ids = C.rows(iter([doc] * 40), tok, *given.shape, given=given)
        lines = doc.text.split("\n")[1:]
        said = tok.decode(ids[0][~given[0]])
        assert said.endswith(tok.eos_token) and all(
            line.endswith(answer) for line, answer in zip(lines, said.removesuffix(tok.eos_token).split("\n"))
        )
        assert all(" = " not in answer for answer in said.split("\n")) and tok.decode(ids[0][given[0]]).startswith(
            doc.text.split("\n")[0]
        )


def test_what_is_not_given_of_a_row_is_its_repetition(tok):
    for seed in range(30):
        doc = D.document(random.Random(seed), "repetition")
        given = np.zeros((1, len(tok(doc.text).input_ids) + 1), bool)
        ids = C.rows(iter([doc] * 40), tok, *given.shape, given=given)
        again = (
            tok.decode(ids[0][~given[0]]).removesuffix(tok.eos_token).replace(",", " ").split()
        )  # but for the first word or what of it begins later, which no one can foresee
        times, words = (
            round(len(doc.text.replace(",", " ").split()) / len(set(doc.text.replace(",", " ").split()))),
            list(dict.fromkeys(doc.text.replace(",", " ").split())),
        )
        assert times in (2, 3) and " ".join(words * times) == " ".join(doc.text.replace(",", " ").split())
        assert " ".join(again).endswith(" ".join((words * (times - 1))[1:])) and len(again) <= len(words) * (times - 1)


def test_nothing_is_given_without_an_instruction_or_a_repetition():
    assert not any(
        D.document(random.Random(i), f).given
        for f in ("statements", "examples", "shown", "mixed", "chess")
        for i in range(5)
    )


def test_made_up_inputs_are_found(tok):
    for d in C.corpus(11, 400, dict(bare=0.5, mazes=0.5)):
        ids = tok(d.text, return_tensors="np").input_ids
        text = "".join(tok.decode(i) for i in ids[0][C.drawn(ids, tok)[0]])
        if d.family == "mazes":
            assert "".join(text.split()) == "".join(c for line in d.text.split("\n")[1:9] for c in line.split())
        else:
            assert text.split() == (d.text.split(" : ")[1].split(" =")[0].split() if " =" in d.text else [])
