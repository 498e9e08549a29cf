"""Which model is it: the same in every number format, another one as soon as weights change."""

import copy
import hashlib
import json
import warnings

from softprompt_nb.conditional import ConditionalPrompt, SubspacePrompt
from softprompt_nb.data import Example
from softprompt_nb.engine.inference import generate, loss_on, score_options, to_prompt_embeds
from softprompt_nb.identity import identity_of
from softprompt_nb.lm import FrozenLM
from softprompt_nb.load import load_lm
from softprompt_nb.prompts import SoftPrompt
from softprompt_nb.training.many import tune_many
from softprompt_nb.training.tuning import tune
from softprompt_nb.translation.readings.verbalize import logit_lens, nearest_tokens

import pytest
import torch
from families import FAMILIES, MORE, tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from real_models import real_lm

FORMATS = ("float64", "float32", "bfloat16", "float16")


def kept_in(lm, name):
    "A model in another number format."
    return FrozenLM(copy.deepcopy(lm.model).to(getattr(torch, name)), lm.tokenizer, lm.name)


def changed(lm, share, which=lambda name: True, rank=None, seed=0):
    "A model with some tensors moved by a share of their norm, by noise or by a product of two thin matrices."
    other = copy.deepcopy(lm.model)
    generator = torch.Generator().manual_seed(seed)
    moved = 0
    with torch.no_grad():
        for name, weight in other.named_parameters():
            if weight.ndim != 2 or not which(name) or weight is other.get_input_embeddings().weight:
                continue
            noise = torch.randn(weight.shape, generator=generator)
            if rank is not None:
                noise = torch.randn(len(weight), rank, generator=generator) @ noise[:rank]
            weight.add_((noise * share * weight.float().norm() / noise.norm()).to(weight.dtype))
            moved += 1
    assert moved
    return FrozenLM(other, lm.tokenizer, lm.name)


def fingerprint_of_old(lm):
    "What version 0.1 computed: a hash of the embeddings as layers receive them, in bfloat16."
    digest = hashlib.sha256(f"{lm.vocab_size}x{lm.d_model}".encode())
    rows = lm.embedding(torch.arange(lm.vocab_size))
    digest.update(rows.to(torch.bfloat16).view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]


@pytest.mark.parametrize("family", [*FAMILIES, *MORE])
def test_a_prompt_opens_on_its_model_in_every_number_format_and_on_no_other(family, tmp_path):
    lm = tiny(family)
    formats = {name: kept_in(lm, name) for name in FORMATS}
    variant, far = (changed(lm, share, lambda name: ".1." in name) for share in (0.02, 0.2))
    for name, trained_on in formats.items():
        folder = SoftPrompt.init(trained_on, 3).save(tmp_path / name)
        for other, here in formats.items():
            assert SoftPrompt.load(folder, here).base["fingerprint"] == here.fingerprint, (name, other)
        for wrong in (variant, kept_in(far, "bfloat16"), kept_in(far, "float16"), tiny(family, seed=1)):
            with pytest.raises(ValueError, match="does not fit"):
                SoftPrompt.load(folder, wrong)
    assert len({formats[name].fingerprint for name in ("float64", "float32", "bfloat16")}) == 1


@settings(max_examples=12, deadline=None)
@given(
    share=st.floats(0.003, 1),
    layer=st.integers(0, 2),
    rank=st.sampled_from([None, 1, 4]),
    stored=st.sampled_from(["float32", "bfloat16", "float16"]),
    seed=st.integers(0, 2**31),
)
def test_changed_weights_of_one_layer_are_noticed(share, layer, rank, stored, seed):
    "In the format that a checkpoint was stored in, whatever it is kept in now; a merged adapter is of low rank."
    lm = kept_in(tiny("llama"), stored)
    variant = changed(lm, share, lambda name: f".{layer}." in name, rank, seed)
    for name in ("float32", stored):
        difference = kept_in(lm, name).identity.difference(kept_in(variant, name).identity)
        assert "other weights are not" in difference


def test_one_changed_token_is_noticed_and_weights_that_are_not_numbers_belong_to_no_model():
    lm = tiny("gpt2")
    for name in ("float32", "float16"):
        here, other = kept_in(lm, name), kept_in(lm, name)
        with torch.no_grad():
            other.embedding.weight[40].mul_(-1)
        assert "embedding table" in here.identity.difference(other.identity)
        with torch.no_grad():
            other.model.transformer.h[0].attn.c_attn.weight.fill_(torch.nan)
        assert here.identity.difference(identity_of(other.model)) != ""


@pytest.mark.parametrize("family", ["gpt_neox", "gemma2"])
def test_layers_on_a_disk_have_the_identity_that_they_have_in_memory(family, tmp_path):
    whole = tiny(family)
    whole.model.save_pretrained(tmp_path / "m")
    whole.tokenizer.save_pretrained(tmp_path / "m")
    where = {"": "disk"} if family == "gemma2" else {"gpt_neox": "disk", "lm_head": "cpu"}
    lm = load_lm(tmp_path / "m", device_map=where, offload_folder=tmp_path / "off")
    assert any(weight.device.type == "meta" for weight in lm.model.parameters())
    assert lm.identity == whole.identity


SETTINGS = {
    "llama": dict(rms_norm_eps=0.5),
    "llama3_scaled": dict(rope_parameters=dict(rope_type="linear", factor=4.0, rope_theta=10000.0)),
    "gemma2": dict(final_logit_softcapping=3.0),
    "granite": dict(logits_scaling=7.5),
    "gemma3": dict(sliding_window=4),
}


@pytest.mark.parametrize("family", SETTINGS)
def test_another_configuration_is_another_model_and_what_bears_on_no_number_is_not(family, tmp_path):
    made = tiny(family)
    made.model.save_pretrained(tmp_path / "m")
    made.tokenizer.save_pretrained(tmp_path / "m")
    lm = load_lm(tmp_path / "m")
    folder = SoftPrompt.init(lm, 2).save(tmp_path / "p")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    harmless = dict(use_cache=False, initializer_range=0.5, attention_dropout=0.25, transformers_version="6", later=1)
    for changes, is_same in ((SETTINGS[family], False), (harmless, True)):
        (tmp_path / "m" / "config.json").write_text(json.dumps(config | changes))
        other = load_lm(tmp_path / "m")
        assert other.fingerprint == lm.fingerprint
        if is_same:
            assert SoftPrompt.load(folder, other) and loss_on(other, SoftPrompt.init(lm, 2), ROWS)
            continue
        with pytest.raises(ValueError, match=f"computes something else .*{next(iter(changes))}"):
            SoftPrompt.load(folder, other)
        with pytest.raises(ValueError, match="computes something else"):
            loss_on(other, SoftPrompt.init(lm, 2), ROWS)
    note = json.loads((folder / "softprompt.json").read_text())
    del note["base"]["identity"]["config"]  # as it was written before
    (folder / "softprompt.json").write_text(json.dumps(note))
    assert SoftPrompt.load(folder, lm).base["identity"]["config"] == lm.identity.config


@pytest.mark.parametrize("family", ["gpt_neox", "gemma"])
@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_prompts_of_version_0_1_open_on_their_model(family, name, tmp_path):
    "Gemma scales its embeddings, by a number that is rounded to the model's format."
    lm = tiny(family)
    trained_on = kept_in(lm, name)
    folder = SoftPrompt.init(trained_on, 2).save(tmp_path / "p")
    note = json.loads((folder / "softprompt.json").read_text())
    del note["base"]["identity"]
    note["base"]["fingerprint"] = fingerprint_of_old(trained_on)
    (folder / "softprompt.json").write_text(json.dumps(note))
    opened = [SoftPrompt.load(folder, here) for here in (trained_on, lm if name != "float16" else trained_on)]
    assert opened[0].base["fingerprint"] == trained_on.fingerprint and loss_on(lm, opened[1], [Example("a", "b")])
    with pytest.raises(ValueError, match="hash of the embedding table"):
        SoftPrompt.load(folder, tiny(family, seed=1))


ROWS = [Example("ab", "c")]
TRAINING = {
    "tune": lambda lm, prompt: tune(lm, prompt, ROWS, steps=1, progress=False),
    "tune_many": lambda lm, prompt: tune_many(lm, [prompt, prompt], [ROWS, ROWS], steps=1, progress=False),
}
USES = TRAINING | {
    "generate": lambda lm, prompt: generate(lm, prompt, ["ab"], max_new_tokens=1),
    "loss_on": lambda lm, prompt: loss_on(lm, [prompt], ROWS),
    "score_options": lambda lm, prompt: score_options(lm, prompt, ["ab"], ["c", "d"]),
    "to_prompt_embeds": lambda lm, prompt: to_prompt_embeds(lm, prompt, "ab"),
    "nearest_tokens": nearest_tokens,
    "logit_lens": logit_lens,
}


@pytest.mark.parametrize("kind", [SoftPrompt, SubspacePrompt, ConditionalPrompt])
def test_in_memory_a_prompt_of_another_model_of_the_same_width_is_refused(kind):
    lm, other = tiny("llama"), tiny("llama", seed=1)
    prompt = kind.init(lm, 2)
    for use in (TRAINING if kind is ConditionalPrompt else USES).values():
        with pytest.raises(ValueError, match=r"does not fit.*prompt\.on\(lm\)"):
            use(other, prompt)
    assert prompt.on(other).base["fingerprint"] == other.fingerprint
    for use in () if kind is ConditionalPrompt else USES.values():
        use(other, prompt.on(other))
    with pytest.raises(ValueError, match="wide"):
        SoftPrompt(torch.ones(2, 5)).on(lm)


def test_readings_of_a_prompt_in_few_directions_are_of_its_vectors():
    "With as many directions as the model is wide, coordinates look like vectors."
    lm = tiny("llama")
    prompt = SubspacePrompt.init(lm, 2, k=lm.d_model)
    assert nearest_tokens(lm, prompt).equals(nearest_tokens(lm, prompt.plain()))
    assert logit_lens(lm, prompt).equals(logit_lens(lm, prompt.plain()))


@pytest.mark.parametrize("kind", [SoftPrompt, ConditionalPrompt])
def test_another_model_is_allowed_by_an_argument_and_said(kind, tmp_path):
    lm, other = tiny("llama"), tiny("llama", seed=1)
    folder = kind.init(lm, 2).save(tmp_path / "p")
    with pytest.raises(ValueError, match="other_model=True"):
        kind.load(folder, other)
    with pytest.warns(UserWarning, match="does not fit"):
        prompt = kind.load(folder, other, other_model=True)
    assert prompt.base["fingerprint"] == other.fingerprint and prompt.n == 2


def test_a_subspace_prompt_is_not_opened_without_its_basis(tmp_path):
    lm = tiny("llama")
    prompt = SubspacePrompt.init(lm, 2, k=4)
    folder = prompt.save(tmp_path / "p")
    with pytest.raises(ValueError, match=r"open it with SoftPrompt\.load"):
        SubspacePrompt.load(folder, lm)
    assert torch.equal(SoftPrompt.load(folder, lm).vectors, prompt.plain().vectors)


def test_a_folder_that_peft_wrote_for_another_base_is_refused(tmp_path):
    from peft import PromptTuningConfig, get_peft_model

    lm = tiny("gpt_neox")
    settings = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    peft_model = get_peft_model(tiny("gpt_neox").model, settings)
    peft_model.peft_config["default"].base_model_name_or_path = "someone/Tiny-GPT_NeoX"
    peft_model.save_pretrained(tmp_path)
    config = tmp_path / "adapter_config.json"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert SoftPrompt.load(tmp_path, lm).n == 4  # the folder of a model is called as on the hub, but for its owner
    config.write_text(config.read_text().replace("Tiny-GPT_NeoX", "other"))
    with pytest.raises(ValueError, match="someone/other"):
        SoftPrompt.load(tmp_path, lm)
    with pytest.warns(UserWarning, match="someone/other"):
        assert SoftPrompt.load(tmp_path, lm, other_model=True).base["name"] == lm.name
    config.write_text(config.read_text().replace("PROMPT_TUNING", "PREFIX_TUNING"))
    with pytest.raises(ValueError, match="PREFIX_TUNING"):
        SoftPrompt.load(tmp_path, lm)


def test_vectors_that_something_else_wrote_do_not_take_our_record(tmp_path):
    lm = tiny("gpt_neox")
    folder, other = (SoftPrompt.init(lm, 2, seed=seed).save(tmp_path / str(seed)) for seed in (0, 1))
    (folder / "adapter_model.safetensors").write_bytes((other / "adapter_model.safetensors").read_bytes())
    with pytest.raises(ValueError, match="softprompt.json"):
        SoftPrompt.load(folder, lm)


@pytest.mark.parametrize("name", ["smollm2-135m-instruct", "gemma-3-270m"])
def test_a_real_model_is_itself_in_every_number_format(name):
    lm = real_lm(name)
    for number_format in ("bfloat16", "float16"):
        other = kept_in(lm, number_format)
        assert lm.difference(dict(fingerprint=other.fingerprint, identity=other.identity.note)) == ""
        variant = changed(other, 0.01, lambda name: ".7.self_attn.q_proj" in name)
        assert "other weights" in lm.difference(dict(fingerprint=variant.fingerprint, identity=variant.identity.note))
        del other, variant


class Coded(torch.nn.Module):
    "A layer whose weights are integers and a scale."

    def __init__(self, layer, most, kind):
        super().__init__()
        self.scale = layer.weight.abs().max().item() / most
        codes = (layer.weight / self.scale).round() + (0 if kind == torch.int8 else most)
        self.weight = torch.nn.Parameter(codes.to(kind), requires_grad=False)
        self.zero = 0 if kind == torch.int8 else most

    def forward(self, x):
        return torch.nn.functional.linear(x, (self.weight.to(x) - self.zero) * self.scale)


def coded(most=127, kind=torch.int8, change=0.0):
    "A model with quantised layers; of another model where weights are changed first."
    lm = tiny("llama")
    for module in list(lm.model.modules()):
        for name, layer in list(module.named_children()):
            if isinstance(layer, torch.nn.Linear) and name != "lm_head":
                with torch.no_grad():
                    layer.weight.add_(change * layer.weight.flip(0))
                setattr(module, name, Coded(layer, most, kind))
    return FrozenLM(lm.model, lm.tokenizer, lm.name)


def test_a_quantised_model_is_told_from_its_fine_tune_and_from_other_codes():
    lm = coded()
    prompt = SoftPrompt.init(lm, 4, seed=1)
    assert coded().identity == lm.identity
    loss_on(coded(), prompt, [Example("ab", " c")])
    loss_on(tiny("llama"), prompt, [Example("ab", " c")])  # codes and numbers cannot be compared
    for other in (coded(change=0.5), coded(7, torch.uint8)):
        assert other.identity.key != lm.identity.key
        with pytest.raises(ValueError, match="other weights are not"):
            loss_on(other, prompt, [Example("ab", " c")])


def test_a_prompt_of_exact_weights_on_quantised_ones_is_told_once():
    exact, codes = tiny("llama"), coded()
    rows = [Example("ab", " c"), Example("x", " y")]
    made = {lm: tune(lm, SoftPrompt.init(lm, 2), rows, steps=1, progress=False).prompt for lm in (exact, codes)}
    for here, there, words in ((codes, exact, "tuned on exact weights"), (exact, codes, "tuned on quantised weights")):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for prompt in (made[there], made[there], made[here], made[there].on(here), SoftPrompt.init(there, 2)):
                loss_on(here, prompt, rows)
        assert [words in str(each.message) for each in caught] == [True]
