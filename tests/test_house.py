"""The rules of the house that a count can hold; CONTRIBUTING.md says them in words, house.py counts."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import house
import pytest
import wings
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


# pages that nobody looks for by a task: they stand behind others
NOT_ASKED_FOR = {
    "patching.ipynb",
    "tda/pictures.ipynb",
    "evaluation/distance/figures.ipynb",
    "evaluation/formats/pictures.ipynb",
    "lab/facts.ipynb",
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
    known = {name for others in house.import_graph().items() if others[0].startswith("tda.") for name in others[1]}
    assert {name for name in known if not name.startswith("tda.")} <= {"measure", "plots", "patching"}


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


def test_wings_offer_what_their_modules_define():
    assert not wings.stale(), "run `make export`"


@pytest.mark.parametrize("wing", wings.WINGS)
def test_a_wing_hides_no_module_and_finds_its_names(wing):
    package = importlib.import_module(f"softprompt_nb.{wing}")
    modules = {path.stem for path in (house.PACKAGE / wing).glob("*.py")}
    assert package.__all__ and not modules & set(package.__all__)
    assert all(getattr(package, name).__name__ == name for name in package.__all__)
    with pytest.raises(AttributeError, match="no_such_name"):
        package.no_such_name  # noqa: B018


WHERE = (ROOT / "nbs" / "where.ipynb").read_text(encoding="utf-8")


def test_where_it_is_done_names_what_there_is():
    "Every name in the table's middle column is public, and every page but the tours' is in its last."
    rows = [row.split("|") for row in re.findall(r"\| .* \|", WHERE)]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row[2])}
    public = {name for names in map(wings.public, house.modules().values()) for name in names}
    assert named and not named - public
    pages = {path.relative_to(ROOT / "nbs").as_posix() for path in house.notebooks() if any(house.exported(path))}
    linked = {link for row in rows for link in re.findall(r"\]\(([\w/.-]+)\)", row[3])}
    left = {page for page in pages if page not in linked}
    assert left <= NOT_ASKED_FOR, left - NOT_ASKED_FOR


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
