"""Loading, and what is refused."""

from softprompt_nb.lm import refuse_unsupported
from softprompt_nb.load import LAB, lab_models, load_lm

import pytest
import torch
from families import FAMILIES, MORE, tiny
from safetensors.torch import save_file
from transformers import GemmaConfig, T5Config


@pytest.mark.parametrize("family", [*FAMILIES, *MORE])
@torch.no_grad()
def test_embedding_trunk_and_head_are_the_model(family):
    lm = tiny(family, dtype=torch.float64)
    ids = torch.tensor([[5, 9, 40, 3]])
    pieces = lm.head(lm.trunk(inputs_embeds=lm.embed(ids), use_cache=False).last_hidden_state)
    assert (pieces - lm.model(ids).logits).abs().max() < 1e-9


def test_the_table_is_what_layers_receive():
    "Norms and scale are taken in float32: sums of as many squares as a row, or the table, has numbers."
    lm = tiny("gpt2")
    table = lm.embedding.weight
    eps = torch.finfo(torch.float32).eps
    assert (lm.norms - table.norm(dim=1)).abs().max() < eps * lm.d_model * lm.norms.max()
    assert abs(lm.scale - table.square().mean().sqrt()) < eps * table.numel() * lm.scale
    assert torch.equal(torch.cat(list(lm.embed_rows(chunk=50))), table)


def test_fingerprint_does_not_depend_on_precision():
    single, half, other = tiny("llama"), tiny("llama", dtype=torch.bfloat16), tiny("llama", seed=1)
    assert single.fingerprint == half.fingerprint != other.fingerprint


def test_ids_of_a_text_and_their_embeddings():
    lm = tiny("llama", bos=True)
    ids = lm.token_ids("a b")
    assert lm.token_ids("a b", special=True) == [lm.tokenizer.bos_token_id, *ids]
    assert torch.equal(lm.embed_ids(ids), lm.embedding.weight[ids]) and lm.embed_ids([]).shape == (0, lm.d_model)
    assert lm.embed_ids([ids, ids]).shape == (2, 3, lm.d_model)


def test_unknown_names_list_the_lab_and_say_what_of_the_hub():
    with pytest.raises(ValueError, match="lab-instruct-s.*hub (was|could)"):
        load_lm("no-such-model")


@pytest.mark.parametrize("name", ["/no/such/folder", "./models/none", "../none", "~/models/none"])
def test_a_folder_that_is_not_there_is_no_hub_name(name, monkeypatch):
    monkeypatch.setattr("softprompt_nb.load._from_pretrained", lambda *args: pytest.fail("the hub was asked"))
    with pytest.raises(ValueError, match="no folder") as raised:
        load_lm(name)
    assert name in str(raised.value)


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
    assert again.fingerprint == lm.fingerprint and not again.model.training
    assert not any(parameter.requires_grad for parameter in again.model.parameters())
    assert load_lm(tmp_path, dtype="bfloat16").dtype == torch.bfloat16


def test_a_folder_is_named_as_it_was_given(tmp_path):
    T5Config(num_layers=1).save_pretrained(tmp_path)
    save_file({}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError) as raised:
        load_lm(tmp_path)
    assert str(raised.value).startswith(f"{str(tmp_path)!r} is an encoder-decoder")


def test_unsupported_architectures_are_named():
    with pytest.raises(ValueError, match="encoder-decoder"):
        refuse_unsupported(T5Config(), "t5")
    config = GemmaConfig()
    config.hidden_size_per_layer_input = 256
    with pytest.raises(ValueError, match="every layer"):
        refuse_unsupported(config, "gemma3n")


@pytest.mark.parametrize("name", lab_models())
def test_lab_models_are_small_and_safe(name):
    files = [file for file in (LAB / name).rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 16e6
    assert {file.suffix for file in files} <= {".json", ".safetensors", ".txt"}
