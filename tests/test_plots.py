"""One thing has one colour, wherever and in whatever order it is drawn."""

import math
import subprocess
import sys
from dataclasses import replace

from softprompt_nb.evaluation.distance.figures import plot_families, plot_ladder, plot_saturation, plot_vectors_worth
from softprompt_nb.evaluation.distance.measures import Ladder
from softprompt_nb.evaluation.formats.pictures import plot_curves
from softprompt_nb.plots import COLORS, COLORS_OF, SERIES, color_of, plot_runs
from softprompt_nb.studies.calibration import BEYOND, Calibration, read_mean, told_apart
from softprompt_nb.studies.distance import readings

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex

GROUPS = [
    ("repetition", "skipping", "pathfinding", "chess", "detuning", "planted", "examples", "text"),
    ("true", "shuffled", "random"),
    ("code", "guardian", "wheel"),
    ("soft prompt", "true instruction", "few-shot", "nothing", "translator", "InSPEcT", "retrieval", "shuffled"),
    ("PEZ", "GCG", "RLPrompt", "greedy coordinate", "random search", "hand"),
]


def lad(family, end=0.5, seed=0, n=12):
    return Ladder(
        f"{family} {end}",
        "made up",
        (0, 1, 4),
        np.array([3.0, 1.0, end])[None, :, None] + np.random.default_rng(seed).normal(0, 0.05, (2, 3, n)),
        np.ones(n),
        (0, 1),
        family=family,
    )


@pytest.mark.parametrize("names", GROUPS)
def test_what_is_compared_with_each_other_differs_in_colour(names):
    assert len({color_of(n) for n in names}) == len(names)


def test_a_name_without_a_colour_takes_the_next_of_the_palette():
    assert [color_of(f"x{i}", i) for i in range(len(SERIES))] == list(SERIES)
    assert color_of("chess", 5) == COLORS_OF["chess"]
    assert set(COLORS_OF.values()) <= {*SERIES, *COLORS.values()}


@pytest.mark.parametrize("plot", [plot_saturation, plot_families])
def test_a_family_keeps_its_colour_and_its_ladders_differ(plot):
    ladders = [lad("chess"), lad("skipping"), lad("chess", 0.4)]
    lines = plot(ladders).lines
    other_order = plot(ladders[::-1]).lines[::-1]
    want = [COLORS_OF["chess"], COLORS_OF["skipping"], COLORS_OF["chess"]]
    assert [to_hex(line.get_color()) for line in lines] == want
    assert [to_hex(line.get_color()) for line in other_order] == want
    assert lines[0].get_linestyle() != lines[2].get_linestyle()


def test_a_ladder_draws_itself_whatever_was_imported():
    code = "from softprompt_nb.evaluation.distance.measures import Ladder; "
    code += "print(Ladder.from_losses({0: 3.0, 1: 1.0}).plot().get_ylabel())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "loss (nats per token)" in done.stdout


def test_single_ladders_and_vectors():
    assert to_hex(plot_ladder(lad("skipping")).lines[-1].get_color()) == COLORS_OF["skipping"]
    table = pd.DataFrame(
        dict(vector=[1, 2], loss=[1.0, 2.0], low=[0.9, 1.8], high=[1.2, 2.1], items=[5, 5], all=[0.8, 0.8])
    )
    assert "5 items" in plot_vectors_worth(table).get_legend_handles_labels()[1][1]


def test_curves_name_every_line_and_count_their_vectors():
    half = dict(FF=0.5, FF_low=0.4, FF_high=0.6, KA_star=0.5, KA_star_low=0.4, KA_star_high=0.6)
    table = pd.DataFrame([dict(answers="true", n=n, step=step, **half) for n in (1, 10) for step in (0, 10)])
    # a line that only the first panel has, and the legend stands at the last
    panels = plot_curves(table, by="n", lines=dict(FF=0.4))
    names = [text.get_text() for text in panels[-1].get_legend().get_texts()]
    assert names == ["1 vector", "10 vectors", "instruction, no prompt"]


def test_the_gap_of_a_family_is_the_one_that_is_drawn():
    ladder = lad("chess", 0.4)
    first_lines = [plot_families([ladder], floor=floor).get_legend().get_texts()[0] for floor in (None, 0.0)]
    its_floor, common_floor = (line.get_text() for line in first_lines)
    assert f"gap {ladder.gap().value:.2f} nats" in its_floor and f"gap {ladder.mean[0]:.2f} nats" in common_floor


def test_a_family_without_a_gap_is_not_drawn_as_closed():
    ladder = replace(lad("chess"), nll=lad("chess").nll[:, ::-1])
    ax = plot_families([ladder])
    assert ax.get_legend().get_texts()[0].get_text().endswith("(no gap)")
    assert np.isnan(np.asarray(ax.lines[0].get_ydata(), float)).all()


def test_sizes_beyond_the_ladder_are_drawn_above_it():
    from softprompt_nb.lab.planted import FREQUENCIES

    tags = sorted(FREQUENCIES, key=FREQUENCIES.get)
    ends = (0.2, 0.4, 0.6, 0.97, 0.99)
    ladders = {("code", tag): lad("planted", end, i) for i, (tag, end) in enumerate(zip(tags, ends))}
    shares = pd.DataFrame([dict(skill="code", name=tag, share=FREQUENCIES[tag]) for tag in tags])
    calibration = Calibration(ladders, shares)
    for reading in ("S", "C90", "area", "C(.5)"):
        assert max(y for line in calibration.plot(reading).lines for y in np.atleast_1d(line.get_ydata())) <= 16
    assert [label.get_text() for label in calibration.plot("S").get_yticklabels()] == ["0", "1", "4", ">4"]
    with pytest.raises(ValueError, match="reading='X'"):
        calibration.plot("X")


def test_ladders_are_told_apart_on_the_same_items_only():
    high, low = (replace(lad("code", end, seed), name="code") for seed, end in enumerate((0.9, 0.2)))
    apart = told_apart(high, low)
    assert apart.low > 0 and apart.n == 12 and apart.low <= apart.value <= apart.high
    with pytest.raises(ValueError, match="12 and 11 items"):
        told_apart(lad("code"), lad("code", n=11))
    with pytest.raises(ValueError, match="reading='X'"):
        told_apart(lad("code"), lad("code"), "X")
    with pytest.raises(ValueError, match="n=2: this ladder has the sizes 0, 1, 4"):
        lad("code").accessibility(2)


@pytest.mark.parametrize(
    "change, says",
    [
        (dict(name="chess"), "'code 0.5' and 'chess'"),
        (dict(sizes=(0, 1, 16)), r"\(0, 1, 4\) and \(0, 1, 16\)"),
        (dict(units=np.full(12, 2.0)), "or other ones"),
    ],
)
def test_what_is_no_pair_is_not_told_apart(change, says):
    with pytest.raises(ValueError, match=says):
        told_apart(lad("code"), replace(lad("code"), **change))
    with pytest.raises(ValueError, match="One item has no interval"):
        told_apart(Ladder.from_losses({0: 3.0, 1: 1.0}), Ladder.from_losses({0: 3.0, 1: 1.0}))


def test_a_size_beyond_the_ladder_is_no_number_of_vectors():
    never, near = replace(lad("code", 0.9), name="code"), replace(lad("code", 0.2, 1), name="code")
    apart = told_apart(never, near, "C(.5)")
    assert (apart.value, apart.low, apart.high) == (math.inf, math.inf, math.inf)
    assert told_apart(near, never, "C(.5)") == -math.inf
    unknown = told_apart(never, replace(never, nll=never.nll + 0.01), "C(.5)")
    assert math.isnan(unknown.value) and (unknown.low, unknown.high) == (-math.inf, math.inf)
    same = told_apart(near, near, "C(.5)")
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_a_reading_from_no_prompt_needs_the_size_0():
    ladder = Ladder.from_losses({1: 2.0, 4: 1.0, 16: 0.2}, "late")
    for reading in ("loss without prompt", "C90", "C90 own"):
        with pytest.raises(ValueError, match="late has the sizes .1, 4, 16."):
            read_mean(ladder, reading)
    assert read_mean(ladder, "C(.5)") == 16 and read_mean(ladder, "final loss") == 0.2
    assert math.isnan(readings([ladder]).bare[0])


def test_a_size_that_was_not_measured_is_no_rung_of_a_calibration():
    ladder = Ladder.from_losses({0: 3.0, 1: 2.0, 4: math.nan, 16: 0.5}, "hole")
    assert read_mean(ladder, "S") == BEYOND and ladder.saturation(lowest=None) == math.inf
    assert read_mean(ladder, "final loss") == 0.5 and read_mean(ladder, "loss without prompt") == 3.0
    assert read_mean(ladder, "area own") == pytest.approx(ladder.area().value)
    assert readings([ladder]).best[0] == 0.5
    flat = Ladder.from_losses({0: 3.0, 1: 2.0, 4: math.nan, 16: 1.99}, "hole")
    assert read_mean(flat, "S") == flat.saturation(lowest=None).value == 1
    assert math.isnan(read_mean(Ladder.from_losses({0: 3.0, 1: 2.0, 4: math.nan}), "S"))


def test_readings_hold_counts_and_intervals():
    published = Ladder.from_losses({0: 3.0, 1: 1.0, 4: 0.9}, "published")
    table = readings([lad("chess"), published]).set_index("name")
    size = lad("chess").saturation()
    assert table.loc["chess 0.5", ["items", "seeds"]].tolist() == [12, 2]
    assert table.loc["chess 0.5", "S"] == repr(size).split(" (")[0]
    assert table.loc["published", "S"] == ">4"
    assert " [" in table.loc["chess 0.5", "area"] and " [" not in table.loc["published", "area"]


def drawn(table, **options):
    "Levels along the axis, labels of the legend, and how many runs are drawn as points."
    ax = plot_runs(table, "y", "x", **options)
    ticks = [tick.get_text() for tick in ax.get_xticklabels()]
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    clouds = [each for each in ax.collections if isinstance(each, PathCollection)]
    return ticks, labels, sum(len(cloud.get_offsets()) for cloud in clouds)


def test_runs_without_a_setting_are_a_level_and_those_without_a_value_are_counted():
    nan = float("nan")
    table = pd.DataFrame(dict(x=[None, None, 0.1, 0.1, 0.1], y=[1.0, 2.0, 3.0, nan, 4.0]), index=[0, 0, 1, 1, 2])
    assert drawn(table) == (["0.1", "None"], ["mean of 2 runs; 1 without a value"], 4)
    words = pd.DataFrame(dict(x=["a", None, "a"], y=[1.0, 2.0, 3.0], g=[None, "one", None]))
    ticks, labels, points = drawn(words, by="g")
    assert ticks == ["a", "None"] and sorted(labels) == ["g None (2 runs)", "g one (1 run)"] and points == 3
    gone = pd.DataFrame(dict(x=[1, 2, 1, 2], y=[nan, None, 1.0, 2.0], g=["bad", "bad", "good", "good"]))
    assert drawn(gone, by="g")[1] == ["g bad (no run; 2 without a value)", "g good (1 run)"]
    nothing = pd.DataFrame(dict(x=[None, None], y=[1.0, 2.0]))
    assert drawn(nothing) == (["None"], ["mean of 2 runs"], 2)
