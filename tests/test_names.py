"""Every public name is documented: a summary, each parameter, the errors it raises; and a lesson shows it.

Read from the source, so nothing is imported. Public is what a module's `__all__` names; a lesson is a code cell
that is not exported."""

import ast
import io
import json
import re
import tokenize
from functools import cache

import pytest
from conftest import ROOT
from notebooks import directives

PKG = ROOT / "softprompt_nb"
MODULES = sorted(
    p.relative_to(PKG).as_posix() for p in PKG.rglob("*.py") if p.name not in ("__init__.py", "_modidx.py", "all.py")
)
FUNCTIONS = ast.FunctionDef, ast.AsyncFunctionDef
each_module = pytest.mark.parametrize("module", MODULES)


@cache
def tree(module):
    return ast.parse((PKG / module).read_text(encoding="utf-8"))


def exported(module):
    return next(
        (
            ast.literal_eval(n.value)
            for n in tree(module).body
            if isinstance(n, ast.Assign) and n.targets[0].id == "__all__"
        ),
        [],
    )


def public(module):
    "The public functions and classes of a module."
    names = set(exported(module))
    return [n for n in tree(module).body if isinstance(n, (*FUNCTIONS, ast.ClassDef)) and n.name in names]


def comments(source):
    return {t.start[0] for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type == tokenize.COMMENT}


def no_summary(node):
    "Does the docstring lack a first line that is a sentence?"
    return not re.fullmatch(r".+[.:?!)]", (ast.get_docstring(node) or "").split("\n")[0])


def undocumented(node, commented):
    "Parameters with neither an annotation nor a comment on their line; for a class, those of its `__init__`."
    if isinstance(node, ast.ClassDef):
        node = next((m for m in node.body if isinstance(m, FUNCTIONS) and m.name == "__init__"), None)
    if node is None:
        return []  # a dataclass: its fields are annotated, or they would be none
    a = node.args
    given = [
        x
        for x in (*a.posonlyargs, *a.args, a.vararg, *a.kwonlyargs, a.kwarg)
        if x is not None and x.arg not in ("self", "cls")
    ]
    return [x.arg for x in given if x.annotation is None and x.lineno not in commented]


def unnamed_errors(node):
    "Errors that the code of `node` raises and no docstring in it names."
    said = " ".join(
        filter(None, (ast.get_docstring(n) for n in ast.walk(node) if isinstance(n, (*FUNCTIONS, ast.ClassDef))))
    )
    caught = {
        id(n)
        for t in ast.walk(node)
        if isinstance(t, ast.Try) and any(h.type is None or "Exception" in names_in(h.type) for h in t.handlers)
        for part in t.body
        for n in ast.walk(part)
    }
    raised = {
        getattr(r.exc.func, "id", None)
        for r in ast.walk(node)
        if isinstance(r, ast.Raise) and isinstance(r.exc, ast.Call) and id(r) not in caught
    } - {None}
    return sorted(e for e in raised if re.search("Error|Exception|Interrupt", e) and e not in said)


def names_in(node):
    return {
        n.id if isinstance(n, ast.Name) else n.attr for n in ast.walk(node) if isinstance(n, (ast.Name, ast.Attribute))
    }


def returned(node):
    "Names in the return annotations of a function, or of a class's methods."
    notes = [f.returns for f in ast.walk(node) if isinstance(f, FUNCTIONS) and f.returns is not None]
    texts = [
        c.value for note in notes for c in ast.walk(note) if isinstance(c, ast.Constant) and isinstance(c.value, str)
    ]
    return {name for note in notes for name in names_in(note)} | set(re.findall(r"\w+", " ".join(texts)))


@cache
def lessons():
    "Every name that a lesson cell uses; importing is no use."
    found = set()
    for path in (ROOT / "nbs").rglob("*.ipynb"):
        if any(part[0] in "._" for part in path.relative_to(ROOT).parts):
            continue
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            source = "".join(cell["source"])
            if cell["cell_type"] != "code" or {"export", "exports", "exporti"} & set(directives(source)):
                continue
            try:
                found |= names_in(ast.parse(source))
            except SyntaxError:
                continue  # a cell with a magic
    return frozenset(found)


def closure(start, step):
    "`start` and everything that `step` leads to from it."
    found, todo = set(start), list(start)
    while todo:
        new = step(todo.pop()) - found
        found |= new
        todo += new
    return found


@each_module
def test_summaries(module):
    missing = [n.name for n in public(module) if no_summary(n)]
    assert not missing, f"{module}: a docstring that begins with one line, a sentence, is missing from {missing}"


@each_module
def test_parameters(module):
    commented = comments((PKG / module).read_text(encoding="utf-8"))
    missing = {n.name: left for n in public(module) if (left := undocumented(n, commented))}
    assert not missing, f"{module}: these parameters have neither a comment nor an annotation: {missing}"


@each_module
def test_errors(module):
    missing = {n.name: left for n in public(module) if (left := unnamed_errors(n))}
    assert not missing, f"{module}: these errors are raised, and the docstring does not name them: {missing}"


def all_names():
    "name -> module (a path below the package) of what `softprompt_nb.all` imports."
    found = [
        (a.name, n.module.removeprefix("softprompt_nb.").replace(".", "/") + ".py")
        for n in tree("all.py").body
        if isinstance(n, ast.ImportFrom)
        for a in n.names
    ]
    assert len(found) == len({name for name, _ in found}), "two modules give all.py the same name"
    return dict(found)


def test_all_holds_public_names_only():
    wrong = {name: module for name, module in all_names().items() if name not in exported(module)}
    assert not wrong


def test_every_name_of_all_is_in_a_lesson():
    "By its name; or, a class, as the result of a function that is."
    defined = {n.name: n for module in MODULES for n in public(module)}
    classes = {name for name, n in defined.items() if isinstance(n, ast.ClassDef)}
    shown = closure(lessons() & set(defined), lambda name: returned(defined[name]) & classes) | lessons()
    missing = {name: module for name, module in all_names().items() if name not in shown}
    assert not missing, f"no lesson shows {missing}: add a cell that does"


def test_every_public_name_is_reached_from_a_lesson():
    """By its name, or through the code of what a lesson uses, or of what importing does: nothing public is idle.
    `main` is for the command line."""
    bodies, at_import = {}, set()
    for n in (n for module in MODULES for n in tree(module).body):
        names = [n.name] if hasattr(n, "name") else [t.id for t in getattr(n, "targets", []) if isinstance(t, ast.Name)]
        for name in names:
            bodies.setdefault(name, []).append(n)
        if not names:
            at_import |= names_in(n)
    reached = closure(
        (lessons() | at_import) & set(bodies), lambda name: {m for n in bodies[name] for m in names_in(n)} & set(bodies)
    )
    idle = [f"{module}: {n.name}" for module in MODULES for n in public(module) if n.name not in reached | {"main"}]
    assert not idle, f"no lesson uses these, directly or through others: {idle}"


def only(source):
    return ast.parse(source).body[0]


@pytest.mark.parametrize(
    "source, wrong",
    [
        ("def f(): pass", True),
        ('def f():\n    "Half a sentence"', True),
        ('def f():\n    "A sentence."', False),
        ('class C:\n    "A sentence.\\n\\nMore."', False),
    ],
)
def test_a_missing_summary_is_seen(source, wrong):
    assert no_summary(only(source)) == wrong


def test_missing_parameters_are_seen():
    source = "def f(a, # what\n      b: int,\n      c,\n      *args, d=1, **kw): pass"
    assert undocumented(only(source), comments(source)) == ["c", "args", "d", "kw"]
    source = "class C:\n    def __init__(self, x): self.x = x"
    assert (
        undocumented(only(source), comments(source)) == ["x"]
        and undocumented(only("class C:\n    x: int"), set()) == []
    )


def test_unnamed_errors_are_seen():
    body = "    if x: raise ValueError('no')\n    raise"
    assert unnamed_errors(only(f'def f(x):\n    "Does it."\n{body}')) == ["ValueError"]
    assert not unnamed_errors(only(f'def f(x):\n    "Does it; raises ValueError for none."\n{body}'))
    assert not unnamed_errors(only("def f(x):\n    try: raise ValueError('no')\n    except Exception: return 0"))


def test_returned_names():
    assert returned(only('def f() -> "Frontier|None": pass')) >= {"Frontier"} and returned(
        only("class C:\n    @classmethod\n    def fit(cls) -> list[Pair]: pass")
    ) >= {"Pair"}
