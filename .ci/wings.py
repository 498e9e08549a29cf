"""Writes the `__init__.py` of each wing: every public function and class of its modules, so that
`from softprompt_nb import evaluation as ev` is enough. Constants stay with their modules, and no wing hides a module
behind a function of the same name: `softprompt_nb.tda.persistence` is the module.

--check writes nothing and fails when one is out of date."""

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WINGS = {
    "engine": "What rows share, how they are laid out, one exact forward pass, and asking with a prompt.",
    "training": "Tuning one prompt, or hundreds in one pass a step.",
    "experiments": "Configurations, their runs and records, and sweeps over any executor.",
    "tda": "The persistent homology of a cloud of points, and losses on it.",
    "lab": "A small world whose truth is known, its corpora, and the language models that read them.",
    "evaluation": "Distance, format against knowledge, interpretability, and harnesses.",
    "translation": "Hard prompts, readings without training, and a learned translator.",
    "studies": "What runs a whole paper and stores its results.",
}
DEFINITIONS = (ast.FunctionDef, ast.ClassDef)


def public(module):
    "The public functions and classes of a module, in its order."
    body = ast.parse(module.read_text(encoding="utf-8")).body
    lists = [n.value for n in body if isinstance(n, ast.Assign) and getattr(n.targets[0], "id", "") == "__all__"]
    listed = ast.literal_eval(lists[0]) if lists else []
    return [n.name for n in body if isinstance(n, DEFINITIONS) and n.name in listed and n.name != "main"]


TEXT = '''"""{job}"""

# Written by `make export` from what the modules define; a module is loaded when a name of it is first asked for.
from importlib import import_module

_HOME = {{
{homes}}}
__all__ = list(_HOME)


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"module {{__name__!r}} has no attribute {{name!r}}")
    return getattr(import_module(f"{{__name__}}.{{_HOME[name]}}"), name)


def __dir__():
    return sorted({{*globals(), *_HOME}})
'''


def build(wing, root=ROOT):
    "The text of a wing's `__init__.py`."
    folder = root / "softprompt_nb" / wing
    modules = [path for path in sorted(folder.rglob("*.py")) if path.name != "__init__.py"]
    taken = {path.stem for path in folder.glob("*.py")} | {path.name for path in folder.iterdir() if path.is_dir()}
    home = {}
    for path in modules:
        inner = ".".join(path.relative_to(folder).with_suffix("").parts)
        home |= {name: inner for name in public(path) if name not in taken}
    homes = "".join(f'    "{name}": "{home[name]}",\n' for name in sorted(home))
    return TEXT.format(job=WINGS[wing], homes=homes)


def stale(root=ROOT):
    "The `__init__.py` files that `make export` would change, with their new text."
    want = {f"softprompt_nb/{wing}/__init__.py": build(wing, root) for wing in WINGS}
    return {name: text for name, text in want.items() if (root / name).read_text(encoding="utf-8") != text}


def main():
    changes = stale()
    if "--check" in sys.argv[1:]:
        sys.exit(f"Out of date: {', '.join(changes)}. Run `make export`." if changes else None)
    for name, text in changes.items():
        (ROOT / name).write_text(text, encoding="utf-8")
    if changes:
        print(f"Written: {', '.join(changes)}")


if __name__ == "__main__":
    main()
