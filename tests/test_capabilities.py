"""Capabilities: what each row reads and should say, against plain loops and the rules of the games."""

import io
import random

from softprompt_nb.data import Encoded, Example
from softprompt_nb.engine.inference import target_logprobs
from softprompt_nb.evaluation.distance.capabilities import (
    SPLITS,
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
from softprompt_nb.lab.games import game, read_game
from softprompt_nb.lab.mazes import read_maze, walk
from softprompt_nb.load import load_lm
from softprompt_nb.prompts import SoftPrompt
from softprompt_nb.studies.distance import LONGER, STUDY_FAMILIES

import chess as pychess
import pytest
from chess import pgn
from families import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

TEXTS = [f"this is text number {i} , and it goes on for {i * i} words ." for i in range(300)]
_made = {}


def lm_of(name="gpt_neox"):
    if name not in _made:
        _made[name] = tiny(name) if not name.startswith("lab") else load_lm(name)
    return _made[name]


def by_split(cap, lm, n=1000):
    "The token ids of all rows of each split."
    return {split: {tuple(row.ids) for row in cap.rows(lm, split, n)} for split in SPLITS}


def apart(sets):
    "Do the splits share nothing?"
    return not sets["train"] & sets["valid"] and not (sets["train"] | sets["valid"]) & sets["test"]


@given(st.lists(st.integers(3, 90), min_size=2, max_size=12), st.data())
@settings(max_examples=100, deadline=None)
def test_fair_rows_keep_only_what_every_size_can_be_asked_for(ids, data):
    n = data.draw(st.integers(0, len(ids)))
    place = data.draw(st.integers(0, len(ids) - 1))
    row = fair(Encoded(ids, n, place))
    first = max(n, place, 1)
    want = [-100] * first + ids[first:]
    assert row.labels == want and row.ids == ids and row.at == place
    assert fair(row).labels == row.labels


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
    want = [len(targets(row)) for row in rows]
    assert min(want) > 0
    for prompt in (None, SoftPrompt.init(lm, 1), SoftPrompt.init(lm, 5)):
        _, count = target_logprobs(lm, prompt, rows)
        assert count.tolist() == want
    assert [row.ids for row in cap.rows(lm, "test", 12)] == [row.ids for row in rows]
    assert cap.rows(lm, "test", 5) == rows[:5]


def test_repetition_reads_text_and_says_the_string():
    lm = lm_of()
    string, texts = lm.token_ids("abc"), list(windows(lm, TEXTS, "train", 24))
    for text, row in zip(texts, repetition("abc", texts=TEXTS, length=24).rows(lm, "train", 40)):
        assert row.ids == text and 0 <= row.at <= 16
        for j in range(max(1, row.at), 24):
            assert row.labels[j] == string[(j - row.at) % 3]
    for row in repetition("abc", "itself", TEXTS, 24).rows(lm, "train", 5):
        assert row.ids[row.at :] == [string[j % 3] for j in range(24 - row.at)]
        assert targets(row) == row.ids[max(1, row.at) :]


@pytest.mark.parametrize("k", [0, 1, 4])
def test_skipping_says_the_token_so_far_ahead(k):
    lm = lm_of()
    for row, text in zip(skipping(k, TEXTS, 20).rows(lm, "test", 10), windows(lm, TEXTS, "test", 20 + k)):
        first = max(1, row.at)
        assert row.ids == text[:20]
        assert targets(row) == text[first + k :] and row.labels[:first] == [-100] * first


def test_splits_of_a_list_share_nothing():
    lm = lm_of()
    texts = [f"{i:04d}" for i in range(500)]
    ids = by_split(from_examples([Example(text, " x") for text in texts]), lm)
    assert apart(ids) and sum(map(len, ids.values())) == 500
    assert 110 < len(ids["test"]) < 190 and 25 < len(ids["valid"]) < 80
    # a text of four letters and its end make a window of five tokens
    assert apart({split: {tuple(window) for window in windows(lm, texts, split, 5)} for split in SPLITS})


def test_an_input_that_comes_with_two_answers_stays_on_one_side():
    lm = lm_of()
    cap = from_examples([Example(f"{i:03d}", f" {answer}") for i in range(200) for answer in ("x", "y")])
    inputs = {split: {tuple(row.ids[: row.n_input]) for row in cap.rows(lm, split, 1000)} for split in SPLITS}
    assert apart(inputs) and sum(map(len, inputs.values())) == 200


def test_notations_hold_the_same_games_and_ask_for_the_same_moves():
    lm = lm_of("lab-base-s")

    def games(form, last):
        rows = chess(form, plies=6, last=last).rows(lm, "test", 6)
        return [read_game(lm.tokenizer.decode(row.ids)) for row in rows]

    def asked(cap):
        return [lm.tokenizer.decode(targets(row)).split() for row in cap.rows(lm, "test", 6)]

    whole = games("uci", False)
    assert whole == games("san", False) == games("uci", True) == games("san", True)
    assert asked(chess("board", plies=6)) == [[moves[-1]] for moves in whole]
    assert asked(chess("uci", plies=6, last=True)) == [[moves[-1]] for moves in whole]
    assert chess("san", last=True).name != chess("san").name


def test_closed_tasks_of_the_lab_keep_their_test_items_apart():
    lm = lm_of("lab-base-s")
    for name in ("guardian", "code", "capital"):
        ids = by_split(from_examples(name), lm, 60)
        assert apart(ids) and min(map(len, ids.values())) >= 3


def test_a_task_with_few_items_gives_all_it_has():
    ids = by_split(from_examples("plus"), lm_of("lab-base-s"), 400)
    assert apart(ids)
    assert 200 < len(ids["train"]) < 400 and len(ids["test"]) > 100


@pytest.mark.parametrize("form", ["uci", "san", "board"])
def test_games_are_legal_and_counted_in_moves(form):
    lm = lm_of("lab-base-s")
    cap = chess(form, per="move", plies=7)
    push = dict(uci=pychess.Board.push_uci, san=pychess.Board.push_san)
    for row in cap.rows(lm, "test", 8):
        words = lm.tokenizer.decode(targets(row)).split()
        assert len(words) == cap.units(lm, row) == (1 if form == "board" else 7)
        board = pychess.Board()
        for word in words if form in push else ():
            push[form](board, word)  # an error for an illegal move
    assert cap.unit == "move"
    if form != "board":
        assert {len(row.ids) for row in chess(form, length=9).rows(lm, "test", 2)} == {9}


def test_movetext_is_read_as_python_chess_reads_a_pgn():
    text = "1. e4 e5 2. Nf3 Nc6 3. Bb5 a6! 4. Ba4 Nf6 5. O-O?! b5 1-0"
    game = pgn.read_game(io.StringIO(text))
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
    assert cap.conditions == 2 and [row.condition for row in rows] == [(i / 20, 0.5) for i in range(10)]


def test_no_row_of_a_game_is_in_two_splits():
    lm, rng = lm_of("lab-base-s"), random.Random(0)
    openings = [game(rng, "random", 8) for _ in range(12)]
    later = [f"later {i}" for i in range(25)]  # what is cut off says nothing
    cap = chess(games=[dict(moves=[*moves, end]) for moves in openings for end in later], plies=8)
    rows = {split: {tuple(row.ids) for row in cap.make(lm, split, 999)} for split in ("train", "valid", "test")}
    assert not rows["train"] & rows["test"] and not rows["train"] & rows["valid"] and not rows["valid"] & rows["test"]
    assert rows["train"] and rows["test"] and sum(map(len, rows.values())) == 12


def test_paths_have_the_detours_that_their_condition_names():
    lm = lm_of("lab-base-s")
    rows = pathfinding(conditioned=True).rows(lm, "train", 30)
    for row in rows:
        board = read_maze(lm.tokenizer.decode(row.ids[: row.n_input]))
        way = walk(board, lm.tokenizer.decode(targets(row)[:-1]))
        assert way.solved and (way.extra / 4, way.invalid / 2) == row.condition
    assert len({row.condition for row in rows}) > 4
    assert all(row.condition is None for row in pathfinding().rows(lm, "test", 3))


def test_rates_of_what_is_generated():
    lm = lm_of("lab-base-s")
    legal = chess().rates(lm, None, 8)["legal"]
    maze = pathfinding().rates(lm, None, 6)
    assert legal.n == 8 and maze["solved"].n == 6 and maze["solved"] <= 1 and maze["valid"] <= 1


def test_the_families_have_rows_and_names_of_their_own():
    lm = lm_of("lab-base-s")
    caps = lab_families()
    assert len({cap.name for cap in caps}) == len(caps) and len({cap.family for cap in caps}) == 5
    for cap in caps:
        for split in SPLITS:
            assert len(cap.rows(lm, split, 4)) == 4
    assert [cap.name for cap in caps] == [
        "repeat 'house'",
        "repeat 'the red house'",
        "skip 1",
        "skip 4",
        "mazes",
        "chess uci",
        "text",
    ]


def test_the_study_takes_each_family_once_in_its_own_order():
    assert [make().name for make in STUDY_FAMILIES] == ["repeat 'house'", "mazes", "chess uci", "skip 1", "text"]
    assert [make().name for make in LONGER] == ["repeat 'the red house'", "skip 4"]


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
