"""Mazes: an independent search finds the same distances; any text can be walked."""

import random

from softprompt_nb.lab import mazes as M

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

seeds = st.integers(0, 10**9)


def relaxed(maze):
    "Distances from A, by relaxing all cells until nothing changes."
    free = np.array([[c != "X" for c in r] for r in maze.rows])
    d = np.full((10, 10), np.inf)
    d[1 + maze.start[0], 1 + maze.start[1]] = 0
    for _ in range(64):
        best = np.minimum.reduce([d[:-2, 1:-1], d[2:, 1:-1], d[1:-1, :-2], d[1:-1, 2:]]) + 1
        d[1:-1, 1:-1] = np.where(free, np.minimum(d[1:-1, 1:-1], best), np.inf)
    return d[1 + maze.goal[0], 1 + maze.goal[1]]


@given(seed=seeds, walls=st.floats(0, 0.6))
@settings(max_examples=150, deadline=None)
def test_solution_is_shortest(seed, walls):
    m = M.maze(random.Random(seed), walls)
    far = relaxed(m)
    assert m.distance == (None if np.isinf(far) else far)
    if m.distance:
        w = M.walk(m, M.maze_path(m))
        assert w.valid and w.solved and w.extra == 0 and w.cells[-1] == m.goal and w.cells[0] == m.start
    else:
        assert M.walk(m, "U").solved and not M.walk(m, "D").solved and M.maze_path(m) == "U"
    assert M.Maze(m.rows) == m and hash(M.Maze(m.rows)) == hash(m)


def test_ties_go_north_south_east_west():
    empty = M.Maze(("AOOOOOOO", *["OOOOOOOO"] * 6, "OOOOOOOB"))
    assert empty.solution == "S" * 7 + "E" * 7 and M.Maze(empty.rows[::-1]).solution == "N" * 7 + "E" * 7
    assert M.Maze(("BOOOOOOO", *["OOOOOOOO"] * 6, "OOOOOOOA")).solution == "N" * 7 + "W" * 7


@pytest.mark.parametrize(
    "kw",
    [
        dict(longest=3),
        dict(shortest=9),
        dict(shortest=4, longest=6, solvable=True),
        dict(solvable=False),
        dict(solvable=True),
        dict(walls=0),
    ],
)
def test_bounds_of_mazes(kw):
    for seed in range(100):
        d = M.maze(random.Random(seed), **kw).distance
        if kw.get("solvable") is not None:
            assert (d is not None) == kw["solvable"]
        assert d is None or kw.get("shortest", 1) <= d <= kw.get("longest", 63)


def test_mazes_differ_and_their_walls_are_as_many_as_said():
    drawn = [M.maze(random.Random(i), 0.3) for i in range(400)]
    shares = ["".join(m.rows).count("X") / 64 for m in drawn]
    assert len(set(drawn)) == 400 and 0.27 < np.mean(shares) < 0.33 and max(shares) > 0.4 and min(shares) < 0.2


@given(seed=seeds, half=st.integers(0, 4), invalid=st.integers(0, 4))
@settings(max_examples=100, deadline=None)
def test_extra_and_invalid_moves_come_back(seed, half, invalid):
    e = M.maze_item(random.Random(seed), 2 * half, invalid)
    m = M.read_maze(e.input)
    if m.solution is None:
        assert not (half or invalid) and e.target == " U"
        return
    w = M.walk(m, e.target)
    assert (w.solved, w.valid, w.extra, w.invalid) == (True, not invalid, 2 * half, invalid)
    assert len(e.target.split()) == m.distance + 2 * half + invalid + 1
    assert (
        e.input.startswith(f"maze , {2 * half} extra , {invalid} invalid :\n" if half or invalid else "maze :\n")
        and e.input.endswith("\npath :")
        and len(e.input.split("\n")) == 10
    )


def test_weaving_is_the_same_each_time_without_a_generator():
    m = M.maze(random.Random(3), solvable=True)
    assert (
        M.maze_path(m, extra=4, invalid=2) == M.maze_path(m, extra=4, invalid=2)
        and len({M.maze_path(m, random.Random(i), 4, 2) for i in range(9)}) > 1
    )


@given(text=st.one_of(st.text(), st.text("NSEWDU \n?", max_size=20)), seed=seeds)
@settings(max_examples=300, deadline=None)
def test_any_text_can_be_walked(text, seed):
    m = M.maze(random.Random(seed), shortest=1, longest=3)
    w = M.walk(m, text)
    if w.solved and m.solution is not None:
        assert w.cells[-1] == m.goal and "D" in text and w.extra % 2 == 0 and w.extra >= 0
    if w.solved and m.solution is None:
        assert text.strip()[0] == "U"


def test_walks():
    m = M.Maze(("AOBXOOOO", *["XXXXOOOO"] * 7))
    said = {
        t: M.walk(m, t)
        for t in ("E E D", " EED", "E E", "E D", "W N E S E D", "E W E E D", "U", "E E D N N", "E E D\nE", "E then", "")
    }
    assert [t for t, w in said.items() if w.solved] == [
        "E E D",
        " EED",
        "W N E S E D",
        "E W E E D",
        "E E D N N",
        "E E D\nE",
    ]
    assert (
        said["W N E S E D"].invalid == 3
        and not said["W N E S E D"].valid
        and said["E W E E D"].extra == 2
        and not said["E then"].valid
    )
    shut = M.Maze(("AXBOOOOO", "XXOOOOOO", *["OOOOOOOO"] * 6))
    assert [M.walk(shut, t).solved for t in ("U", " U", "U D", "E U", "D")] == [
        True,
        True,
        True,
        False,
        False,
    ] and M.walk(shut, "U").extra == 0


@pytest.mark.parametrize(
    "call, word",
    [
        (lambda: M.Maze(("AB",)), "is no maze"),
        (lambda: M.Maze(("AOOOOOOO",) * 8), "is no maze"),
        (lambda: M.Maze(("AB OOOOO", *["OOOOOOOO"] * 7)), "is no maze"),
        (lambda: M.maze(random.Random(0), walls=2), "share of walls"),
        (lambda: M.maze(random.Random(0), shortest=5, longest=4), "1 <= shortest <= longest"),
        (lambda: M.maze(random.Random(0), walls=0, solvable=False), "none of 2000 boards"),
        (lambda: M.maze(random.Random(0), shortest=60, solvable=True), "none of 2000 boards"),
        (lambda: M.maze_path(M.maze(random.Random(0), solvable=True), extra=3), "even number"),
        (lambda: M.maze_path(M.maze(random.Random(0), solvable=True), invalid=-1), "invalid moves from 0"),
        (lambda: M.maze_path(M.maze(random.Random(0), solvable=False), extra=2), "unsolvable"),
        (lambda: M.maze_item(random.Random(0), 2, solvable=False), "unsolvable"),
        (lambda: M.maze_path(M.Maze(("OOOOOOOO", "OABOOOOO", *["OOOOOOOO"] * 6)), invalid=1), "no wall and no edge"),
        (lambda: M.read_maze("maze :\nX O"), "holds no maze"),
    ],
)
def test_bad_maze_input(call, word):
    with pytest.raises(ValueError, match=word):
        call()


def test_pictures():
    m = M.maze(random.Random(1), solvable=True)
    assert (
        len(m.plot().lines) == 1 and len(m.plot(moves=M.maze_path(m, extra=2)).lines[0].get_xdata()) == m.distance + 3
    )
    assert M.maze(random.Random(1), solvable=False).plot() is not None
