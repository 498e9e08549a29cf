"""Small random models of the families that the package supports, and a tokenizer for them."""

from softprompt_nb.lm import FrozenLM

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
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
    vocab = {"<pad>": 0, "<eos>": 1, "<bos>": 2} | {chr(c): i + 3 for i, c in enumerate(range(32, 127))}
    t = Tokenizer(models.WordLevel(vocab, unk_token="<pad>"))
    t.pre_tokenizer, t.decoder = pre_tokenizers.Split("", "isolated"), decoders.Fuse()
    if bos:
        from tokenizers.processors import TemplateProcessing

        t.post_processor = TemplateProcessing("<bos> $A", special_tokens=[("<bos>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=t, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>" if bos else None
    )


def tiny(family, bos=False, dtype=torch.float32, seed=0):
    "A random model of a family, its weights large enough that positions and attention matter."
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config((FAMILIES | MORE)[family](), dtype=torch.float32)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.mul_(4)
    return FrozenLM(model.to(dtype), tokenizer(bos), name=f"tiny-{family}")
