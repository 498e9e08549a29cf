"""Faithfulness, scrutability and the frontier against plain computations."""

import math
from dataclasses import replace
from types import SimpleNamespace

from softprompt_nb.conditional import ConditionalPrompt, SubspacePrompt
from softprompt_nb.data import Example, encode
from softprompt_nb.engine.inference import score_options, target_logprobs
from softprompt_nb.evaluation.interpretability import _are_words as are_words
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
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

EXAMPLES = [Example("abc", " de"), Example("a longer input", " x"), Example("q", " yes it is"), Example("zz top", " q")]


# The models here compute in float64; the losses of their targets, about 20 in a mean, come in float32.
ROUNDING = 20 * 8 * torch.finfo(torch.float32).eps


def double(name, **options):
    return tiny(name, dtype=torch.float64, **options)


def logp_behind(lm, prompt, encoded):
    "Log-probabilities in front of every target token, by the model's own forward pass."
    inputs = lm.embed_ids(encoded.ids)
    if prompt is not None:
        inputs = torch.cat([prompt.vectors, inputs])
    n_target = len(encoded.ids) - encoded.n_input
    logits = lm.model(inputs_embeds=inputs[None]).logits[0]
    return logits[-n_target - 1 : -1].log_softmax(-1)


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "llama"])
@torch.no_grad()
def test_divergence_is_a_plain_loop(name):
    lm = double(name)
    one = SoftPrompt.init(lm, 4, seed=1)
    for other in (SoftPrompt.init(lm, 3, seed=2), None):
        found = divergence(lm, one, other, EXAMPLES, batch_size=3)
        for example, got in zip(EXAMPLES, found):
            encoded = encode(lm, example)
            logp, logq = (logp_behind(lm, prompt, encoded) for prompt in (one, other))
            want = torch.nn.functional.kl_div(logq, logp, reduction="none", log_target=True).sum(-1).mean()
            assert got == pytest.approx(want.item(), rel=1e-9, abs=1e-9)


@torch.no_grad()
def test_divergence_reads_what_a_prompt_gives_and_only_on_its_model():
    lm, other = double("llama"), double("llama", seed=1)
    generator = torch.Generator().manual_seed(0)
    for k in (3, lm.d_model):  # as many coordinates as a vector has, too
        start = SubspacePrompt.init(lm, 4, k=k)
        moved = replace(start, vectors=torch.randn(4, k, generator=generator, dtype=torch.float64))
        assert max(divergence(lm, moved, moved.plain(), EXAMPLES)) < 1e-9
        assert float(faithfulness(lm, moved, "abc", EXAMPLES[:2]).table.kl["prompt"]) < 1e-9
        found = divergence(lm, moved, None, EXAMPLES)
        assert found == pytest.approx(divergence(lm, moved.plain(), None, EXAMPLES), abs=1e-9) and min(found) > 1e-6
    by_condition = ConditionalPrompt.init(lm, 3, how="vocab", kind="linear")
    rows = [replace(encode(lm, example), condition=(i % 2,)) for i, example in enumerate(EXAMPLES)]
    plain = SoftPrompt.init(lm, 3, seed=5)
    each = [divergence(lm, by_condition(row.condition), plain, [row])[0] for row in rows]
    assert divergence(lm, by_condition, plain, rows) == pytest.approx(each, abs=1e-9) and len(set(each)) == len(each)
    for pair in ((plain, None), (None, plain)):
        with pytest.raises(ValueError, match="does not fit"):
            divergence(other, *pair, EXAMPLES)
    with pytest.raises(ValueError, match="wide"):
        divergence(lm, torch.zeros(2, lm.d_model - 1), None, EXAMPLES)
    with pytest.raises(ValueError, match="is a str"):
        divergence(lm, "abc", None, EXAMPLES)


def test_a_prompt_that_is_a_text_is_faithful_to_it():
    lm = double("gpt2")
    faithful = faithfulness(lm, SoftPrompt(lm.embed_ids(lm.token_ids("do it"))), "do it", EXAMPLES)
    table = faithful.table
    assert abs(faithful.retention - 1) < 1e-9
    assert abs(float(faithful.kl)) < 1e-9
    assert table.kl["random"] > 1e-3
    assert table.kl["empty"] > 1e-3
    assert list(table.index) == ["prompt", "text", "shuffled", "random", "empty"]
    assert faithful.retention.n == len(EXAMPLES)
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
    assert hypervolume(points + [points[0]], (0, 0)) == want
    assert hypervolume(points + [(6, 6)], (0, 0)) == 36


def test_the_frontier_holds_what_nothing_beats():
    table = pd.DataFrame(
        dict(
            method=["a"] * 4 + ["b"] * 2,
            seed=[0, 0, 1, 1, 0, 1],
            accuracy=[3, 1, 2, 2, 1, 1],
            scrutability=[1, 3, 2, 1, 1, 2],
        )
    )
    front = frontier(table, reference=(0, 0))
    assert front.table.best.tolist() == [True, True, True, False, False, True]
    assert front.hypervolume["a"] == (5 + 4) / 2
    assert front.hypervolume["a"].seeds == (0, 1)
    assert front.hypervolume["b"] == (1 + 2) / 2
    assert front.plot().get_xlabel() == "accuracy"
    with pytest.raises(ValueError, match="lacks seed"):
        frontier(table.drop(columns="seed"))
    with pytest.raises(ValueError, match="no rows"):
        frontier(table[:0])


def test_a_result_without_a_number_is_on_no_frontier():
    nan = math.nan
    table = pd.DataFrame(
        dict(
            method=["a"] * 6 + ["b"],
            seed=[0] * 7,
            accuracy=[0.5, nan, 0.9, 0.7, 1.0, 0.1, 1.0],
            scrutability=[-1.0, -2.0, -5.0, -3.0, nan, -6.0, nan],
        )
    )
    with pytest.warns(UserWarning, match="3 of 7 results have no accuracy or no scrutability"):
        front = frontier(table)
    assert front.table.best.tolist() == [True, False, True, True, False, False, False]
    assert "3 left out for NaN" in repr(front) and math.isnan(front.hypervolume["b"].value)
    whole = frontier(table.dropna())
    assert front.hypervolume["a"] == whole.hypervolume["a"] and "left out" not in repr(whole)
    points = list(zip(table.accuracy, table.scrutability))
    wanted = [point for point in points if not any(map(math.isnan, point))]
    for i in range(len(points)):  # in any order
        assert hypervolume(points[i:] + points[:i], (0, -10)) == hypervolume(wanted, (0, -10))
    with pytest.raises(ValueError, match="no frontier"):
        frontier(table[table.method == "b"])


def test_a_word_of_other_letters_is_a_word():
    "A byte-level vocabulary writes its tokens in signs for bytes."
    words = ["café", "für", "naïve", "cafe", "мир"]
    bytewise = Tokenizer(models.BPE())
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    bytewise.train_from_iterator([" ".join(["", *words])] * 20, trainer)
    lm = SimpleNamespace(tokenizer=PreTrainedTokenizerFast(tokenizer_object=bytewise))
    assert all(len(lm.tokenizer.encode(f" {word}")) == 1 for word in words)
    asked = "Café, für naïve! cafe мир Ã über cafe\u0301"
    assert are_words(lm, asked) == [True, True, True, True, True, False, False, True]


@torch.no_grad()
def test_scrutability_by_hand():
    lm = double("gpt2")
    judge = double("llama", seed=3)

    def letters_in_common(text, options):
        return [len(set(text) & set(option)) for option in options]

    measured = scrutability(
        lm,
        "do it now",
        judge,
        description="do it",
        distractors=["zzz", "qqq"],
        reader=letters_in_common,
    )
    ids = torch.tensor([lm.token_ids("do it now")])
    loss = judge.model(input_ids=ids, labels=ids).loss.item()
    assert math.log(measured.perplexity) == pytest.approx(loss, rel=ROUNDING)
    assert measured.rank == 1
    assert measured.excess.n == 16
    assert math.isnan(scrutability(lm, "do it").rank)
    assert cosine_similarity(lm, "do it", "it do") == pytest.approx(1, abs=ROUNDING)
    assert -1 <= measured.similarity < 1


@torch.no_grad()
def test_a_follower_scores_by_the_nats_that_a_text_saves():
    lm = double("llama")
    tasks = {"do it": [Example("ab", "c"), Example("b", "dd")], "say": [Example("xy", "z")]}

    def nats(text, items):
        each = [target_logprobs(lm, None, [Example(text + item.input, item.target)]) for item in items]
        return sum(-(total / count).item() for total, count in each) / len(each)

    def least(text, items):
        return min(nats(text + join, items) for join in ("", "\n"))

    def share(text, description, items):
        bare = nats("", items)
        return (bare - least(text, items)) / max(bare - least(description, items), 0.05)

    read = follower(lm, tasks)
    rounding = ROUNDING / 0.05  # of nats, over the least that is divided by
    for text in ("zzz", "do it"):
        want = [share(text, description, items) for description, items in tasks.items()]
        assert read(text, list(tasks)) == pytest.approx(want, rel=rounding, abs=rounding)
    with pytest.raises(ValueError, match="no examples of 'other'"):
        read("x", ["do it", "other"])


def test_a_reader_chooses_by_what_the_text_adds():
    lm = double("gpt2")
    behind_text, behind_nothing = score_options(lm, None, ["abc\n", "\n"], ["one", "three"], normalize="tokens")
    want = (behind_text - behind_nothing).tolist()
    assert choose(lm, "abc", ["one", "three"]) == pytest.approx(want, abs=ROUNDING)

    def same(text, options):
        return [option == text for option in options]

    assert predictability(["x", "y"], ["x", "y"], same) == 1
    assert predictability(["y", "x"], ["x", "y"], same) == 0


def test_waywardness_draws_the_prompt_to_the_text():
    lm = tiny("gpt2")
    free, drawn = waywardness(lm, EXAMPLES, "any text", gammas=(0.0, 100.0), steps=60).itertuples()
    assert free.f1 < 0.5 < drawn.f1 == 1
    assert free.loss < drawn.loss
    ids = lm.token_ids("abca")
    assert nearest_f1(lm, lm.embed_ids(ids), ids) == 1
    assert nearest_f1(lm, lm.embed_ids(ids[:2]), ids) == pytest.approx(2 * 2 / 6)
