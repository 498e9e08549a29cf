"""Scores and accuracy of labels against plain loops over an ordinary model call, in float64 on small models."""

from dataclasses import replace

from softprompt_nb.data import Example, encode
from softprompt_nb.engine.inference import exact_match, loss_on, score_options, target_logprobs
from softprompt_nb.engine.labels import LABEL_WAYS, label_accuracy, without_content
from softprompt_nb.load import load_lm
from softprompt_nb.prompts import SoftPrompt
from softprompt_nb.training.tuning import tune

import numpy as np
import pytest
import torch
from families import FAMILIES, tiny
from hypothesis import given, settings
from hypothesis import strategies as st

DOUBLE = torch.float64
LABELS = [" good", " bad", " so so"]
TEXTS = ["it: fine = ", "it: what a mess = ", "it: hm = ", "it: great fun = ", "it: no = "]
EXAMPLES = [Example(text, LABELS[i % 3]) for i, text in enumerate(TEXTS)]


def tuned(lm, end, n=4, seed=0):
    "A prompt that says it was tuned with or without an end."
    prompt = SoftPrompt.init(lm, n, "gaussian", seed=seed)
    return replace(prompt, info=dict(settings=dict(end=end)))


@torch.no_grad()
def plain(lm, prompt, text, label, end):
    "Log-probability of a label behind a text, and its number of tokens, by an ordinary call on one row."
    row = encode(lm, Example(text, label), end)
    embeds = lm.embed_ids(row.ids)
    if prompt is not None:
        embeds = torch.cat([prompt.vectors.to(embeds), embeds])
    logprobs = lm.model(inputs_embeds=embeds[None]).logits[0].log_softmax(-1)
    size = len(row.ids) - row.n_input
    target = torch.tensor(row.ids[row.n_input :])
    return logprobs[-size - 1 : -1].gather(1, target[:, None]).sum().item(), size


def plain_table(lm, prompt, texts, labels, end):
    cells = [[plain(lm, prompt, text, label, end) for label in labels] for text in texts]
    return np.array([[score for score, _ in row] for row in cells]), np.array([[n for _, n in row] for row in cells])


@pytest.mark.parametrize("name", FAMILIES)
def test_scores_tokens_and_prior_are_those_of_a_plain_loop(name):
    lm = tiny(name, dtype=DOUBLE)
    free = "it: N/A = "
    for prompt, end in ((None, False), (tuned(lm, True), True), (tuned(lm, False), False)):
        scores, tokens = plain_table(lm, prompt, TEXTS, LABELS, end)
        prior, _ = plain_table(lm, prompt, [free], LABELS, end)
        result = label_accuracy(lm, prompt, EXAMPLES, LABELS)
        assert np.allclose(result.scores, scores, rtol=1e-9, atol=0) and (result.tokens == tokens).all()
        assert np.allclose(result.prior, np.repeat(prior, 5, 0), rtol=1e-9, atol=0)
        assert result.content_free == (free,) and result.end == (end,) * 5
        wanted = dict(sum=scores, tokens=scores / tokens, prior=scores - prior)
        for by in LABEL_WAYS:
            right = wanted[by].argmax(1) == np.array([0, 1, 2, 0, 1])
            assert result.accuracy_by(by) == right.mean() == label_accuracy(lm, prompt, EXAMPLES, LABELS, by).accuracy
        assert result.predictions == [LABELS[i] for i in scores.argmax(1)]


def test_each_row_has_its_own_prompt_labels_and_end():
    lm = tiny("llama", dtype=DOUBLE)
    prompts = [tuned(lm, True, 3), None, tuned(lm, False, 2, seed=1), tuned(lm, True, 3, seed=2), None]
    labels = [[" a", " b"], [" a", " ab"], [" c", " d", " e"], [" f", " ff"], [" x", " y"]]
    ends = (True, True, False, True, False)  # a label that begins another one cannot do without an end
    examples = [Example(text, of_row[0]) for text, of_row in zip(TEXTS, labels)]
    result = label_accuracy(lm, prompts, examples, labels, content_free=["it: N/A = ", "it: = "])
    assert result.end == ends
    for i, (prompt, of_row, end) in enumerate(zip(prompts, labels, ends)):
        k = len(of_row)
        scores, _ = plain_table(lm, prompt, [TEXTS[i], "it: N/A = ", "it: = "], of_row, end)
        assert np.allclose(result.scores[i, :k], scores[0], rtol=1e-9, atol=0)
        assert np.allclose(result.prior[i, :k], scores[1:].mean(0), rtol=1e-9, atol=0)
        assert (result.scores[i, k:] == -np.inf).all() and (result.scored("prior")[i, k:] == -np.inf).all()
    assert (
        list(result.confusion.index) == ["option 1", "option 2", "option 3"] and result.confusion.to_numpy().sum() == 5
    )


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text("ab1 ", min_size=1, max_size=4), min_size=2, max_size=5, unique=True), st.booleans())
def test_an_option_that_begins_another_can_lose_to_it(options, with_prompt):
    lm = tiny("gpt2", dtype=DOUBLE)
    prompt = tuned(lm, True, 2) if with_prompt else None
    begins = any(a != b and b.startswith(a) for a in options for b in options)
    scores = score_options(lm, prompt, ["q"], options)
    want, _ = plain_table(lm, prompt, ["q"], options, begins or with_prompt)
    assert np.allclose(scores, want, rtol=1e-9, atol=0)


def test_a_prompt_that_was_tuned_to_say_the_longer_label_is_read_so():
    lm = load_lm()
    examples = [Example(f"country : {name}", " good and bad") for name in ("france", "spain", "japan")]
    run = tune(lm, SoftPrompt.init(lm, 6), examples, steps=60, batch_size=3, progress=False)
    options = [" good", " good and bad"]
    texts = [example.input for example in examples]
    assert score_options(lm, run.prompt, texts, options).argmax(1).tolist() == [1, 1, 1]
    assert label_accuracy(lm, run.prompt, examples, options).accuracy == 1
    assert score_options(lm, run.prompt, texts, options, end=False).argmax(1).tolist() == [0, 0, 0]


def test_a_text_may_end_each_option():
    lm = tiny("gpt2", dtype=DOUBLE)
    want, _ = plain_table(lm, None, TEXTS, [" 1.", " 10."], False)
    assert np.allclose(score_options(lm, None, TEXTS, [" 1", " 10"], end="."), want, rtol=1e-9, atol=0)
    lm.tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no end-of-text token"):
        score_options(lm, None, TEXTS, [" 1", " 10"])


def test_a_target_with_nothing_in_front_has_no_probability():
    lm = tiny("gpt2")
    for call in (
        lambda: loss_on(lm, None, [Example("ab", " c"), Example("", " de")]),
        lambda: loss_on(lm, None, [Example("", "d")], end=False),
        lambda: score_options(lm, None, ["ab", ""], [" c", " d"]),
        lambda: label_accuracy(lm, None, [Example("", " c")], [" c", " d"]),
    ):
        with pytest.raises(ValueError, match="nothing stands in front"):
            call()
    with_bos = tiny("gemma", bos=True, dtype=DOUBLE)
    for given_lm, prompt in ((with_bos, None), (lm, SoftPrompt.init(lm, 1))):
        total, count = target_logprobs(given_lm, prompt, [Example("", " de")], end=False)
        assert count.tolist() == [3] and total < 0


def test_what_is_not_a_number_is_refused_with_what_to_take():
    lm = tiny("gpt2")
    broken = SoftPrompt(torch.full((2, lm.d_model), torch.nan))
    for call in (loss_on, label_accuracy):
        with pytest.raises(ValueError, match="NaN.*diverged"):
            call(lm, broken, EXAMPLES)
    total, _ = target_logprobs(lm, broken, EXAMPLES, allow_nan=True)
    assert total.isnan().all()
    half = tiny("llama", dtype=torch.float16)
    with torch.no_grad():
        half.model.get_output_embeddings().weight.mul_(1e5)
    with pytest.raises(ValueError, match="float16: load it with dtype='bfloat16' or dtype='float32'"):
        score_options(half, None, ["ab"], [" c", " d"])


def test_what_inputs_have_in_common_is_not_their_content():
    assert without_content(["say a b now", "say abc now"]) == "say N/A now"
    assert without_content(["same", "same"]) is without_content(["one"]) is None
    assert without_content(["x", "y"]) == "N/A"
    assert without_content(["the film", "the fish"]) == "the N/A"  # whole words


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text("ab", max_size=8), min_size=2, max_size=5, unique=True), st.text("ab \n", max_size=5))
def test_without_content_keeps_the_common_ends_alone(contents, frame):
    texts = [f"{frame} {content} {frame}" for content in contents]
    free = without_content(texts, "#")
    front, back = free.split("#")
    assert free == f"{frame} # {frame}"
    assert all(text.startswith(front) and text.endswith(back) for text in texts)
    assert all(len(front) + len(back) <= len(text) for text in texts)


def test_what_does_not_fit_is_said():
    lm = tiny("gpt2")
    for message, arguments in {
        "Row 0: the target ' good' must be one": dict(labels=["good", "bad"]),
        "2 lists of labels for 5 examples": dict(labels=[[" a", " b"], [" a", " b"]]),
        "at least two labels": dict(labels=[" good"]),
        "by='mean'": dict(by="mean"),
    }.items():
        with pytest.raises(ValueError, match=message):
            label_accuracy(lm, None, EXAMPLES, **arguments)
    with pytest.raises(ValueError, match="no examples"):
        label_accuracy(lm, None, [])
    with pytest.raises(ValueError, match="content_free="):
        label_accuracy(lm, None, EXAMPLES[:1], LABELS, "prior")
    assert label_accuracy(lm, None, EXAMPLES[:1], LABELS).prior is None
    with pytest.raises(ValueError, match="each of them once"):
        score_options(lm, None, ["q"], [" a", " a"])


def test_a_result_says_what_a_share_hides():
    lm = load_lm()
    result = label_accuracy(lm, None, EXAMPLES)
    text = repr(result)
    assert "end not counted" in text and "commonest label 0.4" in text and "predicts" in text
    counts = result.confusion
    assert counts.to_numpy().sum() == 5 and np.trace(counts) / 5 == float(result.accuracy)
    assert result.plot().get_xlabel() == "predicted"
    assert exact_match(lm, None, EXAMPLES).n == 5
