"""The laws of the core: a prompt meets a batch exactly, for every family, place and padding.

Where two computations give the same number, they do so in float64 from end to end, so that no rounding decides."""

import warnings

from softprompt_nb.data import Encoded, Example, collate, encode, encode_at, pad_rows
from softprompt_nb.engine import forward
from softprompt_nb.engine.forward import (
    assemble,
    logits_by_path,
    plan,
    prompted_loss,
    prompted_losses,
    target_logits,
)
from softprompt_nb.engine.inference import target_logprobs
from softprompt_nb.engine.packing import pack, pack_tree
from softprompt_nb.engine.sharing import Shared, find_shared, groups
from softprompt_nb.lm import FrozenLM
from softprompt_nb.load import load_lm
from softprompt_nb.prompts import SoftPrompt

import pytest
import torch
import torch.nn.functional as F
from families import FAMILIES, LAB, MORE, tiny, tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, Lfm2Config

LMS = [*FAMILIES, *LAB]
EXAMPLES = [Example("abc", " de"), Example("a longer input", " x"), Example("q", " yes it is")]
PLACES = ["start", "before_answer", 1]  # every place that a chat template does not make
DOUBLE = torch.float64
EXACT = 1e-9  # of the largest number, or of a gradient's length, in float64
SINGLE = 4 * 32 * torch.finfo(torch.float32).eps  # in float32: sums over 32 coordinates, in three layers and a head
_made = {}


@pytest.fixture(params=["tree", "rows"])
def layout(request, monkeypatch):
    "Each batch as trees, or none, whatever would pay."
    monkeypatch.setattr(Shared, "tree_pays", property(lambda self: request.param == "tree"))
    return request.param


def lm_of(name):
    "A model in float64, made once."
    if name not in _made:
        _made[name] = load_lm(name, dtype=DOUBLE) if name in LAB else tiny(name, dtype=DOUBLE)
    return _made[name]


def prompt_of(lm, n, seed=1, dtype=DOUBLE):
    "A random prompt on the scale of the embeddings."
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, lm.d_model, generator=generator, dtype=dtype) * lm.scale


def lanes_of(lm, sizes, seed=5, dtype=DOUBLE):
    "Random prompts of several lengths, to be trained."
    generator = torch.Generator().manual_seed(seed)
    prompts = [torch.randn(n, lm.d_model, generator=generator, dtype=dtype) * lm.scale for n in sizes]
    return [prompt.requires_grad_() for prompt in prompts]


def gradients(losses, vectors):
    return torch.autograd.grad(losses.sum(), vectors)


def reference(lm, prefix_ids, ex, place):
    "Logits at the target tokens when the 'prompt' is ordinary text: one unpadded row of token ids."
    row = encode(lm, ex)
    ids = row.ids[:place] + prefix_ids + row.ids[place:]
    first = len(prefix_ids) + row.n_input
    return lm.model(torch.tensor([ids])).logits[0, first - 1 : len(ids) - 1]


def close(ours, theirs, tolerance=EXACT):
    return (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


def all_close(ours, theirs, tolerance=EXACT):
    "Are gradients the same, by their length?"
    return all((x - y).norm() <= tolerance * y.norm() for x, y in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("name", [*FAMILIES, *MORE])
@torch.no_grad()
def test_a_family_in_float64_is_the_family_itself(name):
    "What is tested in float64 is what is used in float32; they differ by the rounding of sums over the model's width."
    ids = torch.arange(3, 20)[None]
    single, double = (tiny(name, dtype=dtype).model(ids).logits for dtype in (torch.float32, DOUBLE))
    assert close(single, double, SINGLE)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("at", PLACES)
@pytest.mark.parametrize("name", LMS)
@torch.no_grad()
def test_embedded_text_is_text(name, at, side):
    lm = lm_of(name)
    prefix = lm.tokenizer("some text here")["input_ids"]
    batch = collate(lm, EXAMPLES, at=at, padding_side=side)
    want = torch.cat([reference(lm, prefix, ex, place) for ex, place in zip(EXAMPLES, batch.at.tolist())])
    for shared in (True, False):
        assert close(target_logits(lm, lm.embed_ids(prefix), batch, shared)[0], want)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", LMS)
@torch.no_grad()
def test_batch_is_singles(name, side):
    lm = lm_of(name)
    vectors = prompt_of(lm, 5)
    for at in PLACES:
        both, *_ = target_logits(lm, vectors, collate(lm, EXAMPLES, at=at, padding_side=side))
        singles = [target_logits(lm, vectors, collate(lm, [ex], at=at))[0] for ex in EXAMPLES]
        assert close(both, torch.cat(singles))


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("n,path", [(2, "packed"), (40, "split")])
@pytest.mark.parametrize("name", LMS)
def test_shared_prefix_is_plain_path_in_loss_and_gradient(name, n, path, side, layout):
    lm = lm_of(name)
    batch = collate(lm, EXAMPLES, padding_side=side)
    assert plan(lm, prompt_of(lm, n), batch) == ("tree" if layout == "tree" else path)
    vectors = prompt_of(lm, n, seed=2).requires_grad_()
    losses = [prompted_loss(lm, vectors, batch, shared) for shared in (True, False)]
    ours, theirs = (gradients(loss, [vectors]) for loss in losses)
    assert losses[0].dtype == DOUBLE and close(*losses)
    assert all_close(ours, theirs) and ours[0].norm() > 0
    assert all(weight.grad is None and not weight.requires_grad for weight in lm.model.parameters())
    assert not lm.model.training


@pytest.mark.parametrize("path", ["tree", "packed", "split", "cached"])
@pytest.mark.parametrize("name", FAMILIES)
def test_gradient_is_a_finite_difference(name, path):
    lm = lm_of(name)
    batch = collate(lm, EXAMPLES)
    vectors = prompt_of(lm, 4, seed=3).requires_grad_()
    direction = prompt_of(lm, 4, seed=4)

    def loss_at(prompt):
        logits, targets, _ = logits_by_path(lm, [prompt], batch, path)
        return F.cross_entropy(logits, targets)

    (grad,) = gradients(loss_at(vectors), [vectors])
    step = 1e-5  # the error is of its square, and of rounding divided by it
    with torch.no_grad():
        change = loss_at(vectors + step * direction) - loss_at(vectors - step * direction)
    assert abs((grad * direction).sum() - change / (2 * step)) <= 1e-6 * grad.norm() * direction.norm()


def test_common_head_after_bos_is_shared():
    lm = tiny("llama", bos=True, dtype=DOUBLE)
    batch = collate(lm, EXAMPLES, at="after_bos")
    vectors = prompt_of(lm, 4)
    assert plan(lm, vectors, batch) == "tree" and groups([vectors], batch).keys == [(0, (2,), ())]
    with torch.no_grad():
        assert close(*(target_logits(lm, vectors, batch, shared)[0] for shared in (True, False)))
    assert assemble(lm, vectors, batch).inputs_embeds[0, 0].equal(lm.embed(torch.tensor(2)))


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", FAMILIES)
def test_chat_template_places_prompt_inside_the_turn(name, side):
    lm = tiny(name, dtype=DOUBLE)
    lm.tokenizer.chat_template = (
        "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}[/]{% endfor %}"
        "{% if add_generation_prompt %}[bot]{% endif %}"
    )
    prompt = lm.embed_ids(lm.tokenizer("PROMPT")["input_ids"])
    for at, text in (("chat", "[user]PROMPTabc[/][bot]de"), ("chat_end", "[user]abcPROMPT[/][bot]de")):
        batch = collate(lm, EXAMPLES, at=at, padding_side=side)
        ids = lm.tokenizer(text)["input_ids"] + [1]
        with torch.no_grad():
            want = lm.model(torch.tensor([ids])).logits[0, -4:-1]
            for shared in (True, False):
                assert close(target_logits(lm, prompt, batch, shared)[0][:3], want)
        assert (len(groups([prompt], batch).keys) == 1) == (at == "chat")


@torch.no_grad()
def test_target_without_input_is_predicted_by_the_prompt():
    lm = lm_of("gpt_neox")
    prefix = lm.tokenizer("hey")["input_ids"]
    examples = [Example("", " you"), Example("a", "b")]
    want = torch.cat([reference(lm, prefix, ex, 0) for ex in examples])
    for side in ("right", "left"):
        batch = collate(lm, examples, padding_side=side)
        for shared in (True, False):
            assert close(target_logits(lm, lm.embed_ids(prefix), batch, shared)[0], want)


@pytest.mark.parametrize("family", ["mistral_window", "gemma2"])
@torch.no_grad()
def test_attention_window_is_exact_or_falls_back(family):
    "Gemma 2 takes its softmax in float32 whatever the dtype, so it is compared in float32."
    dtype, tolerance = (torch.float32, SINGLE) if family == "gemma2" else (DOUBLE, EXACT)
    lm = tiny(family, dtype=dtype)
    long = [Example("abcdefghijklmnopqrstuvwxyz", " de"), Example("q", " yes it is")]
    vectors = prompt_of(lm, 8, dtype=dtype)
    for batch in (collate(lm, EXAMPLES[:1]), collate(lm, long)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ours, plain = (target_logits(lm, vectors, batch, shared)[0] for shared in (True, False))
        rows = assemble(lm, vectors, batch)
        logits = lm.model(
            inputs_embeds=rows.inputs_embeds,
            attention_mask=rows.attention_mask,
            position_ids=rows.position_ids,
        ).logits
        row, column = (rows.labels[:, 1:] != -100).nonzero(as_tuple=True)
        assert close(ours, plain, tolerance) and close(ours, logits[row, column], tolerance)


def without(lm, *names):
    "The model, with a trunk that refuses some arguments."
    real = lm.model.model.forward

    def refuse(*args, **kwargs):
        for name in names:
            if kwargs.get(name) is not None:
                raise ValueError(f"this model takes no {name}")
        return real(*args, **kwargs)

    lm.model.model.forward = refuse
    return lm


def test_a_model_that_cannot_share_falls_back_and_says_so_once():
    lm = without(tiny("llama"), "packed", "past_key_values")
    vectors, batch = prompt_of(lm, 3, dtype=torch.float32), collate(lm, EXAMPLES)
    with pytest.warns(UserWarning, match="each row is computed whole"):
        loss = prompted_loss(lm, vectors, batch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert prompted_loss(lm, vectors, batch) == loss
    assert plan(lm, vectors, batch) == "head"
    assert loss == prompted_loss(lm, vectors, batch, shared_prefix=False)


@pytest.mark.parametrize("at", PLACES)
def test_attention_that_cannot_be_exchanged_shares_through_the_cache(at):
    lm = without(tiny("llama", dtype=DOUBLE), "packed")
    prompts = lanes_of(lm, (3, 6))
    batch = pad_rows(lm, encode_at(lm, EXAMPLES, at), lanes=[0, 1, 1])
    assert plan(lm, prompts, batch) == "cached"
    both = [prompted_losses(lm, prompts, batch, shared) for shared in (True, False)]
    assert close(*both) and all_close(*(gradients(losses, prompts) for losses in both))


def test_a_scaled_head_is_noticed():
    lm = tiny("llama")
    real = lm.model.forward

    def scaled(*args, **kwargs):
        out = real(*args, **kwargs)
        out.logits = out.logits * 3
        return out

    lm.model.forward = scaled
    with pytest.warns(UserWarning):
        assert plan(lm, prompt_of(lm, 3, dtype=torch.float32), collate(lm, EXAMPLES)) == "full"


def late(module, args, output):
    "A hook on the whole model, which no pass of the trunk alone calls."
    output.logits = 1.7 * output.logits
    return output


def shifted(module, args, output):
    "A hook on a layer that asks where a token stands in its row."
    first = output[0] if isinstance(output, tuple) else output
    moved = first.clone()
    moved[:, 3] = 0.0
    return (moved, *output[1:]) if isinstance(output, tuple) else moved


@pytest.mark.parametrize("kind", ["late", "shifted", "global"])
def test_hooks_that_come_later_count_and_are_gone_when_they_are(kind):
    lm = tiny("llama", dtype=torch.float64)
    prompt = prompt_of(lm, 3)
    plain = target_logprobs(lm, prompt, EXAMPLES)[0]
    if kind == "late":
        handle = lm.model.register_forward_hook(late)
    elif kind == "shifted":
        handle = lm.layers[0].register_forward_hook(shifted)
    else:
        head = lm.model.get_output_embeddings()
        handle = torch.nn.modules.module.register_module_forward_hook(
            lambda module, args, output: 1.7 * output if module is head else None
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # each row is computed whole, and that is said
        found = target_logprobs(lm, prompt, EXAMPLES)[0]
        alone = torch.cat([target_logprobs(lm, prompt, [example])[0] for example in EXAMPLES])
    batch = pad_rows(lm, encode_at(lm, EXAMPLES, "start"))
    with torch.no_grad():
        logits, targets, row = forward._single_logits(lm, [prompt], batch)
        losses = F.cross_entropy(logits, targets, reduction="none")
    want = torch.zeros(len(EXAMPLES), dtype=torch.float64).index_add(0, row, -losses)
    handle.remove()
    assert (found - want).abs().max() < 1e-9 and (alone - want).abs().max() < 1e-9
    assert (found - plain).abs().max() > 1e-3
    assert torch.equal(target_logprobs(lm, prompt, EXAMPLES)[0], plain)


def test_a_prompt_without_numbers_decides_nothing_about_the_model():
    lm = tiny("llama")
    batch = collate(lm, EXAMPLES)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert prompted_loss(lm, torch.full((3, lm.d_model), torch.nan), batch).isnan() and not lm.plans
    assert plan(lm, prompt_of(lm, 3, dtype=torch.float32), batch) in ("tree", "packed") and lm.plans


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_model_trains_a_float32_prompt(dtype):
    lm = tiny("llama", dtype=dtype)
    vectors = prompt_of(lm, 3, dtype=torch.float32).requires_grad_()
    loss = prompted_loss(lm, vectors, collate(lm, EXAMPLES))
    (grad,) = gradients(loss, [vectors])
    assert loss.dtype == grad.dtype == torch.float32 and grad.isfinite().all() and grad.abs().sum() > 0


@st.composite
def ragged_rows(draw):
    "One to four rows with a context that may be empty, a target, and the prompt anywhere in the context."
    rows = []
    for _ in range(draw(st.integers(1, 4))):
        context = draw(st.lists(st.integers(3, 119), max_size=12))
        target = draw(st.lists(st.integers(3, 119), min_size=1, max_size=5))
        rows.append(Encoded(context + target, len(context), draw(st.integers(0, len(context)))))
    return rows


@settings(max_examples=40, deadline=None)
@given(ragged_rows(), st.integers(1, 6), st.sampled_from(["left", "right"]))
@torch.no_grad()
def test_any_ragged_batch_agrees_with_its_rows(rows, n, side):
    lm = lm_of("gpt2")
    vectors = prompt_of(lm, n, seed=n)
    ours, *_ = target_logits(lm, vectors, pad_rows(lm, rows, side))
    want = []
    for row in rows:
        front, behind = lm.embed_ids(row.ids[: row.at]), lm.embed_ids(row.ids[row.at :])
        embeds = torch.cat([front, vectors, behind])
        want.append(lm.model(inputs_embeds=embeds[None]).logits[0, n + row.n_input - 1 : -1])
    assert close(ours, torch.cat(want))


@pytest.mark.parametrize("at", [*PLACES, "mixed"])
@pytest.mark.parametrize("sizes", [(2, 5, 3), (40, 31, 22)])
@pytest.mark.parametrize("name", LMS)
def test_many_prompts_in_one_pass_are_single_calls(name, sizes, at, layout):
    lm = lm_of(name)
    prompts = lanes_of(lm, sizes)
    lanes = [0, 1, 2, 2, 0, 1]
    examples = EXAMPLES + [Example("zz", " z"), Example("some more words", " b"), Example("q", " r")]
    ats = at if at != "mixed" else ["start", 1, "before_answer", 0, 1, "start"]
    rows = encode_at(lm, examples, ats)
    batch = pad_rows(lm, rows, lanes=lanes)
    assert plan(lm, prompts, batch) in (("tree",) if layout == "tree" else ("packed", "split"))
    losses = prompted_losses(lm, prompts, batch)
    grads = gradients(losses, prompts)
    for lane, vectors in enumerate(prompts):
        of_lane = [row for row, number in zip(rows, lanes) if number == lane]
        alone = prompted_loss(lm, vectors, pad_rows(lm, of_lane), shared_prefix=False)
        assert close(losses[lane], alone)
        assert all_close([grads[lane]], gradients(alone, [vectors]))


@st.composite
def rows_of_lanes(draw):
    "Lengths of one to four prompts, None for none, up to six rows behind them, and the lane of each."
    sizes = draw(st.lists(st.one_of(st.none(), st.integers(1, 9)), min_size=1, max_size=4))
    token = st.integers(3, draw(st.sampled_from([4, 119])))  # of two tokens rows with common beginnings are made
    rows = []
    lanes = []
    for _ in range(draw(st.integers(1, 6))):
        context = draw(st.lists(token, min_size=1, max_size=9))
        target = draw(st.lists(token, min_size=1, max_size=4))
        lane = draw(st.integers(0, len(sizes) - 1))
        at = draw(st.integers(0, len(context))) if sizes[lane] else 0
        rows.append(Encoded(context + target, len(context), at))
        lanes.append(lane)
    return sizes, rows, lanes


@settings(max_examples=60, deadline=None)
@given(rows_of_lanes(), st.sampled_from(["left", "right"]))
@torch.no_grad()
def test_any_batch_of_lanes_agrees_on_every_path(drawn, side):
    lm = lm_of("llama")
    sizes, rows, lanes = drawn
    prompts = [None if n is None else prompt_of(lm, n, seed=n) for n in sizes]
    batch = pad_rows(lm, rows, side, lanes)
    want = logits_by_path(lm, prompts, batch, "full")
    for path in ("tree", "packed", "split", "cached", "head"):
        same_logits(logits_by_path(lm, prompts, batch, path), want)


def same_logits(ours, theirs):
    "The same logits, of the same targets, in the same rows."
    assert close(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1]) and torch.equal(ours[2], theirs[2])


def shared_rows(seed, lanes=3, rows=8):
    "Encoded rows of few different tokens that all begin with 7 and 8, and their lanes."
    generator = torch.Generator().manual_seed(seed)

    def draw(low, high):
        return int(torch.randint(low, high, (1,), generator=generator))

    encoded = []
    for _ in range(rows):
        ids = [7, 8, *(draw(3, 5) for _ in range(draw(2, 6)))]
        encoded.append(Encoded(ids, draw(2, len(ids)), 0))
    return encoded, [i % lanes for i in range(rows)]


def beginnings(rows):
    "Every distinct beginning of some rows, short of their last token, which predicts nothing."
    return {tuple(row.ids[:size]) for row in rows for size in range(1, len(row.ids))}


@pytest.mark.parametrize("seed", range(5))
def test_every_distinct_beginning_is_computed_once_and_nothing_behind_the_last_target(seed):
    lm = lm_of("llama")
    rows, lanes = shared_rows(seed)
    sizes = (2, 5, 3)
    prompts, batch = lanes_of(lm, sizes), pad_rows(lm, rows, lanes=lanes)
    of_lanes = [[row for row, number in zip(rows, lanes) if number == lane] for lane in range(3)]
    distinct = [len(beginnings(of_lane)) for of_lane in of_lanes]
    shared = find_shared(prompts, batch)
    computed = [len(key.behind) + len(tree.tokens) for key, tree in zip(shared.groups.keys, shared.trees)]
    assert computed == distinct
    longest = max(n + size for n, size in zip(sizes, distinct))
    assert pack_tree(lm, prompts, shared).inputs_embeds.shape[:2] == shared.shape == (3, longest)
    common = 2 * 3  # the rows of each lane begin with 7 and 8, in front of any target
    alone = sum(len(row.ids) - 1 for row in rows)
    assert pack(lm, prompts, shared).inputs_embeds.shape[1] == shared.tokens
    assert shared.tokens <= sum(sizes) + common + alone - 2 * len(rows)


@pytest.mark.parametrize(
    "rows", [[[5, 6, 7]], [[5, 6], [5, 6]], [[5], [5]], [[5, 6, 7], [5]], [[5, 6, 7], [5, 6, 8], [5, 6]]]
)
def test_rows_that_are_one_another_or_part_of_one_another(rows):
    lm = lm_of("llama")
    prompts = lanes_of(lm, (3,))
    for first in (0, 1):  # where the targets begin
        batch = pad_rows(lm, [Encoded(ids, min(first, len(ids) - 1), 0) for ids in rows])
        want = logits_by_path(lm, prompts, batch, "full")
        for path in ("tree", "packed", "cached"):
            same_logits(logits_by_path(lm, prompts, batch, path), want)


def test_the_same_rows_behind_every_prompt_have_one_mask():
    lm = lm_of("llama")
    rows, _ = shared_rows(0, rows=4)
    batch = pad_rows(lm, rows * 3, lanes=[lane for lane in range(3) for _ in rows])
    for sizes, masks in (((4, 4, 4), 1), ((4, 5, 4), 3)):
        shared = find_shared(lanes_of(lm, sizes), batch)
        assert len(pack_tree(lm, lanes_of(lm, sizes), shared).layout.mask) == masks and shared.tree_pays


def test_a_lane_without_numbers_leaves_the_others_untouched(layout):
    lm = lm_of("llama")
    batch = pad_rows(lm, encode_at(lm, EXAMPLES * 2), lanes=[0, 1, 2, 1, 0, 2])
    for sizes in ((2, 5, 3), (30, 40, 35)):
        prompts = lanes_of(lm, sizes)
        good = prompted_losses(lm, prompts, batch)
        want = gradients(good, prompts)
        bad = lanes_of(lm, sizes)
        with torch.no_grad():
            bad[1][0, 0] = torch.nan
        losses = prompted_losses(lm, bad, batch)
        grads = gradients(losses, bad)
        assert losses[1].isnan() and grads[1].isnan().any()
        for lane in (0, 2):
            assert losses[lane] == good[lane] and torch.equal(grads[lane], want[lane])


@pytest.mark.parametrize("name", [*FAMILIES, "lab-base-s"])
def test_recomputed_layers_give_the_same_gradient(name, layout):
    lm = lm_of(name)
    again = tiny(name, dtype=DOUBLE) if name in FAMILIES else load_lm(name, dtype=DOUBLE, checkpointing=True)
    again.checkpointing = True
    for sizes in ((2, 5), (40, 30)):
        prompts, batch = lanes_of(lm, sizes), pad_rows(lm, encode_at(lm, EXAMPLES), lanes=[0, 1, 1])
        for shared in (True, False):
            kept, anew = (prompted_losses(model, prompts, batch, shared) for model in (lm, again))
            assert all_close(gradients(anew, prompts), gradients(kept, prompts))
    assert all("forward" not in layer.__dict__ for layer in again.layers)
    assert plan(again, prompts, batch) in ("tree", "packed", "split")


def test_recomputing_keeps_less_for_the_backward_pass():
    kept = {}
    for again in (False, True):
        lm = tiny("llama")
        lm.checkpointing = again
        prompts, batch = lanes_of(lm, (20,), dtype=torch.float32), collate(lm, EXAMPLES * 4)
        prompted_losses(lm, prompts, batch)
        sizes = []

        def count(x, sizes=sizes):
            sizes.append(x.numel())
            return x

        with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
            prompted_losses(lm, prompts, batch).sum()
        kept[again] = sum(sizes)
    assert kept[True] < 0.5 * kept[False]


def test_checkpointing_a_model_without_marked_layers_is_refused():
    lm = tiny("llama")

    class Plain(torch.nn.Module):
        pass

    lm.model.model.layers = torch.nn.ModuleList([Plain()])
    with pytest.raises(ValueError, match="checkpointing=True: bare.*leave it out"):
        FrozenLM(lm.model, lm.tokenizer, "bare", checkpointing=True)


def test_loss_in_pieces_is_the_loss_and_keeps_few_logits(monkeypatch):
    lm = lm_of("gpt2")
    prompts = lanes_of(lm, (3, 4))
    batch = pad_rows(lm, encode_at(lm, EXAMPLES * 3), lanes=[0, 1, 1] * 3)
    whole = prompted_losses(lm, prompts, batch)
    want = gradients(whole, prompts)
    monkeypatch.setattr(forward, "PIECE", 4 * lm.vocab_size)
    seen = []
    real = lm.model.lm_head.forward

    def counted(hidden):
        seen.append(len(hidden))
        return real(hidden)

    monkeypatch.setattr(lm.model.lm_head, "forward", counted)
    pieces = prompted_losses(lm, prompts, batch)
    assert max(seen) == 4 and close(pieces, whole)
    weighted = pieces * torch.tensor([1.0, 2.0], dtype=DOUBLE)
    assert all_close(gradients(weighted, prompts), [want[0], 2 * want[1]])
    with torch.no_grad():
        assert close(prompted_losses(lm, prompts, batch), whole)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_lanes_keep_the_shared_prefix(dtype, layout):
    lm = tiny("llama", dtype=dtype)
    batch = pad_rows(lm, encode_at(lm, EXAMPLES), lanes=[0, 1, 1])
    for sizes in ((3, 5), (40, 30)):
        prompts = lanes_of(lm, sizes, dtype=torch.float32)
        assert plan(lm, prompts, batch) in (("tree",) if layout == "tree" else ("packed", "split"))
        for grad in gradients(prompted_losses(lm, prompts, batch), prompts):
            assert grad.dtype == torch.float32 and grad.isfinite().all() and grad.abs().sum() > 0


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_model_spread_by_device_map_shares_the_prefix(tmp_path, checkpointing, layout):
    whole = lm_of("gpt_neox")
    folder = tmp_path / "model"
    whole.model.save_pretrained(folder)
    whole.tokenizer.save_pretrained(folder)
    where = {
        "gpt_neox.embed_in": "disk",
        "gpt_neox.layers.0": "cpu",
        "gpt_neox.layers.1": "disk",
        "gpt_neox.layers.2": "cpu",
        "gpt_neox.final_layer_norm": "cpu",
        "gpt_neox.rotary_emb": "cpu",
        "lm_head": "disk",
    }
    lm = load_lm(
        folder,
        dtype=DOUBLE,
        device_map=where,
        offload_folder=tmp_path / "off",
        checkpointing=checkpointing,
    )
    batch, prompts = pad_rows(lm, encode_at(lm, EXAMPLES), lanes=[0, 1, 1]), lanes_of(whole, (3, 5))
    assert lm.device.type == "cpu" and plan(lm, prompts, batch) == ("tree" if layout == "tree" else "packed")
    both = [prompted_losses(model, prompts, batch) for model in (lm, whole)]
    assert close(*both) and all_close(*(gradients(losses, prompts) for losses in both))


def test_rows_of_very_different_lengths_are_attended_to_in_blocks():
    lm = lm_of("llama")
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(2, 60, (150,), generator=generator).tolist() + [3] * 60
    rows = []
    for length in lengths:
        ids = torch.randint(3, 119, (length,), generator=generator).tolist()
        rows.append(Encoded(ids, max(1, length - 2), 0))
    prompts, batch = lanes_of(lm, (3, 9, 5)), pad_rows(lm, rows, lanes=[i % 3 for i in range(210)])
    assert len(pack(lm, prompts, find_shared(prompts, batch)).layout.blocks) > 1
    assert plan(lm, prompts, batch) == "packed"
    both = [prompted_losses(lm, prompts, batch, shared) for shared in (True, False)]
    assert close(*both) and all_close(*(gradients(losses, prompts) for losses in both))


def test_compiled_layers_give_the_same_loss_and_gradient(layout):
    plain = tiny("llama", dtype=DOUBLE)
    # captured as for the default backend, without the minute that compiling takes
    lm = FrozenLM(plain.model, plain.tokenizer, "compiled", compile="eager")
    batch = pad_rows(lm, encode_at(lm, EXAMPLES), lanes=[0, 1, 1])
    for sizes in ((3, 5), (4, 9)):
        prompts = lanes_of(lm, sizes)
        assert plan(lm, prompts, batch) == ("tree" if layout == "tree" else "packed")
        both = [prompted_losses(model, prompts, batch) for model in (lm, plain)]
        assert close(*both) and all_close(*(gradients(losses, prompts) for losses in both))
    with pytest.raises(ValueError, match="choose the one"):
        FrozenLM(plain.model, plain.tokenizer, "both", compile=True, checkpointing=True)
    torch.compiler.reset()


def hybrid():
    "Convolutions between layers of attention: what a token reads hangs on the slots in front of it."
    torch.manual_seed(0)
    sizes = dict(vocab_size=120, hidden_size=32, num_attention_heads=4, num_key_value_heads=2, intermediate_size=48)
    kinds = ["conv", "full_attention"] * 2
    config = Lfm2Config(**sizes, num_hidden_layers=4, layer_types=kinds, block_auto_adjust_ff_dim=False)
    config.eos_token_id = 1
    model = AutoModelForCausalLM.from_config(config, dtype=DOUBLE)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(4)
    return FrozenLM(model, tokenizer(), name="hybrid")


EVEN = [Example("abc", " de"), Example("abd", " ef"), Example("xyz", " qr"), Example("hot", " co")]


@pytest.mark.filterwarnings("ignore:.*does not give the same logits")
@pytest.mark.parametrize(
    ("before", "rows"),
    [
        ([Example("abc", " de")], EVEN),
        ([Example("abc", " de")] * 2, EVEN),
        ([Example("abc", " d"), Example("abc", " e")], EVEN),
        ([Example("abcdef", " d"), Example("abc", " e")], [*EXAMPLES, Example("abd", " ef")]),
    ],
)
@pytest.mark.parametrize("n_prompts", [1, 2])
@torch.no_grad()
def test_rows_that_part_nowhere_do_not_speak_for_rows_that_do(before, rows, n_prompts):
    lm = hybrid()
    prompts = [SoftPrompt.init(lm, 3, "gaussian", seed=seed) for seed in range(n_prompts)]
    given = [prompts[i % n_prompts] for i in range(len(rows))]
    right = []
    for prompt, example in zip(given, rows):
        (row,) = encode_at(lm, [example], "start", True)
        embeds = torch.cat([prompt.vectors.to(DOUBLE), lm.embed_ids(row.ids)])
        logprobs = lm.model(inputs_embeds=embeds[None], use_cache=False).logits[0].log_softmax(-1)
        first = len(prompt) + row.n_input
        own = torch.tensor(row.ids[row.n_input :])[:, None]
        right.append(logprobs[first - 1 : -1].gather(1, own).sum())
    target_logprobs(lm, [prompts[i % n_prompts] for i in range(len(before))], before)
    ours = target_logprobs(lm, given, rows)[0]
    torch.testing.assert_close(ours.double(), torch.stack(right), rtol=EXACT, atol=EXACT)
