"""A warm process that the tests of sweeps fork from, as importing torch anew for each of many kills would take minutes.

Reads one job a line (JSON: name and arguments), does it in a forked child, and answers with one line of JSON."""

import json
import multiprocessing
import os
import random
import resource
import signal
import sys
import time
import traceback
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

from softprompt_nb.experiments.configs import TuneConfig
from softprompt_nb.experiments.runs import RunStore, StoreError, content_hash
from softprompt_nb.experiments.sweep import Serial, sweep
from softprompt_nb.load import cached_lm

import torch
from toys import Trouble, Walk

FORK = multiprocessing.get_context("fork")
WALKS = [Walk(seed) for seed in range(16)]
TUNES = [
    TuneConfig(data="lab:plural", n=n, seed=seed, steps=6, test=5, checkpoints=3, save_every=2)
    for n in (1, 3)
    for seed in (0, 1)
]


def forked(configs, folder):
    "A sweep on two forked workers."
    with ProcessPoolExecutor(2, FORK) as pool:
        return sweep(configs, folder, pool, progress=False)


def dies_in_a_sweep(n, configs, folder):
    "A sweep whose process dies at the n-th change of a file."
    dies_at(n)
    forked(configs, folder)


def group(job):
    "Run `job` in a child with a process group of its own."
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    try:
        job()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    os._exit(1)


def ended(pid, block=True):
    "The child's exit code, minus a signal; None while it lives."
    got, status = os.waitpid(pid, 0 if block else os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if got else None


def dies_at(n):
    """From now on each process counts its own steps of writing, and at the n-th kills its whole group, before or
    after the step."""
    left, after = [n], n % 2

    def wrap(f):
        def g(*a, **k):
            left[0] -= 1
            if left[0] == 0 and not after:
                os.killpg(0, signal.SIGKILL)
            try:
                return f(*a, **k)
            finally:
                if left[0] == 0 and after:
                    os.killpg(0, signal.SIGKILL)

        return g

    for name in ("fsync", "replace", "rename", "mkdir", "unlink"):
        setattr(os, name, wrap(getattr(os, name)))


def read_all(store):
    "Read every record with all its files; whatever is readable at all must be whole."
    for r in store:
        r.history, r.arrays, [r._file(name) for name in r.data["files"]]


def content(store):
    "What must not depend on kills: file by file, and what the record says but for times and machine."
    out = {}
    for r in store:
        info = {k: v for k, v in r.info.items() if k != "seconds"}
        out[r.id] = [
            r.config,
            r.metrics,
            info,
            {n: h for n, h in r.data["files"].items() if not n.endswith("softprompt.json")},
        ]
    return out


def same_as_unkilled(folder, configs):
    calm, store = RunStore(folder + "-calm"), RunStore(folder)
    sweep(configs, calm, Serial(), progress=False)
    assert content(store) == content(calm) and set(store.ids()) == {content_hash(c) for c in configs}
    left = [p.name for p in store.folder.iterdir() if p.name not in (*store.ids(), "work", "failed")]
    assert not left and not list((store.folder / "work").iterdir()), (left, list((store.folder / "work").iterdir()))


def killed(folder, kind, kills, most, seed):
    """Kill a sweep's whole group at random steps, start it again each time, and let the last one end; a reader looks
    on all the time."""
    configs, rng, store = dict(walks=WALKS, tunes=TUNES)[kind], random.Random(seed), RunStore(folder)
    recorded = []
    for k in range(kills):
        job = partial(dies_in_a_sweep, rng.randint(1, most), configs, folder)

        pid = group(job)
        while (code := ended(pid, block=False)) is None:
            read_all(store)
            time.sleep(0.01)
        assert code == -signal.SIGKILL, f"kill {k}: the sweep ended with {code} before it could be killed"
        read_all(store)
        recorded.append(len(store))
    assert recorded[-1] < len(configs), "the kills came too late to hit anything"
    assert ended(group(lambda: forked(configs, folder))) == 0
    same_as_unkilled(folder, configs)
    return recorded


def killed_by_the_clock(folder, kills, seed):
    "The same with kills at random times, wherever they hit; the work lasts longer than all of them."
    configs, rng = [Walk(i, 40) for i in range(8)], random.Random(seed)
    codes = []
    for _ in range(kills):
        pid = group(lambda: forked(configs, folder))
        time.sleep(rng.uniform(0.02, 0.25))
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        codes.append(ended(pid))
        read_all(RunStore(folder))
    assert ended(group(lambda: forked(configs, folder))) == 0
    same_as_unkilled(folder, configs)
    return codes


def shared(folder, kill):
    "Two sweeps on one store; the first may be killed in the middle."

    def job(name):
        s = forked(WALKS, folder)
        with open(f"{folder}-{name}", "w") as f:
            json.dump([s.done, s.there, s.failed], f)

    a = group(lambda: (dies_at(25) if kill else None, job("a")))
    b = group(lambda: job("b"))
    assert ended(a) == (-signal.SIGKILL if kill else 0) and ended(b) == 0
    same_as_unkilled(folder, WALKS)
    done = [json.loads(Path(f"{folder}-{n}").read_text()) for n in ("b" if kill else "ab")]
    assert all(len(d) + len(t) == len(WALKS) and not f for d, t, f in done)
    return [d for d, _, _ in done]


def alive(pid):
    "Is there such a process, and not only its entry in the table?"
    try:
        return open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def orphans(folder):
    "Kill a sweep on the default pool, and nothing but the process that called it; how many workers went with it."
    signs = Path(folder + "-signs")
    signs.mkdir()
    configs = [Trouble("wait", x, str(signs)) for x in range(3)]
    pid = group(lambda: sweep(configs, folder, workers=2, progress=False))
    while len(list(signs.iterdir())) < 2:
        assert ended(pid, block=False) is None, "the sweep ended by itself"
        time.sleep(0.05)
    pids = [int(s.name.split("-")[1]) for s in signs.iterdir()]
    assert pid not in pids and all(map(alive, pids))
    os.kill(pid, signal.SIGKILL)
    ended(pid)
    for _ in range(600):
        if not any(map(alive, pids)):
            break
        time.sleep(0.1)
    assert not any(map(alive, pids)), "workers outlive their parent"
    assert len(RunStore(folder)) == 0
    (signs / "go").touch()
    assert len(sweep(configs, folder, Serial(), progress=False).done) == 3
    return len(pids)


def own_pool(folder, whats, workers):
    "The default pool, but of forked workers: what came of each configuration."
    multiprocessing.get_context = lambda how: FORK
    configs = [Trouble(w, i) for i, w in enumerate(whats)]
    s = sweep(configs, folder, workers=workers, progress=False)
    assert s.left == 0 and len(s.done) + len(s.failed) == len(configs)
    return [[configs[s.ids.index(i)].x for i in ids] for ids in (s.done, s.failed)], s.failures.error.tolist(), repr(s)


def full_disk(folder, what):
    "A sweep on a disk that takes no file over 100 kB, and then one on a better disk."
    configs = [Trouble("", 1), Trouble(what, 2), Trouble("", 3)]

    def job():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            sweep(configs, folder, Serial(), progress=False)
        except StoreError as e:
            Path(f"{folder}-said").write_text(f"{e}\n")

    assert ended(group(job)) == 0
    store, said = RunStore(folder), Path(f"{folder}-said").read_text()
    read_all(store)
    before, left = len(store), [p.name for p in store.folder.iterdir() if p.name not in store.ids()]
    again = sweep(configs, folder, Serial(), progress=False)
    return said, before, left, len(again.done), len(again.there)


def main():
    torch.set_num_threads(1)
    cached_lm("lab-instruct-s", None, None)  # forked children find it here
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        name, args = json.loads(line)
        r, w = os.pipe()
        if (pid := os.fork()) == 0:
            try:
                answer = dict(value=globals()[name](*args))
            except BaseException:
                answer = dict(error=traceback.format_exc())
            with os.fdopen(w, "w") as f:
                json.dump(answer, f)
            os._exit(0)
        os.close(w)
        with os.fdopen(r) as f:
            print(f.read() or json.dumps(dict(error="the job died")), file=out, flush=True)
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
