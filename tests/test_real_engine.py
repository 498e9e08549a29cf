"""The laws of the core, and greedy decoding, on the two real models, against their own call on each row."""

import warnings

from softprompt_nb.data import Example, collate, encode_at
from softprompt_nb.engine.borders import borders
from softprompt_nb.engine.decoding import end_ids
from softprompt_nb.engine.forward import target_logits
from softprompt_nb.engine.inference import generate
from softprompt_nb.prompts import SoftPrompt

import pytest
import torch
from real_models import real_lm

EXAMPLES = [
    Example("The capital of France is", " Paris"),
    Example("Two and two is", " four"),
    Example("Rome", " is old"),
]
INSTRUCTION = "Answer in a word. "


@pytest.fixture(params=["smollm2-135m-instruct", "gemma-3-270m"])
def lm(request):
    return real_lm(request.param)


def greedy(lm, embeds, steps):
    "Argmax of the model's own call over the whole row, again for each token."
    out = []
    for _ in range(steps):
        logits = lm.model(inputs_embeds=embeds[None], use_cache=False, logits_to_keep=1).logits[0, -1]
        if int(logits.argmax()) in end_ids(lm):
            break
        out.append(int(logits.argmax()))
        embeds = torch.cat([embeds, lm.embed_ids(out[-1:])])
    return lm.tokenizer.decode(out, skip_special_tokens=True)


@torch.no_grad()
def test_embedded_text_is_text_for_every_place_and_padding(lm):
    ids = lm.token_ids(INSTRUCTION)
    for at in ("start", "after_bos" if lm.tokenizer.bos_token_id == lm.token_ids("a", special=True)[0] else 1):
        want = []
        for row in encode_at(lm, EXAMPLES, at):
            whole = torch.tensor([row.ids[: row.at] + ids + row.ids[row.at :]])
            count = len(row.ids) - row.n_input
            want.append(lm.model(whole, logits_to_keep=count + 1).logits[0, :-1])
        want = torch.cat(want)
        for side, shared in (("right", True), ("left", True), ("left", False)):
            batch = collate(lm, EXAMPLES, at=at, padding_side=side)
            ours = target_logits(lm, lm.embed_ids(ids), batch, shared)[0]
            assert (ours - want).abs().max() <= 1e-4 * want.abs().max()


@torch.no_grad()
def test_a_batch_says_what_each_row_says_by_hand(lm):
    "Gemma's window is 512 tokens, which the longest row, or its new tokens, cross."
    window = borders(lm).window
    fill = lm.token_ids(" and so on") * 200
    prompt = SoftPrompt.init(lm, n=4, how="text", text=INSTRUCTION)
    texts = [example.input for example in EXAMPLES[:2]]
    if window is not None:
        texts.append(lm.tokenizer.decode(fill[: window - 4 - prompt.n]))
    want = []
    for text in texts:
        ids = lm.token_ids(text, special=True)
        want.append(greedy(lm, torch.cat([prompt.vectors, lm.embed_ids(ids)]), 4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert generate(lm, prompt, texts, 4) == want
