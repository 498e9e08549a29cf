"""A process that has the large libraries loaded and runs each notebook in a fork of itself: fresh for the notebook,
without the seconds that importing torch and its like takes anew for each of eighty.

Reads one job a line (JSON: notebook, IPython's folder, seconds it may take) and answers with one line of JSON:
whether it ran, and what it said. The package itself is not loaded: each notebook imports it as a reader's kernel
does."""

import json
import os
import signal
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from pathlib import Path

import datasets  # noqa: F401
import matplotlib.pyplot  # noqa: F401
import pandas  # noqa: F401
import persim  # noqa: F401
import scipy.stats  # noqa: F401
import seaborn  # noqa: F401
import torch  # noqa: F401
import transformers
from nbdev.config import get_config
from nbdev.test import test_nb

for name in ("AutoModelForCausalLM", "AutoTokenizer", "GPTNeoXForCausalLM", "LlamaForCausalLM"):
    getattr(transformers, name)  # loaded at first use


def waited(pid, seconds):
    "The exit code of a child, minus a signal; a child that takes too long is killed with all that it started."
    end, done = time.monotonic() + seconds, 0
    while not done and time.monotonic() < end:
        time.sleep(0.05)
        done, status = os.waitpid(pid, os.WNOHANG)
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # also what it started and left behind
    return os.waitstatus_to_exitcode(status if done else os.waitpid(pid, 0)[1])


def ends(path, folder, seconds):
    "The notebook's exit code and output; it runs in the folder and with the flags that nbdev_test gives it."
    with tempfile.TemporaryFile("w+") as said:
        if (pid := os.fork()) == 0:
            try:
                os.setsid()
                for stream in (1, 2):
                    os.dup2(said.fileno(), stream)
                os.environ["IPYTHONDIR"] = folder
                cfg = get_config()
                os.chdir(cfg.nbs_path)
                done, _ = test_nb(Path(path), skip_flags=cfg.tst_flags.split(), basepath=cfg.config_path)
            except BaseException:
                done = traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0 if done else 1)
        code = waited(pid, seconds)
        said.seek(0)
        return code, said.read()


def main():
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        code, said = ends(*json.loads(line))
        print(json.dumps(dict(code=code, said=said[-6000:])), file=out, flush=True)


if __name__ == "__main__":
    main()
