"""Makes the pages of a built site independent of other servers: python .ci/offline.py _docs

Quarto puts require.js and jQuery from a CDN into every page that has an HTML output, for widgets. These pages have
none, so the tags are taken out.
Then every page and style sheet is searched for anything else that a browser would load from elsewhere; the program
fails if there is any."""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path

WIDGETS = re.compile(
    r'<script\b[^>]*\bsrc="https?://[^"]*/(?:require|jquery)(?:\.min)?\.js"[^>]*>\s*</script>\n?|<script\b[^>]*>\s*define\(\'jquery\'.*?</script>\n?',
    re.S,
)
ELSEWHERE = re.compile(r"(?:https?:)?//", re.I)
CSS = re.compile(
    r'@import\s*(?:url\()?\s*["\']?((?:https?:)?//[^"\')\s;]+)|url\(\s*["\']?((?:https?:)?//[^"\')\s]+)', re.I
)
LOADED = dict(
    script="src",
    img="src",
    iframe="src",
    embed="src",
    source="src",
    audio="src",
    video="src",
    object="data",
    link="href",
)
RELS = {
    "stylesheet",
    "icon",
    "preload",
    "modulepreload",
    "prefetch",
    "preconnect",
    "dns-prefetch",
    "manifest",
}  # a link of another kind, such as canonical, loads nothing


class Loads(HTMLParser):
    "Collects the addresses on other servers that a page makes a browser load."

    def __init__(self):
        super().__init__()
        self.found, self.style = [], False

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        self.style = tag == "style"
        target = a.get(LOADED.get(tag, ""), "") or ""
        if ELSEWHERE.match(target) and (tag != "link" or RELS & set((a.get("rel") or "").split())):
            self.found.append(target)
        self.found += css_loads(a.get("style") or "")

    def handle_endtag(self, tag):
        self.style = False

    def handle_data(self, data):
        if self.style:
            self.found += css_loads(data)


def css_loads(text):
    return [a or b for a, b in CSS.findall(text)]


def loads(path):
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".css":
        return css_loads(text)
    parser = Loads()
    parser.feed(text)
    return parser.found


def main(folder):
    left, freed = [], 0
    for path in sorted(Path(folder).rglob("*")):
        if path.suffix not in (".html", ".css"):
            continue
        if path.suffix == ".html" and (clean := WIDGETS.sub("", text := path.read_text(encoding="utf-8"))) != text:
            path.write_text(clean, encoding="utf-8")
            freed += 1
        left += [f"{path}: {address}" for address in loads(path)]
    if left:
        sys.exit(
            "These pages load something from elsewhere, and would not read well without a network:\n" + "\n".join(left)
        )
    print(f"No page loads anything from elsewhere ({freed} were freed of require.js and jQuery).")


if __name__ == "__main__":
    main(sys.argv[1])
