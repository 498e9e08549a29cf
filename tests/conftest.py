"""What all tests share. One thread each and no network, set before torch or a tokenizer is imported."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

QUIET = dict(
    OMP_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
    HF_HUB_OFFLINE="1",
    HF_DATASETS_DISABLE_PROGRESS_BARS="1",
    JUPYTER_PREFER_ENV_PATH="1",
)
for name, value in QUIET.items():
    os.environ.setdefault(name, value)

REAL_MODELS = ("smollm2-135m-instruct", "gemma-3-270m")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / ".ci"))  # notebooks.py, readme.py, tour.py: the commands' own code


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    "The notebooks first: a long one that starts last would leave one worker waiting. A real model is loaded once."
    for item in items:
        for name in REAL_MODELS:
            if name in item.nodeid:
                item.add_marker(pytest.mark.xdist_group(name))
    items.sort(key=lambda item: "test_notebooks" not in item.nodeid)


def tracked_files():
    "Every file that is, or would be, in the repository, as paths from the top."
    try:
        out = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this tree is not a git clone, so which files belong to it is unknown")
    return [p for p in out.splitlines() if (ROOT / p).is_file()]


def copy_tree(dst):
    "A copy of what nbdev and setup.py read, so that no test writes into the checkout."
    for name in ("nbs", "softprompt_nb"):
        shutil.copytree(ROOT / name, dst / name, ignore=shutil.ignore_patterns("__pycache__", ".*", "_proc", "_docs"))
    for name in ("settings.ini", "setup.py", "README.md", "LICENSE", "MANIFEST.in", "_quarto.yml"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, dst / name)
    return dst


def script(name):
    "The path of a command that this environment installed."
    return str(Path(sys.executable).parent / name)


def run(args, timeout=300, **kw):
    "Run a command; returns it finished, or fails the test with the last of what it said."
    try:
        done = subprocess.run([str(a) for a in args], capture_output=True, text=True, timeout=timeout, **kw)
    except subprocess.TimeoutExpired:
        pytest.fail(f"{' '.join(map(str, args))} took more than {timeout} s", pytrace=False)
    if done.returncode:
        pytest.fail(f"{' '.join(map(str, args))}\n{(done.stdout + done.stderr)[-6000:]}", pytrace=False)
    return done
