"""The commands behind the Makefile's targets, on small notebooks."""

import base64
import re
import shutil
import subprocess
import sys

import nbformat
import pytest
from conftest import ROOT, run, script
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

PICTURE = "import matplotlib.pyplot as plt\nplt.plot([1, 2]);"
TABLE = "import pandas as pd\nresults = pd.DataFrame({'accuracy': [.5, 1.]}, index=['before', 'after'])"


@pytest.fixture
def book(tmp_path):
    "Writes a notebook with these code cells below nbs/ in an empty project; returns its path."
    (tmp_path / "nbs").mkdir()
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    shutil.copy(ROOT / "settings.ini", tmp_path / "settings.ini")

    def write(*sources):
        nb = new_notebook(cells=[new_markdown_cell("# A page\n\n> A subtitle"), *map(new_code_cell, sources)])
        nbformat.write(nb, tmp_path / "nbs" / "page.ipynb")
        return tmp_path / "nbs" / "page.ipynb"

    return write


def test_tour_prints_its_table_and_leaves_notebook_and_figures(book, tmp_path):
    path = book(PICTURE, TABLE, "results", "'an afterthought'")
    out = run([sys.executable, ROOT / ".ci" / "tour.py", path, tmp_path / "out"], cwd=tmp_path).stdout
    assert "before" in out.split("[ 4/4]")[1] and "accuracy" in out and "1 figure" in out
    assert (tmp_path / "out" / "figure-01.png").read_bytes()[:4] == b"\x89PNG"
    assert len(nbformat.read(tmp_path / "out" / "page.ipynb", 4).cells[1].outputs) == 1


def test_tour_that_fails_says_where(book, tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / ".ci" / "tour.py", book("x = 1", "x/0"), tmp_path / "out"],
        capture_output=True,
        text=True,
    )
    assert (
        done.returncode
        and "ZeroDivisionError" in done.stderr
        and "x/0" in done.stdout
        and (tmp_path / "out" / "page.ipynb").exists()
    )


def test_stored_outputs_are_the_same_bytes_each_time(book, tmp_path):
    path = book(
        PICTURE,
        "import sys\nprint('half\\rwhole')\nprint('50%|#####     | 1/2 [00:01<00:01, 1.0it/s]', file=sys.stderr)",
        "object()",
        "#| eval: false\nraise SystemExit",
    )
    save = [sys.executable, ".ci/save_outputs.py", path]
    run(save, cwd=tmp_path)
    first = path.read_bytes()
    run([*save, "--check"], cwd=tmp_path)  # runs it again, and fails where a byte differs
    run([script("nbdev_clean")], cwd=tmp_path)
    assert path.read_bytes() == first
    figure, printed, thing, left_out = [c.outputs for c in nbformat.read(path, 4).cells[1:]]
    assert base64.b64decode(figure[0].data["image/png"])[:4] == b"\x89PNG"
    assert [o.text for o in printed] == ["whole\n"] and "0x" not in thing[0].data["text/plain"] and not left_out


def test_a_failing_notebook_keeps_its_stored_outputs(book, tmp_path):
    path = book("1 + 1", "1/0")
    before = path.read_bytes()
    done = subprocess.run([sys.executable, ".ci/save_outputs.py", path], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode and "ZeroDivisionError" in done.stderr and path.read_bytes() == before


def test_make_lists_its_targets():
    text = (ROOT / "Makefile").read_text()
    listed = run(["make", "--no-print-directory", "help"], cwd=ROOT).stdout
    targets = set(re.findall(r"^([a-z-]+):", text, re.M))
    assert (
        targets == {line.split()[1] for line in listed.splitlines()}
        and {"lab", "tour", "test", "bench", "docs"} <= targets
    )
