"""The rules of the house that a count can hold; CONTRIBUTING.md says them in words, house.py counts."""

import ast
import subprocess
import sys
from pathlib import Path

import house
import pytest
from conftest import ROOT

FLOORS = {  # of the longest beginning of a module's name; arrows run to the same floor or down
    "": 0,
    "lab": 1,
    "tda": 1,
    "engine": 2,
    "lab.cards": 3,
    "lab.family": 3,
    "load": 3,
    "training": 4,
    "experiments": 5,
    "evaluation": 6,
    "translation": 6,
    "studies": 7,
}


def ruff(*args):
    "What ruff says, '' where it is content."
    done = subprocess.run([sys.executable, "-m", "ruff", *args], cwd=ROOT, capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def test_formatted():
    assert not ruff("format", "--check", "--quiet", "."), "run `make format`"


def test_checked():
    assert not (found := ruff("check", "--quiet", "--output-format", "concise", ".")), found


def test_lines_fit():
    assert house.long_lines() <= 0.01


def test_statements_are_light():
    assert house.median(house.densities()) <= 12


def test_names_speak():
    assert house.one_letter() <= 0.15


def test_public_functions_are_typed():
    parameters, returns = house.typed()
    missing = {name: left for name, path in house.modules().items() if (left := list(house.untyped(path)))}
    assert parameters >= 0.95 and returns >= 0.95, missing


def test_no_import_circle():
    assert not house.circles()


def floor(module):
    known = [prefix for prefix in FLOORS if not prefix or module == prefix or module.startswith(prefix + ".")]
    return FLOORS[max(known, key=len)]


def test_arrows_run_down():
    graph = house.import_graph()
    up = [f"{name} -> {other}" for name, others in graph.items() for other in others if floor(other) > floor(name)]
    assert not up


def test_shape_knows_nothing_of_language_models():
    graph = house.import_graph()
    reached, todo = set(), [name for name in graph if name.startswith("tda.")]
    while todo:
        name = todo.pop()
        if name not in reached:
            reached.add(name)
            todo += graph[name]
    assert not reached & {"lm", "load", "prompts"} and not any(name.startswith("engine") for name in reached)


def test_private_names_stay_at_home():
    assert not house.private_imports()


def test_classes_are_whole():
    across, within = house.attached()
    assert not across and not within and not house.cut_up()


def test_lessons_stand_behind_exported_cells():
    lacking = {name: counts for name, counts in house.lessons().items() if counts[1] < counts[0]}
    assert house.lesson_share() >= 0.7, lacking


def test_no_long_rows_of_exported_cells():
    assert not {name: row for name, (*_, row) in house.lessons().items() if row > 3}


def test_cells_can_be_carried():
    assert not list(house.heavy_cells())


def test_a_public_name_has_one_meaning():
    assert set(house.twice()) <= {"main"}, "`main` is the command line of three modules; every other name is unique"


def test_the_front_is_small():
    assert len(house.front()) <= 70


def module(tmp_path, monkeypatch, **sources):
    "A package of these modules in place of ours."
    for name, text in sources.items():
        file = tmp_path / "softprompt_nb" / (name.replace("__", "/") + ".py")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    monkeypatch.setattr(house, "ROOT", tmp_path)
    monkeypatch.setattr(house, "PACKAGE", tmp_path / "softprompt_nb")


def test_a_circle_is_seen_inside_functions_too(tmp_path, monkeypatch):
    module(tmp_path, monkeypatch, a="from .b import x", b="def f():\n    from .a import y", c="from .a import z")
    assert house.circles() == [["a", "b"]]


def test_private_imports_are_seen(tmp_path, monkeypatch):
    module(tmp_path, monkeypatch, a="from softprompt_nb.sub.b import _x, y", sub__b="from .. import __version__")
    assert house.private_imports() == ["a: sub.b._x"]


def test_attached_members_are_seen(tmp_path, monkeypatch):
    source = "class C: pass\nC.f = print\nD.g = print\n@patch\ndef h(self: E): pass\n@patch\ndef k(self: C): pass"
    module(tmp_path, monkeypatch, a=source)
    assert house.attached() == (["a: D.g", "a: E.h"], ["a: C.f"])


@pytest.mark.parametrize(
    "source, nodes",
    [("def f(x):\n    return x", 3), ("def f(x):\n    y = x\n    return y", 4)],
)
def test_density_counts_nodes_a_line(source, nodes):
    assert house.density(ast.parse(source).body[0]) == nodes


def test_bound_names():
    source = "import os\ndef f(a, *b):\n    for c in a: d = c\n    try: pass\n    except E as e: pass"
    assert sorted(house.bound_names(ast.parse(source))) == ["a", "b", "c", "d", "e"]


def test_untyped_parameters_are_seen(tmp_path):
    file = Path(tmp_path / "a.py")
    file.write_text("def f(x, y: int): pass\nclass C:\n    def __init__(self, z): pass\n    def _g(self, w): pass")
    assert list(house.untyped(file)) == ["f(x)", "f ->", "__init__(z)"]
