"""Files and folders appear whole or not at all: under kill -9 at every step, on a full disk, and while others read."""

import os
import resource
import signal
import threading
from functools import partial

from softprompt_nb import files
from softprompt_nb.files import read_tensors, stored, write_file, write_folder, write_tensors

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

STEPS = ("fsync", "replace", "rename", "mkdir", "open")


def forked(job):
    "Run `job` in a forked child; its exit code, or minus the signal that ended it."
    pid = os.fork()
    if pid == 0:
        torch.set_num_threads(1)  # the parent's threads are not in the child, which would wait for them
        try:
            job()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def dies_at(n, after):
    "Kills the process at the n-th system call of interest, before or after it."
    left = [n]

    def wrap(call):
        def counted(*args, **options):
            left[0] -= 1
            if left[0] == 0 and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return call(*args, **options)
            finally:
                if left[0] == 0 and after:
                    os.kill(os.getpid(), signal.SIGKILL)

        return counted

    for name in STEPS:
        setattr(os, name, wrap(getattr(os, name)))
    files._exchange = wrap(files._exchange)


def two(text):
    "Writes two files with the same text into a folder."

    def write(folder):
        (folder / "a").write_text(text)
        (folder / "b").write_text(text)

    return write


def new_over_old(home, n, after):
    "Writes a file and a folder, and dies at the n-th call."
    dies_at(n, after)
    write_file(home / "f", "new" * 10_000)
    write_folder(home / "d", two("new"))


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("existing", [False, True])
def test_a_killed_writer_leaves_the_old_or_the_new(tmp_path, after, existing):
    ends = set()
    for n in range(1, 40):
        home = tmp_path / str(n)
        home.mkdir()
        if existing:
            write_file(home / "f", "old" * 10_000)
            write_folder(home / "d", two("old"))
        ends.add(forked(partial(new_over_old, home, n, after)))
        file = (home / "f").read_text() if (home / "f").exists() else None
        folder = tuple((home / "d" / name).read_text() for name in "ab") if (home / "d").exists() else None
        assert file in ("new" * 10_000, "old" * 10_000 if existing else None)
        assert folder in (("new", "new"), ("old", "old") if existing else None)
        assert all(path.name in "fd" or path.name.startswith(".") for path in home.iterdir())
    assert ends == {-signal.SIGKILL, 0}


def test_a_full_disk_leaves_the_old(tmp_path):
    write_file(tmp_path / "f", "old")
    write_tensors(tmp_path / "t", dict(x=torch.zeros(3)), dict(step=1))
    write_folder(tmp_path / "d", two("old"))
    writers = [
        partial(write_file, tmp_path / "f", "x" * 100_000),
        partial(write_tensors, tmp_path / "t", dict(x=torch.zeros(100_000))),
        partial(write_folder, tmp_path / "d", two("x" * 100_000)),
    ]

    def on_a_full_disk(write):
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        try:
            write()
        except OSError:
            os._exit(7)

    assert [forked(partial(on_a_full_disk, write)) for write in writers] == [7, 7, 7]
    assert (tmp_path / "f").read_text() == "old"
    assert read_tensors(tmp_path / "t")[1] == dict(step=1)
    assert (tmp_path / "d" / "b").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d", "f", "t"]


@pytest.mark.parametrize("exchange", [True, False])
def test_replacing_puts_the_old_one_away(tmp_path, exchange, monkeypatch):
    if not exchange:
        monkeypatch.setattr(files, "_exchange", lambda first, second: False)
    for text in ("one", "two", "three"):
        write_folder(tmp_path / "d", two(text))
    assert (tmp_path / "d" / "a").read_text() == "three" and [path.name for path in tmp_path.iterdir()] == ["d"]


def test_the_old_folder_comes_back_when_the_new_one_cannot_have_its_name(tmp_path, monkeypatch):
    write_folder(tmp_path / "d", two("old"))
    real = os.rename

    def rename(source, target):
        if str(target).endswith("/d") and not str(source).endswith("-old"):
            raise OSError("no")
        return real(source, target)

    monkeypatch.setattr(files, "_exchange", lambda first, second: False)
    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(OSError):
        write_folder(tmp_path / "d", two("new"))
    assert (tmp_path / "d" / "a").read_text() == "old" and [path.name for path in tmp_path.iterdir()] == ["d"]


def test_of_many_writers_one_wins(tmp_path):
    won, gate = [], threading.Barrier(8)

    def writer(i):
        gate.wait()
        if write_folder(tmp_path / "d", two(str(i)), replace=False):
            won.append(str(i))

    threads = [threading.Thread(target=writer, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert [(tmp_path / "d" / name).read_text() for name in "ab"] == won * 2
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_readers_always_see_a_whole_file(tmp_path):
    stop, seen = threading.Event(), set()
    write_tensors(tmp_path / "t", dict(x=torch.zeros(2000)), dict(i=0))

    def reader():
        while not stop.is_set():
            tensors, note = read_tensors(tmp_path / "t")
            assert (tensors["x"] == note["i"]).all()
            seen.add(note["i"])

    thread = threading.Thread(target=reader)
    thread.start()
    for i in range(1, 40):
        write_tensors(tmp_path / "t", dict(x=torch.full((2000,), float(i))), dict(i=i))
    stop.set()
    thread.join()
    assert seen


@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(0, 4), max_size=3),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.uint8]),
    note=st.dictionaries(
        st.text(max_size=5),
        st.one_of(st.none(), st.integers(), st.floats(allow_nan=False), st.text(max_size=5)),
        max_size=3,
    ),
)
def test_tensors_and_note_come_back(tmp_path_factory, shape, dtype, note):
    x = (torch.randn(shape) * 10).to(dtype)
    part = x.reshape(-1)[1:]
    file = tmp_path_factory.mktemp("t") / "x.safetensors"
    tensors, note_back = read_tensors(write_tensors(file, {"a": x, "same": x, "part": part}, note))
    assert note_back == note and tensors["a"].dtype == dtype
    assert torch.equal(tensors["a"], x) and torch.equal(tensors["same"], x) and torch.equal(tensors["part"], part)


def test_damaged_and_foreign_files_are_refused(tmp_path):
    from safetensors.torch import save_file

    good = write_tensors(tmp_path / "good", dict(x=torch.arange(9.0)), dict(a=1)).read_bytes()
    for size in (0, 4, 30, len(good) - 1):
        (tmp_path / "cut").write_bytes(good[:size])
        with pytest.raises(ValueError, match="damaged"):
            read_tensors(tmp_path / "cut")
    for at in range(len(good) - 36, len(good), 5):
        (tmp_path / "bit").write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        with pytest.raises(ValueError, match="checksum"):
            read_tensors(tmp_path / "bit")
    save_file(dict(x=torch.zeros(2)), tmp_path / "foreign")
    with pytest.raises(ValueError, match="no note"):
        read_tensors(tmp_path / "foreign")
    with pytest.raises(FileNotFoundError):
        read_tensors(tmp_path / "nowhere")


def test_permissions_follow_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        write_file(tmp_path / "f", "x")
        write_folder(tmp_path / "d", two("x"))
    finally:
        os.umask(old)
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o640 and (tmp_path / "d").stat().st_mode & 0o777 == 0o750


def test_a_stored_result_is_found_from_its_page_from_nbs_and_from_the_top(tmp_path, monkeypatch):
    file = tmp_path / "nbs/papers/results/study.json"
    file.parent.mkdir(parents=True)
    file.write_text("{}")
    for place in ("nbs/papers", "nbs", "."):
        monkeypatch.chdir(tmp_path / place)
        assert stored("study.json").resolve() == file.resolve() and stored("other.json") is None
    monkeypatch.chdir(file.parent)
    assert stored("study.json") is None
