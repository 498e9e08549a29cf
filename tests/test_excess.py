"""Controls keep what they promise, and the excess over them is nothing where there is nothing to know."""

import io
import math
import warnings
from collections import Counter

from softprompt_nb.data import Encoded, Example
from softprompt_nb.evaluation.distance.capabilities import (
    SPLITS,
    Capability,
    as_capability,
    chess,
    fair,
    from_examples,
    plain_text,
    repetition,
    skipping,
    targets,
)
from softprompt_nb.evaluation.distance.controls import controlled, reads_itself, with_targets
from softprompt_nb.evaluation.distance.excess import ControlledLadder
from softprompt_nb.evaluation.distance.ladder import ladder
from softprompt_nb.evaluation.distance.measures import Ladder, reached
from softprompt_nb.evaluation.distance.pgn import read_movetext, read_pgn
from softprompt_nb.load import load_lm

import chess as pychess
import numpy as np
import pytest
import torch
from chess import pgn
from families import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

TEXTS = [f"this is text number {i} , and it goes on for {i * i} words ." for i in range(300)]
_made = {}


def lm_of(name="gpt_neox"):
    if name not in _made:
        _made[name] = load_lm(name) if name.startswith("lab") else tiny(name, dtype=torch.float64)
    return _made[name]


def counted(rows):
    return Counter(token for row in rows for token in targets(row))


def fixed_rows_of(rows):
    "A capability with these rows in every split."
    return Capability("given", "given", lambda lm, split, n: rows)


answers = st.lists(st.lists(st.integers(3, 60), min_size=1, max_size=6), min_size=2, max_size=12)


@given(answers, st.booleans(), st.sampled_from(["random", "shuffled", "fixed"]), st.integers(0, 3))
@settings(max_examples=80, deadline=None)
def test_a_control_keeps_inputs_lengths_and_tokens(said, end, control, seed):
    lm = lm_of()
    close = [lm.tokenizer.eos_token_id] if end else []
    rows = [fair(Encoded([61, 62, 63 + i, *answer, *close], 3, 0)) for i, answer in enumerate(said)]
    enough = {token for answer in said for token in answer}
    whole = {tuple(answer) for answer in said}
    if len(whole if control == "shuffled" else enough) < 2:
        with pytest.raises(ValueError, match="the capability itself"):
            controlled(fixed_rows_of(rows), control, seed).rows(lm)
        return
    cap = controlled(fixed_rows_of(rows), control, seed)
    made = cap.rows(lm)
    assert [row.ids[:3] for row in made] == [row.ids[:3] for row in rows]
    assert all(reads_itself(row) and fair(row) == row for row in made)
    assert all(targets(row)[-1:] == close for row in made) or not end
    assert [cap.rows(lm)[i].ids for i in range(len(rows))] == [row.ids for row in made]  # the same at every call
    lengths = [[len(targets(row)) for row in some] for some in (rows, made)]
    if control == "shuffled":
        assert Counter(tuple(targets(row)) for row in made) == Counter(tuple(targets(row)) for row in rows)
        return
    assert lengths[0] == lengths[1]
    if control == "random":
        assert counted(made) == counted(rows)
    else:
        longest = max((targets(row)[: len(targets(row)) - end] for row in made), key=len)
        assert all(targets(row)[: len(targets(row)) - end] == longest[: len(targets(row)) - end] for row in made)
        assert set(longest) <= enough


def test_no_shuffled_row_keeps_its_own_target():
    rows = [fair(Encoded([1, 2, 10 + i], 2, 0)) for i in range(30)]
    made = controlled(fixed_rows_of(rows), "shuffled").rows(lm_of())
    assert all(targets(one) != targets(two) for one, two in zip(rows, made))


@pytest.mark.parametrize("control", ["random", "fixed", "shuffled"])
def test_what_is_read_meanwhile_stays(control):
    lm, cap = lm_of(), skipping(2, TEXTS, 20, "start")
    for one, two in zip(cap.rows(lm, "test", 20), controlled(cap, control).rows(lm, "test", 20)):
        assert one.ids == two.ids and one.at == two.at and len(targets(one)) == len(targets(two))
    with pytest.raises(ValueError, match="something else meanwhile"):
        with_targets(Encoded([1, 2, 3], 1, 0, [-100, 7, 8]), [1])


def test_a_fixed_string_is_one_for_all_splits():
    lm, cap = lm_of(), controlled(plain_text(TEXTS, 16), "fixed")
    said = {tuple(targets(row)) for split in SPLITS for row in cap.rows(lm, split, 12)}
    assert len(said) == 1


def test_a_move_of_a_control_counts_as_the_move_that_it_stands_for():
    lm = lm_of("lab-base-s")
    cap = chess("san", per="move")
    rows = cap.rows(lm, "test", 6)
    for control in ("random", "fixed", "shuffled"):
        other = controlled(cap, control)
        units = [other.units(lm, row) for row in other.rows(lm, "test", 6)]
        assert sum(units) == sum(cap.units(lm, row) for row in rows)


def two_ladders(skill, random, sizes=(0, 1, 4, 16), items=40, seeds=2, noise=0.2):
    "A controlled ladder of given mean losses."
    rng = np.random.default_rng(1)
    made = []
    for curve in (skill, random):
        nll = np.array(curve)[None, :, None] + rng.normal(0, noise, (seeds, len(sizes), items))
        made.append(dict(sizes=sizes, nll=nll, units=np.ones(items), seeds=tuple(range(seeds))))
    plain = Ladder("control", "made up", **made[1])
    return ControlledLadder("skill", "made up", **made[0], control=plain)


curves = st.lists(st.floats(0.1, 9), min_size=4, max_size=4).map(lambda x: sorted(x, reverse=True))


@given(curves, curves, st.floats(0.01, 1))
@settings(max_examples=60, deadline=None)
def test_the_excess_is_a_plain_loop(skill, random, eps):
    lad = two_ladders(skill, random, noise=0.0)
    found = lad.excess(eps)
    level = min(skill) + eps
    own = next(n for n, loss in zip(lad.sizes, skill) if loss <= level + 1e-12)
    theirs = next((n for n, loss in zip(lad.sizes, random) if loss <= level + 1e-12), math.inf)
    assert found.vectors == theirs - own
    i = next(i for i, n in enumerate(lad.sizes) if n > 0 and skill[i] <= level + 1e-12)
    ahead = random[i] - skill[i]
    assert found.n == lad.sizes[i] and math.isclose(found.ahead, ahead, abs_tol=1e-9)
    assert math.isclose(found.bits, ahead / lad.sizes[i] / math.log(2), abs_tol=1e-9)
    assert math.isclose(found.brought, ahead - (random[0] - skill[0]), abs_tol=1e-9)
    assert np.allclose(lad.excess_by_size().ahead, np.array(random) - skill)


def test_both_ladders_are_drawn_alike():
    "The same noise in both cancels, so the interval of the difference has no width."
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 1, (2, 2, 30))
    both = [np.array([[[5.0], [mean]]]) + noise for mean in (1.0, 3.0)]
    plain = Ladder("control", "made up", (0, 1), both[1], np.ones(30), (0, 1))
    lad = ControlledLadder("skill", "made up", (0, 1), both[0], np.ones(30), (0, 1), control=plain)
    ahead = lad.excess(0.01).ahead
    assert ahead.high - ahead.low < 1e-9 and math.isclose(ahead, 2, abs_tol=1e-9)


def test_chance_is_covered_as_often_as_it_says():
    "Two ladders of the same distribution differ by chance alone: 95 % intervals hold 0 about as often."
    rng, curve, held = np.random.default_rng(3), np.array([6.0, 3.0, 2.0]), []
    for _ in range(200):
        both = [curve[None, :, None] + rng.normal(0, 1, (1, 3, 40)) for _ in range(2)]
        plain = Ladder("control", "made up", (0, 1, 4), both[1], np.ones(40), (0,), draws=200)
        lad = ControlledLadder("one", "made up", (0, 1, 4), both[0], np.ones(40), (0,), draws=200, control=plain)
        bits = lad.excess(0.01).bits
        held.append(bits.low <= 0 <= bits.high)
    assert 0.88 <= np.mean(held) <= 0.99


RUN = dict(sizes=(0, 1, 4), seeds=2, rates=(0.5,), steps=40, batch_size=8, train=96, valid=16, test=48, progress=False)


def test_a_skill_has_an_excess_and_random_targets_have_none():
    lm = lm_of("lab-base-s")
    skill = ladder(lm, "opposite", control="random", **RUN)
    nothing = ladder(lm, controlled(from_examples("opposite"), "random", 7), control="random", **RUN)
    found, none = skill.excess(), nothing.excess()
    assert found.bits.low > 0 and found.vectors.low >= 0 and found.vectors > 0
    assert none.bits.low <= 0 <= none.bits.high and none.ahead.low <= 0 <= none.ahead.high
    assert none.vectors.low <= 0 <= none.vectors.high
    assert found.bits.low > none.bits.high


def test_a_controlled_ladder_has_both_by_themselves(tmp_path):
    lm, run = lm_of(), RUN | dict(sizes=(0, 1, 2), steps=6, train=16, valid=4, test=8)
    cap = skipping(1, TEXTS, 12)
    both = ladder(lm, cap, control="random", store=tmp_path, **run)
    alone = ladder(lm, cap, **run), ladder(lm, controlled(cap), **run)
    assert np.allclose(both.nll, alone[0].nll, rtol=1e-5) and np.allclose(both.control.nll, alone[1].nll, rtol=1e-5)
    assert both.control.name == "skip 1, random targets" and both.runs.chosen.sum() == 4
    assert len(both.plot().get_lines()) > 2 and "Excess over random targets" in both._repr_markdown_()


def test_examples_do_wherever_a_capability_is_asked_for():
    lm, run = lm_of(), RUN | dict(sizes=(0, 1), steps=2, train=16, valid=4, test=8)
    examples = [Example(f"say {i} :", f" {i % 7}") for i in range(80)]
    one, two = ladder(lm, examples, **run), ladder(lm, from_examples(examples), **run)
    assert np.array_equal(one.nll, two.nll) and one.name == "examples"
    pairs = as_capability([(each.input, each.target) for each in examples])
    assert pairs.rows(lm) == from_examples(examples).rows(lm)
    assert controlled(examples, "shuffled").rows(lm)


def of_seeds(own, other):
    made = dict(sizes=(0, 1), nll=np.ones((2, 2, 3)), units=np.ones(3))
    return ControlledLadder("a", "b", **made, seeds=own, control=Ladder("a", "b", **made, seeds=other))


@pytest.mark.parametrize(
    "bad, says",
    [
        (lambda: controlled(from_examples("opposite"), "none"), "control='none'"),
        (lambda: ladder(lm_of(), plain_text(TEXTS, 12), control="none", **RUN), "control='none'"),
        (lambda: controlled(repetition("a", texts=TEXTS, length=12)).rows(lm_of()), "the capability itself"),
        (lambda: plain_text().rows(lm_of()), "has never read"),
        (lambda: ladder(lm_of(), repetition("ab"), **RUN), "give texts="),
        (lambda: as_capability([Encoded([1, 2], 1)]), "rows of tokens"),
        (lambda: as_capability(3), "capability"),
        (lambda: ladder(lm_of(), plain_text(TEXTS, 12), keep="first", **RUN), "keep='first'"),
        (lambda: ControlledLadder("a", "b", (0, 1), np.ones((1, 2, 3)), np.ones(3)), "ladder of its control"),
        (lambda: of_seeds((0, 1), (7, 8)), r"seeds \(0, 1\) and 3 items, its control .*\(7, 8\)"),
        (lambda: read_pgn(io.StringIO("nothing here")), "No game"),
        (lambda: read_movetext("1. e4 e4"), "no game"),
    ],
)
def test_bad_input(bad, says):
    with pytest.raises(ValueError, match=says):
        bad()


PGN = """\ufeff[Event "one"]
[White "a"]
[WhiteElo "1500"]
[BlackElo "1800"]
[Result "1-0"]

{ before } 1. e4 { [%clk 0:03:00] [%eval 0.2] } 1... e5 $6 2. Nf3!? (2. f4 exf4 (2... d5) 3. Nf3) Nc6 { two
lines } 3. Bb5 a6 4. O-O ; the rest
Nf6 1-0

[Event "two"]
[FEN "4k3/8/8/8/8/8/8/4K2R w K - 0 1"]
[SetUp "1"]

1. O-O Kd7 *

[Event "three"]

1. e4 e5 2. Ke3 *

[Event "four"]
[Variant "Crazyhouse"]

1. e4 *

[Event "five"]
[Result "1/2-1/2"]

1. d4 d5 2. c4 e6 3. Nc3 Nf6 1/2-1/2
"""


def test_annotated_games_are_read_as_python_chess_reads_them(tmp_path):
    path = tmp_path / "games.pgn"
    path.write_text(PGN, encoding="utf-8")
    with pytest.warns(UserWarning, match="3 games left out, the first for this: it begins from another position"):
        games = read_pgn(path)
    handle, want = io.StringIO(PGN[1:]), []
    while (game := pgn.read_game(handle)) is not None:
        want.append([move.uci() for move in game.mainline_moves()])
    assert [game["moves"] for game in games] == [want[0], want[4]] and len(games[0]["moves"]) == 8
    assert games[0]["elo_white"] == "1500" and games[0]["result"] == "1-0" and games[1]["elo_black"] == "?"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_pgn(path, limit=1) == games[:1]
    for game in games:
        board = pychess.Board()
        for move in game["moves"]:
            board.push_uci(move)  # an error for an illegal move
    rows = chess(games=games * 20, conditioned=True).make(lm_of("lab-base-s"), "train", 3)
    assert all(row.condition == (0.25, 0.4) for row in rows)


def test_where_the_control_is_never_there_each_draw_has_its_own_room():
    rng = np.random.default_rng(0)
    sizes, units = (0, 1, 4, 16), np.ones(40)
    own = np.array([3.0, 1.05, 1.04, 1.0])[None, :, None] + np.zeros((1, 4, 40))
    own[0, 1] += rng.normal(0, 0.25, 40)
    own[0, 1] += 1.045 - own[0, 1].mean()  # one vector is just enough, in the mean
    control = Ladder("b", "m", sizes, np.full((1, 4, 40), 2.0), units)
    made = ControlledLadder("a", "m", sizes, own, units, control=control)
    found = made.excess()
    mine, _ = made.pairs
    at = reached(sizes, mine, mine.min(1) + made.eps)
    assert at[0] == 1 and 0.2 < (at[1:] > 1).mean() < 0.8
    assert found.vectors.beyond == (16 - at[1:]).min() < 15 and found.vectors.support == (at[1:] == 1).mean()


def test_a_size_that_one_of_two_ladders_lacks_counts_in_neither():
    units = np.ones(1)
    own = Ladder.from_losses({0: 3.0, 1: 2.0, 4: 1.0, 16: 1.0})
    lacking = Ladder.from_losses({0: 4.0, 1: 3.0, 4: np.nan, 16: 1.0})
    found = ControlledLadder("a", "m", own.sizes, own.nll, units, control=lacking).excess()
    assert found.vectors == 0 and found.n == 16 and found.ahead == 0
