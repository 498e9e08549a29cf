"""TSLoss and the other terms against their formulas written by hand, finite differences, degenerate clouds; as
regularisers of tune and tune_many."""

import math

from softprompt_nb.data import Example
from softprompt_nb.prompts import SoftPrompt
from softprompt_nb.tda.penalties import (
    L2,
    Connectivity,
    PairDistance,
    RandomDirection,
    Signature,
    TotalPersistence,
    Weighted,
)
from softprompt_nb.tda.persistence import distances, persistence
from softprompt_nb.tda.tsloss import TSLoss, distinct, interval, soft_nearest
from softprompt_nb.training.many import tune_many
from softprompt_nb.training.tuning import tune

import numpy as np
import pytest
import torch
from families import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

settings.register_profile("tda", deadline=None, max_examples=30)
settings.load_profile("tda")
EXAMPLES = [Example(c * 3, f" {c}!") for c in "abcdefghij"]
TERMS = dict(
    soft=TSLoss(),
    printed=TSLoss(mask=False, units="distance", alpha=10.0, normalize=None),
    plain=TSLoss(power=1, fixed_ends=True),
    exact=TSLoss("exact"),
    target=TSLoss("exact", connect="target", eta=0.5),
    total=TSLoss("exact", connect="total", normalize="mean"),
    cosine=TSLoss(metric="cosine"),
    balanced=TSLoss(balance=True),
    l2=L2(),
    pairs=PairDistance(),
    apart=PairDistance(-1),
    hofer=Connectivity(),
    h0=TotalPersistence(0),
    h1=TotalPersistence(1),
    random=RandomDirection(seed=1),
    signature=Signature(start=torch.zeros(1, 1)),
)


def cloud(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def term_for(name, x):
    return TERMS[name].begin(cloud(*x.shape, seed=99).to(x)) if name == "signature" else TERMS[name]


def by_hand(x, a=2.0):
    "The soft form with its defaults, pair by pair."
    n = len(x)
    d = np.array([[np.linalg.norm(x[i] - x[j]) for j in range(n)] for i in range(n)])
    pairs = np.array([d[i, j] for i in range(n) for j in range(i + 1, n)])
    d, pairs = d / pairs.mean(), pairs / pairs.mean()
    alpha = a / pairs.std()
    near = []
    for i in range(n):
        w = {j: math.exp(-alpha * d[i, j]) for j in range(n) if j != i}
        near.append(sum(w[j] * d[i, j] for j in w) / sum(w.values()))
    low, high = (
        sum(math.exp(s * alpha * p) * p for p in pairs) / sum(math.exp(s * alpha * p) for p in pairs) for s in (-1, 1)
    )
    return np.var(near), np.mean([max(0, low - p) ** 2 + max(0, p - high) ** 2 for p in pairs])


@given(st.integers(3, 12), st.integers(1, 5), st.integers(0, 10**6))
def test_the_soft_form_is_its_formula(n, d, seed):
    x = cloud(n, d, seed)
    h0, h1 = by_hand(x.numpy())
    got = TSLoss().parts(x)
    assert got["h0"].item() == pytest.approx(h0, abs=1e-10) and got["h1"].item() == pytest.approx(h1, abs=1e-10)
    assert TSLoss(h0=3.0, h1=0.5)(x).item() == pytest.approx(3 * h0 + 0.5 * h1, abs=1e-9)


def test_the_exact_form_is_its_formula():
    x = cloud(14, 3)
    d = persistence(x, normalize="fixed")
    got = TSLoss("exact").parts(x)
    assert (
        got["h0"].item() == pytest.approx(d[0].deaths.numpy().var())
        and got["h1"].item() == pytest.approx((d[1].lifetimes ** 2).sum().item())
        and got["h1"] > 0
    )
    assert TSLoss("exact", connect="target", eta=0.7).parts(x)["h0"].item() == pytest.approx(
        (d[0].deaths - 0.7).abs().mean().item()
    )
    assert TSLoss("exact", connect="total", power=1).parts(x)["h0"].item() == pytest.approx(d[0].deaths.mean().item())


@pytest.mark.parametrize(
    "name", [n for n in TERMS if n not in ("hofer", "random", "balanced")]
)  # the first is TSLoss's target with a constant mean, the others are tested for their length below
def test_gradients_are_finite_differences(name):
    """Constants of the gradient (the mean of normalize='fixed', the spread behind alpha) are moved along by a
    difference, so those terms are compared with everything free."""
    free = dict(
        soft=TSLoss(units="distance", normalize="mean"),
        plain=TSLoss(units="distance", normalize="mean", power=1),
        exact=TSLoss("exact", normalize="mean"),
        target=TSLoss("exact", connect="target", eta=0.5, normalize="mean"),
        cosine=TSLoss(metric="cosine", units="distance", normalize="mean"),
        h0=TotalPersistence(0, normalize="mean"),
        h1=TotalPersistence(1, normalize="mean"),
    )
    x = next(
        c for c in (cloud(14, 2, s) for s in range(99)) if persistence(c, normalize="mean")[1].lifetimes.sum() > 0.1
    ).requires_grad_()
    term = free.get(name) or term_for(name, x.detach())
    (grad,) = torch.autograd.grad(term(x), x)
    step = 1e-6 * torch.eye(28, dtype=torch.float64).reshape(28, 14, 2)
    with torch.no_grad():
        want = torch.stack([(term(x + e) - term(x - e)) / 2e-6 for e in step]).reshape(14, 2)
    assert grad.norm() > 1e-6 and (grad - want).abs().max() < 1e-6 * max(1.0, want.abs().max().item())


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("kind", ["usual", "one", "two", "equal", "twins", "line", "zeros", "wide"])
def test_gradients_exist_everywhere(name, kind):
    usual = cloud(8, 6).float()
    x = (
        dict(
            usual=usual,
            one=usual[:1],
            two=usual[:2],
            equal=usual[:1].repeat(8, 1),
            twins=usual[:4].repeat(2, 1),
            line=torch.arange(8.0)[:, None] * usual[:1],
            zeros=torch.zeros(8, 6),
            wide=1e4 * usual,
        )[kind]
        .clone()
        .requires_grad_()
    )
    value = term_for(name, x.detach())(x)
    assert value.ndim == 0 and value.isfinite() and value.dtype == torch.float32
    if value.requires_grad:
        assert torch.autograd.grad(value, x)[0].isfinite().all()


@pytest.mark.parametrize("name", [n for n in TERMS if n not in ("apart", "random", "balanced")])
def test_a_step_downhill_goes_down(name):
    x = cloud(10, 4, 7).requires_grad_()
    term = term_for(name, x.detach())
    value = term(x)
    (grad,) = torch.autograd.grad(value, x)
    assert term((x - 1e-4 * grad / grad.norm()).detach()) < value


@pytest.mark.parametrize("name", [n for n in TERMS if n not in ("random", "signature")])
def test_the_order_of_vectors_plays_no_part(name):
    x = cloud(11, 5, 3)
    assert TERMS[name](x[torch.randperm(11, generator=torch.Generator().manual_seed(0))]).item() == pytest.approx(
        TERMS[name](x).item(), rel=1e-9
    )


def test_balance_gives_both_parts_gradients_of_one_length():
    x = cloud(10, 30).requires_grad_()

    def grad(term):
        return torch.autograd.grad(term(x), x)[0].flatten()

    a, b = grad(TSLoss(h1=0.0)), grad(TSLoss(h0=0.0))
    assert torch.allclose(grad(TSLoss(balance=True)), a / a.norm() + b / b.norm(), atol=1e-9)
    assert torch.cosine_similarity(grad(TSLoss()), a, 0) > 0.97, "the plain sum is nearly the first part alone"
    assert grad(TSLoss(h1=0.0, balance=True)).norm().item() == pytest.approx(1)
    for kind in ("soft", "exact"):
        term = TSLoss(kind, balance=True)
        with torch.no_grad():
            unasked = term(x)
        assert (
            unasked.item() == term(x.detach()).item() == pytest.approx(term(x).item(), rel=1e-12)
            and not unasked.requires_grad
        )


def test_signs():
    """Evenly spaced vectors have nothing to connect; a far one raises the term, and descent brings it back; pairs too
    near are pushed apart."""
    x = cloud(10, 3)
    far = x.clone()
    far[0] += 20
    for term in (TSLoss(), TSLoss("exact", h1=0)):
        assert term(far) > 5 * term(x)
        far.requires_grad_()
        (grad,) = torch.autograd.grad(term(far), far)
        assert (grad[0] @ (far[0] - far[1:].mean(0))) > 0, "downhill leads back to the others"
        far = far.detach()
    near = torch.cat([x, x[:1] + 1e-3])
    near.requires_grad_()
    (grad,) = torch.autograd.grad(TSLoss(h0=0, fixed_ends=True)(near), near)
    assert (-grad[0] + grad[10]) @ (near[0] - near[10]) > 0, "downhill moves the near pair apart"


def test_the_unmasked_soft_min_collapses_and_the_masked_one_does_not():
    x = (0.05 * cloud(20, 2048)).requires_grad_()
    for mask in (True, False):
        soft = soft_nearest(distances(x), 20, 10.0, mask)
        (grad,) = torch.autograd.grad(soft.var(), x)
        if mask:
            assert soft.mean() > 3 and grad.norm() > 1e-3
        else:
            assert soft.max() < 1e-10 and grad.norm() < 1e-10


def test_nearest_neighbours_are_blind_to_a_bridge():
    x = torch.cat([0.01 * cloud(10, 16), 0.01 * cloud(10, 16, 1)])
    x[10:, 0] += 14
    soft, exact = (TSLoss(kind, normalize=None).parts(x)["h0"].item() for kind in ("soft", "exact"))
    assert soft < 0.01 and exact == pytest.approx(14**2 * 18 / 19**2, rel=0.05)


def test_alpha_in_units_of_the_spread_leaves_the_same_share_outside():
    for d, scale in ((2048, 0.05), (64, 10.0)):
        p = distances(scale * cloud(20, d))
        low, high = interval(p, 2 / p.std())
        assert 0.02 < (p < low).double().mean() + (p > high).double().mean() < 0.2
        raw = interval(p, 1000 / p.mean())
        assert (p < raw[0]).double().mean() < 0.02


def test_equal_rows_are_stuck_until_they_are_made_distinct():
    x = cloud(1, 16).float().repeat(10, 1)
    moved = distinct(x)
    assert (
        torch.equal(moved[0], x[0])
        and persistence(moved)[0].deaths.min() > 0
        and torch.equal(distinct(moved), moved)
        and torch.equal(distinct(x), moved)
    )
    assert (moved - x).std() < 0.02 * x.std()
    for kind in ("soft", "exact"):
        for y, stuck in ((x, True), (moved, False)):
            y = y.clone().requires_grad_()
            assert bool(torch.autograd.grad(TSLoss(kind)(y), y)[0].any()) != stuck
    assert persistence(distinct(torch.zeros(4, 3)))[0].deaths.min() > 0


def test_the_random_direction_has_the_length_of_its_match():
    x = cloud(10, 30).requires_grad_()
    want = torch.autograd.grad(TSLoss()(x), x)[0]

    def draw(seed):
        return torch.autograd.grad(RandomDirection(TSLoss(), seed)(x), x)[0]

    assert (
        draw(1).norm().item() == pytest.approx(want.norm().item())
        and torch.equal(draw(1), draw(1))
        and not torch.equal(draw(None), draw(None))
    )
    assert abs(torch.cosine_similarity(draw(1).flatten(), want.flatten(), 0)) < 0.25


def test_the_signature_is_zero_at_the_start_and_its_formula_elsewhere():
    x, z = cloud(8, 4), cloud(8, 4, 1)
    term = Signature().begin(x)
    assert term(x) == 0 and term(3 * x + 1).item() == pytest.approx(0, abs=1e-20)
    a, b = (torch.cdist(p, p) / torch.cdist(p, p).max() for p in (x, z))
    want = sum((a[i, j] - b[i, j]) ** 2 for p in (x, z) for i, j in persistence(p, 0)[0].death_edges.tolist()) / 16
    assert term(z).item() == pytest.approx(want.item())
    with pytest.raises(ValueError, match="start"):
        Signature()(x)


def test_weighted_keeps_the_ratio_in_every_lane_of_tune_many():
    lm = tiny("gpt2", dtype=torch.float64)
    seen = []

    class Watch(Weighted):
        def weigh(self, loss, own):
            w = super().weigh(loss, own)
            seen.append((w * own / loss).item())
            return w

    prompts = [SoftPrompt.init(lm, n, seed=n) for n in (4, 6, 4, 5)]
    terms = [Watch(TSLoss(), ratio=0.3), None, Weighted(L2(), weight=2.0), Weighted(Signature(), ratio=0.1)]
    runs = tune_many(lm, prompts, EXAMPLES, steps=5, regularizer=terms, progress=False)
    assert seen == pytest.approx([0.3] * 5, rel=1e-4)
    for p, term, r in zip(prompts, terms, runs):
        alone = tune(lm, p, EXAMPLES, steps=5, regularizer=term, progress=False)
        assert torch.allclose(alone.prompt.vectors, r.prompt.vectors, atol=1e-9)
    assert (
        (runs[2].history.weight == 1).all()
        and "weight" not in runs[1].history
        and runs[3].history.weight.iloc[0] == 0
        and runs[3].history.weight.iloc[-1] > 0
    )


def test_a_fixed_weight_is_the_factor_by_hand():
    lm = tiny("gpt2", dtype=torch.float64)
    p = SoftPrompt.init(lm, 5)
    a = tune(lm, p, EXAMPLES, steps=4, regularizer=Weighted(TSLoss(), weight=3.0), progress=False)
    b = tune(lm, p, EXAMPLES, steps=4, regularizer=lambda v: 3 * TSLoss()(v), progress=False)
    c = tune(lm, p, EXAMPLES, steps=4, regularizer=TSLoss(h0=3.0, h1=3.0), progress=False)
    assert (
        torch.allclose(a.prompt.vectors, b.prompt.vectors, atol=1e-9)
        and torch.allclose(a.prompt.vectors, c.prompt.vectors, atol=1e-9)
        and "weight" not in b.history
    )


@pytest.mark.parametrize("name", TERMS)
def test_every_term_is_a_regularizer(name):
    lm = tiny("gpt2")
    term = TERMS[name]
    run = tune(lm, SoftPrompt.init(lm, 5), EXAMPLES, steps=3, regularizer=Weighted(term, ratio=0.5), progress=False)
    assert (
        run.history.regularizer.notna().all()
        and run.prompt.vectors.isfinite().all()
        and not any(w.grad is not None for w in lm.model.parameters())
    )


def test_a_state_belongs_to_its_term(tmp_path):
    lm = tiny("gpt2")
    kw = dict(steps=6, state=tmp_path / "s.safetensors", progress=False)
    tune(lm, SoftPrompt.init(lm, 4), EXAMPLES, regularizer=Weighted(TSLoss(), ratio=0.1), **kw)
    with pytest.raises(ValueError, match="regularizer"):
        tune(lm, SoftPrompt.init(lm, 4), EXAMPLES, regularizer=Weighted(TSLoss(alpha=3.0), ratio=0.1), **kw)


@pytest.mark.parametrize(
    "call,words",
    [
        (lambda: TSLoss("hard"), "'soft'"),
        (lambda: TSLoss(alpha=0), "above zero"),
        (lambda: TSLoss(power=3), "power=3"),
        (lambda: TSLoss(metric="precomputed"), "euclidean"),
        (lambda: TSLoss(connect="mean"), "variance"),
        (lambda: Weighted(TSLoss()), "one of the two"),
        (lambda: Weighted(TSLoss(), 0.1, 1.0), "one of the two"),
        (lambda: Weighted(TSLoss(), ratio=-1.0), "negative"),
        (lambda: Signature(scale="sum"), "'max'"),
        (lambda: TSLoss()(torch.tensor([[1.0, 2], [float("nan"), 0]])), "finite"),
    ],
)
def test_bad_input_is_refused_in_words(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize("kind", ["soft", "exact"])
@pytest.mark.parametrize("wrap", [lambda term: term, lambda term: Weighted(term, weight=0.5)])
def test_the_history_of_a_balanced_term_is_the_term(kind, wrap):
    "Its balanced value is over the lengths of its own gradients, and rises where they shrink as the term falls."
    lm = tiny("gpt_neox")
    pairs = [Example("a b", " c"), Example("c d", " a")]
    settings = dict(steps=4, batch_size=2, lr=0.05, progress=False, checkpoints=4)
    run = tune(lm, SoftPrompt.init(lm, 5, seed=0), pairs, regularizer=wrap(TSLoss(kind, balance=True)), **settings)
    factor = 0.5 if wrap(TSLoss()) != TSLoss() else 1.0
    plain = TSLoss(kind)
    before = run.trajectory[:-1]
    for points, seen in zip(before, run.history.regularizer):
        assert seen == pytest.approx(factor * plain(points).item(), rel=1e-5)
    again = tune(lm, SoftPrompt.init(lm, 5, seed=0), pairs, regularizer=wrap(TSLoss(kind)), **settings)
    assert again.history.regularizer[0] == pytest.approx(run.history.regularizer[0], rel=1e-5)
