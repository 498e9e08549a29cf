"""InSPEcT and the lens: batches are single pairs, whatever the family; what is put back where it came from changes nothing."""

from softprompt_nb.engine.inference import generate
from softprompt_nb.prompts import SoftPrompt
from softprompt_nb.translation.readings.inspect import (
    Readings,
    TargetText,
    best_of_all,
    choose_pair,
    inspect_prompt,
    patched,
    target_text,
)
from softprompt_nb.translation.readings.verbalize import logit_lens, prompt_states

import numpy as np
import pytest
import torch
from families import FAMILIES, tiny
from slow_inspect import one_pair

_made = {}


def lm_of(name):
    if name not in _made:
        _made[name] = tiny(name)
    return _made[name]


each_family = pytest.mark.parametrize("name", list(FAMILIES))
TARGET = TargetText("ab {}=", "x")


@each_family
def test_a_batch_of_all_pairs_and_ragged_prompts_is_every_pair_alone(name):
    lm = lm_of(name)
    prompts = [SoftPrompt.init(lm, n, "gaussian", seed=n) for n in (3, 1, 3)]
    got = inspect_prompt(lm, prompts, TARGET, max_new_tokens=6, batch_size=7, stop=None)
    for i, p in enumerate(prompts):
        for s in got.sources:
            for t in got.targets:
                want = one_pair(lm, p, s, t, TARGET, 6, cache=False).strip().split("\n")[0].strip()
                assert got.at(s, t)[i] == want, (i, s, t)


@each_family
def test_states_are_those_that_the_model_reports(name):
    lm = lm_of(name)
    prompts = [SoftPrompt.init(lm, n, "gaussian", seed=n) for n in (5, 2)]
    for p, got in zip(prompts, prompt_states(lm, prompts)):
        want = lm.model(inputs_embeds=p.vectors[None], output_hidden_states=True).hidden_states
        assert got.shape == (lm.config.num_hidden_layers + 1, p.n, lm.d_model) and torch.equal(got[0], p.vectors)
        for a, b in zip(got[1:-1], want[1:-1]):
            assert torch.allclose(a, b[0], atol=1e-4)  # the last one is reported behind the final norm


@each_family
def test_a_text_in_its_own_place_changes_nothing(name):
    lm = lm_of(name)
    text = SoftPrompt.init(lm, how="text", n=3, text="xyz")
    plain = generate(lm, None, "ab xyz=", 6)[0]
    assert patched(lm, text.vectors[None], [0], TARGET, 6) == [plain]


@each_family
def test_the_last_level_of_the_lens_is_the_model(name):
    lm = lm_of(name)
    p = SoftPrompt.init(lm, 4, "gaussian")
    best = lm.model(inputs_embeds=p.vectors[None]).logits[0].argmax(-1).tolist()
    last = logit_lens(lm, p).iloc[-1]
    assert [c.rsplit(" ", 1)[0] for c in last] == [repr(lm.tokenizer.decode(i)) for i in best]


def test_no_hook_stays_behind_even_after_an_error():
    lm = tiny("llama")  # one that was not asked for its hidden states, which leaves hooks of the library's own
    p = SoftPrompt.init(lm, 3)
    inspect_prompt(lm, p, TARGET, max_new_tokens=2)
    with pytest.raises(RuntimeError):
        patched(lm, torch.zeros(2, 3, lm.d_model + 1), [0, 1], TARGET, 2)
    assert not any(m._forward_hooks for m in lm.model.modules())


def test_the_pair_is_the_best_mean_and_the_oracle_the_best_of_each():
    texts = np.array([[["a", "bb"], ["ccc", "d"]], [["eeeee", "f"], ["g", "h"]]], dtype=object)
    r = Readings(texts, [1, 3], [0, 2])
    assert choose_pair(r, lambda i, t: len(t)) == (1, 0) and r.at(1, 0) == ["a", "eeeee"]
    assert best_of_all(r, lambda i, t: len(t)) == ["ccc", "eeeee"]
    assert r.scores(lambda i, t: i).tolist() == [[[0, 0], [0, 0]], [[1, 1], [1, 1]]]


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda lm, p: inspect_prompt(lm, p, sources=[9]), "levels from 0 to 3"),
        (lambda lm, p: inspect_prompt(lm, p, targets=[3]), "levels from 0 to 2"),
        (lambda lm, p: TargetText("no gap"), "gap"),
        (lambda lm, p: TargetText("{} {}"), "gap"),
        (lambda lm, p: inspect_prompt(lm, p, TargetText("{}", "xx")), "single token"),
    ],
)
def test_bad_input_is_said(call, words):
    lm = lm_of("llama")
    with pytest.raises(ValueError, match=words):
        call(lm, SoftPrompt.init(lm, 2))


def test_demonstrations_come_before_the_gap():
    assert target_text(["one thing", "another"]).text == "one thing | another | {} |"
