"""The laws of the core: a prompt meets a batch exactly, for every family, place and padding, with and without the shared prefix."""

import warnings

from softprompt_nb.data import Encoded, Example, collate, encode, encode_at, pad_rows
from softprompt_nb.engine.forward import assemble, plan, prompted_loss, prompted_losses, target_logits
from softprompt_nb.engine.packing import Shared, find_shared, groups, pack, pack_tree
from softprompt_nb.load import load_lm
from softprompt_nb.prompts import SoftPrompt

import pytest
import torch
from families import FAMILIES, LAB, tiny
from hypothesis import given, settings
from hypothesis import strategies as st

LMS = [*FAMILIES, *LAB]
EXAMPLES = [Example("abc", " de"), Example("a longer input", " x"), Example("q", " yes it is")]
_made = {}


@pytest.fixture(params=["tree", "rows"])
def layout(request, monkeypatch):
    "Each batch as trees, or none, whatever would pay."
    monkeypatch.setattr(Shared, "tree_pays", property(lambda self: request.param == "tree"))
    return request.param


def lm_of(name):
    if name not in _made:
        _made[name] = load_lm(name) if name in LAB else tiny(name)
    return _made[name]


def reference(lm, prefix_ids, ex, place):
    "Logits at the target tokens when the 'prompt' is ordinary text: one unpadded row of token ids."
    e = encode(lm, ex)
    ids = e.ids[:place] + prefix_ids + e.ids[place:]
    first = len(prefix_ids) + e.n_input
    return lm.model(torch.tensor([ids])).logits[0, first - 1 : len(ids) - 1]


def close(a, b, tol=1e-5):
    return (a - b).abs().max() <= tol * b.abs().max()


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("at", ["start", "before_answer", 1])
@pytest.mark.parametrize("name", LMS)
@torch.no_grad()
def test_embedded_text_is_text(name, at, side):
    lm = lm_of(name)
    prefix = lm.tokenizer("some text here")["input_ids"]
    batch = collate(lm, EXAMPLES, at=at, padding_side=side)
    want = torch.cat([reference(lm, prefix, e, p) for e, p in zip(EXAMPLES, batch.at.tolist())])
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
@pytest.mark.parametrize("n,path", [(2, "packed"), (40, "split")])
@pytest.mark.parametrize("name", LMS)
def test_shared_prefix_is_plain_path_in_loss_and_gradient(name, n, path, side, layout):
    lm = lm_of(name)
    batch = collate(lm, EXAMPLES, padding_side=side)
    assert plan(lm, SoftPrompt.init(lm, n, seed=1).vectors, batch) == ("tree" if layout == "tree" else path)
    out = []
    for shared in (True, False):
        v = (torch.randn(n, lm.d_model, generator=torch.Generator().manual_seed(2)) * lm.scale).requires_grad_()
        loss = prompted_loss(lm, v, batch, shared)
        out.append((loss.item(), *torch.autograd.grad(loss, v)))
    (l1, g1), (l2, g2) = out
    assert abs(l1 - l2) <= 1e-5 * l2 and (g1 - g2).norm() <= 1e-5 * g2.norm() and g1.norm() > 0
    assert all(p.grad is None and not p.requires_grad for p in lm.model.parameters()) and not lm.model.training


@pytest.mark.parametrize("path", ["tree", "packed", "split", "cached"])
@pytest.mark.parametrize("name", FAMILIES)
def test_gradient_is_a_finite_difference(name, path):
    lm = lm_of(name)
    lm64 = tiny(name, dtype=torch.float64)
    lm64.model.double()
    batch = collate(lm64, EXAMPLES)
    from softprompt_nb.engine import forward

    g = torch.Generator().manual_seed(3)
    v, u = (torch.randn(4, lm.d_model, generator=g, dtype=torch.float64) * lm.scale for _ in range(2))
    v.requires_grad_()
    f = lambda w: torch.nn.functional.cross_entropy(*forward._logits(lm64, [w], batch, path)[:2])
    (grad,) = torch.autograd.grad(f(v), v)
    eps = 1e-3  # some families normalise in float32 whatever the dtype, which bounds the precision of a difference
    with torch.no_grad():
        numeric = (f(v + eps * u) - f(v - eps * u)) / (2 * eps)
    assert abs((grad * u).sum() - numeric) <= 1e-2 * abs(numeric) + 3e-4


def test_common_head_after_bos_is_shared():
    lm = tiny("llama", bos=True)
    batch = collate(lm, EXAMPLES, at="after_bos")
    v = torch.randn(4, lm.d_model) * lm.scale
    assert plan(lm, v, batch) == "tree" and groups([v], batch).keys == [(0, (2,), ())]
    with torch.no_grad():
        a, b = (target_logits(lm, v, batch, s)[0] for s in (True, False))
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
            for shared in (True, False):
                assert close(target_logits(lm, lm.embed(torch.tensor(prefix)), batch, shared)[0][:4], want)
        assert (len(groups([lm.embed(torch.tensor(prefix))], batch).keys) == 1) == (at == "chat")


def test_target_without_input_is_predicted_by_the_prompt():
    lm = tiny("gpt_neox")
    prefix = lm.tokenizer("hey")["input_ids"]
    ex = [Example("", " you"), Example("a", "b")]
    with torch.no_grad():
        want = torch.cat([reference(lm, prefix, e, 0) for e in ex])
        for side in ("right", "left"):
            for s in (True, False):
                assert close(
                    target_logits(lm, lm.embed(torch.tensor(prefix)), collate(lm, ex, padding_side=side), s)[0], want
                )


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
            full = lm.model(
                inputs_embeds=x.inputs_embeds, attention_mask=x.attention_mask, position_ids=x.position_ids
            ).logits
            r, c = (x.labels[:, 1:] != -100).nonzero(as_tuple=True)
            assert close(a, b) and close(a, full[r, c])


def without(lm, *names):
    "The model, with a trunk that refuses some arguments."
    real = lm.model.model.forward

    def refuse(*a, **kw):
        for n in names:
            if kw.get(n) is not None:
                raise ValueError(f"this model takes no {n}")
        return real(*a, **kw)

    lm.model.model.forward = refuse
    return lm


def test_a_model_that_cannot_share_falls_back_and_says_so_once():
    lm = without(tiny("llama"), "packed", "past_key_values")
    v, batch = torch.randn(3, lm.d_model), collate(lm, EXAMPLES)
    with pytest.warns(UserWarning, match="each row is computed whole"):
        loss = prompted_loss(lm, v, batch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert prompted_loss(lm, v, batch) == loss
    assert plan(lm, v, batch) == "head" and loss == prompted_loss(lm, v, batch, shared_prefix=False)


@pytest.mark.parametrize("at", ["start", "before_answer"])
def test_attention_that_cannot_be_exchanged_shares_through_the_cache(at):
    lm = without(tiny("llama"), "packed")
    vs = [(torch.randn(n, lm.d_model) * lm.scale).requires_grad_() for n in (3, 6)]
    batch = pad_rows(lm, encode_at(lm, EXAMPLES, at), lanes=[0, 1, 1])
    assert plan(lm, vs, batch) == "cached"
    both = [prompted_losses(lm, vs, batch, s) for s in (True, False)]
    a, b = (torch.autograd.grad(l.sum(), vs) for l in both)
    assert close(*both) and all(close(x, y, 1e-4) for x, y in zip(a, b))


def test_a_scaled_head_is_noticed():
    lm = tiny("llama")
    real = lm.model.forward

    def scaled(*a, **kw):
        out = real(*a, **kw)
        out.logits = out.logits * 3
        return out

    lm.model.forward = scaled
    v, batch = torch.randn(3, lm.d_model), collate(lm, EXAMPLES)
    with pytest.warns(UserWarning):
        assert plan(lm, v, batch) == "full"


def test_a_prompt_without_numbers_decides_nothing_about_the_model():
    lm, batch = tiny("llama"), collate(tiny("llama"), EXAMPLES)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert prompted_loss(lm, torch.full((3, lm.d_model), torch.nan), batch).isnan() and not lm.plans
    assert plan(lm, torch.randn(3, lm.d_model), batch) in ("tree", "packed") and lm.plans


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_model_trains_a_float32_prompt(dtype):
    lm = tiny("llama", dtype=dtype)
    v = (torch.randn(3, lm.d_model) * lm.scale).requires_grad_()
    (g,) = torch.autograd.grad(prompted_loss(lm, v, collate(lm, EXAMPLES)), v)
    assert g.dtype == torch.float32 and g.isfinite().all() and g.abs().sum() > 0


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_ragged_batch_agrees_with_its_rows(data):
    lm = lm_of("gpt2")
    rows = data.draw(
        st.lists(
            st.tuples(
                st.lists(st.integers(3, 119), max_size=12), st.lists(st.integers(3, 119), min_size=1, max_size=5)
            ),
            min_size=1,
            max_size=4,
        )
    )
    n = data.draw(st.integers(1, 6))
    side = data.draw(st.sampled_from(["left", "right"]))
    enc = [Encoded(c + t, len(c), data.draw(st.integers(0, len(c)))) for c, t in rows]
    v = torch.randn(n, lm.d_model, generator=torch.Generator().manual_seed(n))
    with torch.no_grad():
        ours = target_logits(lm, v, pad_rows(lm, enc, side))[0]
        want = []
        for e in enc:
            x = torch.cat(
                [
                    lm.embed(torch.tensor(e.ids[: e.at], dtype=torch.long)),
                    v,
                    lm.embed(torch.tensor(e.ids[e.at :], dtype=torch.long)),
                ]
            )[None]
            want.append(lm.model(inputs_embeds=x).logits[0, n + e.n_input - 1 : -1])
    assert close(ours, torch.cat(want), 2e-5)


def lanes_of(lm, sizes, seed=5):
    g = torch.Generator().manual_seed(seed)
    return [(torch.randn(n, lm.d_model, generator=g) * lm.scale).requires_grad_() for n in sizes]


@pytest.mark.parametrize("at", ["start", "before_answer", "mixed"])
@pytest.mark.parametrize("sizes", [(2, 5, 3), (40, 31, 22)])
@pytest.mark.parametrize("name", LMS)
def test_many_prompts_in_one_pass_are_single_calls(name, sizes, at, layout):
    lm = lm_of(name)
    vs = lanes_of(lm, sizes)
    of = [0, 1, 2, 2, 0, 1]
    examples = EXAMPLES + [Example("zz", " z"), Example("some more words", " b"), Example("q", " r")]
    ats = at if at != "mixed" else ["start", 1, "before_answer", 0, 1, "start"]
    rows = encode_at(lm, examples, ats)
    batch = pad_rows(lm, rows, lanes=of)
    assert plan(lm, vs, batch) in (("tree",) if layout == "tree" else ("packed", "split"))
    losses = prompted_losses(lm, vs, batch)
    grads = torch.autograd.grad(losses.sum(), vs)
    for l, v in enumerate(vs):
        one = prompted_loss(lm, v, pad_rows(lm, [r for r, o in zip(rows, of) if o == l]), shared_prefix=False)
        (g,) = torch.autograd.grad(one, v)
        assert abs(one - losses[l]) <= 1e-5 * one and (g - grads[l]).norm() <= 1e-5 * g.norm()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_batch_of_lanes_agrees_on_every_path(data):
    from softprompt_nb.engine.forward import _logits

    lm = lm_of("llama")
    sizes = data.draw(st.lists(st.one_of(st.none(), st.integers(1, 9)), min_size=1, max_size=4))
    token = st.integers(3, data.draw(st.sampled_from([4, 119])))  # of two tokens rows with common beginnings are made
    rows = data.draw(
        st.lists(
            st.tuples(st.lists(token, min_size=1, max_size=9), st.lists(token, min_size=1, max_size=4)),
            min_size=1,
            max_size=6,
        )
    )
    of = [data.draw(st.integers(0, len(sizes) - 1)) for _ in rows]
    enc = [Encoded(c + t, len(c), data.draw(st.integers(0, len(c))) if sizes[l] else 0) for (c, t), l in zip(rows, of)]
    g = torch.Generator().manual_seed(1)
    vs = [n and torch.randn(n, lm.d_model, generator=g) for n in sizes]
    batch = pad_rows(lm, enc, data.draw(st.sampled_from(["left", "right"])), of)
    with torch.no_grad():
        want, y, r = _logits(lm, vs, batch, "full")
        for path in ("tree", "packed", "split", "cached", "head"):
            got, y2, r2 = _logits(lm, vs, batch, path)
            assert torch.equal(y, y2) and torch.equal(r, r2) and close(got, want, 2e-5)


def shared_rows(lm, seed, lanes=3, rows=8):
    "Encoded rows of few different tokens, and their lanes."
    g = torch.Generator().manual_seed(seed)
    draw = lambda lo, hi: int(torch.randint(lo, hi, (1,), generator=g))
    enc = []
    for _ in range(rows):
        ids = [7, 8, *(draw(3, 5) for _ in range(draw(2, 6)))]
        enc.append(Encoded(ids, draw(2, len(ids)), 0))
    return enc, [i % lanes for i in range(rows)]


@pytest.mark.parametrize("seed", range(5))
def test_every_distinct_beginning_is_computed_once_and_nothing_behind_the_last_target(seed):
    lm = lm_of("llama")
    enc, of = shared_rows(lm, seed)
    vs, batch = lanes_of(lm, (2, 5, 3)), pad_rows(lm, enc, lanes=of)
    starts = [
        {tuple(e.ids[:k]) for e, l in zip(enc, of) if l == lane for k in range(1, len(e.ids))} for lane in range(3)
    ]
    shared = find_shared(vs, batch)
    assert [len(behind) + len(t.tokens) for (_, _, behind), t in zip(shared.groups.keys, shared.trees)] == [
        len(s) for s in starts
    ]
    common = 2 * 3  # the rows of each lane begin with 7 and 8, in front of any target
    alone = sum(len(e.ids) - 1 for e in enc)
    assert (
        pack_tree(lm, vs, shared).inputs_embeds.shape[:2]
        == shared.shape
        == (3, max(n + len(s) for n, s in zip((2, 5, 3), starts)))
    )
    assert pack(lm, vs, shared).inputs_embeds.shape[1] == shared.tokens <= 2 + 5 + 3 + common + alone - 2 * len(enc)


@pytest.mark.parametrize(
    "rows", [[[5, 6, 7]], [[5, 6], [5, 6]], [[5], [5]], [[5, 6, 7], [5]], [[5, 6, 7], [5, 6, 8], [5, 6]]]
)
def test_rows_that_are_one_another_or_part_of_one_another(rows):
    from softprompt_nb.engine.forward import _logits

    lm = lm_of("llama")
    vs = lanes_of(lm, (3,))
    for first in (0, 1):  # where the targets begin
        batch = pad_rows(lm, [Encoded(ids, min(first, len(ids) - 1), 0) for ids in rows])
        want = _logits(lm, vs, batch, "full")
        for path in ("tree", "packed", "cached"):
            got = _logits(lm, vs, batch, path)
            assert close(got[0], want[0]) and all(torch.equal(a, b) for a, b in zip(got[1:], want[1:]))


def test_the_same_rows_behind_every_prompt_have_one_mask():
    lm = lm_of("llama")
    enc, _ = shared_rows(lm, 0, rows=4)
    for sizes, masks in (((4, 4, 4), 1), ((4, 5, 4), 3)):
        shared = find_shared(lanes_of(lm, sizes), pad_rows(lm, enc * 3, lanes=[l for l in range(3) for _ in enc]))
        assert len(pack_tree(lm, lanes_of(lm, sizes), shared).layout.mask) == masks and shared.tree_pays


def test_a_lane_without_numbers_leaves_the_others_untouched(layout):
    lm = lm_of("llama")
    batch = pad_rows(lm, encode_at(lm, EXAMPLES * 2), lanes=[0, 1, 2, 1, 0, 2])
    for sizes in ((2, 5, 3), (30, 40, 35)):
        vs = lanes_of(lm, sizes)
        good = prompted_losses(lm, vs, batch)
        want = torch.autograd.grad(good.sum(), vs)
        bad = [v.detach().clone().requires_grad_() for v in vs]
        with torch.no_grad():
            bad[1][0, 0] = torch.nan
        losses = prompted_losses(lm, bad, batch)
        grads = torch.autograd.grad(losses.sum(), bad)
        assert losses[1].isnan() and grads[1].isnan().any()
        for l in (0, 2):
            assert losses[l] == good[l] and torch.equal(grads[l], want[l])


@pytest.mark.parametrize("name", [*FAMILIES, "lab-base-s"])
def test_recomputed_layers_give_the_same_gradient(name, layout):
    lm, again = lm_of(name), tiny(name) if name in FAMILIES else load_lm(name, checkpointing=True)
    again.checkpointing = True
    for sizes in ((2, 5), (40, 30)):
        vs, batch = lanes_of(lm, sizes), pad_rows(lm, encode_at(lm, EXAMPLES), lanes=[0, 1, 1])
        for shared in (True, False):
            a, b = (torch.autograd.grad(prompted_losses(m, vs, batch, shared).sum(), vs) for m in (lm, again))
            assert all(torch.allclose(x, y, rtol=1e-4, atol=1e-6 * y.abs().max().item()) for x, y in zip(a, b))
    assert all("forward" not in l.__dict__ for l in again.layers) and plan(again, vs, batch) in (
        "tree",
        "packed",
        "split",
    )


def test_recomputing_keeps_less_for_the_backward_pass():
    kept = {}
    for again in (False, True):
        lm, sizes = tiny("llama"), []
        lm.checkpointing = again
        vs, batch = lanes_of(lm, (20,)), collate(lm, EXAMPLES * 4)
        prompted_losses(lm, vs, batch)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            loss = prompted_losses(lm, vs, batch).sum()
        kept[again] = sum(sizes)
    assert kept[True] < 0.5 * kept[False]


def test_checkpointing_a_model_without_marked_layers_is_refused():
    from softprompt_nb.lm import FrozenLM

    lm = tiny("llama")

    class Plain(torch.nn.Module):
        pass

    lm.model.model.layers = torch.nn.ModuleList([Plain()])
    with pytest.raises(ValueError, match="checkpointing=True: bare.*leave it out"):
        FrozenLM(lm.model, lm.tokenizer, "bare", checkpointing=True)


def test_loss_in_pieces_is_the_loss_and_keeps_few_logits(monkeypatch):
    from softprompt_nb.engine import forward

    lm = lm_of("gpt2")
    vs, batch = lanes_of(lm, (3, 4)), pad_rows(lm, encode_at(lm, EXAMPLES * 3), lanes=[0, 1, 1] * 3)
    whole = prompted_losses(lm, vs, batch)
    g = torch.autograd.grad(whole.sum(), vs)
    monkeypatch.setattr(forward, "PIECE", 4 * lm.vocab_size)
    seen = []
    real = lm.model.lm_head.forward
    monkeypatch.setattr(lm.model.lm_head, "forward", lambda h: seen.append(len(h)) or real(h))
    pieces = prompted_losses(lm, vs, batch)
    assert (
        max(seen) == 4
        and torch.allclose(pieces, whole)
        and all(
            torch.allclose(a, b, rtol=1e-4, atol=1e-7)
            for a, b in zip(torch.autograd.grad((pieces * torch.tensor([1.0, 1.0])).sum(), vs), g)
        )
    )
    with torch.no_grad():
        assert torch.allclose(prompted_losses(lm, vs, batch), whole)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_lanes_keep_the_shared_prefix(dtype, layout):
    lm = tiny("llama", dtype=dtype)
    batch = pad_rows(lm, encode_at(lm, EXAMPLES), lanes=[0, 1, 1])
    for sizes in ((3, 5), (40, 30)):
        vs = lanes_of(lm, sizes)
        assert plan(lm, vs, batch) in (("tree",) if layout == "tree" else ("packed", "split"))
        assert all(
            g.dtype == torch.float32 and g.isfinite().all() and g.abs().sum() > 0
            for g in torch.autograd.grad(prompted_losses(lm, vs, batch).sum(), vs)
        )


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_model_spread_by_device_map_shares_the_prefix(tmp_path, checkpointing, layout):
    want_lm = tiny("llama")
    want_lm.model.save_pretrained(tmp_path / "model")
    want_lm.tokenizer.save_pretrained(tmp_path / "model")
    where = {
        "model.embed_tokens": "disk",
        "model.layers.0": "cpu",
        "model.layers.1": "disk",
        "model.layers.2": "cpu",
        "model.norm": "cpu",
        "model.rotary_emb": "cpu",
        "lm_head": "disk",
    }
    lm = load_lm(tmp_path / "model", device_map=where, offload_folder=tmp_path / "off", checkpointing=checkpointing)
    batch, vs = pad_rows(lm, encode_at(lm, EXAMPLES), lanes=[0, 1, 1]), lanes_of(want_lm, (3, 5))
    assert lm.device.type == "cpu" and plan(lm, vs, batch) == ("tree" if layout == "tree" else "packed")
    both = [prompted_losses(m, vs, batch) for m in (lm, want_lm)]
    a, b = (torch.autograd.grad(l.sum(), vs) for l in both)
    assert torch.allclose(*both, rtol=1e-5) and all(torch.allclose(x, y, rtol=1e-4, atol=1e-6) for x, y in zip(a, b))


def test_rows_of_very_different_lengths_are_attended_to_in_blocks():
    lm = lm_of("llama")
    g = torch.Generator().manual_seed(0)
    rows = [
        Encoded(torch.randint(3, 119, (n,), generator=g).tolist(), max(1, n - 2), 0)
        for n in torch.randint(2, 60, (150,), generator=g).tolist() + [3] * 60
    ]
    vs, batch = lanes_of(lm, (3, 9, 5)), pad_rows(lm, rows, lanes=[i % 3 for i in range(210)])
    assert len(pack(lm, vs, find_shared(vs, batch)).layout.blocks) > 1 and plan(lm, vs, batch) == "packed"
    a, b = (prompted_losses(lm, vs, batch, s) for s in (True, False))
    ga, gb = (torch.autograd.grad(x.sum(), vs) for x in (a, b))
    assert close(a, b) and all((x - y).norm() <= 1e-5 * y.norm() for x, y in zip(ga, gb))


def test_compiled_layers_give_the_same_loss_and_gradient(layout):
    from softprompt_nb.lm import FrozenLM

    plain = tiny("llama")
    lm = FrozenLM(
        plain.model, plain.tokenizer, "compiled", compile="eager"
    )  # captured as for the default backend, without the minute that compiling takes
    for sizes in ((3, 5), (4, 9)):
        vs, batch = lanes_of(lm, sizes), pad_rows(lm, encode_at(lm, EXAMPLES), lanes=[0, 1, 1])
        assert plan(lm, vs, batch) == ("tree" if layout == "tree" else "packed")
        a, b = (torch.autograd.grad(prompted_losses(m, vs, batch).sum(), vs) for m in (lm, plain))
        assert all((x - y).norm() <= 1e-4 * y.norm() for x, y in zip(a, b))
    with pytest.raises(ValueError, match="choose the one"):
        FrozenLM(plain.model, plain.tokenizer, "both", compile=True, checkpointing=True)
    torch.compiler.reset()
