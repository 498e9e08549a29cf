"""The laws of the core: a prompt meets a batch exactly, for every family, place and padding, with and without the shared prefix."""
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from families import FAMILIES, tiny
from softprompt_nb.data import Encoded, Example, collate, encode, pad_rows
from softprompt_nb.lm import lab_models, load_lm
from softprompt_nb.prompts import SoftPrompt
from softprompt_nb.training.forward import assemble, common_head, plan, prompted_loss, target_logits

LMS = [*FAMILIES, *lab_models()]
EXAMPLES = [Example("abc", " de"), Example("a longer input", " x"), Example("q", " yes it is")]
_made = {}


def lm_of(name):
    if name not in _made: _made[name] = load_lm(name) if name in lab_models() else tiny(name)
    return _made[name]


def reference(lm, prefix_ids, ex, place):
    "Logits at the target tokens when the 'prompt' is ordinary text: one unpadded row of token ids."
    e = encode(lm, ex)
    ids = e.ids[:place] + prefix_ids + e.ids[place:]
    first = len(prefix_ids) + e.n_input
    return lm.model(torch.tensor([ids])).logits[0, first-1:len(ids)-1]


def close(a, b, tol=1e-5): return (a-b).abs().max() <= tol * b.abs().max()


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("at", ["start", "before_answer", 1])
@pytest.mark.parametrize("name", LMS)
@torch.no_grad()
def test_embedded_text_is_text(name, at, side):
    lm = lm_of(name)
    prefix = lm.tokenizer("some text here")["input_ids"]
    batch = collate(lm, EXAMPLES, at=at, padding_side=side)
    want = torch.cat([reference(lm, prefix, e, p) for e, p in zip(EXAMPLES, batch.place.tolist())])
    for shared in (True, False):
        assert close(target_logits(lm, lm.embed(torch.tensor(prefix)), batch, shared)[0], want)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", LMS)
@torch.no_grad()
def test_batch_is_singles(name, side):
    lm = lm_of(name)
    v = torch.randn(5, lm.d_model, generator=torch.Generator().manual_seed(1)) * lm.scale
    for at in ("start", "before_answer"):
        both = target_logits(lm, v, collate(lm, EXAMPLES, at=at, padding_side=side))[0]
        singles = torch.cat([target_logits(lm, v, collate(lm, [e], at=at))[0] for e in EXAMPLES])
        assert close(both, singles)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("n,path", [(2, "shared"), (40, "split")])
@pytest.mark.parametrize("name", LMS)
def test_shared_prefix_is_plain_path_in_loss_and_gradient(name, n, path, side):
    lm = lm_of(name)
    batch = collate(lm, EXAMPLES, padding_side=side)
    assert plan(lm, SoftPrompt.init(lm, n, seed=1).vectors, batch)[0] == path
    out = []
    for shared in (True, False):
        v = (torch.randn(n, lm.d_model, generator=torch.Generator().manual_seed(2)) * lm.scale).requires_grad_()
        loss = prompted_loss(lm, v, batch, shared)
        out.append((loss.item(), *torch.autograd.grad(loss, v)))
    (l1, g1), (l2, g2) = out
    assert abs(l1-l2) <= 1e-5*l2 and (g1-g2).norm() <= 1e-5*g2.norm() and g1.norm() > 0
    assert all(p.grad is None and not p.requires_grad for p in lm.model.parameters()) and not lm.model.training


@pytest.mark.parametrize("name", FAMILIES)
def test_gradient_is_a_finite_difference(name):
    lm = lm_of(name)
    lm64 = tiny(name, dtype=torch.float64)
    lm64.model.double()
    batch = collate(lm64, EXAMPLES)
    from softprompt_nb.training import forward
    g = torch.Generator().manual_seed(3)
    v, u = (torch.randn(4, lm.d_model, generator=g, dtype=torch.float64) * lm.scale for _ in range(2))
    v.requires_grad_()
    head = common_head(batch)
    f = lambda w: torch.nn.functional.cross_entropy(*forward._logits(lm64, w, batch, "shared", head)[:2])
    grad, = torch.autograd.grad(f(v), v)
    eps = 1e-3  # some families normalise in float32 whatever the dtype, which bounds the precision of a difference
    with torch.no_grad(): numeric = (f(v + eps*u) - f(v - eps*u)) / (2*eps)
    assert abs((grad*u).sum() - numeric) <= 1e-2 * abs(numeric) + 3e-4


def test_common_head_after_bos_is_shared():
    lm = tiny("llama", bos=True)
    batch = collate(lm, EXAMPLES, at="after_bos")
    v = torch.randn(4, lm.d_model) * lm.scale
    assert plan(lm, v, batch)[0] == "shared" and common_head(batch).tolist() == [2]
    with torch.no_grad(): a, b = (target_logits(lm, v, batch, s)[0] for s in (True, False))
    assert close(a, b)
    assert assemble(lm, v, batch).inputs_embeds[0, 0].equal(lm.embed(torch.tensor(2)))


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", FAMILIES)
def test_chat_template_places_prompt_inside_the_turn(name, side):
    lm = tiny(name)
    lm.tokenizer.chat_template = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}[/]{% endfor %}{% if add_generation_prompt %}[bot]{% endif %}"
    prefix = lm.tokenizer("PROMPT")["input_ids"]
    for at, text in (("chat", "[user]PROMPTabc[/][bot] de"), ("chat_end", "[user]abcPROMPT[/][bot] de")):
        batch = collate(lm, EXAMPLES, at=at, padding_side=side)
        ids = lm.tokenizer(text)["input_ids"] + [1]
        with torch.no_grad():
            want = lm.model(torch.tensor([ids])).logits[0, -5:-1]
            for shared in (True, False): assert close(target_logits(lm, lm.embed(torch.tensor(prefix)), batch, shared)[0][:4], want)
        assert (common_head(batch) is not None) == (at == "chat")


def test_target_without_input_is_predicted_by_the_prompt():
    lm = tiny("gpt_neox")
    prefix = lm.tokenizer("hey")["input_ids"]
    ex = [Example("", " you"), Example("a", "b")]
    with torch.no_grad():
        want = torch.cat([reference(lm, prefix, e, 0) for e in ex])
        for side in ("right", "left"):
            for s in (True, False): assert close(target_logits(lm, lm.embed(torch.tensor(prefix)), collate(lm, ex, padding_side=side), s)[0], want)


@pytest.mark.parametrize("family", ["mistral_window", "gemma2"])
def test_attention_window_is_exact_or_falls_back(family):
    lm = tiny(family)
    long = [Example("abcdefghijklmnopqrstuvwxyz", " de"), Example("q", " yes it is")]
    v = torch.randn(8, lm.d_model) * lm.scale
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        for batch in (collate(lm, EXAMPLES[:1]), collate(lm, long)):
            a, b = (target_logits(lm, v, batch, s)[0] for s in (True, False))
            x = assemble(lm, v, batch)
            full = lm.model(inputs_embeds=x.inputs_embeds, attention_mask=x.attention_mask, position_ids=x.position_ids).logits
            r, c = (x.labels[:, 1:] != -100).nonzero(as_tuple=True)
            assert close(a, b) and close(a, full[r, c])


def test_a_model_without_a_cache_falls_back_and_says_so_once():
    lm = tiny("llama")
    real = lm.model.model.forward
    def no_cache(*a, past_key_values=None, **kw):
        if past_key_values is not None: raise ValueError("this model keeps no cache")
        return real(*a, **kw)
    lm.model.model.forward = no_cache
    v, batch = torch.randn(3, lm.d_model), collate(lm, EXAMPLES)
    with pytest.warns(UserWarning, match="each row is computed whole"): loss = prompted_loss(lm, v, batch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert prompted_loss(lm, v, batch) == loss
    assert loss == prompted_loss(lm, v, batch, shared_prefix=False)


def test_a_scaled_head_is_noticed():
    lm = tiny("llama")
    real = lm.model.forward
    def scaled(*a, **kw):
        out = real(*a, **kw)
        out.logits = out.logits * 3
        return out
    lm.model.forward = scaled
    v, batch = torch.randn(3, lm.d_model), collate(lm, EXAMPLES)
    with pytest.warns(UserWarning): assert plan(lm, v, batch)[0] == "full"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_model_trains_a_float32_prompt(dtype):
    lm = tiny("llama", dtype=dtype)
    v = (torch.randn(3, lm.d_model) * lm.scale).requires_grad_()
    g, = torch.autograd.grad(prompted_loss(lm, v, collate(lm, EXAMPLES)), v)
    assert g.dtype == torch.float32 and g.isfinite().all() and g.abs().sum() > 0


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_ragged_batch_agrees_with_its_rows(data):
    lm = lm_of("gpt2")
    rows = data.draw(st.lists(st.tuples(st.lists(st.integers(3, 119), max_size=12), st.lists(st.integers(3, 119), min_size=1, max_size=5)), min_size=1, max_size=4))
    n = data.draw(st.integers(1, 6))
    side = data.draw(st.sampled_from(["left", "right"]))
    enc = [Encoded(c+t, len(c), data.draw(st.integers(0, len(c)))) for c, t in rows]
    v = torch.randn(n, lm.d_model, generator=torch.Generator().manual_seed(n))
    with torch.no_grad():
        ours = target_logits(lm, v, pad_rows(lm, enc, side))[0]
        want = []
        for e in enc:
            x = torch.cat([lm.embed(torch.tensor(e.ids[:e.place], dtype=torch.long)), v, lm.embed(torch.tensor(e.ids[e.place:], dtype=torch.long))])[None]
            want.append(lm.model(inputs_embeds=x).logits[0, n+e.n_input-1:-1])
    assert close(ours, torch.cat(want), 2e-5)
