"""PEFT opens a saved prompt of a real model with equal logits, and writes the same text behind it.

A prompt of PEFT was once silently ignored by `generate` (its issue 2123), so that a text must also be another one
than without the prompt."""

from softprompt_nb.data import Example, collate
from softprompt_nb.engine.forward import target_logits
from softprompt_nb.engine.inference import generate
from softprompt_nb.prompts import SoftPrompt

import pytest
import torch
from real_models import real_lm

MODELS = ["smollm2-135m-instruct", "gemma-3-270m"]
TEXTS = ["The capital of France is", "Two and two"]


def opened_by_peft(lm, folder):
    from peft import PeftModel

    return PeftModel.from_pretrained(lm.model, folder).eval()


@pytest.mark.parametrize("name", MODELS)
def test_peft_has_equal_logits_and_writes_equal_text(name, tmp_path):
    lm = real_lm(name)
    prompt = SoftPrompt.init(lm, 6, "text", text="Answer in French, please:", seed=1)
    assert torch.isfinite(prompt.vectors).all()
    peft_model = opened_by_peft(lm, prompt.save(tmp_path / "p"))

    batch = collate(lm, [Example(TEXTS[0], " Paris.")])
    with torch.no_grad():
        ours = target_logits(lm, prompt.vectors, batch)[0]
        theirs = peft_model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[:, prompt.n :]
    row, column = (batch.labels != -100).nonzero(as_tuple=True)
    assert (ours - theirs[row, column - 1]).abs().max() < 1e-4 * ours.abs().max()

    written = generate(lm, prompt, TEXTS, max_new_tokens=8)
    bare = generate(lm, None, TEXTS, max_new_tokens=8)
    assert written != bare
    for text, mine in zip(TEXTS, written):
        inputs = lm.tokenizer(text, return_tensors="pt")
        ids = peft_model.generate(**inputs, do_sample=False, max_new_tokens=8, pad_token_id=lm.pad_id)
        behind = lm.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert behind.strip() == mine.strip()
