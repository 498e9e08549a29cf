"""Opens notebooks in JupyterLab, in a real browser, chooses Run All Cells, and fails on an error, a cell that did not
run, or anything on stderr.

    python .ci/run_all.py [--minutes 20] [notebook ...]      the tours where none is named: the sections Start,
How-to and The papers of the sidebar, but for pages whose texts are not here

Works on a copy, so the repository stays as it is; the executed notebooks, and pictures of what went wrong, are in
_runs/browser/.
Needs Node 18 or newer and Chromium (or Chrome): the first on PATH, or the program that the environment variable
CHROMIUM names."""

import argparse
import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import yaml
from notebooks import code_lines, text

ROOT = Path(__file__).resolve().parent.parent
TOURS = ("Start", "How-to", "The papers")  # sections of the sidebar whose pages people step through
NEEDS = {"nbs/howto/real-model.ipynb": "SOFTPROMPT_NB_TEXTS"}  # pages on others' texts, and what names their folder
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BAR = re.compile(r"[^\r\n]*\d+%\|[^\r\n]*\|[^\r\n]*")  # a progress bar of tqdm, which is no trouble
QUIET = {
    "@jupyterlab/apputils-extension/notification": {
        "fetchNews": "false",
        "checkForUpdates": False,
        "doNotDisturbMode": True,
    },
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},
}  # none: every cell is on the page, not only those near the window

PATIENT = {
    "MappingKernelManager": {"kernel_info_timeout": 600},
    "ServerApp": {"tornado_settings": {"ws_ping_interval": 0}},
}  # a busy machine is slow, not gone


def pages(entry):
    "The notebooks of a part of the sidebar."
    if isinstance(entry, str):
        return [entry] if entry.endswith(".ipynb") else []
    return [page for part in (entry if isinstance(entry, list) else entry.get("contents", [])) for page in pages(part)]


def tours(root=ROOT):
    "Paths of the notebooks that people step through, from the repository's top."
    sections = yaml.safe_load((root / "nbs" / "sidebar.yml").read_text(encoding="utf-8"))["website"]["sidebar"][
        "contents"
    ]
    return [f"nbs/{page}" for section in sections if section.get("section") in TOURS for page in pages(section)]


def ready(notebooks):
    "Those of some notebooks whose texts are here; says which are left out, and what they need."
    missing = [nb for nb in notebooks if nb in NEEDS and not os.environ.get(NEEDS[nb])]
    for nb in missing:
        print(f"{nb} is left out: set {NEEDS[nb]} to the folder of its texts, as the page says.")
    return [nb for nb in notebooks if nb not in missing]


def troubles(nb):
    "What a reader of the executed notebook `nb` would stumble over, a sentence each."
    found = []
    for i, cell in enumerate(nb["cells"]):
        if cell["cell_type"] != "code" or not code_lines(text(cell["source"])):
            continue
        for out in cell["outputs"]:
            if out["output_type"] == "error":
                found.append(f"cell {i}: {out['ename']}: {out['evalue']}")
            elif out.get("name") == "stderr" and (said := BAR.sub("", text(out["text"])).strip()):
                found.append(f"cell {i} writes to stderr: {said[:200]}")
        if cell["execution_count"] is None:
            found.append(f"cell {i} did not run")
    return found


def find_browser():
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if found and shutil.which(found):
        return found
    sys.exit(
        f"{found or 'No Chromium'} was {'not ' if found else ''}found: install Chromium (on Debian and Ubuntu: "
        "apt install chromium), or name a Chrome in the environment variable CHROMIUM."
    )


def install(folder):
    "Put the driver with its one dependency into `folder`; a second run finds it there."
    if not (shutil.which("node") and shutil.which("npm")):
        sys.exit(
            "Node was not found: install it with npm (on Debian and Ubuntu: apt install nodejs npm), then try again."
        )
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "run_all.mjs"):
        shutil.copy(Path(__file__).with_name("browser") / name, folder / name)
    wanted, there = (
        json.loads((folder / "package.json").read_text())["dependencies"]["playwright-core"],
        folder / "node_modules" / "playwright-core" / "package.json",
    )
    if there.exists() and json.loads(there.read_text())["version"] == wanted:
        return
    subprocess.run(
        ["npm", "install", "--no-package-lock", "--no-audit", "--no-fund", "--loglevel=error"], cwd=folder, check=True
    )


def copy(folder):
    "A copy of the notebooks and the package in `folder`."
    for name in ("nbs", "softprompt_nb"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))


@contextlib.contextmanager
def jupyterlab(top, home):
    "A JupyterLab over the folder `top` that keeps everything of its own in `home`; gives its address and token."
    for name, values in QUIET.items():
        file = home / "settings" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(values))
    (home / "config").mkdir()
    (home / "config" / "jupyter_server_config.json").write_text(json.dumps(PATIENT))
    with socket.create_server(("127.0.0.1", 0)) as s:
        port = s.getsockname()[1]
    token, address = (
        secrets.token_hex(16),
        f"http://127.0.0.1:{port}",
    )  # a token, since other people may work on this machine too
    own = dict(
        JUPYTER_CONFIG_DIR="config",
        JUPYTER_DATA_DIR="data",
        JUPYTER_RUNTIME_DIR="run",
        JUPYTERLAB_SETTINGS_DIR="settings",
        JUPYTERLAB_WORKSPACES_DIR="spaces",
        IPYTHONDIR="ipython",
    )
    env = (
        os.environ | {k: str(home / v) for k, v in own.items()} | dict(JUPYTER_PREFER_ENV_PATH="1", PYTHONPATH=str(top))
    )
    with (home / "server.log").open("w") as log:
        server = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "jupyter",
                "lab",
                "--no-browser",
                "--allow-root",
                "--ip=127.0.0.1",
                f"--port={port}",
                "--ServerApp.port_retries=0",
                f"--IdentityProvider.token={token}",
                f"--ServerApp.root_dir={top}",
            ],
            cwd=top,
            env=env,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        for _ in range(600):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{address}/api", timeout=60).close()
                break
            if server.poll() is not None:
                sys.exit(f"JupyterLab did not start:\n{(home / 'server.log').read_text()[-2000:]}")
            time.sleep(0.5)
        yield address, token
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)


def end_kernels(address, token):
    def ask(path, method="GET"):
        return urllib.request.urlopen(
            urllib.request.Request(address + path, method=method, headers={"Authorization": f"token {token}"}),
            timeout=120,
        )

    with ask("/api/sessions") as reply:
        sessions = json.load(reply)
    for s in sessions:
        ask(f"/api/sessions/{s['id']}", "DELETE").close()


def drive(nb, top, out, lab, minutes):
    "Run one notebook; returns (seconds or None, troubles)."
    name = nb.removeprefix("nbs/").removesuffix(".ipynb").replace("/", "-")
    done = subprocess.run(
        ["node", "run_all.mjs", *lab, nb, str(top / nb), str(out / f"{name}.png"), str(minutes)],
        cwd=out,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"CHROMIUM": find_browser()},
    )
    if done.returncode or not done.stdout.strip():
        return None, ["the browser could not be driven: see above"]
    result = json.loads(done.stdout.splitlines()[-1])
    end_kernels(*lab)
    shutil.copy(top / nb, out / f"{name}.ipynb")
    found = troubles(json.loads((top / nb).read_text(encoding="utf-8")))
    shown = [f"the page shows {line}" for line in result["shown"] if not any(line in f for f in found)]
    return result["seconds"], ([result["failed"]] if "failed" in result else []) + found + shown


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", help="paths from the top of the repository")
    parser.add_argument("--minutes", type=float, default=20, help="time for one notebook (default 20)")
    args = parser.parse_args()
    todo = args.notebooks or ready(tours())
    if gone := [nb for nb in todo if not (ROOT / nb).is_file()]:
        sys.exit(
            f"There is no notebook {', '.join(gone)}: give paths from the top of the repository, such as {tours()[0]}."
        )
    find_browser()
    out, rows = ROOT / "_runs" / "browser", []
    install(out)
    with tempfile.TemporaryDirectory() as tmp:
        top, home = Path(tmp) / "copy", Path(tmp) / "home"
        copy(top)
        home.mkdir()
        with jupyterlab(top, home) as lab:
            for nb in todo:
                rows.append((nb, *drive(nb, top, out, lab, args.minutes)))
    width = max(len(nb) for nb in todo)
    print(f"{'notebook':{width}}  seconds  troubles")
    for nb, seconds, found in rows:
        print(f"{nb:{width}}  {'-' if seconds is None else seconds:>7}  {len(found)}")
    for nb, _, found in rows:
        print("".join(f"\n{nb}: {line}" for line in found), end="")
    failed = sum(bool(found) for *_, found in rows)
    print(
        f"\n{len(rows) - failed} of {len(rows)} notebooks ran without trouble; "
        f"as executed they are in {out.relative_to(ROOT)}/"
    )
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
