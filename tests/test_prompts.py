"""Beginnings, and prompts on disk: equal to PEFT's reading, whole or not at all, and never unpickled."""

import json
import pickle
import shutil

from softprompt_nb import prompts as module
from softprompt_nb.data import Example, collate
from softprompt_nb.engine.forward import target_logits
from softprompt_nb.prompts import SoftPrompt

import pytest
import torch
from families import FAMILIES, tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file


@pytest.fixture(scope="module")
def lm():
    return tiny("gpt_neox")


@pytest.mark.parametrize("how", ["vocab", "text", "gaussian", "zeros"])
def test_beginnings_are_seeded_and_of_the_right_kind(lm, how):
    p, q, r = (SoftPrompt.init(lm, 6, how, seed=s, text="ab") for s in (0, 0, 1))
    assert p.vectors.shape == (6, lm.d_model) and p.vectors.dtype == torch.float32 and torch.equal(p.vectors, q.vectors)
    if how != "zeros":
        assert not torch.equal(p.vectors, r.vectors) and torch.pdist(p.vectors).min() > 0


def test_vocabulary_rows_are_ordinary_tokens(lm):
    rows = SoftPrompt.init(lm, 90, "vocab", seed=3).vectors
    ids = [(lm.embedding.weight == v).all(1).nonzero().item() for v in rows]
    assert len(set(ids)) == 90 and not set(ids) & set(lm.tokenizer.all_special_ids) and max(ids) < len(lm.tokenizer)


def test_short_text_is_filled_up_and_not_repeated(lm):
    p = SoftPrompt.init(lm, 8, "text", text="abc")
    assert (
        torch.equal(p.vectors[:3], lm.embed(torch.tensor(lm.tokenizer("abc")["input_ids"])))
        and torch.pdist(p.vectors).min() > 0
    )


def test_gaussian_has_the_tables_mean_and_covariance(lm):
    v = SoftPrompt.init(lm, 127, "gaussian", seed=0).vectors
    many = torch.cat([SoftPrompt.init(lm, 127, "gaussian", seed=s).vectors for s in range(60)])
    E = lm.embedding.weight
    assert v.shape[0] == 127 and (many.mean(0) - E.mean(0)).norm() < 0.15 * E.std(0).norm()
    assert (torch.cov(many.T) - torch.cov(E.T)).norm() < 0.15 * torch.cov(E.T).norm()


@pytest.mark.parametrize(
    "kw,words",
    [
        (dict(n=0), "n >= 1"),
        (dict(n=-2), "n >= 1"),
        (dict(n=2.5), "n >= 1"),
        (dict(n=128), "context of 128"),
        (dict(n=119), "distinct"),
        (dict(how="random"), "'vocab'"),
        (dict(how="text"), "needs text="),
        (dict(how=torch.zeros(3, 5)), r"\(n, 32\)"),
    ],
)
def test_bad_beginnings_are_refused(lm, kw, words):
    with pytest.raises(ValueError, match=words):
        SoftPrompt.init(lm, **kw)


def test_a_prompt_is_a_copy_and_frozen(lm):
    v = torch.randn(3, lm.d_model, requires_grad=True)
    p = SoftPrompt.init(lm, how=v)
    v.data.zero_()
    assert p.vectors.abs().sum() > 0 and not p.vectors.requires_grad
    with pytest.raises(Exception):
        p.vectors = v


@pytest.mark.parametrize("family", FAMILIES)
def test_peft_opens_a_saved_prompt_with_equal_logits(family, tmp_path):
    from peft import PeftModel

    lm = tiny(family)
    p = SoftPrompt.init(lm, 5, "gaussian")
    folder = p.save(tmp_path / "p")
    batch = collate(lm, [Example("abc", " de"), Example("a longer one", " x")])
    with torch.no_grad():
        ours = target_logits(lm, p.vectors, batch)[0]
        z = (
            PeftModel.from_pretrained(tiny(family).model, folder)
            .eval()(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
            .logits[:, 5:]
        )
    r, c = (batch.labels != -100).nonzero(as_tuple=True)
    assert (ours - z[r, c - 1]).abs().max() <= 1e-5 * ours.abs().max()


def test_we_open_what_peft_saved(lm, tmp_path):
    from peft import PromptTuningConfig, get_peft_model

    pm = get_peft_model(tiny("gpt_neox").model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    pm.save_pretrained(tmp_path)
    assert torch.equal(SoftPrompt.load(tmp_path, lm).vectors, pm.prompt_encoder["default"].embedding.weight.detach())


@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 40), seed=st.integers(0, 2**31), at=st.sampled_from(["start", "before_answer", 3]))
def test_saved_and_loaded_is_bit_equal(tmp_path_factory, n, seed, at):
    lm = tiny("gpt_neox")
    p = SoftPrompt.init(lm, how=torch.randn(n, lm.d_model, generator=torch.Generator().manual_seed(seed)), at=at)
    q = SoftPrompt.load(p.save(tmp_path_factory.mktemp("p") / "x"), lm)
    assert torch.equal(p.vectors, q.vectors) and (q.at, q.base, q.info) == (p.at, p.base, p.info)


def test_other_places_are_kept_from_peft(lm, tmp_path):
    assert not (SoftPrompt.init(lm, 2, at="before_answer").save(tmp_path / "p") / "adapter_config.json").exists()


def test_another_model_is_refused_with_what_differs(lm, tmp_path):
    folder = SoftPrompt.init(lm, 2).save(tmp_path / "p")
    with pytest.raises(ValueError, match="hash of the embedding table .* against"):
        SoftPrompt.load(folder, tiny("gpt_neox", seed=1))
    with pytest.raises(ValueError, match="model_type gpt_neox against llama"):
        SoftPrompt.load(folder, tiny("llama"))
    assert SoftPrompt.load(folder, tiny("gpt_neox", dtype=torch.bfloat16)).n == 2


def test_saving_replaces_a_prompt_and_nothing_else(lm, tmp_path):
    p, q = SoftPrompt.init(lm, 2), SoftPrompt.init(lm, 3)
    p.save(tmp_path / "p")
    assert SoftPrompt.load(q.save(tmp_path / "p"), lm).n == 3
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="nothing was written"):
        p.save(tmp_path / "mine")
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileExistsError):
        p.save(tmp_path / "file")
    assert (
        sorted(f.name for f in tmp_path.iterdir()) == ["file", "mine", "p"]
        and len(list((tmp_path / "mine").iterdir())) == 1
    )


def test_nothing_half_written_stays(lm, tmp_path, monkeypatch):
    old = SoftPrompt.init(lm, 2)
    old.save(tmp_path / "p")

    def fails(*a, **k):
        raise OSError("disk full")

    monkeypatch.setattr(module.json, "dumps", fails)
    with pytest.raises(OSError):
        SoftPrompt.init(lm, 3).save(tmp_path / "p")
    monkeypatch.undo()
    assert [f.name for f in tmp_path.iterdir()] == ["p"] and SoftPrompt.load(tmp_path / "p", lm).n == 2


def test_truncated_and_foreign_files_are_refused(lm, tmp_path):
    good = SoftPrompt.init(lm, 2).save(tmp_path / "good")
    cut = shutil.copytree(good, tmp_path / "cut")
    data = (cut / "adapter_model.safetensors").read_bytes()
    for size in (0, 5, 60, len(data) - 3):
        (cut / "adapter_model.safetensors").write_bytes(data[:size])
        with pytest.raises(ValueError, match="damaged"):
            SoftPrompt.load(cut, lm)
    other = shutil.copytree(good, tmp_path / "other")
    save_file({"lora_A": torch.zeros(2, 2)}, other / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="lora_A"):
        SoftPrompt.load(other, lm)
    note = shutil.copytree(good, tmp_path / "note")
    (note / "softprompt.json").write_text("{")
    with pytest.raises(ValueError, match="softprompt.json"):
        SoftPrompt.load(note, lm)
    with pytest.raises(ValueError, match="no saved prompt: there is no such folder"):
        SoftPrompt.load(tmp_path / "nowhere", lm)


def test_a_pickle_is_never_read(lm, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "adapter_model.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match="pickle"):
        SoftPrompt.load(tmp_path / "p", lm)
    (tmp_path / "p" / "adapter_model.safetensors").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match="damaged"):
        SoftPrompt.load(tmp_path / "p", lm)
    assert not (tmp_path / "ran").exists()


def test_what_a_saved_prompt_says_of_itself(lm, tmp_path):
    note = json.loads((SoftPrompt.init(lm, 2, seed=7).save(tmp_path / "p") / "softprompt.json").read_text())
    assert note["base"]["fingerprint"] == lm.fingerprint and note["info"]["seed"] == 7 and note["at"] == "start"
