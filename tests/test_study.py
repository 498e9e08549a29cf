"The study of distance: what is kept, what is made again, and what two sets of seeds say."

from functools import partial

from softprompt_nb.evaluation.distance.capabilities import from_examples, repetition
from softprompt_nb.evaluation.distance.measures import Ladder
from softprompt_nb.evaluation.distance.rungs import Rung
from softprompt_nb.files import stored, write_tensors
from softprompt_nb.studies.distance import (
    RUN_COLUMNS,
    Case,
    DistanceStudy,
    distance_study,
    lab_cases,
    main,
    seed_agreement,
    tiny,
)

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
    rng = np.random.default_rng(sum(seeds))
    nll = np.asarray(losses)[None, :, None] + 0.01 * rng.standard_normal((len(seeds), len(losses), items))
    return Ladder(name, "m", (0, 1, 4, 16), nll, np.ones(items), tuple(seeds))


def test_what_is_saved_is_what_was_made(tmp_path):
    made = distance_study(cases(), tmp_path / "runs", progress=False)
    kept = DistanceStudy.load(made.save(tmp_path / "s.safetensors"))
    assert list(kept.ladders) == ["a", "b"] and repr(kept) == repr(made)
    for part in made.ladders:
        for x, y in zip(made.ladders[part], kept.ladders[part]):
            for name in ("name", "model", "sizes", "seeds", "unit", "family", "eps"):
                assert getattr(x, name) == getattr(y, name)
            assert np.array_equal(x.nll.astype(np.float32), y.nll) and np.array_equal(x.units, y.units)
            assert len(x.runs) == len(y.runs) and x.notices() == y.notices()
    pd.testing.assert_frame_equal(made.asked, kept.asked)
    assert set(made.asked.what) == {"right", "right behind the password"}
    assert made.find("a", "lab-base-xs", "repeat 'house'") is made.ladders["a"][0]
    assert made.find("b", "lab-base-xs", "nothing") is None


def test_the_study_of_the_page_is_read_as_it_was_kept():
    study = DistanceStudy.load(stored("conditional-distance.safetensors"))
    assert repr(study).startswith("DistanceStudy(60 ladders: 5 families, 2 longer, 15 calibration")
    house = study.ladders["families"][0]
    assert (house.name, house.sizes, house.seeds) == ("repeat 'house'", (0, 1, 4, 16, 64), (0, 1, 2))
    assert house.nll.shape == (3, 5, 96) and house.nll.dtype == np.float64 and list(house.runs) == RUN_COLUMNS


def test_started_again_it_tunes_nothing_twice(tmp_path, monkeypatch):
    # as if it had been killed before the second part
    first = distance_study(dict(a=cases()["a"]), tmp_path, progress=False)
    tuned, before = [], Rung.tuning
    monkeypatch.setattr(Rung, "tuning", lambda self, *work: tuned.append(self.capability) or before(self, *work))
    both = distance_study(cases(), tmp_path, progress=False)
    assert set(tuned) == {"code"}
    assert np.array_equal(both.ladders["a"][0].nll, first.ladders["a"][0].nll)


def test_several_processes_give_what_one_gives(tmp_path):
    one = distance_study(cases(), tmp_path / "one", progress=False)
    two = distance_study(cases(), tmp_path / "two", workers=2, progress=False)
    assert list(two.ladders) == list(one.ladders)
    # models of a study compute in float32, with as many threads as a process has: sums of up to 48 targets, once in
    # the gradient and once in the loss
    rounding = 2 * 48 * np.finfo(np.float32).eps
    for part in one.ladders:
        assert np.allclose(one.ladders[part][0].nll, two.ladders[part][0].nll, rtol=rounding, atol=0)


def test_models_that_are_not_here_are_left_out_and_named(tmp_path, capsys):
    missing = Case("lab-chat-s", partial(repetition, " house"), RUN)
    with pytest.MonkeyPatch.context() as patched:
        here = dict.fromkeys(["lab-base-xs"], "a folder").get
        patched.setattr("softprompt_nb.studies.distance.find_model", here)
        study = distance_study(dict(a=cases()["a"], c=[missing]), tmp_path, progress=False)
    assert "lab-chat-s" in capsys.readouterr().out
    assert study.ladders["c"] == [] and len(study.ladders["a"]) == 1


def test_a_foreign_file_is_no_study(tmp_path):
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
    # the second step gains the threshold of .05: .35 on one half of the items, -.25 on the other
    edge = made((4, 5), (3, 1, 0.95, 0.95))
    edge.nll[:, 2:, ::2] -= 0.3
    edge.nll[:, 2:, 1::2] += 0.3
    table = seed_agreement([(sure, other), (made((0, 1), (3, 1, 0.9, 0.9)), other), (sure, edge)])
    assert table.same.tolist()[:2] == [True, False] and table.one.tolist()[:2] == ["1", "4"]
    assert not table.warned[0] and table.warned[2]


def test_the_cases_of_the_lab_and_their_tiny_selves():
    parts = lab_cases()
    counts = {part: len(cases) for part, cases in parts.items()}
    assert counts == dict(
        families=5, longer=2, calibration=15, locked=1, detuning=2, notations=3, sizes=9, agreement=23
    )
    assert {case.run["seeds"] for case in parts["agreement"]} == {(3, 4, 5)}
    assert {case.model for case in parts["families"]} == {"lab-base-s"}
    for case in sum(tiny(parts).values(), []):
        assert len(case.run["sizes"]) == 3 and case.run["steps"] < 10


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("softprompt_nb.studies.distance.lab_cases", lambda *args: cases())
    file = tmp_path / "s.safetensors"
    main(f"--store {tmp_path / 'runs'} --to {file} --quick --workers 1 --parts a".split())
    assert "repeat 'house'" in capsys.readouterr().out
    assert list(DistanceStudy.load(file).ladders) == ["a"]
