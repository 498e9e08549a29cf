"""Losses, generation and option scores against plain loops over an ordinary model call, in float64."""

from softprompt_nb.data import Example, encode
from softprompt_nb.engine.inference import (
    exact_match,
    generate,
    loss_on,
    score_options,
    target_logprobs,
    to_prompt_embeds,
)
from softprompt_nb.evaluation.interpretability import divergence
from softprompt_nb.lab.cards import answers_exactly
from softprompt_nb.prompts import SoftPrompt
from softprompt_nb.translation.readings.inspect import inspect_prompt
from softprompt_nb.translation.translator.rerank import divergence_parts

import pytest
import torch
from families import FAMILIES, tiny
from transformers import GenerationConfig

EXAMPLES = [Example("abc", " de"), Example("a longer input", " x"), Example("q", " yes it is"), Example("zz top", " q")]
DOUBLE = torch.float64


def prompt_of(lm, n, at="start", seed=0):
    return SoftPrompt.init(lm, n, "gaussian", seed=seed, at=at)


def joined(lm, prompt, ids, place=0):
    "One row of embeddings, with a prompt's vectors behind its first tokens."
    front, behind = lm.embed_ids(ids[:place]), lm.embed_ids(ids[place:])
    return torch.cat([front, prompt.vectors.to(lm.dtype), behind])[None]


def greedy(lm, embeds, steps):
    "Decode by running the whole sequence again for each token."
    out = []
    for _ in range(steps):
        token = lm.model(inputs_embeds=embeds).logits[0, -1].argmax()
        if token == lm.tokenizer.eos_token_id:
            break
        out.append(token)
        embeds = torch.cat([embeds, lm.embed(token)[None, None]], 1)
    return lm.tokenizer.decode(out, skip_special_tokens=True)


@pytest.mark.parametrize("at", ["start", "before_answer", 1])
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_generate_is_a_plain_loop(name, at):
    lm = tiny(name, dtype=DOUBLE)
    prompt = prompt_of(lm, 5, at)
    texts = ["abc", "a much longer text", "q"]
    want = []
    for text in texts:
        ids = lm.tokenizer(text)["input_ids"]
        place = {"start": 0, "before_answer": len(ids), 1: 1}[at]
        want.append(greedy(lm, joined(lm, prompt, ids, place), 8))
    assert generate(lm, prompt, texts, 8) == want
    assert generate(lm, prompt, texts, 8, batch_size=1) == want


@torch.no_grad()
def test_generate_without_prompt_and_without_text():
    lm = tiny("llama", dtype=DOUBLE)
    alone = [greedy(lm, lm.embed_ids(lm.tokenizer(text)["input_ids"])[None], 5) for text in ("abc", "de")]
    assert generate(lm, None, ["abc", "de"], 5) == alone
    prompt = SoftPrompt.init(lm, 4)
    assert generate(lm, prompt, "", 5) == [greedy(lm, joined(lm, prompt, []), 5)]
    assert generate(lm, prompt, ["", "abc"], 5)[1] == generate(lm, prompt, "abc", 5)[0]
    with pytest.raises(ValueError, match="nothing to continue"):
        generate(lm, None, "")


@torch.no_grad()
def test_generation_after_bos_and_with_sampling_arguments():
    lm = tiny("gemma", bos=True, dtype=DOUBLE)
    prompt = SoftPrompt.init(lm, 3, at="after_bos")
    want = greedy(lm, joined(lm, prompt, lm.tokenizer("abc")["input_ids"], 1), 6)
    assert generate(lm, prompt, ["abc"], 6) == [want]
    assert len(generate(lm, prompt, ["abc", "b"], 6, do_sample=True, temperature=2.0, num_beams=2)) == 2


def plain_logprob(lm, prompt, example):
    "Log-probability of a target and its number of tokens, by an ordinary call on one row."
    row = encode(lm, example)
    embeds = lm.embed_ids(row.ids)[None] if prompt is None else joined(lm, prompt, row.ids)
    logprobs = lm.model(inputs_embeds=embeds).logits[0].log_softmax(-1)
    n_target = len(row.ids) - row.n_input
    target = torch.tensor(row.ids[row.n_input :])
    return logprobs[-n_target - 1 : -1].gather(1, target[:, None]).sum(), n_target


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_losses_and_option_scores_are_sums_over_a_plain_call(name):
    lm = tiny(name, dtype=DOUBLE)
    prompt = prompt_of(lm, 4, seed=3)
    for given in (prompt, None):
        total, count = target_logprobs(lm, given, EXAMPLES, batch_size=3)
        assert total.dtype == DOUBLE
        for i, example in enumerate(EXAMPLES):
            want, n_target = plain_logprob(lm, given, example)
            assert abs(total[i] - want) < 1e-9 * abs(want) and count[i] == n_target
    loss = loss_on(lm, prompt, EXAMPLES)
    total, count = target_logprobs(lm, prompt, EXAMPLES)
    assert abs(loss - float(-total.sum() / count.sum())) < 1e-9 and loss.n == 4


def test_scores_of_a_float32_model_are_float32():
    lm = tiny("gpt2")
    total, count = target_logprobs(lm, None, EXAMPLES)
    scores = score_options(lm, None, ["ab"], [" x", " yy"])
    assert total.dtype == count.dtype == scores.dtype == torch.float32


@pytest.mark.parametrize("at", ["start", "before_answer", 1])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_text_that_many_options_share_scores_them_as_each_alone(name, at):
    lm = tiny(name, dtype=DOUBLE)
    texts = ["abc", "a much longer text", "q", "abc"]
    options = [" x", " yes it is", " de", " a b"]
    prompt, other = prompt_of(lm, 4, at, seed=3), prompt_of(lm, 2, at, seed=4)
    for given in (prompt, None, [prompt, other, prompt, other]):
        each = given if isinstance(given, list) else [given] * len(texts)
        want = []
        for one, text in zip(each, texts):
            alone = [target_logprobs(lm, one, [Example(text, option)], end=False)[0] for option in options]
            want.append(torch.cat(alone))
        want = torch.stack(want)
        for size in (3, 4, 64):
            scores = score_options(lm, given, texts, options, batch_size=size)
            assert scores.dtype == DOUBLE and torch.allclose(scores, want, atol=1e-9, rtol=1e-9)


def test_a_text_that_many_options_share_is_computed_once(monkeypatch):
    lm = tiny("gpt2")
    embedded = []
    embed = type(lm).embed

    def counted(self, ids):
        embedded.append(ids.numel())
        return embed(self, ids)

    monkeypatch.setattr(type(lm), "embed", counted)
    score_options(lm, None, ["one"], [" x", " y"])
    embedded.clear()
    text, options = "a text of some length", [f" {letter}{letter}" for letter in "abcdefgh"]
    score_options(lm, None, [text], options)
    needed = [lm.token_ids(option)[:-1] for option in options]  # a last token predicts nothing
    beginnings = {tuple(ids[:size]) for ids in needed for size in range(1, len(ids) + 1)}
    assert sum(embedded) == len(lm.tokenizer(text)["input_ids"]) + len(beginnings)


def test_options_per_text_are_padded_with_minus_infinity():
    lm = tiny("gpt2", dtype=DOUBLE)
    scores = score_options(lm, None, ["ab", "cd"], [[" x", " yy"], [" z"]])
    assert scores.shape == (2, 2) and scores[1, 1] == -torch.inf
    alone, _ = target_logprobs(lm, None, [Example("ab", " yy")], end=False)
    assert torch.isclose(scores[0, 1], alone[0], rtol=1e-9)
    per_token = score_options(lm, None, ["ab"], [" yy"], normalize="tokens")
    assert torch.isclose(per_token[0, 0], scores[0, 1] / 3, rtol=1e-9)
    with pytest.raises(ValueError, match="one list"):
        score_options(lm, None, ["ab", "cd"], [[" x"]])
    with pytest.raises(ValueError, match="normalize"):
        score_options(lm, None, ["ab"], [" x"], normalize="pmi")


def test_exact_match_counts_first_lines():
    lm = tiny("gpt2")
    answers = generate(lm, None, [example.input for example in EXAMPLES], 4)
    right = [Example(example.input, text + "\nmore") for example, text in zip(EXAMPLES, answers) if text.strip()]
    wrong = Example("abc", " no such answer")
    assert exact_match(lm, None, [*right, wrong], max_new_tokens=4).items[-1] == 0


def test_bad_prompts_and_lengths_are_refused():
    lm, other = tiny("gpt2"), SoftPrompt(torch.zeros(3, 7))
    with pytest.raises(ValueError, match="7 wide"):
        generate(lm, other, ["a"])
    with pytest.raises(ValueError, match="limit of 128"):
        generate(lm, SoftPrompt.init(lm, 50), ["a" * 70], 20)
    with pytest.raises(ValueError, match="no examples"):
        loss_on(lm, None, [])


@torch.no_grad()
def test_prompt_embeds_are_what_the_model_sees():
    lm = tiny("llama", dtype=torch.bfloat16)
    prompt = SoftPrompt.init(lm, 3, at="before_answer")
    embeds = to_prompt_embeds(lm, prompt, "ab")
    assert embeds.dtype == torch.bfloat16 and embeds.shape == (5, lm.d_model)
    assert embeds[2:].equal(prompt.vectors.bfloat16())


def test_drafts_are_refused_and_a_given_length_wins():
    lm = tiny("llama")
    for name, value in dict(assistant_model=tiny("llama", seed=3).model, prompt_lookup_num_tokens=3).items():
        with pytest.raises(ValueError, match=f"{name}: .*Greedy decoding gives the same text"):
            generate(lm, None, "abc", 8, **{name: value})
    long = GenerationConfig(max_new_tokens=9)
    three, nine = (generate(lm, None, ["abc", "q"], n) for n in (3, 9))
    assert three != nine
    assert generate(lm, None, ["abc", "q"], max_new_tokens=3, generation_config=long) == three
    assert generate(lm, None, ["abc", "q"], generation_config=long) == nine


@pytest.mark.parametrize("size", [0, -1, 1.5, True])
def test_sizes_of_passes_and_lengths_below_one_are_refused(size):
    lm = tiny("gpt2")
    prompt = SoftPrompt.init(lm, 2)
    examples = [Example("ab", "c")]
    for ask in (
        lambda: generate(lm, prompt, ["ab"], 2, batch_size=size),
        lambda: target_logprobs(lm, prompt, examples, batch_size=size),
        lambda: loss_on(lm, prompt, examples, batch_size=size),
        lambda: score_options(lm, prompt, ["ab"], ["c", "d"], batch_size=size),
        lambda: divergence(lm, prompt, None, examples, batch_size=size),
        lambda: divergence_parts(lm, prompt, ["do"], ["ab"], ["c"], batch_size=size),
        lambda: answers_exactly(lm, examples, batch_size=size),
        lambda: inspect_prompt(lm, prompt, batch_size=size),
    ):
        with pytest.raises(ValueError, match="batch_size=.*at least 1"):
            ask()
    for ask in (
        lambda: generate(lm, prompt, ["ab"], size),
        lambda: inspect_prompt(lm, prompt, max_new_tokens=size),
    ):
        with pytest.raises(ValueError, match="max_new_tokens=.*at least 1"):
            ask()
    assert generate(lm, prompt, ["ab", "c"], 2.0, batch_size=1.0) == generate(lm, prompt, ["ab", "c"], 2)
