"""Writes README.md from nbs/index.ipynb: prose as it stands, code without its directives, stored outputs, links that
work on a repository page.

Pictures that the page's cells display are written to nbs/images/readme-NN.png. --check writes nothing and fails
when something is out of date."""

import posixpath
import re
import sys
from pathlib import Path

from pages import blocks

ROOT = Path(__file__).resolve().parent.parent
BANNER = "<!-- Written from nbs/index.ipynb by `make readme`: edit the notebook. -->"
LINK = re.compile(r'(!?\[[^\]]*\]\()([^)\s]+)((?:\s+"[^"]*")?\))')


def relink(md, nbs):
    """Make the page's relative links start at the repository's top; a link to a site page becomes a link to its
    notebook."""

    def one(m):
        target, sep, anchor = m[2].partition("#")
        if not target or "://" in target or target.startswith("mailto:"):
            return m[0]
        if target.endswith(".html"):
            page = Path(target)
            found = sorted(
                p for p in (nbs / page.parent).glob("*.ipynb") if re.sub(r"^\d+[a-z]?_", "", p.stem) == page.stem
            )
            if found:
                target = str(page.parent / found[0].name)
        return m[1] + posixpath.normpath(posixpath.join(nbs.name, target)) + sep + anchor + m[3]

    return LINK.sub(one, md)


def build(nb_path):
    """README text, and the pictures it shows as {path from the top: bytes}. Code cells with nothing between them
    become one block, imports and all."""
    parts, pictures = [], {}

    def picture(png):
        name = f"{nb_path.parent.name}/images/readme-{len(pictures) + 1:02d}.png"
        pictures[name] = png
        return name

    for kind, md in blocks(nb_path, picture):
        if kind == "prose":
            md = relink(md, nb_path.parent)
        if kind == "code" and parts and parts[-1][0] == "code":
            parts[-1] = "code", f"{parts[-1][1].removesuffix('```')}{md.removeprefix('```python').lstrip()}"
        else:
            parts.append((kind, md))
    first, *rest = (md for _, md in parts)
    return "\n\n".join([first, BANNER, *rest]) + "\n", pictures


def stale(root=ROOT):
    "The files that `make readme` would change, as {path from the top: new content in bytes, None for a leftover}."
    readme, pictures = build(root / "nbs" / "index.ipynb")
    want = {"README.md": readme.encode(), **pictures}
    left = {p.relative_to(root).as_posix(): None for p in (root / "nbs" / "images").glob("readme-*.png")}
    return {
        k: v
        for k, v in {**left, **want}.items()
        if v is None or not (root / k).exists() or (root / k).read_bytes() != v
    }


def main():
    changes = stale()
    if "--check" in sys.argv[1:]:
        if changes:
            sys.exit(f"Out of date: {', '.join(changes)}. Run `make readme`.")
        return
    for name, content in changes.items():
        path = ROOT / name
        if content is None:
            path.unlink()
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    print(f"Written: {', '.join(changes)}" if changes else "README.md is up to date.")


if __name__ == "__main__":
    main()
