"""Executes notebooks and stores their outputs, byte for byte the same on the same versions.

    python .ci/save_outputs.py [--check] [notebook ...]      all notebooks under nbs/ where none is named

Cells that nbdev_test skips are skipped and keep their outputs. --check writes nothing and fails when the stored
outputs differ."""

import argparse
import base64
import io
import json
import re
import subprocess
import sys
from pathlib import Path

from execnb.nbio import dict2nb, nb2str
from nbdev.clean import clean_nb
from nbdev.config import get_config
from notebooks import directives, run, text
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
PROGRESS = re.compile(r"\d+%\||\d+%.*\[[\d:<?, ]+|\bit/s\b|\bs/it\b|examples/s")
STYLER_ID = re.compile(r"T_[0-9a-f]{5,}")
DROPPED = {"application/vnd.jupyter.widget-view+json", "application/vnd.google.colaboratory.intrinsic+json"}


def skipped(cell):
    "Does nbdev_test leave this cell out?"
    names = directives(cell.source)
    return (
        names.get("eval", "").lower() == "false"
        or bool(set(names) & set(get_config().tst_flags.split()))
        or "nbdev_export(" in cell.source
    )


def last_writes(s):
    return "\n".join(line.rstrip("\r").rsplit("\r", 1)[-1] for line in s.split("\n"))


def small_png(data):
    """A picture with 256 colours, a third of the size and to the eye the same; one with transparent parts, or smaller
    as it is, stays."""
    raw = base64.b64decode(text(data))
    im, out = Image.open(io.BytesIO(raw)), io.BytesIO()
    if im.mode == "P" or (im.mode == "RGBA" and im.getchannel("A").getextrema()[0] < 255):
        return data
    im.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return base64.b64encode(out.getvalue()).decode() if len(out.getvalue()) < len(raw) else data


def tidy_output(out, n):
    "`out` without what differs from run to run; None where nothing is left of it."
    if out.output_type == "stream":
        out.text = last_writes(text(out.text))
        if out.name == "stderr":
            out.text = "".join(line for line in out.text.splitlines(True) if line.strip() and not PROGRESS.search(line))
        return out if out.text.strip() else None
    if "data" in out:
        if DROPPED & set(out.data):
            return None
        if "image/png" in out.data:
            out.data["image/png"] = small_png(out.data["image/png"])
        if "text/html" in out.data:
            out.data["text/html"] = STYLER_ID.sub(f"T_{n:05d}", text(out.data["text/html"]))
    return out


def clean_text(nb):
    "The notebook as nbdev_clean writes it, texts as lists of lines."
    d = dict2nb(json.loads(json.dumps(nb)))
    cfg = get_config()
    clean_nb(d, False, cfg.allowed_metadata_keys.split(), cfg.allowed_cell_metadata_keys.split(), cfg.clean_ids)
    for out in (o for c in d.cells for o in c.get("outputs", [])):
        if "text" in out:
            out.text = text(out.text).splitlines(True)
        for mime in [k for k in out.get("data", {}) if k.startswith("text/")]:
            out.data[mime] = text(out.data[mime]).splitlines(True)
    return nb2str(d)


def save(path, check):
    nb, error = run(path, skip=skipped)
    if error:
        sys.exit(f"{path} stopped; its stored outputs are unchanged.\n\n{error}")
    for n, cell in enumerate(nb.cells):
        if cell.cell_type != "code":
            continue
        cell.outputs = [o for o in (tidy_output(o, n) for o in cell.outputs) if o is not None]
        noise = [o.text for o in cell.outputs if o.output_type == "stream" and o.name == "stderr"]
        if noise:
            print(f"  cell {n} writes to stderr, and readers will see it: {noise[0].strip()[:200]}")
    new = clean_text(nb)
    if new == path.read_text(encoding="utf-8"):
        return
    if check:
        sys.exit(f"{path}: the stored outputs are not what the cells give now.")
    path.write_text(new, encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", type=Path)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when stored outputs differ")
    args = parser.parse_args()
    paths = args.notebooks or sorted(
        p for p in (ROOT / "nbs").rglob("*.ipynb") if not any(part[0] in "._" for part in p.relative_to(ROOT).parts)
    )
    if len(paths) == 1:
        return save(paths[0], args.check)
    failed = []
    for path in paths:
        print(path, flush=True)
        if subprocess.run([sys.executable, __file__, str(path), *(["--check"] if args.check else [])]).returncode:
            failed.append(str(path))
    if failed:
        sys.exit("Failed: " + " ".join(failed))


if __name__ == "__main__":
    main()
