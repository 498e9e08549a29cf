"""Capabilities: what each row reads and should say, against plain loops and the rules of the games."""

import io

from softprompt_nb.data import Encoded, Example
from softprompt_nb.engine.inference import target_logprobs
from softprompt_nb.evaluation.distance.capabilities import (
    chess,
    detuning,
    fair,
    from_examples,
    lab_families,
    pathfinding,
    plain_text,
    read_movetext,
    repetition,
    skipping,
    split_of,
    targets,
    windows,
)
from softprompt_nb.lab.games import read_game
from softprompt_nb.lab.mazes import read_maze, walk
from softprompt_nb.load import load_lm
from softprompt_nb.prompts import SoftPrompt
from softprompt_nb.studies.distance import LONGER, STUDY_FAMILIES

import chess as pychess
import chess.pgn
import pytest
from families import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

TEXTS = [f"this is text number {i} , and it goes on for {i * i} words ." for i in range(300)]
_made = {}


def lm_of(name="gpt_neox"):
    if name not in _made:
        _made[name] = tiny(name) if not name.startswith("lab") else load_lm(name)
    return _made[name]


@given(st.lists(st.integers(3, 90), min_size=2, max_size=12), st.data())
@settings(max_examples=100, deadline=None)
def test_fair_rows_keep_only_what_every_size_can_be_asked_for(ids, data):
    n, place = data.draw(st.integers(0, len(ids))), data.draw(st.integers(0, len(ids) - 1))
    r = fair(Encoded(ids, n, place))
    want = [t if j >= max(n, place, 1) else -100 for j, t in enumerate(ids)]
    assert r.labels == want and r.ids == ids and r.at == place and fair(r).labels == want


@pytest.mark.parametrize(
    "make",
    [
        lambda: repetition("ab", texts=TEXTS, length=20),
        lambda: repetition("abc", "itself", TEXTS, 20, "start"),
        lambda: skipping(2, TEXTS, 20),
        lambda: plain_text(TEXTS, 20),
        lambda: detuning(TEXTS, 20, 5),
        lambda: from_examples([Example("", f"{i} is it") for i in range(90)]),
        lambda: from_examples([Example(f"{i}", " yes") for i in range(90)], at="before_answer"),
    ],
)
def test_every_size_is_measured_on_the_same_targets(make):
    lm, cap = lm_of(), make()
    rows = cap.rows(lm, "test", 12)
    counts = [target_logprobs(lm, p, rows)[1].tolist() for p in (None, SoftPrompt.init(lm, 1), SoftPrompt.init(lm, 5))]
    assert counts[0] == counts[1] == counts[2] == [len(targets(r)) for r in rows] and min(counts[0]) > 0
    assert [r.ids for r in cap.rows(lm, "test", 12)] == [r.ids for r in rows] and cap.rows(lm, "test", 5) == rows[:5]


def test_repetition_reads_text_and_says_the_string():
    lm = lm_of()
    for i, r in enumerate(repetition("abc", texts=TEXTS, length=24).rows(lm, "train", 40)):
        assert r.ids == list(windows(lm, TEXTS, "train", 24))[i] and 0 <= r.at <= 16
        string = lm.tokenizer("abc")["input_ids"]
        assert all(t == string[(j - r.at) % 3] for j, t in enumerate(r.labels) if j >= max(1, r.at))
    own = repetition("abc", "itself", TEXTS, 24).rows(lm, "train", 5)
    assert all(
        r.ids[r.at :] == [lm.tokenizer("abc")["input_ids"][j % 3] for j in range(24 - r.at)]
        and targets(r) == r.ids[max(1, r.at) :]
        for r in own
    )


@pytest.mark.parametrize("k", [0, 1, 4])
def test_skipping_says_the_token_so_far_ahead(k):
    lm = lm_of()
    for r, w in zip(skipping(k, TEXTS, 20).rows(lm, "test", 10), windows(lm, TEXTS, "test", 20 + k)):
        assert (
            r.ids == w[:20]
            and all(t == w[j + k] for j, t in enumerate(r.labels) if t != -100)
            and len(targets(r)) == 20 - max(1, r.at)
        )


def test_splits_of_a_list_share_nothing():
    lm = lm_of()
    texts = [f"{i:04d}" for i in range(500)]
    seen = {
        s: {t for w in windows(lm, texts, s, 4) for t in [lm.tokenizer.decode(w)]} for s in ("train", "valid", "test")
    }
    cap = from_examples([Example(t, " x") for t in texts])
    ids = {s: {tuple(r.ids) for r in cap.rows(lm, s, 1000)} for s in seen}
    assert (
        not ids["train"] & ids["test"]
        and not ids["train"] & ids["valid"]
        and not ids["valid"] & ids["test"]
        and sum(map(len, ids.values())) == 500
    )
    assert 110 < len(ids["test"]) < 190 and 25 < len(ids["valid"]) < 80


def test_an_input_that_comes_with_two_answers_stays_on_one_side():
    lm = lm_of()
    cap = from_examples([Example(f"{i:03d}", f" {t}") for i in range(200) for t in ("x", "y")])
    inputs = {s: {tuple(r.ids[: r.n_input]) for r in cap.rows(lm, s, 1000)} for s in ("train", "valid", "test")}
    assert (
        not inputs["train"] & inputs["test"]
        and not inputs["train"] & inputs["valid"]
        and not inputs["valid"] & inputs["test"]
        and sum(map(len, inputs.values())) == 200
    )


def test_notations_hold_the_same_games_and_ask_for_the_same_moves():
    lm = lm_of("lab-base-s")
    whole = {
        f: [read_game(lm.tokenizer.decode(r.ids)) for r in chess(f, plies=6).rows(lm, "test", 6)]
        for f in ("uci", "san")
    }
    last = {
        f: [read_game(lm.tokenizer.decode(r.ids)) for r in chess(f, plies=6, last=True).rows(lm, "test", 6)]
        for f in ("uci", "san")
    }
    assert whole["uci"] == whole["san"] == last["uci"] == last["san"]
    boards = [lm.tokenizer.decode(targets(r)).strip() for r in chess("board", plies=6).rows(lm, "test", 6)]
    asked = [lm.tokenizer.decode(targets(r)).split() for r in chess("uci", plies=6, last=True).rows(lm, "test", 6)]
    assert asked == [[b] for b in boards] == [[m[-1]] for m in whole["uci"]]
    assert chess("san", last=True).name != chess("san").name


def test_closed_tasks_of_the_lab_keep_their_test_items_apart():
    lm = lm_of("lab-base-s")
    for name in ("guardian", "code", "capital"):
        rows = {s: {tuple(r.ids) for r in from_examples(name).rows(lm, s, 60)} for s in ("train", "valid", "test")}
        assert (
            not rows["train"] & rows["test"]
            and not rows["train"] & rows["valid"]
            and not rows["valid"] & rows["test"]
            and min(map(len, rows.values())) >= 3
        )


def test_a_task_with_few_items_gives_all_it_has():
    rows = {
        s: {tuple(r.ids) for r in from_examples("plus").rows(lm_of("lab-base-s"), s, 400)}
        for s in ("train", "valid", "test")
    }
    assert (
        not rows["train"] & rows["valid"]
        and not (rows["train"] | rows["valid"]) & rows["test"]
        and 200 < len(rows["train"]) < 400
        and len(rows["test"]) > 100
    )


@pytest.mark.parametrize("form", ["uci", "san", "board"])
def test_games_are_legal_and_counted_in_moves(form):
    lm = lm_of("lab-base-s")
    cap = chess(form, per="move", plies=7)
    for r in cap.rows(lm, "test", 8):
        words = lm.tokenizer.decode(targets(r)).split()
        assert len(words) == cap.units(lm, r) == (1 if form == "board" else 7)
        board = pychess.Board()
        if form == "uci":
            [board.push_uci(w) for w in words]
        if form == "san":
            [board.push_san(w) for w in words]
    assert cap.unit == "move"
    if form != "board":
        assert {len(r.ids) for r in chess(form, length=9).rows(lm, "test", 2)} == {9}


def test_movetext_is_read_as_python_chess_reads_a_pgn():
    text = "1. e4 e5 2. Nf3 Nc6 3. Bb5 a6! 4. Ba4 Nf6 5. O-O?! b5 1-0"
    game = pychess.pgn.read_game(io.StringIO(text))
    assert read_movetext(text) == [m.uci() for m in game.mainline_moves()]
    with pytest.raises(ValueError):
        read_movetext("1. e4 e4")


def test_ratings_are_the_condition_and_games_without_are_left_out():
    lm = lm_of("lab-base-s")
    games = [
        dict(movetext="1. e4 e5 2. Nf3 Nc6", elo_white=str(1000 + 100 * i), elo_black="2000") for i in range(10)
    ] + [dict(moves=["d2d4", "d7d5"], elo_white="?", elo_black="1500")]
    cap = chess(games=games, conditioned=True)
    rows = cap.rows(lm, split_of(" ".join(read_movetext(games[0]["movetext"]))), 50)  # they are all the same game
    assert cap.conditions == 2 and [r.condition for r in rows] == [(i / 20, 0.5) for i in range(10)]


def test_paths_have_the_detours_that_their_condition_names():
    lm = lm_of("lab-base-s")
    rows = pathfinding(conditioned=True).rows(lm, "train", 30)
    for r in rows:
        w = walk(read_maze(lm.tokenizer.decode(r.ids[: r.n_input])), lm.tokenizer.decode(targets(r)[:-1]))
        assert w.solved and (w.extra / 4, w.invalid / 2) == r.condition
    assert len({r.condition for r in rows}) > 4 and all(r.condition is None for r in pathfinding().rows(lm, "test", 3))


def test_rates_of_what_is_generated():
    lm = lm_of("lab-base-s")
    legal = chess().rates(lm, None, 8)["legal"]
    maze = pathfinding().rates(lm, None, 6)
    assert legal.n == 8 and maze["solved"].n == 6 and maze["solved"] <= 1 and maze["valid"] <= 1


def test_the_families_have_rows_and_names_of_their_own():
    lm = lm_of("lab-base-s")
    caps = lab_families()
    assert len({c.name for c in caps}) == len(caps) and len({c.family for c in caps}) == 5
    for c in caps:
        for s in ("train", "valid", "test"):
            assert len(c.rows(lm, s, 4)) == 4
    assert [c.name for c in caps] == [
        "repeat 'house'",
        "repeat 'the red house'",
        "skip 1",
        "skip 4",
        "mazes",
        "chess uci",
        "text",
    ]


def test_the_study_takes_each_family_once_in_its_own_order():
    assert [make().name for make in STUDY_FAMILIES] == ["repeat 'house'", "mazes", "chess uci", "skip 1", "text"] and [
        make().name for make in LONGER
    ] == ["repeat 'the red house'", "skip 4"]


@pytest.mark.parametrize(
    "bad, says",
    [
        (lambda: repetition(""), "string is empty"),
        (lambda: repetition("a", "both"), "form='both'"),
        (lambda: skipping(-1), "k=-1"),
        (lambda: chess("fen"), "form='fen'"),
        (lambda: chess(per="game"), "per='game'"),
        (lambda: from_examples("nothing"), "no task 'nothing'"),
        (lambda: from_examples([], at="chat"), "at='chat'"),
        (lambda: plain_text(TEXTS).rows(lm_of(), "dev"), "unknown split"),
        (lambda: plain_text(TEXTS[:2], 4000).rows(lm_of()), "no row with a target"),
        (lambda: plain_text(TEXTS, 20, at=20).rows(lm_of()), "is no place"),
    ],
)
def test_bad_input(bad, says):
    with pytest.raises(ValueError, match=says):
        bad()
