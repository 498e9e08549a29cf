"The study of distance: what is kept, what is made again, and what two sets of seeds say."

from functools import partial

from softprompt_nb.evaluation.distance.capabilities import from_examples, repetition
from softprompt_nb.evaluation.distance.measures import Ladder
from softprompt_nb.studies.distance import Case, DistanceStudy, distance_study, lab_cases, main, seed_agreement, tiny

import numpy as np
import pandas as pd
import pytest

RUN = dict(sizes=(0, 1, 2), seeds=(0, 1), rates=(0.5,), steps=3, batch_size=4, train=12, valid=4, test=6)


def cases():
    return dict(
        a=[Case("lab-base-xs", partial(repetition, " house"), RUN)],
        b=[Case("lab-base-xs", partial(from_examples, "code", family="planted"), RUN)],
    )


def made(seeds, losses, name="x", items=40):
    "A ladder whose items scatter a little around given losses."
    g = np.random.default_rng(sum(seeds))
    nll = np.asarray(losses)[None, :, None] + 0.01 * g.standard_normal((len(seeds), len(losses), items))
    return Ladder(name, "m", (0, 1, 4, 16), nll, np.ones(items), tuple(seeds))


def test_what_is_saved_is_what_was_made(tmp_path):
    s = distance_study(cases(), tmp_path / "runs", progress=False)
    t = DistanceStudy.load(s.save(tmp_path / "s.safetensors"))
    assert list(t.ladders) == ["a", "b"] and repr(t) == repr(s)
    for part in s.ladders:
        for x, y in zip(s.ladders[part], t.ladders[part]):
            assert (x.name, x.model, x.sizes, x.seeds, x.unit, x.family, x.eps) == (
                y.name,
                y.model,
                y.sizes,
                y.seeds,
                y.unit,
                y.family,
                y.eps,
            )
            assert (
                np.allclose(x.nll, y.nll, rtol=1e-6)
                and np.array_equal(x.units, y.units)
                and len(x.runs) == len(y.runs)
                and x.notices() == y.notices()
            )
    pd.testing.assert_frame_equal(s.asked, t.asked)
    assert {"right", "right behind the password"} == set(s.asked.what)
    assert (
        s.find("a", "lab-base-xs", "repeat 'house'") is s.ladders["a"][0]
        and s.find("b", "lab-base-xs", "nothing") is None
    )


def test_started_again_it_tunes_nothing_twice(tmp_path, monkeypatch):
    first = distance_study(
        dict(a=cases()["a"]), tmp_path, progress=False
    )  # as if it had been killed before the second part
    from softprompt_nb.evaluation.distance.ladder import Rung

    tuned, before = [], Rung.tuning
    monkeypatch.setattr(Rung, "tuning", lambda self, work: tuned.append(self.capability) or before(self, work))
    both = distance_study(cases(), tmp_path, progress=False)
    assert set(tuned) == {"code"}
    assert np.array_equal(both.ladders["a"][0].nll, first.ladders["a"][0].nll)


def test_several_processes_give_what_one_gives(tmp_path):
    one = distance_study(cases(), tmp_path / "one", progress=False)
    two = distance_study(cases(), tmp_path / "two", workers=2, progress=False)
    assert list(two.ladders) == list(one.ladders)
    for part in one.ladders:
        assert np.allclose(one.ladders[part][0].nll, two.ladders[part][0].nll, atol=1e-3)


def test_models_that_are_not_here_are_left_out_and_named(tmp_path, capsys):
    with pytest.MonkeyPatch.context() as m:
        m.setattr("softprompt_nb.studies.distance.find_model", lambda name: None if name == "lab-chat-s" else name)
        s = distance_study(
            dict(a=cases()["a"], c=[Case("lab-chat-s", partial(repetition, " house"), RUN)]), tmp_path, progress=False
        )
    assert "lab-chat-s" in capsys.readouterr().out and s.ladders["c"] == [] and len(s.ladders["a"]) == 1


def test_a_foreign_file_is_no_study(tmp_path):
    from softprompt_nb.files import write_tensors

    with pytest.raises(ValueError, match="no saved study of distance"):
        DistanceStudy.load(write_tensors(tmp_path / "x.safetensors", {}, dict(format=7)))
    with pytest.raises(FileNotFoundError):
        DistanceStudy.load(tmp_path / "nothing.safetensors")


def test_sets_of_seeds_that_share_one_are_refused():
    with pytest.raises(ValueError, match=r"both sets have \[2\]"):
        lab_cases(seeds=((0, 1, 2), (2, 3)))
    with pytest.raises(ValueError, match=r"both ladders have the seeds \[1\]"):
        seed_agreement([(made((0, 1), (3, 1, 1, 1)), made((1, 2), (3, 1, 1, 1)))])


def test_agreement_is_of_the_rung_and_a_doubt_is_flagged():
    sure, other = made((0, 1), (3, 1, 1, 1)), made((2, 3), (3, 1, 1, 1))
    edge = made(
        (4, 5), (3, 1, 0.95, 0.95)
    )  # the second step gains the threshold of .05: .35 on one half of the items, -.25 on the other
    edge.nll[:, 2:, ::2] -= 0.3
    edge.nll[:, 2:, 1::2] += 0.3
    t = seed_agreement([(sure, other), (made((0, 1), (3, 1, 0.9, 0.9)), other), (sure, edge)])
    assert t.same.tolist()[:2] == [True, False] and t.one.tolist()[:2] == ["1", "4"] and not t.warned[0] and t.warned[2]


def test_the_cases_of_the_lab_and_their_tiny_selves():
    c = lab_cases()
    assert [len(c[p]) for p in ("families", "calibration", "locked", "notations", "sizes", "agreement")] == [
        5,
        15,
        1,
        3,
        9,
        23,
    ]
    assert {case.run["seeds"] for case in c["agreement"]} == {(3, 4, 5)} and {case.model for case in c["families"]} == {
        "lab-base-s"
    }
    assert all(len(case.run["sizes"]) == 3 and case.run["steps"] < 10 for cs in tiny(c).values() for case in cs)


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("softprompt_nb.studies.distance.lab_cases", lambda *args: cases())
    main(
        [
            "--store",
            str(tmp_path / "runs"),
            "--to",
            str(tmp_path / "s.safetensors"),
            "--quick",
            "--workers",
            "1",
            "--parts",
            "a",
        ]
    )
    assert "repeat 'house'" in capsys.readouterr().out and list(
        DistanceStudy.load(tmp_path / "s.safetensors").ladders
    ) == ["a"]
