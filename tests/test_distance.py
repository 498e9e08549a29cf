"""The measures of a ladder: the published table, plain loops, curves whose truth is known, and properties over many curves."""

import math

from softprompt_nb.evaluation.distance.measures import (
    Ladder,
    area_over_log,
    envelope,
    every_size,
    first_flat,
    jumps,
    reached,
    settled,
)
from softprompt_nb.studies.calibration import BEYOND, READINGS
from softprompt_nb.studies.published import PUBLISHED, published, saturation_table

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

# METHODS' table, read off the published losses by hand: rungs at eps .01, .02, .05, .1, and the area
WANT = {
    "chess, 160m": (">1024", "512", "256", "64"),
    "chess, 70m": ("512", "256", "256", "64"),
    "pathfinding, 70m": (">64", ">64", "16", "4"),
    "pathfinding, 160m": ("16", "16", "16", "4"),
    "pathfinding, 410m": ("16", "16", "16", "4"),
    **{f"repeat pee, {m}": ("4",) * 4 for m in ("70m", "160m", "410m")},
    **{
        f"repeat {s}, {m}": (">64",) * 4
        for s in ("meowster jones", "the great and terrible meowster jones")
        for m in ("70m", "160m", "410m")
    },
    "skip 8, 410m": (">64", ">64", ">64", "16"),
    "detune, chat": ("16", "4", "1", "1"),
}
AREA = {
    "pathfinding, 70m": 0.420,
    "pathfinding, 160m": 0.334,
    "pathfinding, 410m": 0.380,
    "repeat pee, 70m": 0.906,
    "repeat pee, 160m": 0.089,
    "repeat pee, 410m": 0.079,
    "skip 8, 410m": 0.410,
    "detune, chat": 0.046,
}
UNEVEN = {"chess, 160m": 1.317, "chess, 70m": 1.478}  # that table counts 256 to 512 to 1024 as whole steps of log 4

curves = st.lists(st.floats(0, 20, allow_nan=False), min_size=3, max_size=8)


def sizes_of(curve):
    return tuple(4**i for i in range(len(curve)))


def test_the_published_losses_give_the_table_of_saturations():
    table = saturation_table()
    assert {k: tuple(table.loc[k].tolist()[:4]) for k in WANT} == WANT
    raw = {k: tuple(published(k).saturation(e, raw=True).label for e in (0.01, 0.02, 0.05, 0.1)) for k in WANT}
    assert raw == WANT


def test_the_published_losses_give_the_areas():
    for name, a in AREA.items():
        assert abs(published(name).area(raw=True) - a) < 6e-4, name
    for name, a in UNEVEN.items():
        assert abs(published(name).area(raw=True, per="rung") - a) < 1.1e-3, name
        assert published(name).area(raw=True) < a


def test_published_numbers_have_no_interval():
    lad = published("chess, 70m")
    r = lad.saturation(0.05)
    assert math.isnan(r.low) and math.isnan(r.support) and lad.drawn is None and "[" not in repr(r)
    assert all("%" not in s for s in lad.notices())
    assert len(PUBLISHED) == 36 and all(list(v) == sorted(v) for v in PUBLISHED.values())


@given(curves, st.floats(0, 5))
@settings(max_examples=200, deadline=None)
def test_readings_are_plain_loops(curve, eps):
    s, L = sizes_of(curve), np.array(curve)
    flat = next((s[i] for i in range(len(L) - 1) if L[i] - L[i + 1] <= eps), math.inf)
    end = next((s[i] for i in range(len(L) - 1) if L[i] - L[-1] <= eps), math.inf)
    at = next((s[i] for i in range(len(L)) if L[i] <= eps), math.inf)
    assert (first_flat(s, L, eps), settled(s, L, eps), reached(s, L, eps)) == (flat, end, at)
    E = [min(curve[: i + 1]) for i in range(len(curve))]
    assert envelope(L).tolist() == E
    both = first_flat(s, np.stack([L, np.array(E)]), eps)
    assert both.tolist() == [flat, first_flat(s, np.array(E), eps)]


@given(curves, st.floats(0.001, 2), st.floats(0.001, 2))
@settings(max_examples=200, deadline=None)
def test_saturation_and_distance_move_one_way(curve, a, b):
    lad = Ladder.from_losses(dict(zip(sizes_of(curve), curve)))
    lo, hi = sorted((a, b))
    for reading in ("ladder", "settled", "token"):
        assert lad.saturation(lo, reading) >= lad.saturation(hi, reading)
    assert lad.distance(lo) >= lad.distance(hi)
    assert (
        lad.saturation(lo, "settled") >= lad.saturation(lo, "ladder")
        or lad.saturation(lo, "settled") == math.inf
        or lad.saturation(lo) == math.inf
    )
    assert lad.saturation(lo, "token") <= lad.saturation(
        lo, "ladder"
    )  # one vector gains no more than the whole step does


@given(curves, st.floats(0.05, 1.0), st.floats(-3, 3))
@settings(max_examples=200, deadline=None)
def test_shares_do_not_depend_on_where_zero_is(curve, share, shift):
    s = (0, *sizes_of(curve)[:-1])
    one, two = (Ladder.from_losses(dict(zip(s, np.array(curve) + d))) for d in (0, shift))
    if curve[0] - min(curve) < 1e-6:
        return
    c = one.share(share)
    assert c <= s[-1] and c >= 0
    t = curve[0] - share * (curve[0] - min(curve))
    if min(abs(x - t) for x in curve) > 1e-6:
        assert c == two.share(share)
    assert one.share(0.5) <= one.share(0.9) <= one.share(0.95)
    assert abs(one.area() - two.area()) < 1e-9 and one.area() >= 0


def test_no_gap_has_no_share():
    r = Ladder.from_losses({0: 1.0, 1: 1.5, 4: 1.2}).share(0.9)
    assert r == math.inf and r.label == ">4"
    r = Ladder.from_losses({0: 1.0, 1: 0.5, 4: 0.4}).share(0.9, floor=0.0)
    assert r.label == ">4"


@given(curves)
def test_the_readings_of_a_calibration_are_the_shares_of_the_ladder(curve):
    sizes = (0, *sizes_of(curve)[:-1])
    lad = Ladder.from_losses(dict(zip(sizes, curve)))
    for name, floor in (("C90 own", None), ("C90", 0.0)):
        own = float(lad.share(0.9, floor))
        assert float(READINGS[name](lad, lad.mean)) == (BEYOND if math.isinf(own) else own)


def test_interpolation_is_that_of_numpy():
    s, L = (1, 4, 16), np.array([3.0, 1.0, 0.5])
    n, y = every_size(s, L)
    assert n.tolist() == list(range(1, 17)) and np.allclose(y, np.interp(np.log(n), np.log(s), L))


@given(curves)
@settings(max_examples=100, deadline=None)
def test_area_is_that_of_scipy(curve):
    from scipy.integrate import trapezoid

    s = sizes_of(curve)
    assert np.isclose(area_over_log(s, np.array(curve), 0.3), trapezoid(np.array(curve) - 0.3, np.log(s) / np.log(4)))


def planted(losses, seeds=3, items=60, spread=0.1, between=0.02, seed=0, sizes=(0, 1, 4, 16, 64), units=None):
    g = np.random.default_rng(seed)
    units = g.integers(1, 9, items).astype(float) if units is None else units
    per = (
        np.array(losses)[None, :, None]
        + g.normal(0, between, (seeds, len(losses), 1))
        + g.normal(0, 0.3, (1, 1, items))
        + g.normal(0, spread, (seeds, len(losses), items))
    )
    return Ladder("planted", "none", sizes, per * units, units, tuple(range(seeds)))


TRUTH = [4.0, 3.0, 1.0, 0.3, 0.29]


def test_planted_truth_is_found_and_covered():
    lad = planted(TRUTH)
    assert lad.saturation(0.05) == 16 and lad.distance(1.2) == 4 and lad.share(0.5) == 4 and lad.share(0.9) == 16
    assert lad.saturation(0.05).support > 0.9 and lad.saturation(1.5).label == "4" and lad.saturation(2.5).label == "1"
    for i, m in enumerate(lad.table().itertuples()):
        assert m.low < m.loss < m.high


def test_intervals_cover_the_truth_as_often_as_they_say():
    L = np.array(TRUTH)
    inside = [(t := planted(TRUTH, seeds=12, between=0.1, seed=i)).area(floor=0.0) for i in range(60)]
    true = area_over_log((1, 4, 16, 64), L[1:], 0.0)
    hits = sum(m.low <= true <= m.high for m in inside)
    assert hits >= 48  # 95 % less what resampling twelve seeds loses


def test_the_bootstrap_is_a_plain_loop():
    lad = planted(TRUTH, seeds=2, items=7)
    g = np.random.default_rng(0)
    seeds, items = g.multinomial(2, [0.5, 0.5], lad.draws) / 2, g.multinomial(7, [1 / 7] * 7, lad.draws)
    for b in (0, 5, 99):
        for j in range(5):
            top = sum(seeds[b, s] * items[b, i] * lad.nll[s, j, i] for s in range(2) for i in range(7))
            assert np.isclose(lad.drawn[b, j], top / sum(items[b, i] * lad.units[i] for i in range(7)))


def test_steps_are_scipys_paired_test():
    lad = planted(TRUTH)
    s = lad.steps(0.05)
    d = (lad.nll[:, 2] - lad.nll[:, 3]).mean(0) - 0.05 * lad.units
    assert np.isclose(s.iloc[2]["p (gain > 0.05)"], stats.ttest_1samp(d, 0, alternative="greater").pvalue)
    assert (s["p (gain > 0.05)"] < 0.001).tolist() == [True, True, True, False]


def test_tests_between_equal_rungs_are_right_five_times_in_a_hundred():
    ps = [
        planted([2.0, 1.0, 1.0], sizes=(0, 1, 4), between=0.0, seed=i).steps(0.0, raw=True).iloc[1].iloc[5]
        for i in range(300)
    ]
    assert 0.02 < np.mean(np.array(ps) < 0.05) < 0.09


def test_a_rise_is_noticed_and_the_envelope_hides_it():
    lad = planted([4.0, 2.0, 1.0, 1.3, 0.5])
    r = lad.rises()
    assert r[["from", "to"]].values.tolist() == [[4, 16]] and r.p[0] < 1e-6
    assert any("rises by 0.3" in s or "rises by 0.2" in s for s in lad.notices())
    assert lad.steps().gain.min() >= 0 and lad.steps(raw=True).gain.min() < -0.2


def test_what_a_ladder_notices():
    assert not planted([4.0, 3.0, 1.0, 0.5, 0.49], between=0).notices(0.1)
    assert any("not saturated" in s for s in planted([4.0, 3.0, 2.0, 1.0, 0.5]).notices())
    lad = planted([4.0, 3.0, 1.0, 0.5, 0.46], seeds=4, between=0.05)
    assert any("disagree" in s or "draws" in s for s in lad.notices(0.05))
    import pandas as pd

    lad.runs = pd.DataFrame(dict(jumps=[0, 2], outcome=["done", "diverged"]))
    assert any("jumps during training in 1 of 2" in s for s in lad.notices()) and any(
        "1 of 2 runs did not" in s for s in lad.notices()
    )


@given(st.integers(10, 60), st.floats(1.0, 5.0), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_a_planted_jump_is_found_where_it_is(at, height, seed):
    x = np.linspace(2, 1, 80) + np.random.default_rng(seed).normal(0, 0.02, 80)
    assert not jumps(x)
    x[at:] += height
    assert len(jumps(x)) == 1 and abs(jumps(x)[0] - at) <= 3


def test_one_bad_step_is_no_jump():
    assert not jumps([1.0] * 20 + [9.0] + [1.0] * 20) and not jumps([1.0, 2.0])


@pytest.mark.parametrize(
    "bad, says",
    [
        (lambda: Ladder.from_losses({1: 1.0}), "two different sizes"),
        (lambda: Ladder("x", "", (4, 1), np.zeros((1, 2, 1)), np.ones(1)), "two different sizes"),
        (lambda: Ladder("x", "", (1, 4), np.zeros((1, 3, 1)), np.ones(1)), "nll has shape"),
        (lambda: Ladder.from_losses({1: 2.0, 4: 1.0}).share(0.9), "with the size 0"),
        (lambda: Ladder.from_losses({0: 2.0, 4: 1.0}).share(1.5), "share=1.5"),
        (lambda: Ladder.from_losses({0: 2.0, 4: 1.0}).saturation(), "two sizes above 0"),
        (lambda: Ladder.from_losses({1: 2.0, 4: 1.0}).saturation(reading="word"), "reading='word'"),
        (lambda: Ladder.from_losses({1: 2.0, 4: 1.0}).area(per="n"), "per='n'"),
        (lambda: published("go, 70m"), "no published ladder"),
    ],
)
def test_bad_input(bad, says):
    with pytest.raises(ValueError, match=says):
        bad()
