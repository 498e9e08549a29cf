"""Runs a notebook as Run All does in JupyterLab: one kernel, in the notebook's own folder, cell by cell."""

import re
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.util import run_sync


def text(value):
    return "".join(value) if isinstance(value, list) else value


def code_lines(source):
    "The lines of a cell that do something: no blanks, comments or directives."
    return [line for line in source.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def directives(source):
    "The names of the `#|` directives in `source`, each with the text behind it."
    return {name: rest.strip() for name, rest in re.findall(r"^\s*#\|\s*([\w.-]+):?(.*)$", source, re.M)}


def run(path, skip=lambda cell: False, after=lambda n, cell, seconds: None, setup="", timeout=1200):
    """Execute the notebook at `path`; returns it with its outputs, and the exception that stopped it or None.
    Cells for which `skip` holds keep their stored outputs; `after` sees each executed cell; `setup` runs first,
    unseen."""
    nb = nbformat.read(path, as_version=4)
    client = NotebookClient(
        nb,
        timeout=timeout,
        kernel_name="python3",
        coalesce_streams=True,
        record_timing=False,
        extra_arguments=["--log-level=ERROR"],
        resources={"metadata": {"path": str(Path(path).resolve().parent)}},
    )
    todo = [(i, c) for i, c in enumerate(nb.cells) if c.cell_type == "code" and code_lines(c.source) and not skip(c)]
    with client.setup_kernel():
        if setup:
            run_sync(client.kc.execute_interactive)(setup, silent=True, timeout=60, output_hook=lambda msg: None)
        for n, (i, cell) in enumerate(todo, 1):
            start = time.perf_counter()
            try:
                client.execute_cell(cell, i)
            except Exception as e:
                return nb, e
            finally:
                after(n, cell, time.perf_counter() - start)
    return nb, None
