"""The measures of a ladder: the published table, plain loops, planted truths, and laws over many curves."""

import math
import pickle
from dataclasses import replace

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
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.integrate import trapezoid

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
    table = saturation_table(lowest=None)
    assert {name: tuple(table.loc[name].tolist()[:4]) for name in WANT} == WANT
    for name, labels in WANT.items():
        raw = [published(name).saturation(eps, raw=True, lowest=None).label for eps in (0.01, 0.02, 0.05, 0.1)]
        assert tuple(raw) == labels


def test_no_published_loss_is_said_to_gain_more_than_it_is():
    table = saturation_table()
    grid = (0.01, 0.02, 0.05, 0.1)
    for name in PUBLISHED:
        lad = published(name)
        for eps, label in zip(grid, table.loc[name]):
            end = min(loss for size, loss in PUBLISHED[name].items() if size)
            assert (label[0] != ">") or end > eps, (name, eps)
            by_gains = lad.saturation(eps, lowest=None).label
            assert label == by_gains or (end <= eps and label == str(lad.sizes[-1])), (name, eps)
    assert table.loc["repeat meowster jones, 160m"].tolist()[:4] == ["64"] * 4  # its last loss is .0087
    assert table.loc["repeat meowster jones, 410m"].tolist()[:4] == [">64", ">64", "64", "64"]  # .0236
    assert not any("not saturated" in sign for sign in published("repeat meowster jones, 160m").notices())


@given(curves, st.floats(0.001, 2), st.floats(0, 5))
@settings(max_examples=200, deadline=None)
def test_a_rung_beyond_the_ladder_never_changes_what_is_saturated(curve, eps, more):
    """Whatever the next rung's loss is, as long as it is no less than 0, the size that was read stays the first whose
    next step gains at most eps; and a ladder that is said to be unsaturated can be shown one that gains more."""
    sizes = sizes_of(curve)
    lad = Ladder.from_losses(dict(zip(sizes, curve)))
    least = min(curve)
    found = lad.saturation(eps)
    longer = Ladder.from_losses(dict(zip((*sizes, sizes[-1] * 4), (*curve, least * min(more, 1)))))
    if found.value < math.inf:
        assert longer.saturation(eps) == found.value
        assert lad.saturation(eps, "settled") <= sizes[-1] or least > eps
    else:
        best = Ladder.from_losses(dict(zip((*sizes, sizes[-1] * 4), (*curve, 0.0))))
        assert best.saturation(eps) == sizes[-1] * 4 > sizes[-1]


def test_draws_too_cannot_gain_more_than_they_lose():
    lad = planted([4.0, 3.0, 1.0, 0.3, 0.01], spread=0.001, between=0.001, items=2000)
    found = lad.saturation(0.05)
    assert found == 64 and found.support > 0.5 and lad.saturation(0.05, lowest=None).label == ">64"


def test_the_published_losses_give_the_areas():
    for name, area in AREA.items():
        assert abs(published(name).area(raw=True) - area) < 6e-4, name
    for name, area in UNEVEN.items():
        assert abs(published(name).area(raw=True, per="rung") - area) < 1.1e-3, name
        assert published(name).area(raw=True) < area


def test_published_numbers_have_no_interval():
    lad = published("chess, 70m")
    found = lad.saturation(0.05)
    assert math.isnan(found.low) and math.isnan(found.support) and lad.drawn is None and "[" not in repr(found)
    assert all("%" not in sign for sign in lad.notices())
    assert len(PUBLISHED) == 36 and all(list(losses) == sorted(losses) for losses in PUBLISHED.values())


@given(curves, st.floats(0, 5))
@settings(max_examples=200, deadline=None)
def test_readings_are_plain_loops(curve, eps):
    sizes, losses = sizes_of(curve), np.array(curve)
    steps = range(len(curve) - 1)
    flat = next((sizes[i] for i in steps if losses[i] - losses[i + 1] <= eps), math.inf)
    end = next((sizes[i] for i in steps if losses[i] - losses[-1] <= eps), math.inf)
    near = next((size for size, loss in zip(sizes, losses) if loss <= eps), math.inf)
    assert first_flat(sizes, losses, eps) == flat
    assert settled(sizes, losses, eps) == end
    assert reached(sizes, losses, eps) == near
    least = [min(curve[: i + 1]) for i in range(len(curve))]
    assert envelope(losses).tolist() == least
    both = first_flat(sizes, np.stack([losses, least]), eps)
    assert both.tolist() == [flat, first_flat(sizes, np.array(least), eps)]


@given(curves, st.floats(0.001, 2), st.floats(0.001, 2))
@settings(max_examples=200, deadline=None)
def test_saturation_and_distance_move_one_way(curve, one, other):
    lad = Ladder.from_losses(dict(zip(sizes_of(curve), curve)))
    low, high = sorted((one, other))
    for reading in ("ladder", "settled", "token"):
        assert lad.saturation(low, reading) >= lad.saturation(high, reading)
    assert lad.distance(low) >= lad.distance(high)
    flat, end = lad.saturation(low), lad.saturation(low, "settled")
    assert end >= flat or math.inf in (end.value, flat.value)
    # one vector gains no more than the whole step does
    assert lad.saturation(low, "token") <= flat


@given(curves, st.floats(0.05, 1.0), st.floats(-3, 3))
@settings(max_examples=200, deadline=None)
def test_shares_do_not_depend_on_where_zero_is(curve, share, shift):
    sizes = (0, *sizes_of(curve)[:-1])
    one, two = (Ladder.from_losses(dict(zip(sizes, np.array(curve) + up))) for up in (0, shift))
    gap = curve[0] - min(curve)
    if gap < 1e-6:
        return
    closed = one.share(share)
    assert 0 <= closed.value <= sizes[-1]
    goal = curve[0] - share * gap
    if min(abs(loss - goal) for loss in curve) > 1e-6:  # else the shift's rounding may decide
        assert closed == two.share(share)
    assert one.share(0.5) <= one.share(0.9) <= one.share(0.95)
    assert abs(one.area() - two.area()) < 1e-9 and one.area() >= 0


def test_no_gap_has_no_share():
    found = Ladder.from_losses({0: 1.0, 1: 1.5, 4: 1.2}).share(0.9)
    assert found == math.inf and found.label == ">4"
    found = Ladder.from_losses({0: 1.0, 1: 0.5, 4: 0.4}).share(0.9, floor=0.0)
    assert found.label == ">4"


@given(curves)
def test_the_readings_of_a_calibration_are_the_shares_of_the_ladder(curve):
    sizes = (0, *sizes_of(curve)[:-1])
    lad = Ladder.from_losses(dict(zip(sizes, curve)))
    for name, floor in (("C90 own", None), ("C90", 0.0)):
        own = float(lad.share(0.9, floor))
        assert float(READINGS[name](lad, lad.mean)) == (BEYOND if math.isinf(own) else own)


def test_interpolation_is_that_of_numpy():
    sizes, losses = (1, 4, 16), np.array([3.0, 1.0, 0.5])
    every, between = every_size(sizes, losses)
    assert every.tolist() == list(range(1, 17))
    assert np.allclose(between, np.interp(np.log(every), np.log(sizes), losses))


@pytest.mark.parametrize("losses", [{0: 5.0, 4: 2.0, 16: 1.99, 64: 1.0}, {4: 2.0, 16: 1.2, 64: 1.19}])
def test_no_size_below_the_smallest_that_was_tried_is_made_up(losses):
    sizes = [size for size in losses if size]
    curve = np.array([losses[size] for size in sizes])
    every, between = every_size(sizes, curve)
    assert every.tolist() == list(range(4, 65))
    assert np.allclose(between, np.interp(np.log(every), np.log(sizes), curve))
    lad = Ladder.from_losses(losses)
    for eps in (0.001, 0.05, 0.3, 9.0):
        assert lad.saturation(eps, "token") >= 4
    assert lad.saturation(9.0, "token") == lad.saturation(9.0) == 4


def test_items_without_a_target_leave_no_interval_undefined():
    few = np.array([1.0, 2.0, 0.0, 0.0])
    nll = np.array([3.0, 1.0])[None, :, None] * few
    with_empty, without = Ladder("x", "", (1, 4), nll, few), Ladder("x", "", (1, 4), nll[:, :, :2], few[:2])
    assert np.isfinite(with_empty.drawn).all() and np.array_equal(with_empty.drawn, without.drawn)


@given(curves)
@settings(max_examples=100, deadline=None)
def test_area_is_that_of_scipy(curve):
    sizes, losses = sizes_of(curve), np.array(curve)
    want = trapezoid(losses - 0.3, np.log(sizes) / np.log(4))
    assert np.isclose(area_over_log(sizes, losses, 0.3), want)


def planted(losses, seeds=3, items=60, spread=0.1, between=0.02, seed=0, sizes=(0, 1, 4, 16, 64), units=None):
    "A ladder whose seeds, items and single losses scatter around given ones."
    rng = np.random.default_rng(seed)
    if units is None:
        units = rng.integers(1, 9, items).astype(float)
    per = np.array(losses)[None, :, None] + rng.normal(0, between, (seeds, len(losses), 1))
    per = per + rng.normal(0, 0.3, (1, 1, items)) + rng.normal(0, spread, (seeds, len(losses), items))
    return Ladder("planted", "none", sizes, per * units, units, tuple(range(seeds)))


TRUTH = [4.0, 3.0, 1.0, 0.3, 0.29]


def test_planted_truth_is_found_and_covered():
    lad = planted(TRUTH)
    assert lad.saturation(0.05) == 16 and lad.saturation(0.05).support > 0.9
    assert lad.saturation(1.5).label == "4" and lad.saturation(2.5).label == "1"
    assert lad.distance(1.2) == 4 and lad.share(0.5) == 4 and lad.share(0.9) == 16
    for row in lad.table().itertuples():
        assert row.low < row.loss < row.high


def test_intervals_cover_the_truth_as_often_as_they_say():
    areas = [planted(TRUTH, seeds=12, between=0.1, seed=i).area(floor=0.0) for i in range(60)]
    true = area_over_log((1, 4, 16, 64), np.array(TRUTH)[1:], 0.0)
    hits = sum(area.low <= true <= area.high for area in areas)
    assert hits >= 48  # 95 % less what resampling twelve seeds loses


def test_the_bootstrap_is_a_plain_loop():
    lad = planted(TRUTH, seeds=2, items=7)
    rng = np.random.default_rng(0)
    seeds = rng.multinomial(2, [0.5, 0.5], lad.draws) / 2
    items = rng.multinomial(7, [1 / 7] * 7, lad.draws)
    for draw in (0, 5, 99):
        units = sum(items[draw, i] * lad.units[i] for i in range(7))
        for j in range(5):
            total = sum(seeds[draw, k] * items[draw, i] * lad.nll[k, j, i] for k in range(2) for i in range(7))
            assert np.isclose(lad.drawn[draw, j], total / units)


def test_steps_are_scipys_paired_test():
    lad = planted(TRUTH)
    p_values = lad.steps(0.05)["p (gain > 0.05)"]
    gains = (lad.nll[:, 2] - lad.nll[:, 3]).mean(0) - 0.05 * lad.units
    assert np.isclose(p_values[2], stats.ttest_1samp(gains, 0, alternative="greater").pvalue)
    assert (p_values < 0.001).tolist() == [True, True, True, False]


def test_tests_between_equal_rungs_are_right_five_times_in_a_hundred():
    p_values = []
    for i in range(300):
        lad = planted([2.0, 1.0, 1.0], sizes=(0, 1, 4), between=0.0, seed=i)
        p_values.append(lad.steps(0.0, raw=True)["p (gain > 0)"][1])
    assert 0.02 < np.mean(np.array(p_values) < 0.05) < 0.09


def test_a_rise_is_noticed_and_the_envelope_hides_it():
    lad = planted([4.0, 2.0, 1.0, 1.3, 0.5])
    rises = lad.rises()
    assert rises[["from", "to"]].values.tolist() == [[4, 16]] and rises.p[0] < 1e-6
    assert any("rises by 0.3" in sign or "rises by 0.2" in sign for sign in lad.notices())
    assert lad.steps().gain.min() >= 0 and lad.steps(raw=True).gain.min() < -0.2


def test_what_a_ladder_notices():
    assert not planted([4.0, 3.0, 1.0, 0.5, 0.49], between=0).notices(0.1)
    assert any("not saturated" in sign for sign in planted([4.0, 3.0, 2.0, 1.0, 0.5]).notices())
    lad = planted([4.0, 3.0, 1.0, 0.5, 0.46], seeds=4, between=0.05)
    assert any("disagree" in sign or "draws" in sign for sign in lad.notices(0.05))
    lad.runs = pd.DataFrame(dict(jumps=[0, 2], outcome=["done", "diverged"]))
    signs = "; ".join(lad.notices())
    assert "jumps during training in 1 of 2" in signs and "1 of 2 runs did not" in signs


@given(st.integers(10, 60), st.floats(1.0, 5.0), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_a_planted_jump_is_found_where_it_is(step, height, seed):
    losses = np.linspace(2, 1, 80) + np.random.default_rng(seed).normal(0, 0.02, 80)
    assert not jumps(losses)
    losses[step:] += height
    (found,) = jumps(losses)
    assert abs(found - step) <= 3


def test_one_bad_step_is_no_jump():
    assert not jumps([1.0] * 20 + [9.0] + [1.0] * 20) and not jumps([1.0, 2.0])


def test_the_share_that_is_still_open_ends_where_the_gap_does():
    lad = planted(TRUTH)
    curve = lad.gap_curve()
    assert curve.open.iloc[0] == 1 and curve.open.iloc[-1] == 0
    assert np.isclose(curve.open[2], (lad.mean[2] - lad.mean[-1]) / lad.gap().value)
    assert (curve.low <= curve.high).all() and lad.gap_curve(0.0).open.iloc[-1] > 0
    assert Ladder.from_losses({0: 2.0, 1: 1.0}).gap_curve().low.isna().all()


def test_where_there_is_no_gap_no_share_of_it_is_open_or_closed():
    for losses, floor in ([[0.3, 0.9, 0.8, 0.7], None], [[1.0, 0.9, 0.8, 0.7], 1.2]):
        lad = planted(losses, sizes=(0, 1, 4, 16), between=0.0)
        curve = lad.gap_curve(floor)
        assert curve[["open", "low", "high"]].isna().all(axis=None) and lad.share(0.9, floor).label == ">16"
    near = planted([1.0, 1.0, 1.0, 0.99], sizes=(0, 1, 4, 16), between=0.0).gap_curve()
    assert near.open[0] == 1 and near.open[3] == 0 and (near.low[1], near.high[3]) == (0, 1), "draws without a gap"


@pytest.mark.parametrize("gain", [0.0, 0.02, 0.5])
def test_the_interval_of_the_gap_holds_the_choice_of_the_size(gain):
    rng = np.random.default_rng(1)
    found = []
    for _ in range(150):
        base = 2 + 0.7 * rng.standard_normal(96)
        nll = np.concatenate([np.full((3, 1, 96), base), base - gain + 0.5 * rng.standard_normal((3, 4, 96))], 1)
        found.append(Ladder("x", "m", (0, 1, 4, 16, 64), nll, np.ones(96), (0, 1, 2), draws=300).gap())
    covered = np.mean([one.low <= gain <= one.high for one in found])
    assert covered > 0.93, "of gaps that are zero by construction, two in five had an interval above zero"
    assert all(one.low <= one.value <= one.high for one in found)
    if gain == 0.5:
        assert all(one.low > 0.3 for one in found), "an effect is seen"


def test_a_gap_begins_at_no_prompt():
    for read in (Ladder.gap, Ladder.gap_curve):
        with pytest.raises(ValueError, match="give a ladder with the size 0"):
            read(Ladder.from_losses({1: 2.0, 4: 1.0}))
    one = Ladder.from_losses({0: 2.0, 1: 1.0}).gap()
    assert one == 1.0 and math.isnan(one.high)


def test_a_ladder_can_be_copied_and_its_draws_are_its_own():
    lad = planted(TRUTH)
    first = lad.drawn
    copied = pickle.loads(pickle.dumps(lad))
    assert np.array_equal(copied.drawn, first)
    halved = replace(lad, nll=lad.nll / 2)
    assert np.allclose(halved.drawn, first / 2)


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


def test_a_size_without_a_loss_is_passed_over_and_said():
    given = Ladder.from_losses({0: 3.0, 1: 2.0, 4: float("nan"), 16: 1.0, 64: 0.99})
    without = Ladder.from_losses({0: 3.0, 1: 2.0, 16: 1.0, 64: 0.99})
    for read in (lambda lad: lad.distance(1.5), lambda lad: lad.share(0.9), lambda lad: lad.saturation(), Ladder.gap):
        assert read(given) == read(without)
    assert given.saturation(reading="settled") == 16 and given.area(raw=False).value > 0
    assert any("no loss (NaN) at 4 vectors" in sign for sign in given.notices()) and given.rises().empty
    last = Ladder.from_losses({1: 2.0, 4: 1.0, 16: float("nan")})
    assert any("the last step, 1 to 4 vectors" in sign for sign in last.notices())
