"""Loading with what people hand it: each mistake one sentence, at once; each option where it belongs."""

import json
import multiprocessing
import shutil
import socket
import threading
import warnings
from pathlib import Path

from softprompt_nb import load as module
from softprompt_nb import public
from softprompt_nb.lab.recipes import RECIPES
from softprompt_nb.lm import FrozenLM, refuse_unsupported
from softprompt_nb.load import LAB, cached_lm, lab_models, load_lm

import pytest
import torch
from families import V, tiny, tokenizer
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    FalconMambaConfig,
    Mamba2Config,
    MambaConfig,
    RecurrentGemmaConfig,
    RobertaConfig,
    RwkvConfig,
    XLNetConfig,
)


def saved(lm, folder):
    "A model's folder."
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return saved(tiny("llama"), tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def copied(folder, tmp_path):
    "A copy to break."
    return shutil.copytree(folder, tmp_path / "copy")


def in_cache(cache, revisions):
    "A hub cache with one repository, a folder for each commit, the branch main on the last one."
    repository = cache / "models--me--tiny"
    (repository / "refs").mkdir(parents=True)
    for i, source in enumerate(revisions):
        commit = f"{i + 1}" * 40
        shutil.copytree(source, repository / "snapshots" / commit)
        (repository / "refs" / "main").write_text(commit)
    return cache


@pytest.mark.parametrize(
    "settings,words",
    [
        (dict(dtype="fp16"), "did you mean 'float16'"),
        (dict(dtype="bf16"), "did you mean 'bfloat16'"),
        (dict(dtype="int8"), "give one of 'float32'"),
        (dict(dtype=torch.int64), "give one of 'float32'"),
        (dict(dtype="nn"), "give one of 'float32'"),
        (dict(device="gpu"), "'cuda' for a GPU"),
        (dict(device="cuda:99"), "torch sees"),
        (dict(device="meta"), "holds no numbers"),
        (dict(device="cpu", device_map="auto"), "give one of them"),
        (dict(torch_dtype="bfloat16"), "give dtype="),
        (dict(trust_remote_code=True), "ever run"),
        (dict(use_safetensors=False), "safetensors only"),
        (dict(revision="main"), "names on the hub"),
    ],
)
def test_settings_that_there_are_not_are_refused_before_anything_is_read(settings, words, monkeypatch):
    monkeypatch.setattr(module, "_from_pretrained", lambda *args: pytest.fail("something was read"))
    with pytest.raises(ValueError, match=words) as raised:
        load_lm("lab-base-xs", **settings)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("dtype", ["float64", "torch.bfloat16", torch.float16, "auto"])
def test_number_formats_by_name_or_as_they_are(dtype):
    expected = torch.float16 if dtype == "auto" else getattr(torch, str(dtype).removeprefix("torch."))
    assert load_lm("lab-base-xs", dtype=dtype).dtype == expected


def test_the_cache_and_the_revision_reach_configuration_tokenizer_and_weights(folder, tmp_path):
    "Two commits that differ in all three."
    other = tiny("gpt2", bos=True, seed=3)
    cache = in_cache(tmp_path / "cache", [saved(other, tmp_path / "other"), folder])
    first = load_lm("me/tiny", cache_dir=cache, revision="1" * 40)
    assert (first.config.model_type, first.revision) == ("gpt2", "1" * 40)
    assert first.tokenizer.bos_token == "<bos>" and first.fingerprint == other.fingerprint
    last = load_lm("me/tiny", cache_dir=str(cache), token="secret")
    assert (last.config.model_type, last.revision, last.tokenizer.bos_token) == ("llama", "2" * 40, None)
    assert last.fingerprint == tiny("llama").fingerprint
    for wrong in (dict(cache_dir=tmp_path / "none"), dict(cache_dir=cache, revision="v9")):
        with pytest.raises(ValueError, match="not in the cache"):
            load_lm("me/tiny", **wrong)


def test_a_folder_of_a_repository_reaches_configuration_tokenizer_and_weights(folder, tmp_path):
    inner = shutil.copytree(folder, tmp_path / "repo" / "inner")
    assert load_lm(inner.parent, subfolder="inner").fingerprint == tiny("llama").fingerprint
    cache = in_cache(tmp_path / "cache", [inner.parent])
    assert load_lm("me/tiny", cache_dir=cache, subfolder="inner").fingerprint == tiny("llama").fingerprint
    with pytest.raises(ValueError, match="no config.json"):
        load_lm(inner.parent)


def test_all_that_says_where_is_given_to_all_three(monkeypatch):
    where = dict(cache_dir="c", subfolder="s", token="t", proxies={"https": "p"}, force_download=True)
    seen = []

    def record(kind, source, **options):
        seen.append({key: options.get(key) for key in (*where, "revision")})
        if kind is AutoModelForCausalLM:
            return tiny("llama").model, {}
        return tokenizer() if kind is AutoTokenizer else tiny("llama").config

    for name in ("AutoConfig", "AutoTokenizer", "AutoModelForCausalLM"):
        monkeypatch.setattr(getattr(module, name), "from_pretrained", classmethod(record))
    monkeypatch.setattr(module, "hub_reachable", lambda: "was reached")
    load_lm("me/tiny", revision="r", **where)
    assert seen == [where | dict(revision="r")] * 3


def test_what_is_not_there_is_said_after_one_attempt_to_connect(monkeypatch):
    attempts = []

    def refuse(address, timeout):
        attempts.append(address)
        raise OSError

    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(public, "getproxies", dict)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(module.AutoConfig, "from_pretrained", lambda *args, **options: pytest.fail("the hub was asked"))
    with pytest.raises(ValueError, match="lab-instruct-s.*not in the cache.*hub could not be reached"):
        load_lm("nobody/no-such-model")
    assert attempts == [("huggingface.co", 443)]
    monkeypatch.setattr(public, "getproxies", lambda: {"https": "proxy.example:3128"})
    assert public.hub_reachable() == "could not be reached" and attempts[-1] == ("proxy.example", 3128)


def test_what_is_in_the_cache_needs_no_hub(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "hub_reachable", lambda: "could not be reached")
    cache = in_cache(tmp_path / "cache", [folder])
    assert load_lm("me/tiny", cache_dir=cache).fingerprint == tiny("llama").fingerprint


@pytest.mark.parametrize("name", ["me/tiny/model", "two words", "a//b", "", "me/tiny?"])
def test_names_that_no_hub_has(name):
    with pytest.raises(ValueError, match="looks like that|no config.json|cache"):
        load_lm(name)


@pytest.mark.parametrize("size", [0, 5, 100, -3])
def test_weights_that_are_cut_short(copied, size):
    file = copied / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(ValueError, match="cut short or damaged.*again"):
        load_lm(copied)


def test_weights_that_were_never_fetched(copied):
    (copied / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n")
    with pytest.raises(ValueError, match="pointer of Git LFS"):
        load_lm(copied)


def test_a_part_that_is_missing(tmp_path):
    lm = tiny("llama")
    lm.model.save_pretrained(tmp_path, max_shard_size="50KB")
    lm.tokenizer.save_pretrained(tmp_path)
    assert load_lm(tmp_path).fingerprint == lm.fingerprint
    next(tmp_path.glob("model-00002*")).unlink()
    with pytest.raises(ValueError, match="lacks model-00002"):
        load_lm(tmp_path)


def test_weights_that_no_file_has_are_not_made_up(copied):
    "transformers fills them with random numbers."
    weights = load_file(copied / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, copied / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lack 1 of the model's weights \(model.layers.1.mlp.up_proj.weight\)"):
        load_lm(copied)


def test_weights_without_a_place_are_said(copied):
    "A configuration of fewer layers than the files have."
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | dict(num_hidden_layers=2)))
    with pytest.warns(UserWarning, match="no place in the model.*layers.2"):
        load_lm(copied)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "gemma", "qwen2"])
def test_a_folder_without_a_tokenizer(family, tmp_path):
    tiny(family).model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"tokenizer.*save_pretrained\(folder\)"):
        load_lm(tmp_path)


def test_an_adapter_is_no_model(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "some/base"}')
    with pytest.raises(ValueError, match="SoftPrompt.load"):
        load_lm(tmp_path)


@pytest.mark.parametrize("kept", [load_lm, cached_lm])
def test_a_folder_of_a_known_name_is_said(kept, copied, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "_KEPT", {})
    copied.rename(tmp_path / "lab-instruct-xs")
    with pytest.warns(UserWarning, match="a folder 'lab-instruct-xs' here too, which './lab-instruct-xs' takes"):
        shipped = kept("lab-instruct-xs")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        own = kept("./lab-instruct-xs")
    assert own.fingerprint != shipped.fingerprint


@pytest.mark.parametrize(
    "name", [next(iter(public.PUBLIC)), next(name for name in RECIPES if name not in lab_models())]
)
def test_folders_of_recipes_and_of_public_names_are_said_too(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    for function in ("public_model", "_from_recipe"):
        monkeypatch.setattr(module, function, lambda name, *_: Path("known") / name)
    with pytest.warns(UserWarning, match=f"folder {name!r} here too"):
        assert module._resolve(name) == Path("known") / name


def test_a_file_is_no_folder(folder):
    with pytest.raises(ValueError, match="is a file"):
        load_lm(folder / "model.safetensors")


def test_a_home_is_found(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    monkeypatch.setenv("USERPROFILE", str(folder.parent))
    assert load_lm("~/llama").fingerprint == tiny("llama").fingerprint


def test_code_that_comes_with_a_checkpoint_is_neither_run_nor_asked_about(copied):
    config = json.loads((copied / "config.json").read_text())
    own = dict(model_type="own", auto_map={"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"})
    (copied / "config.json").write_text(json.dumps(config | own))
    (copied / "code.py").write_text("raise SystemExit('run')")
    with pytest.raises(ValueError, match="never run"):
        load_lm(copied)


@pytest.mark.parametrize("kind", [MambaConfig, Mamba2Config, FalconMambaConfig, RwkvConfig, RecurrentGemmaConfig])
def test_models_without_attention_are_refused(kind):
    with pytest.raises(ValueError, match="carries a state.*use a model with attention"):
        refuse_unsupported(kind(), "state/model")


@pytest.mark.parametrize("kind", [BertConfig, RobertaConfig, XLNetConfig])
def test_encoders_are_refused_because_they_see_the_answer(kind):
    with pytest.raises(ValueError, match="would read the answer"):
        refuse_unsupported(kind(), "bert")


def test_a_bert_that_is_a_decoder_is_one():
    shape = dict(vocab_size=V, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48)
    model = AutoModelForCausalLM.from_config(BertConfig(**shape, is_decoder=True))
    assert FrozenLM(model, tokenizer(), "decoder").d_model == 32


def test_threads_that_load_at_once_get_what_they_asked_for(folder):
    "transformers changes the default number format of the whole process while it loads."
    formats = ["float64", "float32", "bfloat16", "float16"] * 3
    found, default = [None] * len(formats), torch.get_default_dtype()

    def load(i):
        found[i] = load_lm(folder, dtype=formats[i])

    threads = [threading.Thread(target=load, args=(i,)) for i in range(len(formats))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [str(lm.dtype) for lm in found] == [f"torch.{name}" for name in formats]
    assert {lm.fingerprint for lm in found if lm.dtype != torch.float16} == {tiny("llama").fingerprint}
    assert torch.get_default_dtype() == default


def load_and_tell(folder, results):
    results.put(load_lm(folder).fingerprint)


def test_processes_that_load_at_once(folder):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=load_and_tell, args=(folder, results)) for _ in range(3)]
    for process in processes:
        process.start()
    assert {results.get(timeout=120) for _ in processes} == {tiny("llama").fingerprint}
    for process in processes:
        process.join()


def test_models_stay_loaded_within_bounds(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(module, "_KEPT", {})
    names = [shutil.copytree(folder, tmp_path / str(i)) for i in range(5)]
    first = cached_lm(names[0])
    assert cached_lm(str(names[0]), None, None) is first and cached_lm(names[0], dtype="float64") is not first
    for name in names[1:4]:
        cached_lm(name)
    assert len(module._KEPT) == 4 and cached_lm(names[0]) is not first
    cached_lm(names[1], keep=1)
    assert len(module._KEPT) == 1
    monkeypatch.setattr(module, "_KEPT_BYTES", 3 * module._size(first) - 1)
    for name in names[:4]:
        cached_lm(name)
    assert len(module._KEPT) == 2
    monkeypatch.setattr(module, "_KEPT_BYTES", 1)
    assert cached_lm(names[4]) is cached_lm(names[4]) and len(module._KEPT) == 1
    with pytest.raises(ValueError, match="keep=0"):
        cached_lm(keep=0)


def test_a_folder_that_was_written_anew_is_loaded_anew(copied, monkeypatch):
    monkeypatch.setattr(module, "_KEPT", {})
    before = cached_lm(copied)
    saved(tiny("llama", seed=5), copied)
    assert cached_lm(copied).fingerprint == tiny("llama", seed=5).fingerprint != before.fingerprint


def test_threads_that_ask_for_one_model_share_it(folder, monkeypatch):
    monkeypatch.setattr(module, "_KEPT", {})
    found = []
    threads = [threading.Thread(target=lambda: found.append(cached_lm(folder))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and len(set(map(id, found))) == 1


def test_the_lab_is_whole():
    assert all(module._check_folder(LAB / name) for name in module.lab_models())
