"""README.md is what nbs/index.ipynb says, and its five lines work when pasted."""

import os
import re
import sys

import pytest
from conftest import ROOT, run
from readme import build, relink, stale


def five_lines():
    return re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)[1]


def test_in_sync():
    assert not stale(), f"{sorted(stale())} differ from what nbs/index.ipynb gives: run `make readme`"


def test_says_the_two_commands_and_shows_a_picture():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "make tour" in text and "make test" in text
    pictures = re.findall(r"!\[([^\]]*)\]\(([^)\s]+)", text)
    assert pictures and all(alt and (ROOT / path).exists() for alt, path in pictures if "://" not in path)


def test_links_lead_somewhere():
    for target in re.findall(r"(?<!!)\[[^\]]*\]\(([^)\s#]+)", (ROOT / "README.md").read_text(encoding="utf-8")):
        if "://" not in target and not target.startswith("mailto:"):
            assert (ROOT / target).exists(), f"README.md links to {target}, which is not there"


def test_five_lines_work_when_pasted(tmp_path):
    assert 3 <= len(five_lines().strip().splitlines()) <= 8
    (tmp_path / "pasted.py").write_text(five_lines())
    run([sys.executable, "pasted.py"], cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "2"})


@pytest.mark.parametrize(
    "given, wanted",
    [
        ("[t](howto/first-prompt.ipynb)", "[t](nbs/howto/first-prompt.ipynb)"),
        ('![p](images/x.png "a")', '![p](nbs/images/x.png "a")'),
        ("[l](../LICENSE#top)", "[l](LICENSE#top)"),
        ("[e](https://example.org/a)", "[e](https://example.org/a)"),
        ("[here](#start)", "[here](#start)"),
    ],
)
def test_relink(given, wanted):
    assert relink(given, ROOT / "nbs") == wanted


def test_build_keeps_prose_code_and_outputs(tmp_path):
    import nbformat
    from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

    nbs = tmp_path / "nbs"
    nbs.mkdir()
    png = new_output("display_data", {"image/png": "iVBORw0KGgo=", "text/plain": "<Figure>"})
    value = new_output("execute_result", {"text/plain": "42"})
    nb = new_notebook(
        cells=[
            new_markdown_cell("# Title"),
            new_code_cell("#| hide\nsecret"),
            new_code_cell('#| fig-alt: "a line"\nplot()', outputs=[png]),
            new_code_cell("import math"),
            new_code_cell("6*7", outputs=[value]),
        ]
    )
    nbformat.write(nb, nbs / "index.ipynb")
    text, pictures = build(nbs / "index.ipynb")
    assert "secret" not in text and "#|" not in text and "```python\nimport math\n6*7\n```\n\n```text\n42\n```" in text
    assert "![a line](nbs/images/readme-01.png)" in text and list(pictures) == ["nbs/images/readme-01.png"]
    assert set(stale(tmp_path)) == {"README.md", "nbs/images/readme-01.png"}
