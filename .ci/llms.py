"""Writes nbs/llms.txt, the list of all pages for programs that read the site: section, title, address and subtitle of
each, as the sidebar has them.

Quarto publishes it at the site's top. --check writes nothing and fails when it is out of date."""

import json
import re
import sys
from configparser import ConfigParser
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent


def heading(path):
    "Title and subtitle of the notebook at `path`."
    first = next(c for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "markdown")
    title, subtitle = re.fullmatch(r"# (.+)\n+> (.+)", "".join(first["source"]).strip()).groups()
    return title, subtitle


def page(nb):
    "The address of a notebook's page from the site's top: nbdev drops the number."
    path = Path(nb)
    return path.with_name(re.sub(r"^\d+[a-zA-Z]?_", "", path.stem) + ".html").as_posix()


def sections(root=ROOT):
    "(section, its notebooks from nbs/) in the order of the sidebar."
    sidebar = yaml.safe_load((root / "nbs" / "sidebar.yml").read_text(encoding="utf-8"))
    return [(s["section"], s["contents"]) for s in sidebar["website"]["sidebar"]["contents"]]


def build(root=ROOT):
    parser = ConfigParser(delimiters=["="])
    parser.read(root / "settings.ini", encoding="utf-8")
    cfg = parser["DEFAULT"]
    site, parts = (
        f"{cfg['doc_host']}{cfg['doc_baseurl']}",
        [
            f"# {cfg['title']}\n\n> {cfg['description']}\n\n"
            f"The source of every page is a notebook below nbs/ of {cfg['git_url']}"
        ],
    )
    for section, notebooks in sections(root):
        lines = [
            f"- [{title}]({site}/{page(nb)}): {subtitle}"
            for nb in notebooks
            for title, subtitle in [heading(root / "nbs" / nb)]
        ]
        parts.append(f"## {section}\n\n" + "\n".join(lines))
    return "\n\n".join(parts) + "\n"


def main():
    file, text = ROOT / "nbs" / "llms.txt", build()
    fresh = file.exists() and file.read_text(encoding="utf-8") == text
    if "--check" in sys.argv[1:]:
        sys.exit(None if fresh else "nbs/llms.txt is out of date. Run `make readme`.")
    file.write_text(text, encoding="utf-8")
    print("nbs/llms.txt is up to date." if fresh else "Written: nbs/llms.txt")


if __name__ == "__main__":
    main()
