"""The wheel is complete and asks for what it imports; nothing in the package unpickles or trusts remote code; the
repository is clean."""

import ast
import os
import re
import sys
import zipfile
from configparser import ConfigParser

import pytest
from conftest import ROOT, copy_tree, run, tracked_files

PKG = ROOT / "softprompt_nb"
MODULES = sorted(p.relative_to(ROOT).as_posix() for p in PKG.rglob("*.py"))
OPTIONAL = {
    "IPython",
    "gguf",
    "lm_eval",
    "peft",
}  # imported inside functions only: where a notebook has it anyway, or for the extras `eval`, `gguf` and `lora`
DEV_ONLY = ("fastcore", "nbdev", "execnb", "ghapi", "IPython", "ipykernel")


@pytest.fixture(scope="module")
def cfg():
    parser = ConfigParser(delimiters=["="])
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return parser["DEFAULT"]


def build_wheel(out, source):
    run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--no-deps",
            "--no-build-isolation",
            "--no-cache-dir",
            "-q",
            "-w",
            out,
            source,
        ],
        env=os.environ | {"SOURCE_DATE_EPOCH": "1700000000"},
    )
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    top = tmp_path_factory.mktemp("wheel")
    (top / "source").mkdir()
    return build_wheel(top / "out", copy_tree(top / "source"))


@pytest.fixture(scope="module")
def installed(wheel):
    "The wheel in a folder of its own, without its dependencies."
    target = wheel.parent.parent / "site"
    run([sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "-q", "--target", target, wheel])
    return target


def imports(path):
    "(top-level name, is it imported when the module loads?) of everything that the module at `path` imports."
    tree = ast.parse(path.read_text(encoding="utf-8"))
    late = {
        id(node)
        for f in ast.walk(tree)
        if isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef))
        for node in ast.walk(f)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((a.name.split(".")[0], id(node) not in late) for a in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.split(".")[0], id(node) not in late


@pytest.mark.xdist_group("package")
def test_wheel_holds_every_module_and_the_lab_weights(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    weights = {p.relative_to(ROOT).as_posix() for p in (PKG / "lab" / "models").rglob("*") if p.is_file()}
    assert not set(MODULES) - names
    assert any(w.endswith("lab-instruct-s/model.safetensors") for w in weights) and not weights - names
    assert any(n.endswith("LICENSE") for n in names)
    assert wheel.stat().st_size < 60_000_000, (
        "a package index refuses more than 100 MB; the lab is a few MB for each model"
    )


@pytest.mark.xdist_group("package")
def test_wheel_is_reproducible(wheel, tmp_path):
    (tmp_path / "source").mkdir()
    again = build_wheel(tmp_path / "out", copy_tree(tmp_path / "source"))
    assert again.name == wheel.name and again.read_bytes() == wheel.read_bytes()


@pytest.mark.xdist_group("package")
def test_requirements_are_what_the_installed_package_imports(installed, cfg):
    found = {
        i
        for p in (installed / "softprompt_nb").rglob("*.py")
        for i in imports(p)
        if i[0] not in sys.stdlib_module_names | {"softprompt_nb"}
    }
    required = {re.split(r"[<>=!~\[]", r)[0].replace("-", "_") for r in cfg["requirements"].split()}
    at_load, ever = {name for name, early in found if early}, {name for name, _ in found}
    assert at_load <= required, f"imported but not in the requirements of settings.ini: {at_load - required}"
    assert ever - required <= OPTIONAL, (
        f"imported inside functions, neither required nor named as optional: {ever - required - OPTIONAL}"
    )
    assert required <= ever, f"required but imported nowhere: {required - ever}"


@pytest.mark.xdist_group("package")
def test_installed_package_runs_the_readme_alone(installed, tmp_path):
    "Away from the checkout, and without any of the tools that only developers have."
    from test_readme import five_lines

    guard = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {DEV_ONLY!r}: raise ModuleNotFoundError(f'{{name}} is for developers', name=name)
sys.meta_path.insert(0, Refuse())
"""
    check = f"""
import softprompt_nb
assert softprompt_nb.__file__.startswith({str(installed)!r}), softprompt_nb.__file__
"""
    (tmp_path / "pasted.py").write_text(guard + five_lines() + check)
    run(
        [sys.executable, "pasted.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "2"},
    )


def test_version_is_one(cfg):
    import softprompt_nb

    assert softprompt_nb.__version__ == cfg["version"]
    assert (
        f"version: {cfg['version']}" in (ROOT / "CITATION.cff").read_text()
        and f"## {cfg['version']}" in (ROOT / "CHANGELOG.md").read_text()
    )


def unsafe(source):
    "What in `source` unpickles, evaluates text or trusts remote code, as (line, what)."
    for node in ast.walk(ast.parse(source)):
        names = (
            {a.name.split(".")[0] for a in node.names}
            if isinstance(node, ast.Import)
            else {(node.module or "").split(".")[0]}
            if isinstance(node, ast.ImportFrom)
            else set()
        )
        for name in names & {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}:
            yield node.lineno, f"import {name}"
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called in ("eval", "exec", "torch.load", "np.load", "numpy.load", "pd.read_pickle", "pandas.read_pickle"):
            yield node.lineno, f"{called}(...)"
        for kw in node.keywords:
            if kw.arg in ("trust_remote_code", "allow_pickle") and getattr(kw.value, "value", True) is not False:
                yield node.lineno, f"{kw.arg}={ast.unparse(kw.value)}"


@pytest.mark.parametrize("module", MODULES)
def test_nothing_unpickles_or_trusts_remote_code(module):
    assert not list(unsafe((ROOT / module).read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "bad",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(f)",
        "load(f, trust_remote_code=True)",
        "load(f, trust_remote_code=flag)",
        "eval(text)",
    ],
)
def test_unsafe_code_is_seen(bad):
    assert list(unsafe(bad))


def test_safe_code_is_let_through():
    assert not list(unsafe("model.eval()\nload(f, trust_remote_code=False)\nfrom safetensors.torch import load_file"))


def test_no_machine_paths_in_the_repository():
    tops = ["work/", r"root\b", r"home/\w", "opt/py", r"tmp/tmp\w", r"Users/\w"]
    wrong = re.compile("|".join(rf"(?<![\w.:/]){'/'}{top}" for top in tops))
    found = []
    for name in tracked_files():
        try:
            text = (ROOT / name).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{name}: {m[0]}" for m in [wrong.search(text)] if m]
    assert not found, f"paths of one machine: {found}"


def test_files_are_small_enough_to_clone():
    big = {name: (ROOT / name).stat().st_size for name in tracked_files() if (ROOT / name).stat().st_size > 20_000_000}
    assert not big, f"larger than 20 MB: {big}"
