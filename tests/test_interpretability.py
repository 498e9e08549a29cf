"""Faithfulness, scrutability and the frontier against plain computations."""

import math

from softprompt_nb.data import Example, encode
from softprompt_nb.evaluation.interpretability import (
    choose,
    cosine_similarity,
    divergence,
    faithfulness,
    follower,
    frontier,
    hypervolume,
    nearest_f1,
    predictability,
    retention,
    scrutability,
    waywardness,
)
from softprompt_nb.prompts import SoftPrompt

import pandas as pd
import pytest
import torch
from families import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

EXAMPLES = [Example("abc", " de"), Example("a longer input", " x"), Example("q", " yes it is"), Example("zz top", " q")]


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "llama"])
@torch.no_grad()
def test_divergence_is_a_plain_loop(name):
    lm = tiny(name)
    a, b = SoftPrompt.init(lm, 4, seed=1), SoftPrompt.init(lm, 3, seed=2)
    for p, q in ((a, b), (a, None)):
        for ex, got in zip(EXAMPLES, divergence(lm, p, q, EXAMPLES, batch_size=3)):
            e = encode(lm, ex)
            x = lm.embed(torch.tensor(e.ids))
            own = [
                lm.model(inputs_embeds=(x if s is None else torch.cat([s.vectors, x]))[None])
                .logits[0, -len(e.ids) + e.n_input - 1 : -1]
                .log_softmax(-1)
                for s in (p, q)
            ]
            want = torch.nn.functional.kl_div(own[1], own[0], reduction="none", log_target=True).sum(-1).mean()
            assert got == pytest.approx(want.item(), rel=1e-3, abs=1e-5)


def test_a_prompt_that_is_a_text_is_faithful_to_it():
    lm = tiny("gpt2")
    ids = lm.tokenizer("do it")["input_ids"]
    f = faithfulness(lm, SoftPrompt(lm.embed(torch.tensor(ids))), "do it", EXAMPLES)
    assert (
        abs(f.retention - 1) < 1e-6
        and abs(float(f.kl)) < 1e-6
        and f.table.kl["random"] > 1e-3
        and f.table.kl["empty"] > 1e-3
    )
    assert list(f.table.index) == ["prompt", "text", "shuffled", "random", "empty"] and f.retention.n == len(EXAMPLES)
    with pytest.raises(ValueError, match="no tokens"):
        faithfulness(lm, SoftPrompt.init(lm, 3), "", EXAMPLES)


def test_retention_by_hand():
    assert retention([1, 1, 1, 1], [1, 1, 1, 0], [0, 0, 0, 0]).value == pytest.approx(0.75)
    assert retention([1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]).value == pytest.approx(0)
    assert retention([1, 0, 1, 0], [1, 0, 1, 0], [1, 1, 1, 1]) == 1  # no gain to share, and no difference


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=8))
def test_hypervolume_is_a_count_of_squares(points):
    want = sum(any(x > i and y > j for x, y in points) for i in range(6) for j in range(6))
    assert hypervolume(points, (0, 0)) == want
    assert hypervolume(points + [points[0]], (0, 0)) == want and hypervolume(points + [(6, 6)], (0, 0)) == 36


def test_the_frontier_holds_what_nothing_beats():
    t = pd.DataFrame(
        dict(
            method=["a"] * 4 + ["b"] * 2,
            seed=[0, 0, 1, 1, 0, 1],
            accuracy=[3, 1, 2, 2, 1, 1],
            scrutability=[1, 3, 2, 1, 1, 2],
        )
    )
    f = frontier(t, reference=(0, 0))
    assert f.table.best.tolist() == [True, True, True, False, False, True]
    assert (
        f.hypervolume["a"] == (5 + 4) / 2 and f.hypervolume["a"].seeds == (0, 1) and f.hypervolume["b"] == (1 + 2) / 2
    )
    assert f.plot().get_xlabel() == "accuracy"
    with pytest.raises(ValueError, match="lacks seed"):
        frontier(t.drop(columns="seed"))
    with pytest.raises(ValueError, match="no rows"):
        frontier(t[:0])


@torch.no_grad()
def test_scrutability_by_hand():
    lm, ref = tiny("gpt2"), tiny("llama", seed=3)
    ids = torch.tensor([lm.tokenizer("do it now")["input_ids"]])
    s = scrutability(
        lm,
        "do it now",
        ref,
        description="do it",
        distractors=["zzz", "qqq"],
        reader=lambda text, options: [len(set(text) & set(o)) for o in options],
    )
    assert s.perplexity == pytest.approx(math.exp(ref.model(input_ids=ids, labels=ids).loss.item()), rel=1e-4)
    assert s.rank == 1 and s.excess.n == 16 and math.isnan(scrutability(lm, "do it").rank)
    assert cosine_similarity(lm, "do it", "it do") == pytest.approx(1, abs=1e-5) and -1 <= s.similarity < 1


@torch.no_grad()
def test_a_follower_scores_by_the_nats_that_a_text_saves():
    from softprompt_nb.engine.inference import target_logprobs

    lm, tasks = tiny("llama"), {"do it": [Example("ab", "c"), Example("b", "dd")], "say": [Example("xy", "z")]}

    def nats(text, items):
        each = [target_logprobs(lm, None, [Example(text + e.input, e.target)]) for e in items]
        return sum(-(total / count).item() for total, count in each) / len(each)

    def least(text, items):
        return min(nats(text + j, items) for j in ("", "\n"))

    read = follower(lm, tasks)
    for text in ("zzz", "do it"):
        want = [(nats("", x) - least(text, x)) / max(nats("", x) - least(d, x), 0.05) for d, x in tasks.items()]
        assert read(text, list(tasks)) == pytest.approx(want, rel=1e-3, abs=1e-3)
    with pytest.raises(ValueError, match="no examples of 'other'"):
        read("x", ["do it", "other"])


def test_a_reader_chooses_by_what_the_text_adds():
    lm = tiny("gpt2")
    from softprompt_nb.engine.inference import score_options

    s = score_options(lm, None, ["abc\n", "\n"], ["one", "three"], normalize="tokens")
    assert choose(lm, "abc", ["one", "three"]) == pytest.approx((s[0] - s[1]).tolist(), abs=1e-5)
    right = lambda text, options: [o == text for o in options]
    assert predictability(["x", "y"], ["x", "y"], right) == 1 and predictability(["y", "x"], ["x", "y"], right) == 0


def test_waywardness_draws_the_prompt_to_the_text():
    lm = tiny("gpt2")
    t = waywardness(lm, EXAMPLES, "any text", gammas=(0.0, 100.0), steps=60)
    assert t.f1.iloc[0] < 0.5 < t.f1.iloc[1] == 1 and t.loss.iloc[0] < t.loss.iloc[1]
    ids = lm.tokenizer("abca")["input_ids"]
    assert nearest_f1(lm, lm.embed(torch.tensor(ids)), ids) == 1 and nearest_f1(
        lm, lm.embed(torch.tensor(ids[:2])), ids
    ) == pytest.approx(2 * 2 / 6)
