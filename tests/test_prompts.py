"""Beginnings, and prompts on disk: equal to PEFT's reading, whole or not at all, and never unpickled."""

import json
import pickle
import shutil
import warnings
from dataclasses import FrozenInstanceError, replace

from softprompt_nb import prompts as module
from softprompt_nb.data import Example, collate
from softprompt_nb.engine.forward import target_logits
from softprompt_nb.engine.inference import loss_on
from softprompt_nb.prompts import SoftPrompt, check_model
from softprompt_nb.training.tuning import tune

import pytest
import torch
from families import FAMILIES, tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from tokenizers import normalizers


@pytest.fixture(scope="module")
def lm():
    return tiny("gpt_neox")


@pytest.mark.parametrize("how", ["vocab", "text", "gaussian", "zeros"])
def test_beginnings_are_seeded_and_of_the_right_kind(lm, how):
    text = "ab" if how == "text" else None
    first, again, other = (SoftPrompt.init(lm, 6, how, seed=seed, text=text).vectors for seed in (0, 0, 1))
    assert first.shape == (6, lm.d_model) and first.dtype == torch.float32 and torch.equal(first, again)
    if how != "zeros":
        assert not torch.equal(first, other) and torch.pdist(first).min() > 0


@pytest.mark.parametrize("how", ["vocab", "text", "gaussian", "zeros"])
def test_beginnings_on_a_model_in_float64_are_the_same_in_float64(lm, how):
    text = "ab" if how == "text" else None
    exact = SoftPrompt.init(tiny("gpt_neox", dtype=torch.float64), 6, how, text=text).vectors
    assert exact.dtype == torch.float64
    assert torch.equal(exact.float(), SoftPrompt.init(lm, 6, how, text=text).vectors)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64])
def test_only_float64_stays_as_it_is(lm, dtype, tmp_path):
    prompt = SoftPrompt.init(lm, how=torch.ones(3, lm.d_model, dtype=dtype))
    kept = torch.float64 if dtype == torch.float64 else torch.float32
    assert prompt.vectors.dtype == kept and prompt.to("cpu").vectors.dtype == kept
    saved = SoftPrompt.load(prompt.save(tmp_path / "p"), lm)
    assert saved.vectors.dtype == torch.float32 and torch.equal(saved.vectors, prompt.vectors.float())


def test_vocabulary_rows_are_ordinary_tokens(lm):
    rows = SoftPrompt.init(lm, 90, "vocab", seed=3).vectors
    ids = {(lm.embedding.weight == row).all(1).nonzero().item() for row in rows}
    assert len(ids) == 90 and not ids & set(lm.tokenizer.all_special_ids) and max(ids) < len(lm.tokenizer)


def test_short_text_is_filled_up_and_not_repeated(lm):
    vectors = SoftPrompt.init(lm, 8, "text", text="abc").vectors
    assert torch.equal(vectors[:3], lm.embed_ids(lm.token_ids("abc"))) and torch.pdist(vectors).min() > 0


def test_gaussian_has_the_tables_mean_and_covariance(lm):
    "To what 7,620 draws can tell."
    many = torch.cat([SoftPrompt.init(lm, 127, "gaussian", seed=seed).vectors for seed in range(60)])
    table = lm.embedding.weight
    assert len(many) == 60 * 127 and (many.mean(0) - table.mean(0)).norm() < 0.15 * table.std(0).norm()
    assert (torch.cov(many.T) - torch.cov(table.T)).norm() < 0.15 * torch.cov(table.T).norm()


@pytest.mark.parametrize(
    "settings,words",
    [
        (dict(n=0), "n=.*at least 1"),
        (dict(n=-2), "n=.*at least 1"),
        (dict(n=2.5), "n=.*at least 1"),
        (dict(n=128), "context of 128"),
        (dict(n=119), "distinct"),
        (dict(how="random"), "'vocab'"),
        (dict(how="text"), "needs text="),
        (dict(how=torch.zeros(3, 5)), r"\(n, 32\)"),
    ],
)
def test_bad_beginnings_are_refused(lm, settings, words):
    with pytest.raises(ValueError, match=words):
        SoftPrompt.init(lm, **settings)


def test_a_prompt_is_a_copy_and_frozen(lm):
    vectors = torch.randn(3, lm.d_model, requires_grad=True)
    prompt = SoftPrompt.init(lm, how=vectors)
    vectors.data.zero_()
    assert prompt.vectors.abs().sum() > 0 and not prompt.vectors.requires_grad
    with pytest.raises(FrozenInstanceError):
        prompt.vectors = vectors


def test_a_prompt_can_be_pickled(lm):
    prompt = SoftPrompt.init(lm, 3)
    again = pickle.loads(pickle.dumps(prompt))
    assert torch.equal(again.vectors, prompt.vectors) and (again.base, again.info) == (prompt.base, prompt.info)


@pytest.mark.parametrize("family", FAMILIES)
def test_peft_opens_a_saved_prompt_with_equal_logits(family, tmp_path):
    "The model in float64; what a Gaussian start draws is a float32 number, so the file holds all of it."
    from peft import PeftModel

    lm = tiny(family, dtype=torch.float64)
    prompt = SoftPrompt.init(lm, 5, "gaussian")
    folder = prompt.save(tmp_path / "p")
    batch = collate(lm, [Example("abc", " de"), Example("a longer one", " x")])
    peft_model = PeftModel.from_pretrained(tiny(family, dtype=torch.float64).model, folder).eval()
    with torch.no_grad():
        ours = target_logits(lm, prompt.vectors, batch)[0]
        theirs = peft_model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[:, 5:]
    row, column = (batch.labels != -100).nonzero(as_tuple=True)
    assert (ours - theirs[row, column - 1]).abs().max() <= 1e-9 * ours.abs().max()


def test_we_open_what_peft_saved(lm, tmp_path):
    from peft import PromptTuningConfig, get_peft_model

    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    peft_model = get_peft_model(tiny("gpt_neox").model, config)
    peft_model.save_pretrained(tmp_path)
    theirs = peft_model.prompt_encoder["default"].embedding.weight.detach()
    assert torch.equal(SoftPrompt.load(tmp_path, lm).vectors, theirs)


@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 40), seed=st.integers(0, 2**31), at=st.sampled_from(["start", "before_answer", 3]))
def test_saved_and_loaded_is_bit_equal(tmp_path_factory, n, seed, at):
    lm = tiny("gpt_neox")
    vectors = torch.randn(n, lm.d_model, generator=torch.Generator().manual_seed(seed))
    prompt = SoftPrompt.init(lm, how=vectors, at=at)
    again = SoftPrompt.load(prompt.save(tmp_path_factory.mktemp("p") / "x"), lm)
    assert torch.equal(prompt.vectors, again.vectors)
    assert (again.at, again.base, again.info) == (prompt.at, prompt.base, prompt.info)


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
    two, three = SoftPrompt.init(lm, 2), SoftPrompt.init(lm, 3)
    two.save(tmp_path / "p")
    assert SoftPrompt.load(three.save(tmp_path / "p"), lm).n == 3
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="nothing was written"):
        two.save(tmp_path / "work")
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileExistsError):
        two.save(tmp_path / "file")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "p", "work"]
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["thesis.txt"]


def test_nothing_half_written_stays(lm, tmp_path, monkeypatch):
    old = SoftPrompt.init(lm, 2)
    old.save(tmp_path / "p")

    def fails(*args, **options):
        raise OSError("disk full")

    monkeypatch.setattr(module.json, "dumps", fails)
    with pytest.raises(OSError):
        SoftPrompt.init(lm, 3).save(tmp_path / "p")
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["p"] and SoftPrompt.load(tmp_path / "p", lm).n == 2


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


TEMPLATES = ("[{{ messages[0].content }}]", "user: {{ messages[0].content }}\nmodel:")


def tuned(lm, at="start"):
    return tune(
        lm, SoftPrompt.init(lm, 2, at=at), [Example("ab", " c"), Example("x", " y")], steps=2, progress=False
    ).prompt


def said(call):
    "What is warned of in a call."
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(each.message) for each in caught]


@pytest.mark.parametrize("at,count", [("chat", 1), ("chat_end", 1), ("start", 0), ("before_answer", 0)])
def test_another_chat_template_is_told_where_the_place_is_in_the_chat(at, count, tmp_path):
    lm, other = tiny("llama"), tiny("llama")
    lm.tokenizer.chat_template, other.tokenizer.chat_template = TEMPLATES
    prompt = tuned(lm, at)
    prompt.save(tmp_path / "p")
    rows = [Example("ab", " c")]
    assert said(lambda: loss_on(lm, SoftPrompt.load(tmp_path / "p", lm), rows)) == []
    assert said(lambda: SoftPrompt.load(tmp_path / "p", other, other_model=True)) == []
    assert said(lambda: loss_on(other, prompt.on(other), rows)) == []
    messages = said(lambda: [loss_on(other, prompt, rows) for _ in range(2)])
    assert len(messages) == count and all("its chat template is another one" in text for text in messages)
    another = tiny("llama")
    another.tokenizer.chat_template = TEMPLATES[1]
    assert len(said(lambda: SoftPrompt.load(tmp_path / "p", another))) == count


def test_another_beginning_and_another_tokenizer_are_told(tmp_path):
    lm, begins, folds = tiny("llama"), tiny("llama", bos=True), tiny("llama")
    prompt = tuned(lm)
    folds.tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    assert any(
        "begins texts with the tokens [2], and did with []" in text
        for text in said(lambda: check_model(begins, prompt))
    )
    assert any("makes other tokens" in text for text in said(lambda: check_model(folds, prompt)))
    assert said(lambda: check_model(lm, prompt)) == []
    again = tune(begins, prompt.on(begins), [Example("ab", " c")], steps=1, progress=False).prompt
    assert said(lambda: check_model(begins, again)) == []


def test_prompts_from_before_and_untrained_ones_say_nothing(tmp_path):
    lm, begins = tiny("llama"), tiny("llama", bos=True)
    prompt = tuned(lm)
    old = replace(prompt, base={name: value for name, value in prompt.base.items() if name != "reading"})
    old.save(tmp_path / "p")
    assert said(lambda: loss_on(begins, SoftPrompt.load(tmp_path / "p", begins), [Example("ab", " c")])) == []
    assert said(lambda: check_model(begins, SoftPrompt.init(lm, 2))) == []


def test_a_text_has_as_many_vectors_as_tokens_and_is_not_cut_without_a_word():
    lm = tiny("llama")
    text = "a text of twenty-six signs"
    assert torch.equal(SoftPrompt.init(lm, text=text).vectors, lm.embed_ids(lm.token_ids(text)))
    assert SoftPrompt.init(lm, text="abc").n == SoftPrompt.init(lm, how="text", text="abc").n == 3
    with pytest.warns(UserWarning, match="has 26 tokens, and n=4 vectors hold the first 4 of them .'a te'"):
        assert torch.equal(SoftPrompt.init(lm, 4, text=text).vectors, lm.embed_ids(lm.token_ids(text)[:4]))
    assert said(lambda: SoftPrompt.init(lm, 26, text=text)) == said(lambda: SoftPrompt.init(lm, 30, text=text)) == []
    assert SoftPrompt.init(lm).n == 10
    with pytest.raises(ValueError, match="leave no room"):
        SoftPrompt.init(lm, text="a" * 200)
