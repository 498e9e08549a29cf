"""Published forms of benchmarks, and normalisations by name: by hand, and against lm-evaluation-harness itself.

The harness's own task files are taken, with rows from local files in the place of the hub's. On the real models
`CLOZE_ITEMS=50 python -m pytest tests/test_cloze.py` compares 50 items of each benchmark, in place of a few."""

import json
import math
import os
import random
from pathlib import Path

from softprompt_nb.engine.normalization import HARNESS_NAMES, NORMALIZE, empty_context, normalization, normalized
from softprompt_nb.evaluation.formats.benchmarks import Benchmark, by_hash, load_benchmark
from softprompt_nb.evaluation.formats.cloze import HARNESS, Cloze, cloze_form
from softprompt_nb.evaluation.formats.formats import LETTER, YESNO, Item
from softprompt_nb.evaluation.formats.instructed import from_instruction
from softprompt_nb.evaluation.formats.knowledge import (
    Shots,
    area_under_curve,
    format_and_knowledge,
    option_table,
    picks,
)
from softprompt_nb.prompts import SoftPrompt

import numpy as np
import pandas as pd
import pytest
import torch
from families import tiny
from hypothesis import given
from hypothesis import strategies as st
from real_models import FOLDERS, real_lm

SETS = Path(__file__).resolve().parents[2] / "shared" / "data" / "commonsense_and_arithmetic"
WHERE = dict(arc_easy="ARC-Easy", openbookqa="openbookqa", boolq="boolq", piqa="piqa")
ITEMS = int(os.environ.get("CLOZE_ITEMS", 12))
TASKS = dict(
    arc_easy="arc/arc_easy.yaml",
    openbookqa="openbookqa/openbookqa.yaml",
    boolq="super_glue/boolq/default.yaml",
    piqa="piqa/piqa.yaml",
    siqa="siqa/siqa.yaml",
    winogrande="winogrande/default.yaml",
)
EXACT = 1e-6  # of a score, at least 10 nats: double precision in the model, single precision in the sums kept
CLOSE = 1e-5  # of a score, at least 10 nats: some 80 times single precision's epsilon, as batches have other shapes


def hub_row(name, item):
    "An item as the hub has it, for the harness's own task file."
    k = item.options.index(item.answer)
    if name in ("arc_easy", "openbookqa"):
        choices = dict(text=list(item.options), label=list("ABCDE"[: len(item.options)]))
        key = dict(arc_easy="question", openbookqa="question_stem")[name]
        return {key: item.question, "choices": choices, "answerKey": "ABCDE"[k]}
    if name == "boolq":
        passage, _, question = item.question.rpartition("\n")
        return dict(passage=passage, question=question.removesuffix("?"), label=int(item.answer == "yes"))
    if name == "piqa":
        return dict(goal=item.question, sol1=item.options[0], sol2=item.options[1], label=k)
    if name == "siqa":
        context, _, question = item.question.rpartition(". ")
        options = dict(zip(("answerA", "answerB", "answerC"), item.options))
        return dict(context=context + ".", question=question, label=str(k + 1)) | options
    return dict(sentence=item.question, option1=item.options[0], option2=item.options[1], answer=str(k + 1))


def harness_scores(model, name, items, folder, mutual=True):
    "Scores of every option, with and without the question, and accuracies, by the harness's own task."
    import lm_eval
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    rows = folder / f"{name}.jsonl"
    rows.write_text("\n".join(json.dumps(hub_row(name, item)) for item in items))
    metrics = [theirs for theirs in HARNESS_NAMES if mutual or theirs != "acc_mutual_info"]
    if name == "winogrande":
        metrics = ["acc"]  # the harness knows no other for options inside of the text
    lines = [
        f"include: {Path(lm_eval.__file__).parent / 'tasks' / TASKS[name]}",
        f"task: local_{name}\ndataset_path: json\ndataset_name: null",
        f"dataset_kwargs:\n  data_files:\n    test: {rows}",
        "training_split: null\nvalidation_split: null\ntest_split: test\nfewshot_split: null",
        "metric_list:\n" + "\n".join(f"  - metric: {metric}" for metric in metrics),
    ]
    if name == "boolq" and "\n" not in items[0].question:  # the local files have no passages
        lines.append('doc_to_text: "Question: {{question}}?\\nAnswer:"')
    (folder / f"{name}.yaml").write_text("\n".join(lines) + "\n")
    out = simple_evaluate(
        model=model,
        tasks=[f"local_{name}"],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        log_samples=True,
        bootstrap_iters=0,
        verbosity="ERROR",
    )
    found = [None] * len(items)
    for sample in out["samples"][f"local_{name}"]:
        found[sample["doc_id"]] = [np.ravel(answer)[0].astype(float) for answer in sample["resps"]]
    results = {metric: out["results"][f"local_{name}"][f"{metric},none"] for metric in metrics}
    return found, results


def agree(lm, prompt, benchmark, model, folder, bound, mutual=True):
    "Our table against the harness's scores and accuracies; the largest difference."
    name, items = benchmark.name, benchmark.items
    mutual = mutual and name != "winogrande"
    theirs, results = harness_scores(model, name, items, folder, mutual)
    table = option_table(lm, prompt, benchmark, prior=("mutual_info",) if mutual else False)
    largest = 0.0
    for item, row, scores in zip(items, table.to_dict("records"), theirs):
        order = [item.options.index(text) for text in (("no", "yes") if name == "boolq" else item.options)]
        ours = [row["scores"][k] for k in order] + [row["mutual_info"][k] for k in order if mutual]
        assert len(ours) == len(scores)
        for mine, other in zip(ours, scores):
            largest = max(largest, abs(mine - other))
            assert abs(mine - other) < bound * max(10, abs(other))
    for metric, value in results.items():
        right, unsure = 0, 0
        for item, row in zip(items, table.to_dict("records")):
            values = np.sort(normalized(row, metric))
            unsure += values[-1] - values[-2] < bound * 100
            right += picks(pd.DataFrame([row]), metric)[0] == item.answer
        assert abs(value - right / len(items)) <= unsure / len(items) + 1e-9, metric
    return largest


BY_HAND = dict(
    arc_easy=[Item("Which is hot ?", "the fire", ("ice", "the fire", "é now"))] * 1,
    openbookqa=[Item("A child grows by", "energy", ("a bed", "energy", "us", "me"))],
    boolq=[Item("Rain is wet .\nis rain wet?", "yes", ("yes", "no")), Item("It is.\nis it?", "no", ("yes", "no"))],
    piqa=[Item("ice box", "add it to water", ("add water to it", "add it to water"))],
    siqa=[Item("Ann left. What will Ann do?", "rest", ("go on", "rest", "ask me"))],
    winogrande=[Item("The cup fell as _ slipped on ice .", "Ann", ("Ann", "the cup"))],
)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("name", BY_HAND)
def test_every_form_is_the_harness_s_own_task(name, soft, tmp_path, monkeypatch):
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness (the extra `eval`) is not installed")
    from softprompt_nb.evaluation.harness import register

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    lm = tiny("llama", dtype=torch.float64)
    prompt = SoftPrompt.init(lm, 3, "gaussian", seed=1) if soft else None
    benchmark = Benchmark(name, LETTER, BY_HAND[name], cloze=HARNESS[name])
    model = register()(lm.model, prompt, tokenizer=lm.tokenizer, batch_size=4)
    agree(lm, prompt, benchmark, model, tmp_path, EXACT)


@pytest.mark.skipif(not SETS.exists(), reason="the benchmarks' files do not lie beside this clone")
@pytest.mark.parametrize("name", FOLDERS)
def test_real_models_score_real_items_as_the_harness_does(name, tmp_path, monkeypatch):
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness (the extra `eval`) is not installed")
    from softprompt_nb.evaluation.harness import register

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    lm = real_lm(name)
    model = register()(lm.model, None, tokenizer=lm.tokenizer, batch_size=8)
    for benchmark, folder in WHERE.items():
        items = load_benchmark(SETS / folder, test=ITEMS, train=0)
        assert items.name == benchmark and len(items) == ITEMS
        largest = agree(lm, None, items, model, tmp_path, CLOSE, mutual=ITEMS > 12 or benchmark == "boolq")
        print(f"{name}, {benchmark}: largest difference {largest:.1e} nats in {ITEMS} items")


def test_a_prior_is_taken_behind_the_prompt_or_without_it():
    lm = tiny("gpt_neox", dtype=torch.float64)
    prompt = SoftPrompt.init(lm, 3, "gaussian", seed=1)
    benchmark = Benchmark("b", LETTER, BY_HAND["arc_easy"], cloze=Cloze("mine"))
    names = ("pmi", "pmi_bare", "mutual_info", "mutual_info_bare")
    soft = option_table(lm, prompt, benchmark, prior=names).loc[0]
    bare = option_table(lm, None, benchmark, prior=names).loc[0]
    for name in ("pmi", "mutual_info"):
        column = "prior" if name == "pmi" else name
        assert np.allclose(soft[f"{name}_bare"], bare[column], atol=10 * EXACT)
        assert np.allclose(bare[f"{name}_bare"], bare[column], atol=10 * EXACT)
        assert not np.allclose(soft[column], bare[column], atol=1e-3)
    assert empty_context(lm) == lm.tokenizer.bos_token or empty_context(lm) == lm.tokenizer.eos_token


def test_shots_show_contents_where_contents_are_scored(monkeypatch):
    asked = []

    def spy(lm, prompt, texts, options, *rest):
        asked.append((list(texts), options))
        n = max(map(len, options))
        return torch.zeros(len(texts), n), torch.ones(len(texts), n)

    from softprompt_nb.evaluation.formats import knowledge

    monkeypatch.setattr(knowledge, "option_logprobs", spy)
    benchmark = Benchmark("b", LETTER, BY_HAND["arc_easy"], BY_HAND["openbookqa"], cloze=HARNESS["arc_easy"])
    lm = tiny("gpt_neox")
    option_table(lm, Shots(1, instruction="Reply with a letter."), benchmark)
    option_table(lm, Shots(1), benchmark, by="reply")
    (contents, options), (letters, replies) = ((texts[0], lists[0]) for texts, lists in asked)
    assert contents == "Question: A child grows by\nAnswer: energy\n\nQuestion: Which is hot ?\nAnswer:"
    assert options == (" ice", " the fire", " é now") or options == [" ice", " the fire", " é now"]
    assert "Answer: B\n\n" in letters and list(replies) == [" A", " B", " C"]


def test_a_report_says_how_it_scored_and_has_letters_or_an_area_beside():
    lm = tiny("gpt_neox")
    listed = Benchmark("arc_easy", LETTER, BY_HAND["arc_easy"] * 1, cloze=HARNESS["arc_easy"])
    report = format_and_knowledge(lm, None, listed, max_new_tokens=2)
    assert "(KA* by harness arc_easy cloze, characters = acc_norm)" in repr(report) and report.AUC is None
    assert report.letters in (0, 1) and "letters" in report.table.index
    summed = format_and_knowledge(lm, None, listed, max_new_tokens=2, normalize="acc")
    assert "cloze, sum = acc" in summed.known_by and summed.KA_star == report.rescored("acc")
    judged = Benchmark("boolq", YESNO, BY_HAND["boolq"], cloze=HARNESS["boolq"])
    report = format_and_knowledge(lm, None, judged, max_new_tokens=2)
    assert report.letters is None and report.AUC in (0, 0.5, 1) and "AUC" in repr(report)
    plain = format_and_knowledge(lm, None, Benchmark("b", YESNO, BY_HAND["boolq"]), max_new_tokens=2)
    assert "KA* by" not in repr(plain)


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=30), st.integers(-9, 9))
def test_the_area_is_a_count_of_pairs_that_no_preference_moves(rows, shift):
    margins, positive = zip(*rows)
    if len(set(positive)) == 1:
        with pytest.raises(ValueError, match="at least one of each"):
            area_under_curve(margins, positive)
        return
    area = area_under_curve(margins, positive, draws=50)
    pairs = [(a > b) + (a == b) / 2 for a, yes in rows if yes for b, also in rows if not also]
    assert abs(area - sum(pairs) / len(pairs)) < 1e-12 and 0 <= area.low <= area <= area.high <= 1
    assert area_under_curve([m + shift for m in margins], positive, draws=50) == area


def test_normalisations_by_either_name():
    row = dict(scores=[-6.0, -4.0], tokens=[3, 1], characters=[6, 2], bytes=[8, 2], mutual_info=[-7.0, -4.5])
    assert normalized(row, "acc").tolist() == [-6, -4] and normalized(row, "tokens").tolist() == [-2, -4]
    assert normalized(row, "acc_norm").tolist() == [-1, -2] and normalized(row, "acc_bytes").tolist() == [-0.75, -2]
    assert normalized(row, "acc_mutual_info").tolist() == [1, 0.5]
    assert all(normalization(name) == name for name in NORMALIZE) and not set(HARNESS_NAMES) & set(NORMALIZE)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: normalization("acc_f1"), "normalize='acc_f1'"),
        (lambda: Cloze("x", "no place"), "no place for {question}"),
        (lambda: Cloze("x", primary="likely"), "normalize='likely'"),
        (lambda: cloze_form("poems"), "'poems' has no form here"),
        (lambda: cloze_form("piqa", "mine"), "collection='mine'"),
        (lambda: cloze_form("winogrande").pairs(Item("No blank.", "a", ("a", "b"))), "no blank"),
        (lambda: Benchmark("b", LETTER, BY_HAND["piqa"], BY_HAND["piqa"]).solved(1), "no published form"),
        (lambda: from_instruction(dict(instruction="Sing!", answer="la")), "of no known form"),
        (lambda: from_instruction(dict(question="Sing!")), "no 'instruction'"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(make, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")) as e:
        make()
    assert "\n" not in str(e.value)


@pytest.mark.skipif(not SETS.exists(), reason="the benchmarks' files do not lie beside this clone")
@pytest.mark.parametrize(
    "folder", ["ARC-Easy", "ARC-Challenge", "openbookqa", "boolq", "piqa", "social_i_qa", "winogrande"]
)
def test_real_files_become_items_in_an_order_of_their_own(folder):
    benchmark = load_benchmark(SETS / folder, test=50, train=20)
    assert len(benchmark) == 50 and benchmark.cloze is HARNESS[benchmark.name]
    raw = json.loads((SETS / folder / "test.json").read_text())
    assert benchmark.report["rows"] >= len(raw) and benchmark.report["unlabelled"] <= 0.02 * len(raw)
    items = [item for item in map(from_instruction, raw) if item]
    assert set(benchmark.items) <= set(items)
    for item in benchmark.items:
        pairs = benchmark.cloze.pairs(item)
        assert len(pairs) == len(item.options) and not any("{question}" in context for context, _ in pairs)
        assert item.stem == "" or item.question.startswith(item.stem) or item.question.endswith(item.stem)
    half = random.Random(1).sample(items, len(items) // 2)
    place = {id(item): k for k, item in enumerate(by_hash(items))}
    assert [place[id(item)] for item in by_hash(half)] == sorted(place[id(item)] for item in half)


@pytest.mark.skipif(not SETS.exists(), reason="the benchmarks' files do not lie beside this clone")
@pytest.mark.parametrize("folder", ["AddSub", "MultiArith", "SVAMP", "SingleEq", "AQuA"])
def test_sets_of_numbers_are_asked_for_numbers(folder):
    benchmark = load_benchmark(SETS / folder, test=50, train=20)
    assert benchmark.format.name == ("letter" if folder == "AQuA" else "number") and benchmark.cloze is None
    assert all(benchmark.gold(item) is not None for item in benchmark.items)


def test_an_area_of_margins_that_are_no_numbers_is_none():
    "NaN is above nothing, so that the area was 0."
    area = area_under_curve([0.3, math.nan, 0.1], [True, True, False], draws=10)
    assert math.isnan(area.value) and math.isnan(area.low) and math.isnan(area.high)
