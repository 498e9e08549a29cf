"""InSPEcT written the slow way, for tests and the benchmark: one prompt, one pair of layers, one row at a time, the states computed anew."""

from softprompt_nb.translation.readings.verbalize import decoder_layers

import torch


def first(out):
    return out[0] if isinstance(out, tuple) else out


@torch.no_grad()
def states_of(lm, prompt):
    "The vectors and what each layer makes of them."
    kept = [prompt.vectors[None].to(lm.dtype)]
    handles = [l.register_forward_hook(lambda m, a, out: kept.append(first(out))) for l in decoder_layers(lm)]
    try:
        lm.model(inputs_embeds=kept[0], use_cache=False)
    finally:
        [h.remove() for h in handles]
    return torch.cat(kept)


@torch.no_grad()
def one_pair(lm, prompt, source, level, target, new, cache=True):
    "The text that follows the target text with the prompt's states of one level in its gap at another. Without a cache the gap is filled again for every token."
    patch = states_of(lm, prompt)[source]
    ids, at = target.encode(lm, prompt.n)
    e = lm.embed(torch.tensor([ids], device=lm.device)).clone()
    if level == 0:
        e[0, at : at + prompt.n] = patch

    def hook(module, args, out):
        h = first(out).clone()
        if h.shape[1] < len(ids):
            return None
        h[0, at : at + prompt.n] = patch
        return (h, *out[1:]) if isinstance(out, tuple) else h

    handle = decoder_layers(lm)[level - 1].register_forward_hook(hook) if level else None
    try:
        out = lm.model.generate(
            inputs_embeds=e,
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
    return lm.tokenizer.decode(out[0], skip_special_tokens=True)
