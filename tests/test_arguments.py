"""Numbers and lists as people give them: plain Python values, or a sentence."""

import json
import math

from softprompt_nb.arguments import as_json, real_number, several, truth_value, whole_number

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

KINDS = [np.int8, np.int64, np.uint8, np.float32, np.float64, float, torch.tensor, np.array]


@given(st.integers(0, 100), st.sampled_from(KINDS))
def test_a_whole_number_of_any_kind_is_that_number(n, kind):
    found = whole_number(kind(n), "n", 0)
    assert found == n and type(found) is int and json.dumps(found)


@given(st.floats(-1e6, 1e6), st.sampled_from([np.float32, np.float64, torch.tensor, np.array]))
def test_a_number_of_any_kind_is_that_number(x, kind):
    found = real_number(kind(x), "x")
    assert type(found) is float and math.isclose(found, x, rel_tol=1e-6, abs_tol=1e-30)


@pytest.mark.parametrize(
    "value", [2.5, "3", None, True, np.bool_(True), math.nan, math.inf, [3], torch.ones(2), 1 + 2j]
)
def test_what_is_no_whole_number_is_refused(value):
    with pytest.raises(ValueError, match="steps=.*give a whole number, at least 1"):
        whole_number(value, "steps", 1)


@pytest.mark.parametrize("value", ["0.1", None, True, math.nan, math.inf, [0.1], 0, -1, torch.ones(2)])
def test_what_is_no_rate_is_refused(value):
    with pytest.raises(ValueError, match="lr=.*give a number above zero"):
        real_number(value, "lr", above=0)


def test_truth_values():
    assert truth_value(np.bool_(True), "end") is True and truth_value(torch.tensor(False), "end") is False
    for value in ("no", 1, None, 0.0):
        with pytest.raises(ValueError, match="end=.*True or False"):
            truth_value(value, "end")


def test_lists():
    assert several(np.arange(2), "seed") == [0, 1] and several("a", "texts", str) == ["a"]
    for value in ("text", b"text", dict(a=1), 3, None):
        with pytest.raises(ValueError, match="texts is a"):
            several(value, "texts")


def test_json_takes_what_is_made_plain():
    given_ = {
        1: (np.float64(0.5), torch.tensor([1, 2])),
        "x": {"y": np.int64(3)},
        "path": __import__("pathlib").Path("a"),
        "none": None,
        "flag": np.bool_(True),
    }
    plain = as_json(given_)
    assert json.loads(json.dumps(plain)) == {"1": [0.5, [1, 2]], "x": {"y": 3}, "path": "a", "none": None, "flag": True}
