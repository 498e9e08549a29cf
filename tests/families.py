"""Small random models of the families that the package supports, and a tokenizer for them."""

import copy
from functools import partial

from softprompt_nb.lm import FrozenLM

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForCausalLM,
    Cohere2Config,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    GptOssConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
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
_scaled = dict(
    rope_type="llama3",
    rope_theta=10000.0,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=32,
)
_long = dict(
    rope_type="longrope",
    rope_theta=10000.0,
    short_factor=[1.0, 1.1, 1.2, 1.3],
    long_factor=[2.0, 3.0, 4.0, 5.0],
    original_max_position_embeddings=24,
)
_local = dict(_gated, num_key_value_heads=2, head_dim=8, sliding_window=12)
_mixed = ["sliding_attention", "full_attention", "sliding_attention"]
NEWER = {
    "qwen3": lambda: Qwen3Config(**_gated, num_key_value_heads=2, head_dim=8),
    "smollm3": lambda: SmolLM3Config(**_gated, num_key_value_heads=2, no_rope_layers=[1, 0, 1], pad_token_id=0),
    "olmo2": lambda: Olmo2Config(**_gated, num_key_value_heads=2),
    "llama3_scaled": lambda: LlamaConfig(**_gated, num_key_value_heads=2, rope_parameters=_scaled),
    "phi3": lambda: Phi3Config(**_gated, num_key_value_heads=2, pad_token_id=0),
    "granite": lambda: GraniteConfig(
        **_gated,
        num_key_value_heads=2,
        embedding_multiplier=2.0,
        logits_scaling=3.0,
        residual_multiplier=0.5,
        attention_multiplier=0.3,
    ),
    "gemma3": lambda: Gemma3TextConfig(**_local, layer_types=_mixed, query_pre_attn_scalar=8),
    "gpt_oss": lambda: GptOssConfig(**_local, layer_types=_mixed, num_local_experts=4, num_experts_per_tok=2),
    "cohere2": lambda: Cohere2Config(**_local, layer_types=_mixed),
}
WINDOWED = ("mistral_window", "gemma2", "gemma3", "gpt_oss", "cohere2")  # twelve tokens, in some layers or in all
MORE = {
    **NEWER,
    "phi3_long": lambda: Phi3Config(
        **_gated,
        num_key_value_heads=2,
        pad_token_id=0,
        rope_parameters=_long,
        original_max_position_embeddings=24,
    ),
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
    config.eos_token_id = 1
    experts = dict(experts_implementation="eager") if family == "gpt_oss" else {}  # others know no float64
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, **experts)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(4)
    lm = FrozenLM(model.to(dtype), tokenizer(bos), name=f"tiny-{family}")
    return norms_in_float64(lm) if dtype == torch.float64 else lm


def reconfigured(lm, **settings):
    "The same weights under other settings, such as rms_norm_eps=.1."
    config = copy.deepcopy(lm.model.config)
    config.update(settings)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(lm.model.state_dict())
    return FrozenLM(model, lm.tokenizer, name=lm.name)
