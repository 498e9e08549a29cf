"""One thing has one colour, wherever and in whatever order it is drawn."""

import subprocess
import sys

from softprompt_nb.evaluation.distance.figures import plot_families, plot_ladder, plot_saturation, plot_vectors_worth
from softprompt_nb.evaluation.distance.measures import Ladder
from softprompt_nb.evaluation.formats.pictures import plot_curves
from softprompt_nb.plots import COLORS, COLORS_OF, SERIES, color_of
from softprompt_nb.studies.calibration import Calibration, told_apart
from softprompt_nb.studies.distance import readings

import numpy as np
import pandas as pd
import pytest
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
    assert (
        [color_of(f"x{i}", i) for i in range(len(SERIES))] == list(SERIES)
        and color_of("chess", 5) == COLORS_OF["chess"]
        and set(COLORS_OF.values()) <= {*SERIES, *COLORS.values()}
    )


@pytest.mark.parametrize("plot", [plot_saturation, plot_families])
def test_a_family_keeps_its_colour_and_its_ladders_differ(plot):
    some = [lad("chess"), lad("skipping"), lad("chess", 0.4)]
    a, b = plot(some).lines, plot(some[::-1]).lines
    assert (
        [to_hex(line.get_color()) for line in a]
        == [to_hex(line.get_color()) for line in b][::-1]
        == [COLORS_OF["chess"], COLORS_OF["skipping"], COLORS_OF["chess"]]
    )
    assert a[0].get_linestyle() != a[2].get_linestyle()


def test_a_ladder_draws_itself_whatever_was_imported():
    code = "from softprompt_nb.evaluation.distance.measures import Ladder; "
    code += "print(Ladder.from_losses({0: 3.0, 1: 1.0}).plot().get_ylabel())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "loss (nats per token)" in done.stdout


def test_single_ladders_and_vectors():
    assert to_hex(plot_ladder(lad("skipping")).lines[-1].get_color()) == COLORS_OF["skipping"]
    t = pd.DataFrame(
        dict(vector=[1, 2], loss=[1.0, 2.0], low=[0.9, 1.8], high=[1.2, 2.1], items=[5, 5], all=[0.8, 0.8])
    )
    assert "5 items" in plot_vectors_worth(t).get_legend_handles_labels()[1][1]


def test_curves_name_every_line_and_count_their_vectors():
    t = pd.DataFrame(
        [
            dict(
                answers="true",
                n=n,
                step=s,
                FF=0.5,
                FF_low=0.4,
                FF_high=0.6,
                KA_star=0.5,
                KA_star_low=0.4,
                KA_star_high=0.6,
            )
            for n in (1, 10)
            for s in (0, 10)
        ]
    )
    axs = plot_curves(
        t, by="n", lines=dict(FF=0.4)
    )  # a line that only the first panel has, and the legend stands at the last
    assert [x.get_text() for x in axs[-1].get_legend().get_texts()] == [
        "1 vector",
        "10 vectors",
        "instruction, no prompt",
    ]


def test_the_gap_of_a_family_is_the_one_that_is_drawn():
    chess = lad("chess", 0.4)
    own, common = (plot_families([chess], floor=f).get_legend().get_texts()[0].get_text() for f in (None, 0.0))
    assert f"gap {chess.gap().value:.2f} nats" in own and f"gap {chess.mean[0]:.2f} nats" in common


def test_sizes_beyond_the_ladder_are_drawn_above_it():
    from softprompt_nb.lab.planted import FREQUENCIES

    tags = sorted(FREQUENCIES, key=FREQUENCIES.get)
    lads = {("code", t): lad("planted", end, i) for i, (t, end) in enumerate(zip(tags, (0.2, 0.4, 0.6, 0.97, 0.99)))}
    cal = Calibration(lads, pd.DataFrame([dict(skill="code", name=t, share=FREQUENCIES[t]) for t in tags]))
    for reading in ("S", "C90", "area", "C(.5)"):
        assert max(y for line in cal.plot(reading).lines for y in np.atleast_1d(line.get_ydata())) <= 16
    assert [t.get_text() for t in cal.plot("S").get_yticklabels()] == ["0", "1", "4", ">4"]
    with pytest.raises(ValueError, match="reading='X'"):
        cal.plot("X")


def test_ladders_are_told_apart_on_the_same_items_only():
    d = told_apart(lad("code", 0.9), lad("code", 0.2, 1))
    assert d.low > 0 and d.n == 12 and d.low <= d.value <= d.high
    with pytest.raises(ValueError, match="12 and 11 items"):
        told_apart(lad("code"), lad("code", n=11))
    with pytest.raises(ValueError, match="reading='X'"):
        told_apart(lad("code"), lad("code"), "X")
    with pytest.raises(ValueError, match="n=2: this ladder has the sizes 0, 1, 4"):
        lad("code").accessibility(2)


def test_readings_hold_counts_and_intervals():
    t = readings([lad("chess"), Ladder.from_losses({0: 3.0, 1: 1.0, 4: 0.9}, "published")]).set_index("name")
    r = lad("chess").saturation()
    assert (
        t.loc["chess 0.5", ["items", "seeds"]].tolist() == [12, 2]
        and t.loc["chess 0.5", "S"] == f"{r.label} [{r.word(r.low)}, {r.word(r.high)}]"
    )
    assert (
        t.loc["published", "S"] == ">4"
        and " [" in t.loc["chess 0.5", "area"]
        and " [" not in t.loc["published", "area"]
    )
