"""Counts what the rules of the house speak of: `python tests/house.py` prints them, test_house.py holds them."""

import ast
import json
import re
import sys
from collections import defaultdict
from functools import cache
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "softprompt_nb"
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
EXPORT = re.compile(r"^\s*#\|\s*exports?i?\b", re.M)


def modules():
    "Path of every module that a notebook exports, by its dotted name below the package."
    skipped = ("__init__.py", "_modidx.py", "all.py")
    found = [path for path in sorted(PACKAGE.rglob("*.py")) if path.name not in skipped]
    return {path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", "."): path for path in found}


@cache
def source(path):
    return path.read_text(encoding="utf-8")


@cache
def tree(path):
    return ast.parse(source(path))


def functions(node):
    return [f for f in ast.walk(node) if isinstance(f, FUNCTIONS)]


def density(function):
    "Syntax nodes a line of a function's body, its docstring included."
    nodes = sum(1 for statement in function.body for _ in ast.walk(statement))
    return nodes / (function.body[-1].end_lineno - function.body[0].lineno + 1)


def densities():
    return [density(f) for path in modules().values() for f in functions(tree(path))]


def long_lines(limit=120):
    "Share of lines over the limit."
    lines = [line for path in modules().values() for line in source(path).splitlines()]
    return sum(len(line) > limit for line in lines) / len(lines)


def bound_names(node):
    "Every name that an assignment, a loop, a parameter or an `except` binds."
    for n in ast.walk(node):
        if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store):
            yield n.id
        elif isinstance(n, ast.arg):
            yield n.arg
        elif isinstance(n, ast.ExceptHandler) and n.name:
            yield n.name


def one_letter():
    "Share of bindings to a name of one letter."
    names = [name for path in modules().values() for name in bound_names(tree(path))]
    return sum(len(name) == 1 and name != "_" for name in names) / len(names)


def is_public(node):
    return not node.name.startswith("_")


def parameters(function):
    "The parameters that a caller gives."
    a = function.args
    given = [*a.posonlyargs, *a.args, *a.kwonlyargs]
    return [x for x in given if x.arg not in ("self", "cls")]


def public_functions(path):
    "Public functions of a module and public methods of its public classes; a class is called by its `__init__`."
    for node in tree(path).body:
        if isinstance(node, FUNCTIONS) and is_public(node):
            yield node
        elif isinstance(node, ast.ClassDef) and is_public(node):
            yield from (f for f in node.body if isinstance(f, FUNCTIONS) and (is_public(f) or f.name == "__init__"))


def typed():
    "Shares of parameters with a type, and of returns with one, over public functions."
    public = [f for path in modules().values() for f in public_functions(path)]
    given = [x for f in public for x in parameters(f)]
    returning = [f for f in public if f.name != "__init__"]
    return (
        sum(x.annotation is not None for x in given) / len(given),
        sum(f.returns is not None for f in returning) / len(returning),
    )


def untyped(path):
    "What of a module's public functions lacks a type."
    for f in public_functions(path):
        yield from (f"{f.name}({x.arg})" for x in parameters(f) if x.annotation is None)
        if f.returns is None and f.name != "__init__":
            yield f"{f.name} ->"


def imports(name, path):
    "(module below the package, name) of every import of the package's own modules, inside functions too."
    known = modules()
    for node in ast.walk(tree(path)):
        if not isinstance(node, ast.ImportFrom):
            continue
        base = name.split(".")[: -node.level] if node.level else []
        full = ".".join([*base, *(node.module or "").split(".")]).strip(".")
        if not node.level:
            if (node.module or "").split(".")[0] != "softprompt_nb":
                continue
            full = full.removeprefix("softprompt_nb").strip(".")
        for alias in node.names:
            inner = f"{full}.{alias.name}".strip(".")
            yield (inner, None) if inner in known else (full, alias.name)


def import_graph():
    known = modules()
    return {name: {m for m, _ in imports(name, path) if m in known} for name, path in known.items()}


def circles():
    "Groups of modules that import each other, by Tarjan's algorithm."
    graph, number, low, stack, found = import_graph(), {}, {}, [], []

    def visit(name):
        number[name] = low[name] = len(number)
        stack.append(name)
        for other in graph[name]:
            if other not in number:
                visit(other)
            if other in stack:
                low[name] = min(low[name], low[other])
        if low[name] == number[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1 or name in graph[name]:
                found.append(sorted(group))

    for name in graph:
        if name not in number:
            visit(name)
    return found


def private_imports():
    "Private names that a module takes from another; `__version__` and its like are not private."
    return [
        f"{name}: {other}.{taken}"
        for name, path in modules().items()
        for other, taken in imports(name, path)
        if taken and taken.startswith("_") and not taken.startswith("__")
    ]


def attached():
    "(members attached across modules, members attached in their own module other than by `patch`)."
    across, within = [], []
    for name, path in modules().items():
        body = tree(path).body
        own = {node.name for node in body if isinstance(node, ast.ClassDef)}
        for node in body:
            if isinstance(node, ast.Assign):
                targets = [t for target in node.targets for t in getattr(target, "elts", [target])]
                for t in targets:
                    if isinstance(t, ast.Attribute) and isinstance(t.value, ast.Name):
                        (within if t.value.id in own else across).append(f"{name}: {ast.unparse(t)}")
            elif isinstance(node, FUNCTIONS) and any("patch" in ast.unparse(d) for d in node.decorator_list):
                owner = ast.unparse(node.args.args[0].annotation) if node.args.args[0].annotation else "?"
                if owner not in own:
                    across.append(f"{name}: {owner}.{node.name}")
    return across, within


def cut_up():
    "Classes that inherit from a private class of their own module."
    found = []
    for name, path in modules().items():
        own = {node.name for node in tree(path).body if isinstance(node, ast.ClassDef) and node.name.startswith("_")}
        for node in tree(path).body:
            if isinstance(node, ast.ClassDef):
                found += [f"{name}: {node.name}({b})" for b in map(ast.unparse, node.bases) if b in own]
    return found


def notebooks():
    found = (ROOT / "nbs").rglob("*.ipynb")
    return sorted(p for p in found if not any(part[0] in "._" for part in p.relative_to(ROOT).parts))


def code_cells(path):
    "(source, is it exported?) of the code cells that do something."
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "code" and ast_body(text):
            yield text, bool(EXPORT.search(text))


def exported(path):
    "The exported cells of a notebook."
    return [text for text, is_exported in code_cells(path) if is_exported]


def ast_body(text):
    "Statements of a cell, [] for one that only imports or says where it is exported to."
    try:
        body = ast.parse(text).body
    except SyntaxError:
        return [None]  # a cell with a magic
    return [] if all(isinstance(n, (ast.Import, ast.ImportFrom)) for n in body) else body


def lessons():
    "{notebook: (exported cells, those with a lesson behind them, the longest row of exported cells)}; imports aside."
    found = {}
    for path in notebooks():
        cells = [exported for _, exported in code_cells(path)]
        if not any(cells):
            continue
        followed = sum(a and not b for a, b in zip(cells, [*cells[1:], True]))
        row = longest = 0
        for exported in cells:
            row = row + 1 if exported else 0
            longest = max(longest, row)
        found[path.relative_to(ROOT / "nbs").as_posix()] = (sum(cells), followed, longest)
    return found


def lesson_share():
    counts = lessons().values()
    return sum(f for _, f, _ in counts) / sum(n for n, *_ in counts)


def statements(text):
    return sum(isinstance(n, ast.stmt) for n in ast.walk(ast.parse(text)))


def heavy_cells(lines=60, count=40):
    "Exported cells with more lines of code or more statements than a reader carries."
    for path in notebooks():
        for text, exported in code_cells(path):
            if not exported:
                continue
            code = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
            if len(code) > lines or statements(text) > count:
                head = code[0].strip()
                yield f"{path.relative_to(ROOT)}: {len(code)} lines, {statements(text)} statements: {head[:60]}"


def twice():
    "Public names that two modules define."
    found = defaultdict(list)
    for name, path in modules().items():
        for node in tree(path).body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
                for public in ast.literal_eval(node.value):
                    found[public].append(name)
    return {public: where for public, where in found.items() if len(where) > 1}


def front():
    "Names of `softprompt_nb.all`."
    body = ast.parse((PACKAGE / "all.py").read_text(encoding="utf-8")).body
    return [a.asname or a.name for node in body if isinstance(node, ast.ImportFrom) for a in node.names]


def main(names):
    known = modules()
    chosen = {k: p for k, p in known.items() if not names or any(k.startswith(n) for n in names)}
    books = lessons()
    for name, path in chosen.items():
        each = [density(f) for f in functions(tree(path))]
        bound = list(bound_names(tree(path)))
        single = sum(len(x) == 1 and x != "_" for x in bound) / max(1, len(bound))
        book = books.get(name.replace(".", "/") + ".ipynb", ("?", "?", "?"))
        over = sum(len(line) > 120 for line in source(path).splitlines())
        print(
            f"{name:45} {len(source(path).splitlines()):4} lines, {over:2} long, "
            f"{median(each) if each else 0:5.1f} nodes/line, {single:4.0%} one-letter, "
            f"{len(list(untyped(path))):3} untyped, lessons {book[1]}/{book[0]} row {book[2]}"
        )
    print(f"\nlines over 120 characters   {long_lines():.2%}   (at most 1 %)")
    print(f"syntax nodes a body line    {median(densities()):.1f}    (median over functions, at most 12)")
    print(f"one-letter names            {one_letter():.1%}   (at most 15 %)")
    print("typed parameters, returns   {:.1%}, {:.1%}   (at least 95 %)".format(*typed()))
    print(f"import circles              {circles()}")
    print(f"private names across        {private_imports()}")
    across, within = attached()
    print(f"attached across modules     {across}\nattached within             {len(within)}")
    print(f"cut up into private bases   {cut_up()}")
    print(f"lessons behind              {lesson_share():.1%}   (at least 70 %)")
    print(f"rows of exported cells > 3  {[k for k, (*_, r) in books.items() if r > 3]}")
    heavy = [h for h in heavy_cells() if not names or any(n.replace(".", "/") in h for n in names)]
    print("cells too heavy:", *heavy, sep="\n   ")
    print(f"names twice                 {twice()}")
    print(f"names of all                {len(front())}   (at most 70)")


if __name__ == "__main__":
    main(sys.argv[1:])
