"""The documentation pages: nbdev processes every notebook, and pandoc reads what Quarto will read.

A documentation cell that raises, a stored error, a pandoc warning, a dead local link, a picture without words:
each fails."""

import functools
import json
import os
import re
import sys

import pypandoc
import pytest
import yaml
from conftest import ROOT, copy_tree, run
from pages import blocks
from test_notebooks import NOTEBOOKS

pytestmark = pytest.mark.xdist_group("docs")
PROC = "from nbdev.serve import proc_nbs\nif __name__ == '__main__': proc_nbs(force=True, n_workers=2)\n"
each_page = pytest.mark.parametrize("nb", NOTEBOOKS)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "The folder with the processed notebooks; a documentation cell that raises fails here, with the cell's source."
    top = copy_tree(tmp_path_factory.mktemp("docs"))
    (top / "proc.py").write_text(PROC)
    run([sys.executable, "proc.py"], cwd=top, timeout=600, env=os.environ | {"IPYTHONDIR": str(top / ".ipython")})
    for page in (top / "_proc").rglob("*.ipynb"):
        write_markdown(page)
    return top / "_proc"


def write_markdown(page):
    "The page as Quarto hands it to pandoc, beside the processed notebook; its figures in a folder of their own."
    figures = page.with_name(f"{page.stem}_files")

    def picture(png):
        figures.mkdir(exist_ok=True)
        file = figures / f"figure-{len(list(figures.iterdir())) + 1}.png"
        file.write_bytes(png)
        return f"{figures.name}/{file.name}"

    wrap = {"output": "::: {{.cell-output}}\n{}\n:::"}
    page.with_suffix(".md").write_text(
        "\n\n".join(wrap.get(kind, "{}").format(md) for kind, md in blocks(page, picture, html=True)) + "\n",
        encoding="utf-8",
    )


@functools.cache
def pandoc(page, to):
    "What pandoc makes of a page; any warning fails."
    return run(
        [
            pypandoc.get_pandoc_path(),
            "-f",
            "markdown",
            "-t",
            to,
            "--standalone",
            "--mathml",
            "--fail-if-warnings",
            page.with_suffix(".md").name,
        ],
        cwd=page.parent,
    ).stdout


def page_name(path):
    return re.sub(r"^\d+[a-zA-Z]?_", "", path.stem) + ".html"


def walk(node):
    "Every element of pandoc's syntax tree."
    if isinstance(node, dict) and "t" in node:
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from walk(child)


def links_and_pictures(path):
    "Targets of the page's links, and (target, alternative text) of its pictures, raw HTML included."
    tree = json.loads(pandoc(path, "json"))
    links, pictures = [], []
    for node in walk(tree):
        if node["t"] == "Link":
            links.append(node["c"][2][0])
        elif node["t"] == "Image":
            pictures.append(
                (
                    node["c"][2][0],
                    "".join(n.get("c", " ") if n["t"] == "Str" else " " for n in walk(node["c"][1])).strip(),
                )
            )
        elif node["t"] in ("RawBlock", "RawInline") and node["c"][0] == "html":
            links += re.findall(r'<a\b[^>]*\bhref="([^"]+)"', node["c"][1])
            pictures += [
                (
                    src[1] if (src := re.search(r'src="([^"]*)"', tag)) else "",
                    (alt[1] if (alt := re.search(r'alt="([^"]*)"', tag)) else ""),
                )
                for tag in re.findall(r"<img\b[^>]*>", node["c"][1])
            ]
    return links, pictures


def anchors(path):
    return set(re.findall(r'\bid="([^"]+)"', pandoc(path, "html")))


def resolve(target, page, site):
    """The file under `site` that a local link of `page` means; None for a link that leads elsewhere; raises
    LookupError for a dead one."""
    from nbdev.config import get_config

    cfg = get_config(path=ROOT)
    own = f"{cfg.doc_host}{cfg.doc_baseurl}/"
    rel, _, anchor = target.removeprefix(own).partition("#")
    if re.match(r"\w+:", rel):
        return
    file = page if not rel else (site / rel if target.startswith(own) else page.parent / rel)
    if file.suffix == ".html" and not file.exists():
        file = next((p for p in file.parent.glob("*.ipynb") if page_name(p) == file.name), file)
    if not file.exists() or site.resolve() not in file.resolve().parents:
        raise LookupError(f"{target}: no such page")
    if anchor and file.suffix == ".ipynb" and anchor not in anchors(file):
        raise LookupError(f"{target}: the page has no such heading")
    return file


@each_page
def test_page_has_no_error(nb, site):
    for i, cell in enumerate(json.loads((site / nb.removeprefix("nbs/")).read_text(encoding="utf-8"))["cells"]):
        for out in cell.get("outputs", []):
            assert out["output_type"] != "error", f"cell {i}: {out['ename']}: {out['evalue']}"
        settings = (
            [line.strip()[2:] for line in "".join(cell["source"]).splitlines() if line.strip().startswith("#|")]
            if cell["cell_type"] == "code"
            else []
        )
        try:
            yaml.safe_load("\n".join(line for line in settings if ":" in line))
        except yaml.YAMLError as e:
            pytest.fail(
                f"cell {i}: Quarto reads its #| lines as YAML, and they are not: {settings}\n{e}", pytrace=False
            )


@each_page
def test_pandoc_reads_the_page_without_a_warning(nb, site):
    html = pandoc(site / nb.removeprefix("nbs/"), "html")
    assert '<h1 class="title">' in html


@each_page
def test_links_and_pictures(nb, site):
    page = site / nb.removeprefix("nbs/")
    links, pictures = links_and_pictures(page)
    dead = []
    for target in links + [src for src, _ in pictures if not src.startswith("data:")]:
        try:
            resolve(target, page, site)
        except LookupError as e:
            dead.append(str(e))
    assert not dead
    assert all(alt for _, alt in pictures), (
        f"pictures without alternative text: {[src for src, alt in pictures if not alt]}"
    )


def test_sidebar_lists_every_page():
    def entries(node):
        if isinstance(node, str):
            yield node
        for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
            yield from entries(child)

    contents = yaml.safe_load((ROOT / "nbs" / "sidebar.yml").read_text())["website"]["sidebar"]["contents"]
    listed = [e for e in entries(contents) if e.endswith(".ipynb")]
    assert sorted(listed) == sorted(nb.removeprefix("nbs/") for nb in NOTEBOOKS)


def test_page_names_are_unique():
    names = [str((ROOT / nb).parent / page_name(ROOT / nb)) for nb in NOTEBOOKS]
    assert len(set(names)) == len(names), "page names lose their number, so the number must not be the only difference"


def test_quarto_files_are_yaml():
    assert yaml.safe_load((ROOT / "nbs" / "_quarto.yml").read_text())["metadata-files"][0] == "../_quarto.yml"
    site = yaml.safe_load((ROOT / "_quarto.yml").read_text())
    assert (ROOT / "nbs" / site["format"]["html"]["css"]).exists() and list(site["format"]) == ["html"]
    entries = [entry for item in site["website"]["navbar"]["left"] for entry in item.get("menu", [item])]
    assert all((ROOT / "nbs" / (entry if isinstance(entry, str) else entry["href"])).exists() for entry in entries)


def test_files_beside_the_pages_are_published(site):
    for name in ("styles.css", "theme.scss", "llms.txt", "images/open-in-colab.svg"):
        assert (site / name).read_bytes() == (ROOT / "nbs" / name).read_bytes()
