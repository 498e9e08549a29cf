"The model `softprompt` in lm-evaluation-harness, on a local task, against our own numbers."

import json
import os
import sys

from softprompt_nb.engine.inference import generate
from softprompt_nb.evaluation.formats.knowledge import format_and_knowledge, option_table, picks
from softprompt_nb.evaluation.formats.lab_benchmarks import lab_benchmark
from softprompt_nb.evaluation.harness import insert_prompt, place_among
from softprompt_nb.load import load_lm
from softprompt_nb.prompts import SoftPrompt
from softprompt_nb.training.tuning import tune

import pytest
import torch
from conftest import ROOT, run
from families import FAMILIES, tiny


@pytest.mark.parametrize("place", [0, 1, 3])
@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_with_a_prompt_are_plain_concatenations(side, place):
    g = torch.Generator().manual_seed(0)
    e, lengths, v = torch.randn(3, 7, 4, generator=g), [7, 5, 3], torch.randn(2, 4, generator=g)
    j = torch.arange(7)
    mask = torch.stack([(j >= 7 - k if side == "left" else j < k).long() for k in lengths])
    x, full, position, went = insert_prompt(e, mask, v, place)
    for b, k in enumerate(lengths):
        real = e[b, mask[b].bool()]
        want = torch.cat([real[:place], v, real[place:]])
        assert torch.equal(x[b, full[b].bool()], want) and position[b, full[b].bool()].tolist() == list(range(k + 2))
        assert torch.equal(x[b, went[b]][mask[b].bool()], real)
    with pytest.raises(ValueError, match="fewer than 4"):
        insert_prompt(e, mask, v, 4)


def test_places():
    assert (
        place_among("start") == 0
        and place_among("after_bos", True) == 1
        and place_among("after_bos") == 0
        and place_among(3) == 3
    )
    with pytest.raises(ValueError, match="before_answer"):
        place_among("before_answer")


def test_without_the_harness_the_message_says_what_to_install(monkeypatch):
    from softprompt_nb.evaluation import harness

    harness.harness_model.cache_clear()
    monkeypatch.setitem(sys.modules, "lm_eval.models.huggingface", None)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ImportError, match=r"softprompt_nb\[eval\]"):
        harness.harness_model()


@pytest.fixture(scope="module")
def cls():
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness (the extra `eval`) is not installed")
    from softprompt_nb.evaluation.harness import register

    return register()


@pytest.fixture(scope="module")
def prompt(tmp_path_factory):
    lm = load_lm("lab-instruct-s", dtype="float64")
    b = lab_benchmark("quoted", test=20, train=160)
    p = tune(lm, SoftPrompt.init(lm, 6), b.examples(), steps=30, progress=False).prompt
    return lm, b, p, p.save(tmp_path_factory.mktemp("prompt") / "p")


HEAD = """dataset_path: json
dataset_kwargs:
  data_files:
    test: {rows}
test_split: test
metadata:
  version: 1
"""
OPTIONS_TASK = """task: sp_options
output_type: multiple_choice
doc_to_text: text
doc_to_choice: options
doc_to_target: gold
metric_list:
  - metric: acc
  - metric: acc_norm
"""
REPLIES_TASK = """task: sp_replies
output_type: generate_until
doc_to_text: ask
doc_to_target: reply
generation_kwargs:
  until: ["\\n"]
  max_gen_toks: 24
  do_sample: false
metric_list:
  - metric: exact_match
"""


@pytest.fixture(scope="module")
def task(prompt, tmp_path_factory):
    "Option scores, and replies, as two tasks of the harness over a local file."
    lm, b, _, _ = prompt
    folder = tmp_path_factory.mktemp("task")
    rows = [
        dict(
            text=b.ask(i) + " " + i.stem,
            ask=b.ask(i),
            options=list(i.options),
            gold=i.options.index(i.answer),
            reply=b.reply(i),
        )
        for i in b.items
    ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    head = HEAD.format(rows=folder / "rows.jsonl")
    (folder / "options.yaml").write_text(head + OPTIONS_TASK)
    (folder / "replies.yaml").write_text(head + REPLIES_TASK)
    return folder


def evaluate(model, folder, tasks):
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    return simple_evaluate(
        model=model,
        tasks=tasks,
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        log_samples=True,
        bootstrap_iters=0,
        verbosity="ERROR",
    )


@pytest.mark.parametrize("soft", [True, False])
def test_scores_and_replies_are_ours(cls, prompt, task, soft, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    lm, b, p, folder = prompt
    model = cls("lab-instruct-s", str(folder) if soft else None, batch_size=7, dtype="float64")
    out = evaluate(model, task, ["sp_options", "sp_replies"])
    table = option_table(lm, p if soft else None, b, end=False)
    for s in out["samples"]["sp_options"]:
        theirs = [float(r[0][0]) if isinstance(r[0], (list, tuple)) else float(r[0]) for r in s["resps"]]
        assert max(abs(x - y) for x, y in zip(theirs, table.scores[s["doc_id"]])) < 1e-5
    known = [k == i.answer for k, i in zip(picks(table), b.items)]
    assert abs(out["results"]["sp_options"]["acc,none"] - sum(known) / len(known)) < 1e-9
    said = generate(lm, p if soft else None, [b.ask(i) for i in b.items], 24, stop="\n")
    theirs = {
        s["doc_id"]: s["resps"][0][0] if isinstance(s["resps"][0], (list, tuple)) else s["resps"][0]
        for s in out["samples"]["sp_replies"]
    }
    assert [theirs[i] for i in range(len(said))] == said
    if soft:
        assert abs(out["results"]["sp_replies"]["exact_match,none"] - float(format_and_knowledge(lm, p, b).ACC)) < 1e-9


# models are in float64, but our scores are kept in float32: ten tokens at most, with logits of up to 20
ROUNDING = 10 * 20 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_scores_as_we_do(cls, name):
    lm = tiny(name, dtype=torch.float64)
    p = SoftPrompt.init(lm, 3, "gaussian", seed=1)
    model = cls(lm.model, p, tokenizer=lm.tokenizer, batch_size=3, max_length=60)
    assert model.max_length == 57
    from softprompt_nb.data import Example
    from softprompt_nb.engine.inference import target_logprobs

    from lm_eval.api.instance import Instance

    pairs = [("abc", " de"), ("a longer text", " x"), ("q", " yes it is"), ("abc", " q")]
    got = model.loglikelihood(
        [Instance("loglikelihood", {}, pair, k) for k, pair in enumerate(pairs)], disable_tqdm=True
    )
    want = target_logprobs(lm, p, [Example(a, b) for a, b in pairs], end=False)[0]
    assert max(abs(x[0] - y.item()) for x, y in zip(got, want)) < ROUNDING
    said = model.generate_until(
        [
            Instance("generate_until", {}, (t, dict(until=["\n"], max_gen_toks=6, do_sample=False)), k)
            for k, t in enumerate(["abc", "a much longer text", "q"])
        ],
        disable_tqdm=True,
    )
    assert said == generate(lm, p, ["abc", "a much longer text", "q"], 6, stop="\n")


def test_the_command_line(cls, prompt, task, tmp_path):
    paths = [str(ROOT), os.environ.get("PYTHONPATH")]
    run(
        [
            sys.executable,
            "-m",
            "softprompt_nb.evaluation.harness",
            "run",
            "--model",
            "softprompt",
            "--model_args",
            f"pretrained=lab-instruct-s,softprompt={prompt[3]},dtype=float64",
            "--tasks",
            "sp_options",
            "--include_path",
            task,
            "--output_path",
            tmp_path / "out",
            "--device",
            "cpu",
        ],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "HF_HOME": str(tmp_path / "hf")},
    )
    found = json.loads(next((tmp_path / "out").rglob("results*.json")).read_text())
    table = option_table(prompt[0], prompt[2], prompt[1], end=False)
    assert (
        abs(
            found["results"]["sp_options"]["acc,none"]
            - sum(k == i.answer for k, i in zip(picks(table), prompt[1].items)) / len(prompt[1].items)
        )
        < 1e-9
    )
