"""Summaries and distances against formulas and assignments, nulls against their own draws, evolution, rank
correlations, and the comparison of arms."""

import math

from softprompt_nb.tda.evolution import evolution, random_walks, rank_correlation, shape_at_end
from softprompt_nb.tda.persistence import Diagram, persistence
from softprompt_nb.tda.summaries import (
    DISTANCES,
    against_null,
    beside_null,
    betti_curve,
    diagram_distance,
    distance_against_null,
    gaussian_clouds,
    image,
    landscape,
    persistence_entropy,
    summarize,
    total_persistence,
)

import numpy as np
import pandas as pd
import persim
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from scipy.stats import spearmanr

settings.register_profile("tda", deadline=None, max_examples=25)
settings.load_profile("tda")


def cloud(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(st.integers(2, 20), st.integers(1, 5), st.integers(0, 10**6))
def test_summaries_are_their_formulas(n, d, seed):
    dgms = persistence(cloud(n, d, seed))
    s, bars = summarize(dgms), [x.numpy()[:, 1] - x.numpy()[:, 0] for x in dgms]
    for k, lifetimes in enumerate(bars):
        p = lifetimes[lifetimes > 0] / lifetimes.sum() if len(lifetimes) else lifetimes
        want = dict(
            count=len(lifetimes),
            total=lifetimes.sum(),
            mean=lifetimes.mean() if len(lifetimes) else 0,
            max=lifetimes.max(initial=0),
            entropy=-(p * np.log(p)).sum(),
        )
        assert {f"H{k} {name}": pytest.approx(v, abs=1e-9) for name, v in want.items()} == {
            key: v for key, v in s.items() if key.startswith(f"H{k}")
        }
    p = np.concatenate(bars) / np.concatenate(bars).sum()
    assert s["entropy"] == pytest.approx(-(p * np.log(p)).sum()) and persistence_entropy(
        dgms, 2
    ).item() == pytest.approx(s["entropy"] / math.log(2))


def test_entropy_and_total_are_differentiable():
    x = cloud(8, 3).requires_grad_()
    for f in (
        lambda p: persistence_entropy(persistence(p)),
        lambda p: total_persistence(persistence(p)[1], 2) + total_persistence(persistence(p)[0]),
    ):
        (grad,) = torch.autograd.grad(f(x), x)
        step = 1e-6 * torch.eye(24, dtype=torch.float64).reshape(24, 8, 3)
        with torch.no_grad():
            want = torch.stack([(f(x + e) - f(x - e)) / 2e-6 for e in step]).reshape(8, 3)
        assert (grad - want).abs().max() < 1e-6
    equal = torch.ones(5, 3, requires_grad=True)
    e = persistence_entropy(persistence(equal))
    assert e == 0 and (not e.requires_grad or torch.autograd.grad(e, equal)[0].isfinite().all())
    with pytest.raises(ValueError, match="1 or more"):
        total_persistence(persistence(cloud(4, 2))[0], 0.5)


def costs(a, b, order):
    "Of every move of a bar to another or to the diagonal."

    def gap(v):
        return (v[:, 1] - v[:, 0]) / 2 ** (1 / order)

    m, n = len(a), len(b)
    cost = np.zeros((m + n, m + n))
    cost[:m, :n] = np.linalg.norm(a[:, None] - b, order, axis=-1)
    cost[:m, n:], cost[m:, :n] = gap(a)[:, None], gap(b)
    return cost


def wasserstein(a, b):
    cost = costs(a, b, 2)
    return cost[linear_sum_assignment(cost)].sum()


def bottleneck(a, b):
    """The least length that a perfect matching can keep to (gudhi 3.13's own function is up to a tenth too large in
    one of a hundred small cases)."""
    long = costs(a, b, np.inf)
    long[: len(a), len(b) :], long[len(a) :, : len(b)] = ((a[:, 1] - a[:, 0]) / 2)[:, None], (b[:, 1] - b[:, 0]) / 2
    return next(
        c for c in np.unique(np.append(long, 0)) if not (over := long > c + 1e-12)[linear_sum_assignment(over)].any()
    )


@given(st.integers(2, 12), st.integers(2, 12), st.integers(0, 10**6))
def test_distances_are_those_of_an_assignment(n, m, seed):
    for a, b in zip(persistence(cloud(n, 2, seed)), persistence(cloud(m, 2, seed + 1))):
        assert diagram_distance(a, b) == pytest.approx(wasserstein(a.numpy(), b.numpy()), abs=1e-9)
        assert diagram_distance(a, b, "bottleneck") == pytest.approx(bottleneck(a.numpy(), b.numpy()), abs=1e-9)
        for kind in DISTANCES:
            assert diagram_distance(a, a, kind) == pytest.approx(0, abs=1e-7) and diagram_distance(
                a, b, kind
            ) == pytest.approx(diagram_distance(b, a, kind), abs=1e-9)
    for bad in (dict(kind="l2"), {}):
        with pytest.raises(ValueError):
            diagram_distance(a, persistence(cloud(3, 2))[0], **bad)


def test_curves_and_images():
    dgms, x = persistence(cloud(15, 2)), np.linspace(0, 3, 40)
    assert betti_curve(dgms[0], x).tolist() == [1 + sum(1 for d in dgms[0].deaths if d > v) for v in x]
    b = dgms[1].numpy()
    tents = np.sort(np.clip(np.minimum(x[:, None] - b[:, 0], b[:, 1] - x[:, None]), 0, None), 1)[:, ::-1]
    assert np.abs(landscape(dgms[1], (0, 3), 40, 2)[0] - tents[:, 0]).max() < 1e-9
    empty = persistence(torch.ones(3, 2))[1]
    assert (
        not landscape(empty, (0, 1), 10).any()
        and not image(empty, (0, 1), (0, 1), 0.1).any()
        and image(dgms[1], (0, 2), (0, 1), 0.1).shape == image(empty, (0, 2), (0, 1), 0.1).shape
    )


def diagram(*bars):
    births, deaths = torch.tensor(bars, dtype=torch.float64).reshape(-1, 2).T
    return Diagram(1, births, deaths, None, torch.zeros(len(bars), 2, dtype=torch.long))


@given(st.lists(st.tuples(st.floats(0, 3), st.floats(0.1, 2)), max_size=6), st.floats(0, 2), st.floats(0.1, 3))
def test_a_landscape_is_its_definition_wherever_the_grid_begins(bars, start, width):
    got = landscape(diagram(*((b, b + length) for b, length in bars)), (start, start + width), 9, 3)
    assert got.shape == (3, 9)
    for i, x in enumerate(np.linspace(start, start + width, 9)):
        tents = sorted((max(0.0, min(x - b, b + length - x)) for b, length in bars), reverse=True)
        assert np.allclose(got[:, i], (tents + [0, 0, 0])[:3], atol=1e-9)


def test_a_landscape_counts_what_was_born_before_its_grid():
    got = landscape(diagram((0, 2), (0, 3), (1.2, 1.9)), (1, 3), 21)[0]
    assert np.allclose(got[:6], [1, 1.1, 1.2, 1.3, 1.4, 1.5]) and np.allclose(got[6:], np.arange(1.4, -0.05, -0.1))


@pytest.mark.parametrize("births,lifetimes,pixel", [((0, 0.5), (0, 1), 0.25), ((0.5, 1.5), (0.25, 1), 0.125)])
def test_an_image_is_persims(births, lifetimes, pixel):
    for sigma in (None, 0.4):
        variance = (sigma or pixel) ** 2 * np.eye(2)
        imager = persim.PersistenceImager(births, lifetimes, pixel, kernel_params=dict(sigma=variance.tolist()))
        bars = diagram((0.1, 0.39), (0.6, 1.4), (0.3, 2.0))
        want = imager.transform(bars.numpy(), skew=True)
        assert np.allclose(image(bars, births, lifetimes, pixel, sigma), want, atol=1e-6)


def test_rounding_takes_no_pixel_of_an_image():
    for births, lifetimes, shape in (
        ((0, 0.4), (0, 0.3), (4, 3)),
        ((0, 0.7), (0, 0.6), (7, 6)),
        ((0, 0.45), (0, 1), (5, 10)),
    ):
        assert image(diagram((0.1, 0.39)), births, lifetimes, 0.1).shape == shape
        assert image(diagram(), births, lifetimes, 0.1).shape == shape
    spot = image(diagram((0.35, 0.6)), (0, 0.4), (0, 0.3), 0.1)
    assert np.unravel_index(spot.argmax(), spot.shape) == (3, 2), "a bar is in its own pixel"
    assert image(diagram((1, 2)), (-9, 9), (-9, 9), 0.5).sum() == pytest.approx(1), "all of its lifetime"


def test_what_is_no_number_has_no_p():
    null = [dict(h=float(h)) for h in range(9)]
    row = beside_null(dict(h=math.nan), null, 0.8).loc["h"]
    assert math.isnan(row.p) and math.isnan(row.value) and row["median"] == 4
    with pytest.warns(UserWarning, match="h: 3 of 12 clouds of the null have no number"):
        part = beside_null(dict(h=9.0), null + [dict(h=math.nan)] * 3, 0.8).loc["h"]
    assert part.equals(beside_null(dict(h=9.0), null, 0.8).loc["h"])
    with pytest.warns(UserWarning, match="2 of 2"):
        assert (
            beside_null(dict(h=9.0), [dict(h=math.nan)] * 2, 0.8).loc["h", ["low", "median", "high", "p"]].isna().all()
        )


@pytest.mark.parametrize("spread", ["isotropic", "covariance"])
def test_null_clouds_have_the_number_dimension_and_spread(spread):
    x = 7 + cloud(12, 5) * torch.tensor([5.0, 1, 1, 0.1, 2])
    g = gaussian_clouds(x, 4000, 0, spread)

    def ms(p):
        return torch.pdist(p).square().mean().item()

    assert g.shape == (4000, 12, 5) and all(ms(p) == pytest.approx(ms(x)) for p in g[:100])
    c = torch.cov(g.reshape(-1, 5).T) / torch.cov(x.T).trace()
    want = torch.cov(x.T) / torch.cov(x.T).trace() if spread == "covariance" else torch.eye(5).double() / 5
    assert torch.allclose(c, want, atol=0.12), (
        "a strong direction may weaken a little, as every draw is scaled to one spread"
    )
    assert (gaussian_clouds(torch.ones(4, 3), 2, 0, spread) == 1).all() and gaussian_clouds(
        torch.ones(1, 3), 2, 0, spread
    ).isfinite().all()
    assert torch.equal(gaussian_clouds(x, 3, 1, spread), gaussian_clouds(x, 3, 1, spread)) and not torch.equal(
        gaussian_clouds(x, 3, 1, spread), gaussian_clouds(x, 3, 2, spread)
    )


def test_gaussian_points_lie_in_their_own_null_as_often_as_the_band_says():
    inside = [
        (t := against_null(cloud(8, 20, s), 99, seed=1000 + s, maxdim=0, level=0.8)["H0 mean"]).low <= t.value <= t.high
        for s in range(120)
    ]
    assert 0.68 < np.mean(inside) < 0.9, "the null has the cloud's own spread, so that its band covers what it says"
    p = [against_null(cloud(8, 20, s), 39, seed=s, maxdim=0)["H0 mean"].p for s in range(60)]
    assert min(p) > 0 and 0.3 < np.mean(p) < 0.7


@pytest.mark.parametrize("metric", ["cosine", "correlation"])
def test_noise_beside_the_origin_has_its_null_beside_the_origin(metric):
    "Where a cloud lies decides what its angles are: noise with an offset is no shape."

    def noise(s):
        return cloud(10, 16, s) + 3 * cloud(1, 16, 500 + s)

    for x in map(noise, range(3)):
        assert torch.allclose(gaussian_clouds(x, 5).mean(1), x.mean(0).expand(5, 16), atol=1e-9)
    p = [against_null(noise(s), 39, metric=metric, maxdim=0)["H0 mean"].p for s in range(20)]
    assert np.mean(np.array(p) <= 0.1) < 0.4 and 0.3 < np.mean(p) < 0.7
    assert distance_against_null(noise(0), noise(1), draws=19, metric=metric, maxdim=0)["H0 wasserstein"].p > 0.1
    path = torch.stack([noise(0) + 0.1 * cloud(10, 16, s) for s in range(4)])
    assert abs(shape_at_end(path, metric=metric)["compact"]) < 0.3
    table = evolution(path, metric=metric, maxdim=0, draws=20, walks=0).table
    assert ((table["H0 mean low"] < 2 * table["H0 mean"]) & (table["H0 mean"] < 2 * table["H0 mean high"])).all()


def test_a_shape_is_outside_of_its_null():
    a = 2 * torch.pi * torch.arange(15) / 15
    ring = torch.zeros(15, 30)
    ring[:, 0], ring[:, 1] = a.cos(), a.sin()
    got = against_null(ring, 60)
    assert (
        got["H1 max"].value > got["H1 max"].high and got["H1 max"].p < 0.1 and got["H0 mean"].value < got["H0 mean"].low
    )
    assert distance_against_null(ring, cloud(15, 30).float() * 0.15, draws=30)["H1 wasserstein"].p < 0.1
    assert "60 Gaussian clouds" in repr(got) and "isotropic" in got._repr_html_()


def test_evolution_reads_each_checkpoint():
    t = torch.stack([cloud(9, 12) * (1 + k) for k in range(5)]).float()
    evo = evolution(t, [0, 10, 20, 30, 40], draws=20)
    assert evo.steps == [0, 10, 20, 30, 40] and evo.table.step.tolist() == evo.steps
    for i, p in enumerate(t):
        assert evo.table["H0 mean"][i] == pytest.approx(summarize(persistence(p.double()))["H0 mean"])
        assert evo.table["H0 mean low"][i] == pytest.approx((1 + i) * evo.table["H0 mean low"][0])
        assert (
            evo.table["change"][i]
            == pytest.approx(diagram_distance(persistence(t[i - 1].double())[0], persistence(p.double())[0]))
            if i
            else math.isnan(evo.table["change"][0])
        )
    assert "5 checkpoints" in repr(evo)
    still = evolution(t[:1].repeat(4, 1, 1), draws=5)
    assert still.table.change[1:].abs().max() < 1e-9
    history = pd.DataFrame(dict(step=range(1, 41), loss=1.0, valid=np.nan)).assign(accuracy=0.5)
    for made in (evo.plot(), evo.plot(history), evo.film(3), evo.against(history)):
        assert made.axes
    assert evolution(torch.ones(3, 1, 4), draws=3).film().axes


def test_shape_at_end():
    a = 2 * torch.pi * torch.arange(10) / 10
    ring = torch.stack([a.cos(), a.sin()], 1).double()
    tight = torch.cat([0.01 * cloud(5, 20), 0.01 * cloud(5, 20) + 1])
    moving, resting = torch.stack([cloud(10, 20, s) for s in range(6)]), torch.stack([tight] * 6)
    assert shape_at_end(resting)["stable"] == 0 > shape_at_end(moving)["stable"]
    assert shape_at_end(resting)["compact"] > 0.5 > abs(shape_at_end(moving)["compact"])
    scaled = shape_at_end(5 * resting)
    assert scaled["compact"] == pytest.approx(shape_at_end(resting)["compact"]) and scaled[
        "mean_distance"
    ] == pytest.approx(5 * shape_at_end(resting)["mean_distance"])
    assert shape_at_end(torch.stack([ring] * 3))["H1 count"] == 1
    for bad in (torch.ones(2, 3, 4), torch.ones(3, 4)):
        with pytest.raises(ValueError, match="three checkpoints"):
            shape_at_end(bad)


@given(st.integers(4, 40), st.integers(0, 10**6))
def test_rank_correlation_is_spearmans(n, seed):
    rng = np.random.default_rng(seed)
    t = pd.DataFrame(dict(x=rng.integers(0, 6, n), y=rng.normal(size=n), z=1.0, g=rng.integers(0, 2, n)))
    got = rank_correlation(t, "x", "y", draws=50)
    if t.x.nunique() > 1:
        assert got.value == pytest.approx(spearmanr(t.x, t.y).statistic)
    assert rank_correlation(t, "x", "z", draws=20).value == 0 and got.n == n and got.low <= got.high
    assert rank_correlation(t.assign(y=np.exp(t.y)), "x", "y", draws=5).value == pytest.approx(got.value)
    shifted = t.assign(y=t.y + 100 * t.g, x=t.x + 50 * t.g)
    assert rank_correlation(shifted, "x", "y", by="g", draws=5).value == pytest.approx(
        rank_correlation(t, "x", "y", by="g", draws=5).value
    )


@pytest.mark.parametrize(
    "call,words",
    [
        (lambda: evolution(torch.ones(3, 4)), "trajectory"),
        (lambda: evolution(torch.ones(3, 4, 2), [0, 1]), "2 steps for 3"),
        (lambda: gaussian_clouds(torch.ones(3, 2), spread="uniform"), "isotropic"),
        (lambda: image(diagram((0, 1)), (0, 1), (0, 1), 0.1, sigma=0), "above zero"),
        (lambda: rank_correlation(pd.DataFrame(dict(x=[1.0, 2], y=[1.0, 2])), "x", "y"), "at least four"),
    ],
)
def test_bad_input_is_refused_in_words(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@given(st.integers(2, 6), st.integers(2, 5), st.integers(2, 4), st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_the_change_stands_beside_walks_with_the_same_step_lengths(checkpoints, n, d, seed):
    path = torch.stack([cloud(n, d, seed + i) for i in range(checkpoints)])
    walked = random_walks(path, 3, seed)
    assert walked.shape == (3, checkpoints, n, d) and (walked[:, 0] == path[0]).all()
    assert (walked.diff(dim=1).norm(dim=-1) - path.diff(dim=0).norm(dim=-1)).abs().max() < 1e-9
    assert not torch.allclose(walked[0], walked[1])
    table = evolution(path, draws=2, walks=3, seed=seed).table
    for i in range(1, checkpoints):
        each = []
        for walk in walked:
            before, now = (persistence(walk[j], 0)[0] for j in (i - 1, i))
            each.append(wasserstein(before.numpy(), now.numpy()))
        low, high = np.quantile(each, [0.05, 0.95])
        assert table["change low"][i] == pytest.approx(low, abs=1e-7)
        assert table["change high"][i] == pytest.approx(high, abs=1e-7)
    assert math.isnan(table["change low"][0]) and "random directions" in repr(evolution(path, draws=2, walks=3))


def test_a_random_walk_is_within_its_own_null():
    "What a walk in random directions shows is what its null expects, as often as the band says."
    start = cloud(8, 16, 0)
    steps = torch.randn(30, 8, 16, generator=torch.Generator().manual_seed(5), dtype=torch.float64) * 0.3
    path = torch.cat([start[None], start + steps.cumsum(0)])
    table = evolution(path, draws=2, walks=60).table.iloc[1:]
    inside = (table.change >= table["change low"]) & (table.change <= table["change high"])
    assert inside.mean() > 0.6
    assert "change low" not in evolution(path[:3], draws=2, walks=0).table


def test_rows_of_one_unit_are_drawn_together():
    rng = np.random.default_rng(5)
    once = pd.DataFrame(dict(u=np.arange(12), x=rng.normal(size=12), y=rng.normal(size=12)))
    many = pd.concat([once] * 6)
    own = rank_correlation(once, "x", "y", draws=400)
    units = rank_correlation(many, "x", "y", unit="u", draws=400)
    assert units.n == 12 and units.value == pytest.approx(own.value)
    assert units.high - units.low == pytest.approx(own.high - own.low, rel=0.15)
    with pytest.raises(ValueError, match="3 units"):
        rank_correlation(many[many.u < 3], "x", "y", unit="u")


def test_units_alone_with_their_groups_are_drawn_all_the_same():
    rng = np.random.default_rng(0)
    t = pd.DataFrame([dict(u=u, x=rng.normal(), y=rng.normal()) for u in range(8) for _ in range(6)])
    own = rank_correlation(t, "x", "y", by="u", unit="u", draws=200)
    assert own.n == 8 and own.low < own.value < own.high, "each start is a group of its own"
    crossed = pd.concat([t.assign(g=g) for g in range(4)])
    whole = rank_correlation(crossed, "x", "y", by="g", unit="u", draws=200)
    missing = rank_correlation(crossed[crossed.g != crossed.u % 4], "x", "y", by="g", unit="u", draws=200)
    assert missing.high - missing.low > 0.5 * (whole.high - whole.low), "one cell missing of each unit"


def test_rows_without_a_unit_are_no_unit():
    "They were drawn together, as one."
    table = pd.DataFrame(dict(x=range(8), y=range(8), start=[0, 1, 2, 3, 4, np.nan, np.nan, 7]))
    with pytest.raises(ValueError, match="2 of 8 rows have no 'start'"):
        rank_correlation(table, "x", "y", unit="start")
    assert rank_correlation(table.dropna(), "x", "y", unit="start").n == 6
