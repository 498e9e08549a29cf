"""Configurations for the tests of runs and sweeps, in a module so that every process can import them."""

import os
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import torch

from softprompt_nb.experiments.runs import Result
from softprompt_nb.files import read_tensors, write_tensors
from softprompt_nb.prompts import SoftPrompt


def double(x):
    return 2 * x


@dataclass(frozen=True)
class Walk:
    """A random walk that goes on where it was killed: position, generator and history are its state, written at every
    step."""

    seed: int = 0
    steps: int = 6

    def run(self, work):
        file, g = work.folder / "state.safetensors", torch.Generator().manual_seed(self.seed)
        at, rows, way = torch.zeros(4), [], []
        if file.exists():
            t, note = read_tensors(file)
            at, way, rows = t["at"], list(t["way"]), note["rows"]
            g.set_state(t["rng"])
        while len(rows) < self.steps:
            at = at + torch.randn(4, generator=g)
            way.append(at)
            rows.append(dict(step=len(rows) + 1, loss=at.norm().item()))
            write_tensors(file, dict(at=at, way=torch.stack(way), rng=g.get_state()), dict(rows=rows))
        return Result(
            dict(far=at.norm().item(), steps=len(rows)),
            pd.DataFrame(rows),
            SoftPrompt(at[None]),
            dict(way=torch.stack(way)),
        )


@dataclass(frozen=True)
class Trouble:
    """A run that does as it is told: raise, exit, die, die in the first attempt only, return nonsense, wait, or
    nothing of the kind."""

    what: str = ""
    x: int = 0
    signs: str = field(default="", compare=False)  # folder for signs of life

    def run(self, work):
        if self.signs:
            (Path(self.signs) / f"{self.x}-{os.getpid()}").touch()
        if self.what == "raise":
            raise KeyError("missing")
        if self.what == "exit":
            sys.exit(3)
        if self.what == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.what == "nonsense":
            return 7
        if self.what == "unwritable":
            return Result(dict(y=object()))
        if self.what == "big":
            return Result(dict(y=1), arrays=dict(a=torch.zeros(200_000)))
        if self.what == "die once" and not work.resumed:
            (work.folder / "tried").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if self.what == "wait":
            while not (Path(self.signs) / "go").exists():
                time.sleep(0.02)
        return Result(dict(y=double(self.x)))


@dataclass(frozen=True)
class Batched:
    "Runs that are done together; one with a negative x stops the batch, one of 100 fails by itself."

    x: int = 0

    def run(self, work):
        if self.x < 0:
            raise ValueError("negative")
        return Result(dict(y=double(self.x), how="alone"))

    @classmethod
    def run_many(cls, configs, works):
        for i in reversed(range(len(configs))):
            if configs[i].x < 0:
                raise ValueError("negative in a batch")
            yield (
                i,
                OverflowError("too large")
                if configs[i].x == 100
                else Result(dict(y=double(configs[i].x), how="together")),
            )
