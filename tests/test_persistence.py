"""Diagrams, critical edges and gradients against gudhi, finite differences and a spanning tree; degenerate clouds;
bad input."""

from softprompt_nb.tda.persistence import _ranked, distances, persistence

import gudhi
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ripser import ripser
from scipy.spatial.distance import cdist, squareform

settings.register_profile("tda", deadline=None, max_examples=40)
settings.load_profile("tda")


def cloud(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_gudhi(matrix, maxdim):
    "(diagrams, critical edges) of each dimension from gudhi's simplex tree."
    tree = gudhi.SimplexTree.create_from_array(matrix, max_filtration=float("inf"))
    tree.expansion(maxdim + 1)
    tree.compute_persistence()
    gens = tree.flag_persistence_generators()
    higher = list(gens[1]) + [np.zeros((0, 4), int)] * (maxdim - len(gens[1]))
    finite = [
        d[np.isfinite(d[:, 1])] if len(d) else np.zeros((0, 2))
        for d in map(tree.persistence_intervals_in_dimension, range(maxdim + 1))
    ]
    return finite, [gens[0][:, 1:] if len(gens[0]) else np.zeros((0, 2), int), *higher]


def edge_sets(dgms):
    "Critical edges as sets: of deaths in H0, of (birth, death) above."
    out = [{frozenset(e) for e in dgms[0].death_edges.tolist()}]
    return out + [
        {(frozenset(b), frozenset(e)) for b, e in zip(d.birth_edges.tolist(), d.death_edges.tolist())} for d in dgms[1:]
    ]


def gudhi_sets(edges):
    return [{frozenset(e) for e in edges[0].tolist()}] + [
        {(frozenset(e[:2]), frozenset(e[2:])) for e in k.tolist()} for k in edges[1:]
    ]


def by_ripser(order, n):
    "Births and deaths of loops as numbers of edges, by ripser on the ranks."
    rank = np.empty(len(order))
    rank[order] = np.arange(1, len(order) + 1)
    return {tuple(order[b.astype(int) - 1].tolist()) for b in ripser(squareform(rank), distance_matrix=True)["dgms"][1]}


@given(st.integers(2, 45), st.sampled_from([1, 2, 3, 8, 768]), st.booleans(), st.integers(0, 10**6))
def test_loops_are_ripsers(n, d, grid, seed):
    """The search by lunes against cohomology of the whole filtration: every loop with the ranks of both its edges,
    ties and loops that live for a moment included."""
    v = distances(
        torch.randint(0, 4, (n, d), generator=torch.Generator().manual_seed(seed)).double()
        if grid
        else cloud(n, d, seed)
    ).numpy()
    assert {tuple(b) for b in _ranked(v, n, 1)[1].tolist()} == by_ripser(np.argsort(v, kind="stable"), n)


@pytest.mark.parametrize(
    "name,x",
    [
        ("gaussian", cloud(130, 768)),
        ("plane", cloud(150, 2)),
        ("sphere", torch.nn.functional.normalize(cloud(120, 3), dim=1)),
        ("any order at all", None),
    ],
)
def test_loops_of_large_clouds_are_ripsers(name, x):
    "More edges than are looked at in one go; without points, an order of edges that no cloud has."
    v, n = (
        (np.random.default_rng(0).permutation(np.arange(4950.0)), 100) if x is None else (distances(x).numpy(), len(x))
    )
    got = _ranked(v, n, 1)[1].tolist()
    assert len(got) > 5 and {tuple(b) for b in got} == by_ripser(np.argsort(v, kind="stable"), n)


def rows_sorted(a):
    return a[np.lexsort(a.T[::-1])] if len(a) else np.zeros((0, 2))


@pytest.mark.parametrize(
    "n,d,maxdim",
    [(3, 2, 1), (5, 768, 2), (8, 3, 2), (12, 16, 2), (20, 768, 1), (25, 2, 1), (40, 64, 1), (60, 2, 1), (60, 768, 1)],
)
def test_diagrams_and_critical_edges_are_gudhis(n, d, maxdim):
    for seed in range(3):
        x = cloud(n, d, seed)
        got, (want, edges) = persistence(x, maxdim), by_gudhi(squareform(distances(x).numpy()), maxdim)
        assert edge_sets(got) == gudhi_sets(edges)
        for k in range(maxdim + 1):
            np.testing.assert_allclose(rows_sorted(got[k].numpy()), rows_sorted(want[k]), atol=1e-12)


@given(st.integers(3, 24), st.integers(1, 3), st.integers(1, 4), st.integers(0, 10**6))
def test_ties_give_gudhis_diagrams_and_its_edges_on_the_ranks(n, d, span, seed):
    "Points of a small grid: many equal distances, and equal points."
    x = torch.randint(0, span + 1, (n, d), generator=torch.Generator().manual_seed(seed)).double()
    v = distances(x).numpy()
    got, (want, _) = persistence(x), by_gudhi(squareform(v), 1)
    positive = got[0].numpy()[got[0].numpy()[:, 1] > 0]
    np.testing.assert_allclose(rows_sorted(positive), rows_sorted(want[0][want[0][:, 1] > 0]), atol=1e-12)
    np.testing.assert_allclose(rows_sorted(got[1].numpy()), rows_sorted(want[1]), atol=1e-12)
    rank = np.empty(len(v))
    rank[np.argsort(v, kind="stable")] = np.arange(1, len(v) + 1)
    sets = gudhi_sets(by_gudhi(squareform(rank), 1)[1])
    mine = edge_sets(got)
    assert mine[0] == sets[0] and mine[1] <= sets[1]

    def length(e):
        return squareform(v)[tuple(e)]

    assert all(length(b) == length(e) for b, e in sets[1] - mine[1]), "a loop that lives was left out"


def spanning_tree(matrix):
    "Sorted edges of a minimum spanning tree, by Prim's algorithm."
    left, best, out = list(range(1, len(matrix))), matrix[0].copy(), []
    while left:
        i = min(left, key=lambda j: best[j])
        left.remove(i)
        out.append(best[i])
        best = np.minimum(best, matrix[i])
    return sorted(out)


@given(
    st.integers(2, 30),
    st.integers(1, 6),
    st.integers(0, 10**6),
    st.sampled_from(["euclidean", "cosine", "correlation"]),
)
def test_components_are_a_spanning_tree_in_every_metric(n, d, seed, metric):
    x = cloud(n, d + (metric == "correlation") * 2, seed)
    m = cdist(x.numpy(), x.numpy(), metric).clip(min=0)
    dgms = persistence(x, metric=metric)
    np.testing.assert_allclose(dgms[0].deaths.numpy(), spanning_tree(m), atol=1e-9)
    assert not dgms[0].births.any() and (dgms[1].lifetimes > 0).all()


@given(st.integers(3, 16), st.integers(2, 8), st.integers(0, 10**6), st.floats(1e-3, 1e3))
def test_order_of_points_and_motions_change_nothing_and_scale_scales(n, d, seed, scale):
    x = cloud(n, d, seed)
    g = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(d, d, generator=g, dtype=torch.float64))
    moved = scale * (x[torch.randperm(n, generator=g)] @ q) + 3 * scale
    for a, b, c in zip(persistence(x), persistence(moved), persistence(moved, normalize="mean")):
        np.testing.assert_allclose(rows_sorted(scale * a.numpy()), rows_sorted(b.numpy()), atol=1e-8 * scale)
        np.testing.assert_allclose(
            rows_sorted(a.numpy() / distances(x).mean().item()), rows_sorted(c.numpy()), atol=1e-8
        )


def weighted(dgms):
    return sum(((k + 1) * d.births.square() - d.deaths * (1 + d.deaths)).sum() for k, d in enumerate(dgms))


@pytest.mark.parametrize("metric", ["euclidean", "cosine", "correlation"])
@pytest.mark.parametrize("normalize", [None, "mean"])
@pytest.mark.parametrize("n,d,maxdim", [(6, 3, 2), (15, 5, 1)])
def test_gradients_are_finite_differences(n, d, maxdim, metric, normalize):
    x = cloud(n, d).requires_grad_()

    def f(p):
        return weighted(persistence(p, maxdim, metric, normalize))

    (grad,) = torch.autograd.grad(f(x), x)
    step = 1e-6 * torch.eye(n * d, dtype=torch.float64).reshape(-1, n, d)
    with torch.no_grad():
        want = torch.stack([(f(x + e) - f(x - e)) / 2e-6 for e in step]).reshape(n, d)
    assert grad.abs().max() > 0.1 and (grad - want).abs().max() < 1e-6 * max(1, want.abs().max())


@pytest.mark.parametrize("n,d", [(10, 768), (40, 16)])
def test_gradients_are_those_of_gudhis_edges(n, d):
    x = cloud(n, d).requires_grad_()
    (mine,) = torch.autograd.grad(sum(d.lifetimes.square().sum() for d in persistence(x)), x)
    _, (h0, h1) = by_gudhi(squareform(distances(x.detach()).numpy()), 1)

    def length(e):
        return (x[e[:, 0].tolist()] - x[e[:, 1].tolist()]).norm(dim=1)

    (other,) = torch.autograd.grad(
        length(h0).square().sum() + (length(h1[:, 2:]) - length(h1[:, :2])).square().sum(), x
    )
    assert (mine - other).abs().max() < 1e-6


@pytest.mark.parametrize(
    "x",
    [
        cloud(12, 7),
        cloud(9, 768, 1) + 1e4,
        torch.cat([cloud(6, 4), cloud(6, 4)]),
        torch.cat([cloud(6, 4), cloud(6, 4) + 1e-6]),
    ],
    ids=["plain", "far away", "equal rows", "nearly equal rows"],
)
def test_the_gradient_of_distances_is_that_of_pdist(x):
    weight = cloud(1, len(x) * (len(x) - 1) // 2)[0]
    mine, torchs = (
        torch.autograd.grad((f(y) * weight).sum(), y)[0]
        for f in (distances, torch.nn.functional.pdist)
        for y in [x.clone().requires_grad_()]
    )
    assert (mine - torchs).abs().max() < 1e-8 and torch.equal(distances(x), torch.nn.functional.pdist(x))


@pytest.mark.parametrize("metric", ["euclidean", "cosine", "correlation"])
def test_second_derivatives_are_finite_differences(metric):
    def f(x):
        return weighted(persistence(x, 1, metric, "mean"))

    assert torch.autograd.gradgradcheck(f, cloud(7, 4).requires_grad_())


def test_fixed_normalisation_holds_the_mean_constant():
    x = cloud(8, 4).requires_grad_()
    (raw,) = torch.autograd.grad(persistence(x)[0].deaths.sum(), x)
    (fixed,) = torch.autograd.grad(persistence(x, normalize="fixed")[0].deaths.sum(), x)
    assert torch.allclose(fixed, raw / distances(x).mean(), atol=1e-12)


COLLINEAR = torch.arange(9.0)[:, None] * torch.ones(1, 5)
DEGENERATE = dict(
    one=torch.ones(1, 4),
    two=torch.tensor([[0.0, 0], [3, 4]]),
    equal=torch.ones(7, 3),
    zeros=torch.zeros(5, 3),
    collinear=COLLINEAR,
    twins=torch.cat([cloud(5, 4).float()] * 2),
    square=torch.tensor([[0.0, 0], [0, 1], [1, 1], [1, 0]]),
)


@pytest.mark.parametrize("name", DEGENERATE)
@pytest.mark.parametrize("metric", ["euclidean", "cosine", "correlation"])
@pytest.mark.parametrize("normalize", [None, "mean", "fixed"])
def test_degenerate_clouds_have_finite_gradients(name, metric, normalize):
    x = DEGENERATE[name].clone().requires_grad_()
    dgms = persistence(x, 2, metric, normalize)
    total = sum(d.lifetimes.sum() + d.lifetimes.square().sum() for d in dgms)
    assert (
        len(dgms[0]) == len(x) - 1
        and all(d.deaths.isfinite().all() and (d.lifetimes >= 0).all() for d in dgms)
        and total.dtype == torch.float32
    )
    if total.requires_grad:
        assert torch.autograd.grad(total, x)[0].isfinite().all()


def test_degenerate_clouds_have_sensible_diagrams():
    assert persistence(DEGENERATE["two"])[0].deaths.tolist() == [5.0]
    assert not persistence(DEGENERATE["equal"])[0].deaths.any() and not len(persistence(DEGENERATE["equal"])[1])
    line = persistence(COLLINEAR)
    assert torch.allclose(line[0].deaths, torch.full((8,), 5**0.5)) and not len(line[1])
    square = persistence(DEGENERATE["square"])
    assert square[1].births.tolist() == [1.0] and square[1].deaths[0] == pytest.approx(2**0.5)
    twins = persistence(DEGENERATE["twins"])
    assert (twins[0].deaths == 0).sum() == 5 and torch.allclose(
        twins[0].deaths[5:], persistence(DEGENERATE["twins"][:5])[0].deaths
    )


def test_single_precision_keeps_order_and_type():
    x = cloud(200, 768).float()
    assert all((d.births <= d.deaths).all() and d.deaths.dtype == torch.float32 for d in persistence(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_points_of_16_bits_have_exact_diagrams(dtype):
    x = (5 * cloud(20, 64)).to(dtype)
    for maxdim in (1, 2):
        for got, want in zip(persistence(x, maxdim), persistence(x.double(), maxdim), strict=True):
            assert got.deaths.dtype == torch.float32 and len(got) == len(want)
            assert np.allclose(got.numpy(), want.numpy(), rtol=1e-6, atol=0)
    rows = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(persistence(rows)[0].lifetimes.sum(), rows)
    assert grad.dtype == dtype and grad.isfinite().all()


def test_noise_on_the_diagonal_cannot_come_in():
    """The matrix product leaves the diagonal of a single precision cdist far from zero; ripser would read births out
    of it."""
    x = cloud(40, 768).float()
    product = torch.cdist(x, x, compute_mode="use_mm_for_euclid_dist")
    assert product.diagonal().max() > 1e-3
    assert not persistence(x)[0].births.any() and torch.equal(distances(x), distances(x.double()))
    with pytest.raises(ValueError, match="zeros on its diagonal"):
        persistence(product, metric="precomputed")


def test_distances_can_be_given():
    x = cloud(15, 6)
    m = torch.from_numpy(squareform(distances(x).numpy())).requires_grad_()
    a, b = persistence(x), persistence(m, metric="precomputed")
    assert all(torch.allclose(p.deaths, q.deaths, atol=1e-12) for p, q in zip(a, b))
    (grad,) = torch.autograd.grad(b[0].deaths.sum(), m)
    assert grad.sum() == 14 and {frozenset(e) for e in grad.nonzero().tolist()} == edge_sets(a)[0]


def test_several_clouds_at_once():
    x = cloud(30, 4).reshape(3, 10, 4)
    for got in (persistence(x), persistence(list(x)), persistence([x[0], x[1], x[2]])):
        assert all(torch.equal(a[0].deaths, persistence(c)[0].deaths) for a, c in zip(got, x))
    assert [d.n for d in persistence([x[0], x[1][:4]])] == [10, 4]


@pytest.mark.parametrize(
    "call,words",
    [
        (lambda: persistence(torch.ones(3)), "shape"),
        (lambda: persistence(torch.ones(3, 2, dtype=torch.long)), "floating"),
        (lambda: persistence(torch.ones(0, 2)), "n >= 1"),
        (lambda: persistence(torch.tensor([[1.0, float("nan")]])), "finite"),
        (lambda: persistence(torch.ones(3, 2), metric="manhattan"), "euclidean"),
        (lambda: persistence(torch.ones(3, 2), maxdim=3), "hollows"),
        (lambda: persistence(torch.ones(3, 2), normalize="max"), "'mean'"),
        (lambda: persistence(torch.ones(3, 2), metric="precomputed"), "square"),
    ],
)
def test_bad_input_is_refused_in_words(call, words):
    with pytest.raises(ValueError, match=words):
        call()
