"""A sweep does each run exactly once: whatever is killed, whoever else works on it, whatever a run does."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from softprompt_nb.experiments import sweep as module
from softprompt_nb.experiments.runs import Result, RunStore, content_hash
from softprompt_nb.experiments.sweep import Serial, sweep

import pytest
from conftest import ROOT
from toys import Batched, Trouble, Walk

pytestmark = pytest.mark.xdist_group("sweep")
ENV = os.environ | {
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]),
}


@pytest.fixture(scope="module")
def zygote():
    "Does a job of zygote.py in a child of a warm process."
    p = subprocess.Popen(
        [sys.executable, ROOT / "tests" / "zygote.py"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=ENV,
    )

    def ask(job, *args):
        p.stdin.write(json.dumps([job, args]) + "\n")
        p.stdin.flush()
        answer = json.loads(p.stdout.readline() or '{"error": "the zygote died"}')
        assert "error" not in answer, answer["error"]
        return answer["value"]

    yield ask
    p.stdin.close()
    p.wait(30)


def quiet(configs, store, executor=None, **kw):
    return sweep(configs, store, executor or Serial(), progress=False, **kw)


# kills


@pytest.mark.parametrize("seed", [0, 1])
def test_twenty_kills_at_random_steps_change_nothing(zygote, tmp_path, seed):
    recorded = zygote("killed", str(tmp_path / "s"), "walks", 20, 12, seed)
    assert recorded == sorted(recorded) and len(recorded) == 20


def test_kills_at_random_times_change_nothing(zygote, tmp_path):
    codes = zygote("killed_by_the_clock", str(tmp_path / "s"), 8, 0)
    assert codes[0] == -signal.SIGKILL


def test_killed_tunings_come_out_the_same(zygote, tmp_path):
    zygote("killed", str(tmp_path / "s"), "tunes", 5, 9, 0)


@pytest.mark.parametrize("kill", [False, True])
def test_two_sweeps_share_a_store(zygote, tmp_path, kill):
    done = zygote("shared", str(tmp_path / "s"), kill)
    if not kill:
        assert not set(done[0]) & set(done[1]) and len(done[0]) + len(done[1]) == 16


def test_workers_of_the_default_pool_end_with_a_killed_parent(zygote, tmp_path):
    assert zygote("orphans", str(tmp_path / "s")) == 2


# workers that die, disks that are full


def test_the_run_that_kills_its_worker_is_found_and_the_rest_is_done(zygote, tmp_path):
    (done, failed), errors, said = zygote(
        "own_pool", str(tmp_path / "s"), ["", "", "die", "", "raise", "die once", "", "die", ""], 2
    )
    assert sorted(done) == [0, 1, 3, 5, 6, 8] and sorted(failed) == [2, 4, 7]
    assert sum("died twice" in e for e in errors) == 2 and sum("KeyError" in e for e in errors) == 1
    assert said.startswith("Sweep(9 runs: 6 done, 3 failed")


class Dying:
    """Runs in this process; the runs named break the pool at so many first attempts, as if their worker, or one
    beside it, had died."""

    replaceable, window = True, 2

    def __init__(self, deaths):
        self.deaths, self.pools = deaths, 1

    def submit(self, fn, folder, configs, wait):
        f, x = module.cf.Future(), configs[0].x
        self.deaths[x] -= 1
        if self.deaths[x] >= 0:
            f.set_exception(module.cf.BrokenExecutor("gone"))
        else:
            f.set_result(fn(folder, configs, wait))
        return f

    def again(self):
        self.pools += 1

    def end(self, now=False):
        pass


@pytest.mark.parametrize(
    "deaths, failed, pools", [([9, 2, 0], [0], 5), ([1, 2, 0], [], 3), ([3, 3, 0], [0, 1], 6), ([0, 0, 2], [2], 3)]
)
def test_a_death_beside_another_run_counts_for_neither(tmp_path, monkeypatch, deaths, failed, pools):
    pool = Dying(list(deaths))
    monkeypatch.setattr(module, "_SpawnPool", lambda workers, most: pool)
    configs = [Trouble("", x) for x in range(3)]
    s = sweep(configs, tmp_path, workers=2, progress=False)
    assert (sorted(configs[s.ids.index(i)].x for i in s.failed), len(s.done), pool.pools) == (
        failed,
        3 - len(failed),
        pools,
    )


def test_a_dying_run_alone(zygote, tmp_path):
    assert zygote("own_pool", str(tmp_path / "s"), ["die"], 1)[0] == [[], [0]]


def test_a_full_disk_stops_the_sweep_and_leaves_whole_records(zygote, tmp_path):
    said, before, left, done, there = zygote("full_disk", str(tmp_path / "s"), "big")
    assert "make room and start again" in said and before == 1 and left == ["work"] and (done, there) == (2, 1)


def test_another_executor_that_breaks_is_said(tmp_path):
    class Breaks(Serial):
        n = 0

        def submit(self, *a):
            self.n += 1
            if self.n == 3:
                raise module.cf.BrokenExecutor("gone")
            return super().submit(*a)

    configs = [Trouble("", x) for x in range(5)]
    with pytest.raises(RuntimeError, match="2 runs were recorded now. Start the sweep again with a new executor"):
        quiet(configs, tmp_path, Breaks())
    assert len(quiet(configs, tmp_path).done) == 3


# what runs do


def test_failed_runs_are_recorded_and_the_rest_goes_on(tmp_path):
    configs = [Trouble(w, i) for i, w in enumerate(["raise", "", "exit", "nonsense", "unwritable", ""])]
    s = quiet(configs, tmp_path)
    errors = dict(zip(s.failures.what, s.failures.error))
    assert (len(s.done), len(s.failed), s.left) == (2, 4, 0)
    assert (
        "KeyError: 'missing'" in errors["raise"]
        and "SystemExit: 3" in errors["exit"]
        and "must return a Result" in errors["nonsense"]
        and "'y'" in errors["unwritable"]
    )
    assert "in run" in dict(zip(s.failures.what, s.failures.traceback))["raise"] and repr(s).startswith(
        "Sweep(6 runs: 2 done, 4 failed, "
    )
    assert len(quiet(configs, tmp_path).failed) == 4
    before = (tmp_path / "failed").stat().st_mtime_ns
    kept = quiet(configs, tmp_path, retry_failed=False)
    assert len(kept.failed) == 4 and len(kept.there) == 2 and (tmp_path / "failed").stat().st_mtime_ns == before


def test_a_run_that_failed_and_then_succeeds_is_no_failure(tmp_path):
    store, broken = RunStore(tmp_path), Trouble("", 5)
    store.add_failure(broken, ValueError("was"))
    assert len(store.failed()) == 1
    assert quiet([broken], store).done and len(store.failed()) == 0


def test_equal_configurations_run_once(tmp_path):
    s = quiet([Walk(1), Walk(2), Walk(1), Walk(1.0)], tmp_path)
    assert len(s.ids) == len(s.done) == len(s.table) == 2


def test_batches(tmp_path):
    s = quiet([Batched(x) for x in (1, 2, 100, 3)] + [Trouble("", 1)], tmp_path, together=8)
    assert len(s.done) == 4 and s.failures.error.tolist() == ["OverflowError: too large"]
    assert (
        s.table.dropna(subset="how").how.tolist() == ["together"] * 3
        and s.store[Batched(3)].environment["together"] == 4
    )
    with pytest.warns(UserWarning, match="done one by one"):
        s = quiet([Batched(x) for x in (7, -1, 8)], tmp_path, together=8)
    assert s.table.how.tolist() == ["alone", "together"] and len(s.failed) == 1


def test_a_batch_leaves_to_others_what_they_have(tmp_path):
    store = RunStore(tmp_path)
    with ThreadPoolExecutor(1) as pool:
        with store.claim(content_hash(Batched(2))) as work:
            future = pool.submit(quiet, [Batched(x) for x in (1, 2, 3)], store, together=3)
            while len(store) < 2:
                time.sleep(0.01)
            assert not future.done()
            module.attempt(store, Batched(2), work)
        s = future.result()
    assert len(s.done) == 2 and len(s.there) == 1 and len(store) == 3


def test_any_object_with_submit_will_do(tmp_path):
    class Job:
        def __init__(self, f, a):
            self.f, self.a, self.asked = f, a, 0

        def done(self):
            self.asked += 1
            return self.asked > 1

        def result(self):
            return self.f(*self.a)

    class Cluster:
        def submit(self, f, *a):
            return Job(f, a)

    assert len(quiet([Walk(i, 2) for i in range(3)], tmp_path, Cluster()).done) == 3


def test_errors_of_an_executor_count_for_their_run(tmp_path):
    class Unlucky(Serial):
        def submit(self, f, folder, configs, wait):
            if configs[0].x != 1:
                return super().submit(f, folder, configs, wait)
            future = module.cf.Future()
            future.set_exception(MemoryError("job 17 was killed"))
            return future

    s = quiet([Trouble("", x) for x in range(3)], tmp_path, Unlucky())
    assert len(s.done) == 2 and s.failures.error.tolist() == ["MemoryError: job 17 was killed"]


def test_an_interrupt_keeps_what_is_done(tmp_path, capsys):
    class Stops(Serial):
        n = 0

        def submit(self, *a):
            self.n += 1
            if self.n == 3:
                raise KeyboardInterrupt
            return super().submit(*a)

    s = quiet([Walk(i, 1) for i in range(5)], tmp_path, Stops())
    assert (
        s.interrupted
        and len(s.done) == 2
        and s.left == 3
        and "Interrupted with 3 of 5 runs not done" in capsys.readouterr().out
    )
    assert len(quiet([Walk(i, 1) for i in range(5)], tmp_path).done) == 3


# what is refused, before anything starts


def test_bad_input_is_refused_before_anything_starts(tmp_path):
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Local:
        x: int = 0

        def run(self, work):
            return Result(dict(x=self.x))

    with pytest.raises(ValueError, match="Local was defined in a notebook or a function.*%%writefile.*workers=0"):
        sweep([Local()], tmp_path / "s")
    with pytest.raises(ValueError, match="Local was defined"):
        sweep([Trouble(x=Local())], tmp_path / "s")
    assert len(sweep([Local()], tmp_path / "s", workers=0, progress=False).done) == 1
    with pytest.raises(ValueError, match="Configuration 1: The field 'x' is the function .*<lambda>"):
        quiet([Trouble(), Trouble(x=lambda: 0)], tmp_path / "t")
    with pytest.raises(ValueError, match="Configuration 0: 7 is no configuration"):
        quiet([7], tmp_path / "t")
    with pytest.raises(ValueError, match="workers=2 is for the default pool"):
        quiet([], tmp_path / "t", workers=2)
    with pytest.raises(ValueError, match="together=0"):
        quiet([], tmp_path / "t", together=0)
    with pytest.raises(ValueError, match="is a file"):
        quiet([], __file__)
    assert len(RunStore(tmp_path / "t")) == 0
    assert repr(sweep([], tmp_path / "t", progress=False)).startswith("Sweep(0 runs: nothing to do")
