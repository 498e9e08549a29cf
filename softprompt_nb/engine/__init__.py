"""What rows share, how they are laid out, one exact forward pass, and asking with a prompt."""

# Written by `make export` from what the modules define; a module is loaded when a name of it is first asked for.
from importlib import import_module

_HOME = {
    "Beginnings": "beginnings",
    "Block": "packing",
    "Borders": "borders",
    "Groups": "sharing",
    "Inputs": "forward",
    "LabelAccuracy": "labels",
    "Packed": "packing",
    "Pass": "packing",
    "Prefix": "forward",
    "PrefixKey": "sharing",
    "PrefixTree": "sharing",
    "Shared": "sharing",
    "Tree": "sharing",
    "agree": "forward",
    "alone": "borders",
    "are_right": "answers",
    "as_compared": "answers",
    "assemble": "forward",
    "begins_with": "answers",
    "check_comparison": "answers",
    "continue_rows": "decoding",
    "empty_context": "normalization",
    "end_ids": "decoding",
    "end_of_options": "inference",
    "exact_match": "inference",
    "find_shared": "sharing",
    "first_line": "answers",
    "generate": "inference",
    "groups": "sharing",
    "harness_name": "normalization",
    "has_lines": "answers",
    "hidden_by_path": "forward",
    "hooks_of": "views",
    "in_template": "inference",
    "is_free": "decoding",
    "label_accuracy": "labels",
    "logits_by_path": "forward",
    "loss_on": "inference",
    "model_logits": "forward",
    "normalized": "normalization",
    "option_lengths": "normalization",
    "option_logprobs": "inference",
    "pack": "packing",
    "pack_tree": "packing",
    "packed_attention": "packing",
    "plan": "forward",
    "prefix_rows": "packing",
    "prefix_tree": "sharing",
    "probe": "borders",
    "prompted_loss": "forward",
    "prompted_losses": "forward",
    "prompts_of": "forward",
    "refuse_nan": "decoding",
    "result_of": "forward",
    "row_lengths": "borders",
    "row_start": "sharing",
    "run_prefix": "forward",
    "score_options": "inference",
    "size_class": "borders",
    "suffixes": "sharing",
    "sum_dtype": "packing",
    "target_logits": "forward",
    "target_logprobs": "inference",
    "target_losses": "forward",
    "target_nll": "forward",
    "to_prompt_embeds": "inference",
    "tree_layout": "sharing",
    "view": "views",
    "way_to_decode": "decoding",
    "with_row_numbers": "decoding",
    "with_settings": "views",
    "without_content": "labels",
}
__all__ = list(_HOME)


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__():
    return sorted({*globals(), *_HOME})
