"""Executes the tour without a browser: a line for each cell, the result table at the end, the notebook and its
figures in a folder.

The result table is what the last cell that ends in a line `results` displays."""

import base64
import os
import shutil
import sys
import time
from pathlib import Path

import nbformat
from notebooks import code_lines, run, text

WIDE = "import pandas as pd; pd.options.display.width = 160"


def label(cell, width=88):
    line = code_lines(cell.source)[0].strip()
    return line if len(line) <= width else line[: width - 3] + "..."


def is_results(cell):
    return cell.cell_type == "code" and (code_lines(cell.source) or [""])[-1].split("#")[0].strip() == "results"


def result_table(nb):
    "The text of the last output of the last cell that ends in `results`; None where there is none."
    for cell in reversed([c for c in nb.cells if is_results(c)]):
        shown = [o.data for o in cell.outputs if "data" in o]
        if shown:
            return text(shown[-1].get("text/plain") or shown[-1].get("text/markdown"))


def save_figures(nb, folder):
    "Write every PNG output of `nb` to `folder`; returns how many there were."
    pngs = [o.data["image/png"] for c in nb.cells for o in c.get("outputs", []) if "image/png" in o.get("data", {})]
    for i, png in enumerate(pngs, 1):
        (folder / f"figure-{i:02d}.png").write_bytes(base64.b64decode(text(png)))
    return len(pngs)


def main(path, folder):
    path, folder = Path(path), Path(folder)
    if not path.exists():
        sys.exit(f"There is no notebook {path}.")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    total = sum(c.cell_type == "code" and bool(code_lines(c.source)) for c in nbformat.read(path, as_version=4).cells)
    began = time.perf_counter()
    print(f"Tour: {path}, {total} cells", flush=True)

    def after(n, cell, seconds):
        print(f"[{n:2d}/{total}] {seconds:5.1f} s  {label(cell)}", flush=True)

    nb, error = run(path, after=after, setup=WIDE)
    nbformat.write(nb, folder / path.name)
    figures, table = save_figures(nb, folder), result_table(nb)
    if error:
        sys.exit(f"\nThe tour stopped in the last cell above; what ran is in {folder / path.name}.\n\n{error}")
    if table is None:
        sys.exit(f"The tour ran, but none of its cells ends in a line `results` that displays a table: {path}")
    print(
        f"\n{table}\n\n{time.perf_counter() - began:.0f} seconds. "
        f"The executed notebook and {figures} figures are in {folder}/\n"
        "Next: `make lab` opens the notebooks; nbs/howto/your-data.ipynb does the same with a file of yours."
    )


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main(*sys.argv[1:3])
