"""Losses, generation and option scores against plain loops over an ordinary model call."""

from softprompt_nb.data import Example, encode
from softprompt_nb.engine.inference import (
    exact_match,
    generate,
    loss_on,
    score_options,
    target_logprobs,
    to_prompt_embeds,
)
from softprompt_nb.prompts import SoftPrompt

import pytest
import torch
from families import FAMILIES, tiny

EXAMPLES = [Example("abc", " de"), Example("a longer input", " x"), Example("q", " yes it is"), Example("zz top", " q")]


def greedy(lm, x, steps):
    "Decode by running the whole sequence again for each token."
    out = []
    for _ in range(steps):
        i = lm.model(inputs_embeds=x).logits[0, -1].argmax()
        if i == lm.tokenizer.eos_token_id:
            break
        out.append(i)
        x = torch.cat([x, lm.embed(i)[None, None]], 1)
    return lm.tokenizer.decode(out, skip_special_tokens=True)


@pytest.mark.parametrize("at", ["start", "before_answer", 1])
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_generate_is_a_plain_loop(name, at):
    lm = tiny(name)
    p = SoftPrompt.init(lm, 5, "gaussian", at=at)
    texts = ["abc", "a much longer text", "q"]
    want = []
    for t in texts:
        ids = lm.tokenizer(t)["input_ids"]
        k = {"start": 0, "before_answer": len(ids), 1: 1}[at]
        want.append(
            greedy(
                lm,
                torch.cat(
                    [
                        lm.embed(torch.tensor(ids[:k], dtype=torch.long)),
                        p.vectors,
                        lm.embed(torch.tensor(ids[k:], dtype=torch.long)),
                    ]
                )[None],
                8,
            )
        )
    assert generate(lm, p, texts, 8) == want
    assert generate(lm, p, texts, 8, batch_size=1) == want


@torch.no_grad()
def test_generate_without_prompt_and_without_text():
    lm = tiny("llama")
    assert generate(lm, None, ["abc", "de"], 5) == [
        greedy(lm, lm.embed(torch.tensor(lm.tokenizer(t)["input_ids"]))[None], 5) for t in ("abc", "de")
    ]
    p = SoftPrompt.init(lm, 4)
    assert generate(lm, p, "", 5) == [greedy(lm, p.vectors[None], 5)]
    assert generate(lm, p, ["", "abc"], 5)[1] == generate(lm, p, "abc", 5)[0]
    with pytest.raises(ValueError, match="nothing to continue"):
        generate(lm, None, "")


@torch.no_grad()
def test_generation_after_bos_and_with_sampling_arguments():
    lm = tiny("gemma", bos=True)
    p = SoftPrompt.init(lm, 3, at="after_bos")
    ids = lm.tokenizer("abc")["input_ids"]
    want = greedy(lm, torch.cat([lm.embed(torch.tensor(ids[:1])), p.vectors, lm.embed(torch.tensor(ids[1:]))])[None], 6)
    assert generate(lm, p, ["abc"], 6) == [want]
    assert len(generate(lm, p, ["abc", "b"], 6, do_sample=True, temperature=2.0, num_beams=2)) == 2


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_losses_and_option_scores_are_sums_over_a_plain_call(name):
    lm = tiny(name)
    p = SoftPrompt.init(lm, 4, seed=3)
    for prompt in (p, None):
        total, count = target_logprobs(lm, prompt, EXAMPLES, batch_size=3)
        for i, ex in enumerate(EXAMPLES):
            e = encode(lm, ex)
            x = lm.embed(torch.tensor(e.ids))
            if prompt is not None:
                x = torch.cat([p.vectors, x])
            logp = lm.model(inputs_embeds=x[None]).logits[0].log_softmax(-1)[-len(e.ids) + e.n_input - 1 : -1]
            want = logp.gather(1, torch.tensor(e.ids[e.n_input :])[:, None]).sum()
            assert abs(total[i] - want) < 1e-4 * abs(want) and count[i] == len(e.ids) - e.n_input
    loss = loss_on(lm, p, EXAMPLES)
    total, count = target_logprobs(lm, p, EXAMPLES)
    assert abs(loss - float(-total.sum() / count.sum())) < 1e-5 and loss.n == 4


@pytest.mark.parametrize("at", ["start", "before_answer", 1])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_text_that_many_options_share_scores_them_as_each_alone(name, at):
    lm, texts, options = tiny(name), ["abc", "a much longer text", "q", "abc"], [" x", " yes it is", " de", " a b"]
    p, other = SoftPrompt.init(lm, 4, "gaussian", seed=3, at=at), SoftPrompt.init(lm, 2, "gaussian", seed=4, at=at)
    for prompt in (p, None, [p, other, p, other]):
        of = prompt if isinstance(prompt, list) else [prompt] * len(texts)
        want = torch.tensor(
            [[target_logprobs(lm, q, [Example(t, o)], end=False)[0].item() for o in options] for q, t in zip(of, texts)]
        )
        for size in (3, 4, 64):
            assert torch.allclose(
                score_options(lm, prompt, texts, options, batch_size=size), want, atol=1e-4, rtol=1e-4
            )


def test_a_text_that_many_options_share_is_computed_once(monkeypatch):
    lm, tokens = tiny("gpt2"), []
    embed = type(lm).embed
    monkeypatch.setattr(type(lm), "embed", lambda self, ids: tokens.append(ids.numel()) or embed(self, ids))
    score_options(lm, None, ["one"], [" x", " y"])
    tokens.clear()
    text, options = "a text of some length", [f" {c}{c}" for c in "abcdefgh"]
    score_options(lm, None, [text], options)
    spelled = [
        tuple(lm.tokenizer(o, add_special_tokens=False)["input_ids"][:-1]) for o in options
    ]  # a last token predicts nothing
    assert sum(tokens) == len(lm.tokenizer(text)["input_ids"]) + len(
        {o[:k] for o in spelled for k in range(1, len(o) + 1)}
    )


def test_options_per_text_are_padded_with_minus_infinity():
    lm = tiny("gpt2")
    s = score_options(lm, None, ["ab", "cd"], [[" x", " yy"], [" z"]])
    assert s.shape == (2, 2) and s[1, 1] == -torch.inf
    assert torch.isclose(s[0, 1], target_logprobs(lm, None, [Example("ab", " yy")], end=False)[0][0])
    assert torch.isclose(score_options(lm, None, ["ab"], [" yy"], normalize="tokens")[0, 0], s[0, 1] / 3)
    with pytest.raises(ValueError, match="one list"):
        score_options(lm, None, ["ab", "cd"], [[" x"]])
    with pytest.raises(ValueError, match="normalize"):
        score_options(lm, None, ["ab"], [" x"], normalize="bytes")


def test_exact_match_counts_first_lines():
    lm = tiny("gpt2")
    said = generate(lm, None, [e.input for e in EXAMPLES], 4)
    right = [Example(e.input, s + "\nmore") for e, s in zip(EXAMPLES, said) if s.strip()]
    assert exact_match(lm, None, right + [Example("abc", " no such answer")], max_new_tokens=4).items[-1] == 0


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
    p = SoftPrompt.init(lm, 3, at="before_answer")
    E = to_prompt_embeds(lm, p, "ab")
    assert E.dtype == torch.bfloat16 and E.shape == (5, lm.d_model) and E[2:].equal(p.vectors.bfloat16())
