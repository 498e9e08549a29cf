"""A notebook as the Markdown that a page is made of: prose, code without directives, stored outputs in the form that
reads best."""

import base64
import re

import nbformat
from notebooks import directives, text

HIDDEN = {"hide", "default_exp", "export", "exporti", "exports"}


def fenced(body, language):
    mark = "`" * max([2, *map(len, re.findall("`+", body))]) + "`"
    return f"{mark}{language}\n{body}\n{mark}"


def without_directives(source):
    return "\n".join(line for line in source.splitlines() if not line.lstrip().startswith("#|")).strip()


def output(out, alt, picture, html):
    "The Markdown for one output, '' for what no reader should see."
    if out.output_type == "stream":
        return fenced(text(out.text).rstrip(), "text") if out.name == "stdout" else ""
    if out.output_type == "error":
        return fenced(f"{out.ename}: {out.evalue}", "text")
    data = {mime: text(value) for mime, value in out.data.items() if mime.startswith(("text/", "image/"))}
    if "image/png" in data:
        return f"![{alt}]({picture(base64.b64decode(data['image/png']))})"
    if html and "text/html" in data:
        return f"```{{=html}}\n{data['text/html'].strip()}\n```"
    if "text/markdown" in data:
        return data["text/markdown"].strip()
    return fenced(data["text/plain"].rstrip(), "text") if data.get("text/plain") else ""


def blocks(path, picture, html=False):
    """(kind, Markdown) of every visible piece of the notebook at `path`; kind is 'raw', 'prose', 'code' or 'output'.
    `picture` is given a PNG's bytes, stores them and returns the address to show; `html` prefers a table's HTML to
    its text."""
    for cell in nbformat.read(path, as_version=4).cells:
        names = (
            directives(cell.source)
            if cell.cell_type != "markdown"
            else {"hide": ""}
            if re.match(r"\s*#\|\s*hide\b", cell.source)
            else {}
        )
        if HIDDEN & set(names) or names.get("include") == "false":
            continue
        if cell.cell_type != "code":
            yield "raw" if cell.cell_type == "raw" else "prose", cell.source.strip()
            continue
        code = without_directives(cell.source)
        if code and names.get("echo") != "false":
            yield "code", fenced(code, "python")
        if names.get("output") == "false":
            continue
        alt = names.get("fig-alt", names.get("fig-cap", "")).strip("\"'")
        asis = names.get("output") == "asis"
        for out in cell.outputs:
            if md := output(out, alt, picture, html and not asis):
                yield "output", md
