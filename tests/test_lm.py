"""Loading, and what is refused."""

from softprompt_nb.lm import refuse_unsupported
from softprompt_nb.load import lab_models, load_lm

import pytest
import torch
from families import FAMILIES, MORE, tiny
from transformers import GemmaConfig, T5Config


@pytest.mark.parametrize("family", [*FAMILIES, *MORE])
@torch.no_grad()
def test_embedding_trunk_and_head_are_the_model(family):
    lm = tiny(family)
    ids = torch.tensor([[5, 9, 40, 3]])
    pieces = lm.head(lm.trunk(inputs_embeds=lm.embed(ids), use_cache=False).last_hidden_state)
    assert torch.allclose(pieces, lm.model(ids).logits, atol=1e-5)


def test_the_table_is_what_layers_receive():
    lm = tiny("gpt2")
    assert (
        torch.allclose(lm.norms, lm.embedding.weight.norm(dim=1))
        and abs(lm.scale - lm.embedding.weight.square().mean().sqrt()) < 1e-6
    )
    assert torch.equal(torch.cat(list(lm.embed_rows(chunk=50))), lm.embedding.weight)


def test_fingerprint_does_not_depend_on_precision():
    a, b, c = tiny("llama"), tiny("llama", dtype=torch.bfloat16), tiny("llama", seed=1)
    assert a.fingerprint == b.fingerprint != c.fingerprint


def test_unknown_names_list_the_lab_and_say_what_of_the_hub():
    with pytest.raises(ValueError, match="lab-instruct-s.*hub (was|could)"):
        load_lm("no-such-model")


@pytest.mark.parametrize("name", ["/no/such/folder", "./models/none", "../none", "~/models/none"])
def test_a_folder_that_is_not_there_is_no_hub_name(name, monkeypatch):
    monkeypatch.setattr("softprompt_nb.load._from_pretrained", lambda *a: pytest.fail("the hub was asked"))
    with pytest.raises(ValueError, match="no folder") as e:
        load_lm(name)
    assert name in str(e.value)


def test_folders_without_safetensors_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no config.json"):
        load_lm(tmp_path)
    tiny("gpt2").model.config.save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ValueError, match="pickle"):
        load_lm(tmp_path)


def test_a_folder_is_loaded(tmp_path):
    lm = tiny("llama")
    lm.model.save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    again = load_lm(tmp_path)
    assert (
        again.fingerprint == lm.fingerprint
        and not again.model.training
        and not any(p.requires_grad for p in again.model.parameters())
    )
    assert load_lm(tmp_path, dtype="bfloat16").dtype == torch.bfloat16


def test_a_folder_is_named_as_it_was_given(tmp_path):
    T5Config(num_layers=1).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ValueError) as e:
        load_lm(tmp_path)
    assert str(e.value).startswith(f"{str(tmp_path)!r} is an encoder-decoder")


def test_unsupported_architectures_are_named():
    with pytest.raises(ValueError, match="encoder-decoder"):
        refuse_unsupported(T5Config(), "t5")
    c = GemmaConfig()
    c.hidden_size_per_layer_input = 256
    with pytest.raises(ValueError, match="every layer"):
        refuse_unsupported(c, "gemma3n")


@pytest.mark.parametrize("name", lab_models())
def test_lab_models_are_small_and_safe(name):
    from softprompt_nb.load import LAB

    files = [f for f in (LAB / name).rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) < 16e6 and {f.suffix for f in files} <= {
        ".json",
        ".safetensors",
        ".txt",
    }
