"""InSPEcT written the slow way, for tests and the benchmark.

One prompt, one pair of layers, one row at a time, the states computed anew."""

from softprompt_nb.translation.readings.verbalize import decoder_layers

import torch


def first(output):
    return output[0] if isinstance(output, tuple) else output


@torch.no_grad()
def states_of(lm, prompt):
    "The vectors and what each layer makes of them."
    kept = [prompt.vectors[None].to(lm.dtype)]

    def keep(module, args, output):
        kept.append(first(output))

    handles = [layer.register_forward_hook(keep) for layer in decoder_layers(lm)]
    try:
        lm.model(inputs_embeds=kept[0], use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return torch.cat(kept)


@torch.no_grad()
def one_pair(lm, prompt, source, level, target, new, cache=True):
    """The text that follows the target text with the prompt's states of one level in its gap at another.

    Without a cache the gap is filled again for every token."""
    states = states_of(lm, prompt)[source]
    ids, start = target.encode(lm, prompt.n)
    gap = slice(start, start + prompt.n)
    inputs = lm.embed_ids([ids]).clone()
    if level == 0:
        inputs[0, gap] = states

    def fill(module, args, output):
        hidden = first(output).clone()
        if hidden.shape[1] < len(ids):
            return None
        hidden[0, gap] = states
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handle = decoder_layers(lm)[level - 1].register_forward_hook(fill) if level else None
    try:
        written = lm.model.generate(
            inputs_embeds=inputs,
            attention_mask=torch.ones(1, len(ids), dtype=torch.long, device=lm.device),
            max_new_tokens=new,
            do_sample=False,
            use_cache=cache,
            pad_token_id=lm.pad_id,
            eos_token_id=lm.tokenizer.eos_token_id,
        )
    finally:
        if handle:
            handle.remove()
    return lm.tokenizer.decode(written[0], skip_special_tokens=True)
