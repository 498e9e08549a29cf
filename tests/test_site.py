"""What the site promises: titles, sections, a list for programs, badges, cells that run where they are pasted,
nothing loaded from elsewhere."""

import json
import re
import sys

import llms
import offline
import pytest
import yaml
from conftest import ROOT, run
from nbdev.config import get_config
from notebooks import directives
from run_all import NEEDS, TOURS, pages, ready
from run_all import tours as tour_pages
from test_notebooks import NOTEBOOKS, cells

BADGED = [
    nb for nb in NOTEBOOKS if nb.startswith("nbs/papers/") or nb == "nbs/howto/first-prompt.ipynb"
]  # the tours that a reader may want to try elsewhere


@pytest.mark.parametrize("nb", NOTEBOOKS)
def test_title_and_subtitle_are_one_line_each(nb):
    title, subtitle = llms.heading(ROOT / nb)
    assert len(title) < 80 and len(subtitle) < 240 and subtitle[-1] in ".?", f"{nb}: {title!r}, {subtitle!r}"


def test_llms_txt_is_in_sync():
    assert (ROOT / "nbs" / "llms.txt").read_text(encoding="utf-8") == llms.build(), "run `make readme`"


def test_llms_txt_lists_every_page_and_is_published():
    cfg = get_config(path=ROOT)
    listed = re.findall(r"^- \[[^]]+\]\((\S+)\): \S", llms.build(), re.M)
    assert sorted(listed) == sorted(
        f"{cfg.doc_host}{cfg.doc_baseurl}/{llms.page(nb.removeprefix('nbs/'))}" for nb in NOTEBOOKS
    )
    assert "llms.txt" in yaml.safe_load((ROOT / "_quarto.yml").read_text())["project"]["resources"]


def test_navigation():
    site = yaml.safe_load((ROOT / "_quarto.yml").read_text())
    bar = {item["text"]: item for item in site["website"]["navbar"]["left"]}
    assert list(bar) == ["Start", "Papers", "How-to", "Lab", "Reference"]
    sections = dict(llms.sections())
    assert (
        bar["Start"]["href"] == sections["Start"][0]
        and bar["How-to"]["href"] == sections["How-to"][0]
        and bar["Lab"]["href"] == sections["The lab"][0]
    )
    assert bar["Papers"]["menu"] == sections["The papers"]
    assert [m["href"] for m in bar["Reference"]["menu"]] == [
        notebooks[0] for name, notebooks in sections.items() if name.startswith("Reference")
    ]


def test_both_themes_do_without_web_fonts():
    html = yaml.safe_load((ROOT / "_quarto.yml").read_text())["format"]["html"]
    assert html["html-math-method"] == "mathml" and all(
        html["theme"][mode][-1] == "theme.scss" for mode in ("light", "dark")
    )
    assert re.search(r"scss:defaults.*^\$web-font-path: false;", (ROOT / "nbs" / "theme.scss").read_text(), re.S | re.M)


@pytest.mark.parametrize("nb", BADGED)
def test_badge(nb):
    cfg = get_config(path=ROOT)
    badge = next(src for i, src, _ in cells(nb, "markdown") if i == 1)
    assert (
        badge
        == f"[![Open in Colab](../images/open-in-colab.svg)](https://colab.research.google.com/github/{cfg.user}/{cfg.repo}/blob/{cfg.branch}/{nb})"
    )
    first, second = [src for _, src, _ in cells(nb)][:2]
    assert {"hide"} == set(directives(first)) == set(directives(second)), "a reader of the site needs neither"
    assert (
        'if "google.colab" in sys.modules and find_spec("softprompt_nb") is None:' in second
        and f'git+{cfg.git_url}"' in second
    )


def test_badge_is_a_drawing_with_words():
    svg = (ROOT / "nbs" / "images" / "open-in-colab.svg").read_text()
    assert "<title>Open in Colab</title>" in svg and not re.search(r"href|url\(|<script|<image", svg)


def copied():
    return [(nb, i, src) for nb in NOTEBOOKS for i, src, _ in cells(nb) if src.lstrip().startswith("# copy this")]


def test_copy_this_runs_where_it_is_pasted(tmp_path):
    "A cell that begins with the comment `copy this` needs nothing but the one import line before it."
    pasted = copied()
    assert "nbs/index.ipynb" in {nb for nb, *_ in pasted}
    code = [
        f"print({f'{nb}, cell {i}'!r}, flush=True)\n"
        f'exec("from softprompt_nb.all import *", scope := {{}})\n'
        f"exec({src!r}, scope)"
        for nb, i, src in pasted
    ]
    (tmp_path / "pasted.py").write_text('import matplotlib\nmatplotlib.use("agg")\n' + "\n".join(code))
    assert run([sys.executable, "pasted.py"], cwd=tmp_path).stdout.count(", cell ") == len(pasted)


def test_tours_are_the_sections_that_people_step_through():
    sections = dict(llms.sections())
    assert set(TOURS) < set(sections) and tour_pages() == [
        f"nbs/{nb}" for name in sections if name in TOURS for nb in pages(sections[name])
    ]
    assert set(BADGED) <= set(tour_pages())


def test_tours_whose_texts_are_not_here_are_left_out_and_said(monkeypatch, capsys):
    assert set(NEEDS) < set(tour_pages())
    for nb, name in NEEDS.items():
        monkeypatch.delenv(name, raising=False)
        assert ready(tour_pages()) == [page for page in tour_pages() if page != nb]
        assert name in capsys.readouterr().out
        monkeypatch.setenv(name, "a folder")
        assert ready(tour_pages()) == tour_pages()


WIDGETS = (
    '<html><head><script src="https://cdnjs.cloudflare.com/ajax/libs/require.js/2.3.6/require.min.js" '
    'integrity="x" crossorigin="anonymous"></script>\n'
    '<script src="https://cdn.jsdelivr.net/npm/jquery@3.5.1/dist/jquery.min.js" crossorigin="anonymous" '
    'data-relocate-top="true"></script>\n'
    '<script type="application/javascript" data-relocate-top="true">'
    "define('jquery', [],function() {return window.jQuery;})</script>\n"
    '<script src="site_libs/quarto-nav/quarto-nav.js"></script>'
    '<link rel="canonical" href="https://example.org/a.html"></head>'
    '<body><a href="https://example.org">a link</a></body></html>'
)


def test_a_page_is_freed_of_widgets_and_kept_otherwise(tmp_path, capsys):
    (tmp_path / "a.html").write_text(WIDGETS)
    (tmp_path / "a.css").write_text('body { background: url("local.png") }')
    offline.main(tmp_path)
    left = (tmp_path / "a.html").read_text()
    assert (
        "require" not in left
        and "jquery" not in left.lower()
        and "quarto-nav.js" in left
        and "canonical" in left
        and "1 were freed" in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    "name, text",
    [
        ("a.html", '<script src="https://example.org/x.js"></script>'),
        ("a.html", '<img src="//example.org/x.png">'),
        ("a.html", '<link rel="stylesheet" href="https://example.org/x.css">'),
        ("a.html", '<style>@import url("https://example.org/font");</style>'),
        ("a.html", '<p style="background: url(https://example.org/x.png)">'),
        ("a.css", '@import"https://fonts.example.org/css2?family=Lato";'),
        ("a.css", "body{background:url(https://example.org/x.png)}"),
    ],
)
def test_what_comes_from_elsewhere_fails(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(SystemExit, match="example.org"):
        offline.main(tmp_path)


@pytest.mark.parametrize("nb", NOTEBOOKS)
def test_outputs_and_prose_load_nothing_from_elsewhere(nb):
    book = json.loads((ROOT / nb).read_text(encoding="utf-8"))
    html = [
        "".join(o["data"]["text/html"])
        for c in book["cells"]
        for o in c.get("outputs", [])
        if "text/html" in o.get("data", {})
    ]
    prose = ["".join(c["source"]) for c in book["cells"] if c["cell_type"] == "markdown"]
    for text in html + prose:
        parser = offline.Loads()
        parser.feed(text)
        assert not parser.found and not re.search(r"!\[[^]]*\]\(https?:", text), (
            f"{nb} loads from elsewhere: {text[:200]}"
        )
        assert not re.search(r"\brequire\s*\(|\$\(|jQuery", text) or text in prose, (
            f"{nb} has an output with a script that needs require.js or jQuery: {text[:200]}"
        )


def test_a_browser_run_is_judged_by_what_a_reader_would_see():
    from run_all import troubles

    def code(source, outputs=(), count=1):
        return dict(cell_type="code", source=source, outputs=list(outputs), execution_count=count)

    error, noise, fine = (
        dict(output_type="error", ename="ValueError", evalue="no"),
        dict(output_type="stream", name="stderr", text=["careful\n"]),
        dict(output_type="stream", name="stdout", text="1\n"),
    )
    bar = dict(
        output_type="stream",
        name="stderr",
        text=[
            "\rloading:   0%|          | 0/2 [00:00<?, ?it/s]",
            "\rloading: 100%|██████████| 2/2 [00:00<00:00, 9.1it/s]\n",
        ],
    )
    assert (
        troubles(
            dict(
                cells=[code("1", [fine, bar]), code("# a comment", count=None), dict(cell_type="markdown", source="x")]
            )
        )
        == []
    )
    assert troubles(dict(cells=[code("f()", [error]), code(["g()"], [noise]), code("h()", count=None)])) == [
        "cell 0: ValueError: no",
        "cell 1 writes to stderr: careful",
        "cell 2 did not run",
    ]


def test_without_a_browser_it_says_what_to_install(monkeypatch):
    from run_all import find_browser

    monkeypatch.setenv("CHROMIUM", "/nowhere/chromium")
    with pytest.raises(SystemExit, match="nowhere/chromium was not found: install Chromium"):
        find_browser()
    monkeypatch.delenv("CHROMIUM")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SystemExit, match="No Chromium was found: install Chromium"):
        find_browser()
