"The real models of the tests, from folders that the environment names; a test whose model is missing skips."

import os
from functools import lru_cache

from softprompt_nb.load import load_lm

import pytest

FOLDERS = {"smollm2-135m-instruct": "SMOLLM", "gemma-3-270m": "GEMMA"}


@lru_cache(maxsize=1)
def _loaded(source):
    return load_lm(source)


def real_lm(name):
    "One of the two real models, or a skipped test that says why."
    source = os.environ.get(FOLDERS[name])
    if source is None:
        pytest.skip(f"{FOLDERS[name]} names no folder with {name}")
    return _loaded(source)
