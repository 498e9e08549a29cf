"""Chess by its rules, the same in every process."""

import os
import random
import subprocess
import sys

from softprompt_nb.lab import games as G

import chess
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

SEEDS = range(12)
seeds = st.integers(0, 10**9)


def replay(moves):
    "The position, with every move looked up in the full list of legal ones."
    board = chess.Board()
    for m in moves:
        assert m in {x.uci() for x in board.legal_moves}, (m, board.fen())
        board.push_uci(m)
    return board


@pytest.mark.parametrize("kind", G.GAME_KINDS)
@pytest.mark.parametrize("seed", SEEDS)
def test_games_are_legal(kind, seed):
    moves = G.game(random.Random(seed), kind, 60)
    board = replay(moves)
    assert board.is_valid() and (len(moves) == 60 or board.is_game_over())


def test_games_end_when_they_are_over():
    ended = [replay(m) for i in range(40) if len(m := G.game(random.Random(i), "random", 500)) < 500]
    assert len(ended) > 10 and all(b.is_checkmate() or b.is_stalemate() or b.is_insufficient_material() for b in ended)


def test_openings_are_legal_and_named_once():
    assert len(G.CHESS_OPENINGS) >= 40 and len(set(G.CHESS_OPENINGS.values())) == len(G.CHESS_OPENINGS)
    for name, moves in G.CHESS_OPENINGS.items():
        replay(moves.split())
        assert (
            name == name.lower().strip() and G.game(random.Random(0), name, 30)[: len(moves.split())] == moves.split()
        )


def test_random_player_is_uniform():
    drawn = [G.game(random.Random(i), "random", 1)[0] for i in range(4000)]
    counts = {m: drawn.count(m) for m in drawn}
    assert (
        len(counts) == 20 and min(counts.values()) > 140 and max(counts.values()) < 260
    )  # 200 expected, standard deviation 14


@given(seed=seeds)
@settings(max_examples=15, deadline=None)
def test_greedy_player_takes_the_dearest_piece(seed):
    board, rank = chess.Board(), {1: 1, 2: 3, 3: 3, 4: 5, 5: 9}

    def victim(b, m):
        return rank[b.piece_type_at(m.to_square) or 1]

    for uci in G.game(random.Random(seed), "greedy", 40):
        move, captures = chess.Move.from_uci(uci), list(board.generate_legal_captures())
        after = board.copy()
        after.push(move)
        if captures and not after.is_checkmate():
            assert board.is_capture(move) and victim(board, move) == max(victim(board, m) for m in captures)
        board = after


def test_greedy_player_mates():
    board = G._board("e2e4 e7e5 f1c4 b8c6 d1h5 g8f6")
    assert G._greedy_player(board, random.Random(0)).uci() == "h5f7"


def test_same_seed_same_game():
    code = (
        "import random; from softprompt_nb.lab import games as G, mazes as M; r = random.Random(5); "
        "games = [G.game(r, k, 30) for k in G.GAME_KINDS]; "
        "said = repr([games, M.maze_item(r, 2, 1), G.game_text(r, 'san', 'opening')])"
    )
    here = {}
    exec(code, here)
    out = subprocess.run(
        [sys.executable, "-c", code + "; print(said)"],
        cwd=ROOT,
        env=os.environ | {"PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert out.strip() == here["said"] and "chess in san" in out


@given(seed=seeds, kind=st.sampled_from(G.GAME_KINDS), plies=st.integers(0, 30))
@settings(max_examples=25, deadline=None)
def test_forms_come_back(seed, kind, plies):
    moves, board = G.game(random.Random(seed), kind, plies), chess.Board()
    for word in G.write_game(moves, "san").split():
        board.push_san(word)
    assert [m.uci() for m in board.move_stack] == moves == G.write_game(moves).split()
    text = G.write_game(moves, "board")
    rows, turn = text.split("\n")[:8], text.split("\n")[8]
    assert all(len(r.split(" ")) == 8 for r in rows) and turn == f"{'black' if len(moves) % 2 else 'white'} to move :"
    placed = {chess.square(f, 7 - r): c for r, row in enumerate(rows) for f, c in enumerate(row.split(" ")) if c != "."}
    assert placed == {s: p.symbol() for s, p in board.piece_map().items()}
    for form in ("uci", "san"):
        assert G.read_game(f"{G.NOTATIONS[form]} :{G.write_game(moves, form)}") == moves


@pytest.mark.parametrize("form", G.NOTATIONS)
def test_items(form):
    for seed in SEEDS:
        e = G.game_item(random.Random(seed), form, plies=7)
        moves = G.game(random.Random(seed), "greedy", 8)
        assert (
            G.is_legal_next(moves[:7], e.target, form)
            and e.input.startswith(f"{G.NOTATIONS[form]} :")
            and not e.input.endswith(" ")
            and e.target[0] == " "
        )
        if form == "board":
            assert e.input.endswith("black to move :")
        else:
            assert G.read_game(e.input) == moves[:7]
    assert G.game_item(random.Random(0), "uci", plies=0).input == "chess :"


def test_documents():
    for seed in SEEDS:
        a, b = (
            G.game_text(random.Random(seed), kind="opening"),
            G.game_text(random.Random(seed), kind="opening", named=False),
        )
        name = a.split(" , ")[1].split(" :")[0]
        assert (
            G.read_game(a) == G.read_game(b)
            and " ".join(G.read_game(a)).startswith(G.CHESS_OPENINGS[name])
            and b.startswith("chess : ")
        )
        text = G.game_text(random.Random(seed), "board", "random")
        assert (
            text.startswith("chess board , random player :\n") and len(text.split("\n")) == 10 and " to move : " in text
        )


@given(seed=seeds, plies=st.integers(0, 40))
@settings(max_examples=25, deadline=None)
def test_legal_moves(seed, plies):
    moves = G.game(random.Random(seed), "random", plies)
    board = replay(moves)
    assert G.legal_moves(moves) == sorted(m.uci() for m in board.legal_moves)
    assert {board.parse_san(s) for s in G.legal_moves(moves, "san")} == set(board.legal_moves)
    for m in G.legal_moves(moves)[:5]:
        assert G.is_legal_next(moves, f" {m} and so on") and not G.is_legal_next(moves, m + "x")
    for m in G.legal_moves(moves, "san")[:5]:
        assert G.is_legal_next(moves, m, "san") and G.is_legal_next(moves, m.rstrip("+#"), "san")


LEGAL = {form: set(G.legal_moves("e2e4 e7e5", form)) for form in G.NOTATIONS}


@given(
    text=st.one_of(st.text(), st.text("abcdefgh12345678NBRQKOx-+#=@0 \n", max_size=8)),
    form=st.sampled_from(list(G.NOTATIONS)),
)
@settings(max_examples=400, deadline=None)
def test_any_text_is_legal_or_not(text, form):
    assert G.is_legal_next("e2e4 e7e5", text, form) == ((text.split() or [""])[0] in LEGAL[form])


@pytest.mark.parametrize(
    "text, form",
    [
        ("0000", "uci"),
        ("--", "san"),
        ("Z0", "san"),
        ("e1h1", "uci"),
        ("E1G1", "uci"),
        ("0-0", "san"),
        ("g1f3q", "uci"),
        ("Ng1f3", "san"),
        ("", "uci"),
    ],
)
def test_what_parsers_forgive_is_not_legal(text, form):
    assert not G.is_legal_next("e2e4 e7e5 g1f3 g8f6 f1c4 f8c5", text, form)


def test_castling_and_promotion_are_legal():
    assert G.is_legal_next("e2e4 e7e5 g1f3 g8f6 f1c4 f8c5", "e1g1") and G.is_legal_next(
        "e2e4 e7e5 g1f3 g8f6 f1c4 f8c5", "O-O", "san"
    )
    assert G.is_legal_next("a2a4 b7b5 a4b5 a7a6 b5a6 c8b7 a6b7 h7h6", "b7a8q")
    assert not G.is_legal_next("a2a4 b7b5 a4b5 a7a6 b5a6 c8b7 a6b7 h7h6", "b7a8")


@pytest.mark.parametrize(
    "call, word",
    [
        (lambda: G.legal_moves(["e2e4", "e2e4"]), "move 2, 'e2e4', is not legal after e2e4"),
        (lambda: G.write_game("e1e8"), "after the start"),
        (lambda: G.is_legal_next([None], "e2e4"), "move 1, None"),
        (lambda: G.is_legal_next("0000", "e2e4"), "move 1, '0000'"),
        (lambda: G.write_game([], "pgn"), "unknown form 'pgn'"),
        (lambda: G.game_item(random.Random(0), "fen"), "unknown form 'fen'"),
        (lambda: G.game(random.Random(0), "clever"), "unknown kind of game 'clever'"),
        (lambda: G.game(random.Random(0), plies=-1), "-1 plies"),
        (lambda: G.game_text(random.Random(0), "board", plies=0), "at least 1 ply"),
        (lambda: G.read_game("chess board :\nr n"), "cannot read moves"),
        (lambda: G.read_game("chess in san : e4 e4"), "move 2, 'e4'"),
        (lambda: G.game_item(random.Random(0), plies=20000, kind="random"), "fewer plies"),
    ],
)
def test_bad_chess_input(call, word, monkeypatch):
    monkeypatch.setattr(G, "_random_player", lambda board, rng: None)  # no game is ever played on
    with pytest.raises(ValueError, match=word.replace("(", r"\(")):
        call()


def test_pictures():
    assert len(G.plot_board("").texts) == 32
