"""InSPEcT and the lens.

Batches are single pairs, whatever the family; what is put back where it came from changes nothing."""

from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import product

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
from softprompt_nb.translation.readings.verbalize import (
    decoder_layers,
    hooked,
    keep_in,
    logit_lens,
    nearest_tokens,
    prompt_states,
)

import numpy as np
import pytest
import torch
from families import FAMILIES, tiny
from slow_inspect import one_pair


@cache
def lm_of(name):
    "A model in float64, so that no text hangs on the order of a sum."
    return tiny(name, dtype=torch.float64)


def random_prompt(lm, n):
    return SoftPrompt.init(lm, n, "gaussian", seed=n)


each_family = pytest.mark.parametrize("name", list(FAMILIES))
TARGET = TargetText("ab {}=", "x")


@each_family
def test_a_batch_of_all_pairs_and_ragged_prompts_is_every_pair_alone(name):
    lm = lm_of(name)
    prompts = [random_prompt(lm, n) for n in (3, 1, 3)]
    got = inspect_prompt(lm, prompts, TARGET, max_new_tokens=6, batch_size=7, stop=None)
    for source, level in product(got.sources, got.targets):
        for prompt, text in zip(prompts, got.at(source, level)):
            alone = one_pair(lm, prompt, source, level, TARGET, 6, cache=False)
            assert text == alone.strip().split("\n")[0].strip(), (source, level)


def test_hooks_of_one_thread_change_no_pass_of_another():
    lm = lm_of("gpt_neox")
    prompt, inputs = random_prompt(lm, 3), lm.embed_ids([lm.token_ids("some text")])

    def states():
        return lm.trunk(inputs_embeds=inputs).last_hidden_state

    def double(number):
        return lambda module, args, output: 2 * output if torch.is_tensor(output) else (2 * output[0], *output[1:])

    alone, levels, kept = states(), prompt_states(lm, [prompt])[0], []
    with ThreadPoolExecutor(1) as other, hooked(decoder_layers(lm), double):
        assert torch.equal(other.submit(states).result(), alone)
        assert torch.equal(other.submit(prompt_states, lm, [prompt]).result()[0], levels)
        assert not torch.equal(states(), alone)
    with ThreadPoolExecutor(1) as other, hooked(decoder_layers(lm), keep_in(kept)):
        other.submit(states).result()
        assert not kept
        states()
        assert len(kept) == len(decoder_layers(lm))


@each_family
def test_states_are_those_that_the_model_reports(name):
    lm = lm_of(name)
    prompts = [random_prompt(lm, n) for n in (5, 2)]
    for prompt, levels in zip(prompts, prompt_states(lm, prompts)):
        vectors = prompt.vectors.double()
        reported = lm.model(inputs_embeds=vectors[None], output_hidden_states=True).hidden_states
        assert levels.shape == (lm.config.num_hidden_layers + 1, prompt.n, lm.d_model)
        assert torch.equal(levels[0], vectors)
        for ours, theirs in zip(levels[1:-1], reported[1:-1]):
            assert torch.allclose(ours, theirs[0], rtol=1e-9, atol=1e-9)  # the last is reported behind the final norm


@each_family
def test_a_text_in_its_own_place_changes_nothing(name):
    lm = lm_of(name)
    text = SoftPrompt.init(lm, how="text", n=3, text="xyz")
    plain = generate(lm, None, "ab xyz=", 6)[0]
    assert patched(lm, text.vectors[None], [0], TARGET, 6) == [plain]


@each_family
def test_the_last_level_of_the_lens_is_the_model(name):
    lm = lm_of(name)
    prompt = SoftPrompt.init(lm, 4, "gaussian")
    best = lm.model(inputs_embeds=prompt.vectors[None].double()).logits[0].argmax(-1).tolist()
    last = logit_lens(lm, prompt).iloc[-1]
    assert [cell.rsplit(" ", 1)[0] for cell in last] == [repr(lm.tokenizer.decode(token)) for token in best]


def test_no_hook_stays_behind_even_after_an_error():
    lm = tiny("llama")  # one that was not asked for its hidden states, which leaves hooks of the library's own
    inspect_prompt(lm, SoftPrompt.init(lm, 3), TARGET, max_new_tokens=2)
    with pytest.raises(RuntimeError):
        patched(lm, torch.zeros(2, 3, lm.d_model + 1), [0, 1], TARGET, 2)
    assert not any(module._forward_hooks for module in lm.model.modules())


def test_the_pair_is_the_best_mean_and_the_oracle_the_best_of_each():
    texts = np.array([[["a", "bb"], ["ccc", "d"]], [["eeeee", "f"], ["g", "h"]]], dtype=object)
    readings = Readings(texts, [1, 3], [0, 2])

    def length(number, text):
        return len(text)

    assert choose_pair(readings, length) == (1, 0)
    assert readings.at(1, 0) == ["a", "eeeee"]
    assert best_of_all(readings, length) == ["ccc", "eeeee"]
    assert readings.scores(lambda number, text: number).tolist() == [[[0, 0], [0, 0]], [[1, 1], [1, 1]]]


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda lm, prompt: inspect_prompt(lm, prompt, sources=[9]), "levels from 0 to 3"),
        (lambda lm, prompt: inspect_prompt(lm, prompt, targets=[3]), "levels from 0 to 2"),
        (lambda lm, prompt: TargetText("no gap"), "gap"),
        (lambda lm, prompt: TargetText("{} {}"), "gap"),
        (lambda lm, prompt: inspect_prompt(lm, prompt, TargetText("{}", "xx")), "single token"),
    ],
)
def test_bad_input_is_said(call, words):
    lm = lm_of("llama")
    with pytest.raises(ValueError, match=words):
        call(lm, SoftPrompt.init(lm, 2))


def test_demonstrations_come_before_the_gap():
    assert target_text(["one thing", "another"]).text == "one thing | another | {} |"


def test_nearest_tokens_stand_beside_those_of_the_start():
    lm = tiny("gpt_neox")
    start = SoftPrompt.init(lm, 3, "vocab", seed=0)
    moved = start.vectors.clone()
    other = next(i for i in range(5, 50) if lm.tokenizer.decode(i).strip() and i not in start.info.get("ids", ()))
    moved[0] = lm.embed_ids([other])[0].detach().cpu() * 2
    moved[1] = moved[1] * 3  # longer, and still the same token
    prompt = SoftPrompt(moved)
    table = nearest_tokens(lm, prompt, 1, start=start)
    assert table.same.tolist() == [False, True, True]
    assert table["cosine to start"].tolist()[1:] == [1.0, 1.0] and table["cosine to start"][0] < 1
    assert table["at the start"].tolist() == nearest_tokens(lm, start, 1)["token 1"].tolist()
    assert table.equals(nearest_tokens(lm, prompt, 1, start=start.vectors))
    assert "same" not in nearest_tokens(lm, prompt, 1)
    with pytest.raises(ValueError, match="before its tuning"):
        nearest_tokens(lm, prompt, 1, start=start.vectors[:2])


def test_states_replace_what_is_read_alone_in_a_target_of_one_token():
    lm = lm_of("gpt2")
    torch.manual_seed(0)
    states = 3 * torch.randn(1, 1, lm.d_model, dtype=torch.float64)
    ids, _ = TargetText("{}").encode(lm, 1)
    assert len(ids) == 1
    new = []
    for _ in range(12):  # whole passes without a cache, the states at the first place alone

        def make(i):
            def hook(module, args, output):
                hidden = (output[0] if isinstance(output, tuple) else output).clone()
                hidden[:, :1] = states
                return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

            return hook if i == 1 else lambda *given: None

        with torch.no_grad(), hooked(decoder_layers(lm), make):
            new.append(lm.model(torch.tensor([ids + new]), use_cache=False).logits[0, -1].argmax().item())
    assert patched(lm, states, [2], TargetText("{}"), 12) == [lm.tokenizer.decode(new)]
