"""Divergence of answers and of their ends against a loop over plain calls: eight small families, both real models."""

from softprompt_nb.prompts import SoftPrompt
from softprompt_nb.translation.translator.rerank import divergence_parts

import pytest
import torch
from families import FAMILIES, tiny
from real_models import FOLDERS, real_lm

INPUTS = ("sad", "happy day")
ANSWERS = (" happy", " a sad day")
TEXTS = ("Say the opposite.", "Repeat.")


@torch.no_grad()
def logprobs(lm, embeds, answer):
    "Log-probabilities in front of an answer's tokens and of its end, by one call of the model over the row."
    ids = [*lm.tokenizer(answer, add_special_tokens=False)["input_ids"], lm.tokenizer.eos_token_id]
    row = torch.cat([embeds, lm.model.get_input_embeddings()(torch.tensor(ids))])
    logits = lm.model(inputs_embeds=row[None]).logits[0, len(embeds) - 1 : -1]
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


def by_hand(lm, prompt, text):
    "Divergence per token: of the answers' own tokens, of their ends, of all."
    table = lm.model.get_input_embeddings()
    own, ends = [], []
    for asked, answer in zip(INPUTS, ANSWERS):
        bare = table(torch.tensor(lm.tokenizer(asked)["input_ids"]))
        told = table(torch.tensor(lm.tokenizer(f"{text}\n{asked}")["input_ids"]))
        ours = logprobs(lm, torch.cat([prompt.vectors.to(bare.dtype), bare]), answer)
        theirs = logprobs(lm, told, answer)
        each = (ours.exp() * (ours - theirs)).sum(-1).tolist()
        own += each[:-1]
        ends.append(each[-1])
    return sum(own) / len(own), sum(ends) / len(ends), sum(own + ends) / len(own + ends)


def check(lm, tolerance):
    vectors = torch.randn(4, lm.d_model, generator=torch.Generator().manual_seed(1)).to(lm.dtype) * lm.scale
    prompt = SoftPrompt(vectors)
    table = divergence_parts(lm, prompt, TEXTS, INPUTS, ANSWERS)
    for i, text in enumerate(TEXTS):
        found = table.loc[i, ["answer", "end", "all"]].tolist()
        assert found == pytest.approx(by_hand(lm, prompt, text), **tolerance)
    assert (table.answer != table["all"]).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_small_families(family):
    check(tiny(family, dtype=torch.float64), dict(rel=1e-9))


@pytest.mark.parametrize("name", FOLDERS)
def test_real_models(name):
    check(real_lm(name), dict(abs=1e-4))
