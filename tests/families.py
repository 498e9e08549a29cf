"""Small random models of the families that the package supports, and a tokenizer for them."""

from functools import partial

from softprompt_nb.lm import FrozenLM

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PhiConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

V, D = 120, 32
LAB = ("lab-base-s", "lab-instruct-s")  # the pretrained ones that tests of the core take along
_common = dict(vocab_size=V, hidden_size=D, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=128)
_gated = dict(_common, intermediate_size=48)

FAMILIES = {
    "gpt2": lambda: GPT2Config(vocab_size=V, n_embd=D, n_layer=3, n_head=4, n_positions=128),
    "gpt_neox": lambda: GPTNeoXConfig(**_gated),
    "llama": lambda: LlamaConfig(**_gated, num_key_value_heads=2),
    "qwen2": lambda: Qwen2Config(**_gated, num_key_value_heads=2),
    "mistral": lambda: MistralConfig(**_gated, num_key_value_heads=2, sliding_window=None),
    "gemma": lambda: GemmaConfig(**_gated, num_key_value_heads=1, head_dim=8),
    "opt": lambda: OPTConfig(
        vocab_size=V,
        hidden_size=D,
        num_hidden_layers=3,
        num_attention_heads=4,
        ffn_dim=48,
        max_position_embeddings=128,
        word_embed_proj_dim=D,
    ),
    "phi": lambda: PhiConfig(**_gated),
}
MORE = {
    "qwen3": lambda: Qwen3Config(**_gated, num_key_value_heads=2, head_dim=8),
    "mistral_window": lambda: MistralConfig(**_gated, num_key_value_heads=2, sliding_window=12),
    "gemma2": lambda: Gemma2Config(
        **_gated, num_key_value_heads=2, head_dim=8, sliding_window=12, query_pre_attn_scalar=8
    ),
}


def tokenizer(bos=False):
    "One token per printable character, a few special tokens, and optionally a beginning-of-text token."
    special = ["<pad>", "<eos>", "<bos>"]
    printable = [chr(code) for code in range(32, 127)]
    vocab = {token: i for i, token in enumerate([*special, *printable])}
    made = Tokenizer(models.WordLevel(vocab, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.decoder = decoders.Fuse()
    if bos:
        made.post_processor = TemplateProcessing("<bos> $A", special_tokens=[("<bos>", 2)])
    bos_token = "<bos>" if bos else None
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token=bos_token,
    )


def norms_in_float64(lm):
    """Normalise in the model's own precision.

    Root-mean-square norms cast to float32 whatever the dtype, which would hide everything below seven digits."""
    for module in lm.model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            is_gemma = "Gemma" in type(module).__name__
            gain = 1 + module.weight if is_gemma else module.weight
            epsilon = module.eps if is_gemma else module.variance_epsilon
            module.forward = partial(F.rms_norm, normalized_shape=gain.shape, weight=gain, eps=epsilon)
    return lm


def tiny(family, bos=False, dtype=torch.float32, seed=0):
    "A random model of a family, its weights large enough that positions and attention matter; exact in float64."
    torch.manual_seed(seed)
    config = (FAMILIES | MORE)[family]()
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(4)
    lm = FrozenLM(model.to(dtype), tokenizer(bos), name=f"tiny-{family}")
    return norms_in_float64(lm) if dtype == torch.float64 else lm
