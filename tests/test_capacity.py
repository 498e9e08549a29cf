"""What a prompt stores: against plain forward passes, and the search for the longest target against a loop."""

import math

from softprompt_nb.engine.decoding import continue_rows
from softprompt_nb.evaluation.distance.capacity import (
    Capacity,
    Cram,
    capacity,
    given_back,
    next_length,
    stored_row,
    tokens_right,
)
from softprompt_nb.experiments.runs import RunStore
from softprompt_nb.lm import FrozenLM
from softprompt_nb.prompts import SoftPrompt
from softprompt_nb.training.pool import Pool

import pandas as pd
import pytest
import torch
from families import reconfigured, tiny, tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

TEXTS = [f"this is text number {i} , and it goes on for {i * i} words ." for i in range(200)]
RUN = dict(cap=6, targets=2, steps=40, progress=False)
_made = {}


def lm_of(name="llama"):
    if name not in _made:
        _made[name] = tiny(name, dtype=torch.float64)
    return _made[name]


@given(st.integers(0, 70), st.integers(2, 64))
@settings(max_examples=200, deadline=None)
def test_the_longest_that_is_held_is_found_in_few_tries(truth, cap):
    tried = []
    while (length := next_length(tried, cap)) is not None:
        assert 1 <= length <= cap and length not in [done for done, _ in tried]
        tried.append((length, length <= truth))
    assert max([length for length, exact in tried if exact], default=0) == min(truth, cap)
    assert len(tried) <= 2 * math.ceil(math.log2(cap)) + 2


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_tokens_are_right_where_the_plain_pass_says_so(name):
    lm = lm_of(name)
    lead = lm.embed_ids(list(lm.beginning)).reshape(-1, lm.d_model)
    for seed in range(4):
        vectors = SoftPrompt.init(lm, 3, "gaussian", seed).vectors.double()
        row = stored_row(lm, [])
        (own,) = continue_rows(lm, [vectors], [row], [0], max_new_tokens=5)
        other = [(token + 1) % 90 + 5 for token in own]
        for tokens in (own, other, own[:2] + other[2:]):
            if not tokens:
                continue
            embeds = torch.cat([lead, vectors, lm.embed_ids(tokens)])[None]
            best = lm.model(inputs_embeds=embeds).logits[0, len(lead) + 2 : -1].argmax(-1)
            right = tokens_right(lm, vectors, tokens)
            assert right == (best == torch.tensor(tokens)).tolist()
            assert given_back(lm, vectors, tokens) == all(right)  # one wrong token ends the first, and no other does


def test_a_capacity_is_recorded_and_not_done_again(tmp_path, monkeypatch):
    lm = lm_of()
    found = capacity(lm, 2, TEXTS, store=tmp_path, **RUN)
    assert len(RunStore(tmp_path)) == 4 and list(found.table.kind) == ["text"] * 2 + ["random"] * 2
    assert (found.attempts[~found.attempts.exact].steps == 40).all()  # a failure takes its budget
    for (kind, number), tries in found.attempts.groupby(["kind", "number"]):
        row = found.table[(found.table.kind == kind) & (found.table.number == number)].iloc[0]
        assert row.tokens == max(tries[tries.exact].length, default=0) and row.steps == tries.steps.sum()
        assert (tries[tries.exact].accuracy == 1).all()
    monkeypatch.setattr(Pool, "turn", lambda self: pytest.fail("a recorded target was done again"))
    again = capacity(lm, 2, TEXTS, store=tmp_path, **RUN)
    assert again.table.equals(found.table) and repr(again) == repr(found)


def test_training_stops_as_soon_as_every_token_is_right():
    lm = lm_of()
    vectors = SoftPrompt.init(lm, 2, seed=0).vectors
    (own,) = continue_rows(lm, [vectors.double()], [stored_row(lm, [])], [0], max_new_tokens=3)
    cram = Cram("tiny", tuple(own), 2, 0, 50, 1e-9, "vocab", 5, lm=lm)  # it holds them already, and hardly moves
    outcome = cram.run(None)
    assert outcome.metrics["tokens"] == len(own) and (outcome.history.steps == 1).all()


@pytest.mark.parametrize(
    "bad, says",
    [
        (dict(texts=TEXTS[:3], cap=500), "give more"),
        (dict(texts=None), "has never read"),
        (dict(texts=TEXTS, n=0), "n"),
        (dict(texts=TEXTS, cap=1), "cap"),
    ],
)
def test_bad_input(bad, says):
    with pytest.raises(ValueError, match=says):
        capacity(lm_of(), **(RUN | bad))


def test_a_store_keeps_models_apart_by_configuration_and_by_beginning(tmp_path):
    lm = tiny("llama")
    begun = FrozenLM(lm.model, tokenizer(True), name=lm.name)
    others = [lm, reconfigured(lm, rms_norm_eps=0.5), begun]
    assert len({other.fingerprint for other in others}) == 1
    run = RUN | dict(texts=TEXTS, targets=1, steps=5)
    for i, other in enumerate(others):
        found = capacity(other, store=tmp_path, **run)
        assert len(RunStore(tmp_path)) == 2 * (i + 1)
        assert found.table.equals(capacity(other, **run).table)


def test_seeds_of_one_target_are_not_targets():
    rows = [dict(kind="text", number=i, seed=s, tokens=10.0 * i + s, bits=1.0) for i in range(1, 4) for s in range(5)]
    shown = Capacity("made up", 1, 64, pd.DataFrame(rows), pd.DataFrame())
    held = shown.held()
    half = 4.303 * 10 / 3**0.5  # Student's over the means 12, 22, 32
    assert held == 22 and held.n == 3 and held.low == pytest.approx(22 - half) and held.high == pytest.approx(22 + half)
    assert "3 targets" in repr(shown) and "at least" not in repr(shown)


def test_what_was_held_whole_is_at_least_that_much():
    rows = [dict(kind="text", number=i, seed=0, tokens=64, bits=1.0) for i in range(3)]
    assert "at least 64.0" in repr(Capacity("made up", 1, 64, pd.DataFrame(rows), pd.DataFrame()))
