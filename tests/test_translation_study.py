"""Texts compared, executed, moved to other models and to servers that misbehave; the study from made-up rows."""

import json
import math
import threading
import time
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from types import SimpleNamespace

from softprompt_nb.data import Example
from softprompt_nb.engine.inference import exact_match
from softprompt_nb.evaluation.interpretability import mean_embedding
from softprompt_nb.prompts import SoftPrompt
from softprompt_nb.studies import translation as module
from softprompt_nb.studies.translation import Study, StudyRun, prompt_features, translation_study
from softprompt_nb.translation.translator import rerank as ranking
from softprompt_nb.translation.translator.dods import DoD, TaskSet
from softprompt_nb.translation.translator.evaluate import (
    by_task,
    examples_table,
    execute,
    executed,
    gain,
    judge,
    method_table,
    nearest_pairs,
    prior_text,
    share_reached,
    with_examples,
    wordings,
)
from softprompt_nb.translation.translator.texts import (
    content_words,
    rouge_l,
    similarity,
    verb_score,
    word_scores,
    words_of,
)
from softprompt_nb.translation.translator.train_prompts import Pair, Pairs
from softprompt_nb.translation.translator.transfer import Endpoint, compare_transfer, transfer

import numpy as np
import pandas as pd
import pytest
import torch
from families import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

texts = st.lists(st.sampled_from("the cat sat on a mat and ran".split()), max_size=7).map(" ".join)
_made = {}


def lm_of(name="llama"):
    if name not in _made:
        _made[name] = tiny(name, dtype=torch.float64)
    return _made[name]


def tasks_of(k=3):
    return [
        TaskSet(
            f"t{i}",
            "train",
            (f"do {i}", f"make {i}"),
            tuple(Example(c, f" {c}") for c in "abcd"),
            tuple(Example(c * 2, f" {c}") for c in "xyz"),
            tuple((f" {c}",) for c in "xyz"),
            "line",
        )
        for i in range(k)
    ]


# texts


@given(texts, texts)
@settings(deadline=None)
def test_rouge_is_the_longest_common_subsequence(a, b):
    x, y = words_of(a), words_of(b)

    @cache
    def longest(i, j):
        if i == len(x) or j == len(y):
            return 0
        if x[i] == y[j]:
            return longest(i + 1, j + 1) + 1
        return max(longest(i + 1, j), longest(i, j + 1))

    assert rouge_l(a, [b]) == pytest.approx(2 * longest(0, 0) / (len(x) + len(y)) if x and y else 0)
    assert rouge_l(a, [b]) == pytest.approx(rouge_l(b, [a])) and (not x or rouge_l(a, [b, a]) == 1)


@given(texts, texts)
@settings(deadline=None)
def test_word_scores_are_sets(a, b):
    s, x, y = word_scores(a, [b]), content_words(a), content_words(b)
    assert s["recall"] * max(1, len(y)) == pytest.approx(len(x & y)) == pytest.approx(s["precision"] * max(1, len(x)))
    assert 0 <= s["f1"] <= 1 and (s["f1"] == 1) == (x == y and bool(x))
    assert verb_score(a, [b]) == (s["recall"] + s["f1"]) / 2


def test_similarity_takes_any_embedding_and_the_best_reference():

    def embed(texts):
        return [[text.count("a"), text.count("b"), 0] for text in texts]

    assert similarity(["a", "ab", ""], [["b", "aa"], ["a"], ["a"]], embed) == pytest.approx([1, 2**-0.5, 0])


# execution


def test_mean_embeddings_of_many_texts_are_those_of_each():
    lm = tiny("llama")
    embed, texts = mean_embedding(lm), ["abc", "", "b a", "a"]
    # a sum over the vocabulary in float32, and one over the text's tokens
    close = lm.vocab_size * torch.finfo(torch.float32).eps * lm.embedding.weight.abs().max().item()
    assert np.allclose(embed(texts), np.concatenate([embed([t]) for t in texts]), rtol=0, atol=close)
    assert not embed(["", "a"])[0].any()
    centre = lm.embed_ids(range(lm.vocab_size)).double().mean(0)
    want = lm.embed_ids(lm.token_ids("b a")).double().mean(0) - centre
    assert np.allclose(embed(["b a"])[0], want.detach().numpy(), rtol=0, atol=close)
    with pytest.raises(ValueError, match="nothing to be compared with"):
        similarity(["a"], [[]], embed)


def test_a_key_is_never_shown():
    assert "secret" not in repr(Endpoint("http://localhost:1/v1", "m", key="secret"))


def test_executing_is_asking_the_model_item_by_item():
    lm, tasks = lm_of(), tasks_of()
    prompts = [SoftPrompt.init(lm, 3, "gaussian", seed=i) for i in range(3)]
    for kw, asks in (
        (dict(texts=["do it", "", "so {x}"]), ["do it\n", "", "so {x}\n"]),
        (dict(prompts=prompts), [""] * 3),
    ):
        got = execute(lm, tasks, **kw)
        for t, s, scores, i in zip(tasks, asks, got, range(3)):
            want = exact_match(
                lm,
                prompts[i] if "prompts" in kw else None,
                [Example(s + e.input, e.target) for e in t.test],
                max_new_tokens=4,
            )
            assert scores == list(want.items)
    with pytest.raises(ValueError, match="one for each task"):
        execute(lm, tasks, ["a"])


def task_with(answer, name="t"):
    "A task whose right answers have this form."
    right = {c: answer.replace("{}", c) for c in "abcdwxyz"}
    train, test = (tuple(Example(c, right[c]) for c in part) for part in ("abcd", "wxyz"))
    return TaskSet(name, "train", ("do", "make"), train, test, tuple((e.target,) for e in test), "line")


def says(monkeypatch, answers):
    "A model that says these, whatever stands in front of an input."
    known = {example.input: example.target for task in answers for example in (*task.train, *task.test)}
    monkeypatch.setattr(
        ranking, "generate", lambda lm, prompts, texts, *_, **__: [known[text[-1]] + "\nand more" for text in texts]
    )
    monkeypatch.setattr(Endpoint, "send", lambda self, body: known[body["messages"][0]["content"][-1]] + "\nand more")


@pytest.mark.parametrize("answer", [" {} word", "\n{} word", " {}\nword\nand more"])
def test_a_right_answer_is_right_however_many_lines_it_has(monkeypatch, answer):
    "Here, behind an address, in all ways to ask; a model that goes on behind lines is cut there."
    task = task_with(answer)
    lm = lm_of()
    said = [task_with(answer.removesuffix("\nand more"))]
    says(monkeypatch, said)
    monkeypatch.setattr(ranking, "divergence_parts", lambda lm, prompt, texts, inputs, answers, *_: heard(answers))
    replies = []

    def heard(answers):
        replies.extend(answers)
        return pd.DataFrame(dict(answer=[0.0], all=[0.0]))

    assert execute(lm, [task, task_with(" {} word", "u")], ["do", "do"])[0] == [1.0] * 4
    pairs = Pairs([Pair(SoftPrompt.init(lm, 2, seed=0), task.instructions, "t", "train")])
    judged = judge(lm, pairs, [task], {"true": ["do"]}, embed=lambda texts: np.ones((len(texts), 1)))
    assert judged.accuracy.tolist() == [1.0]
    whole = [said[0].train[i].target + ("\nand more" if task.stop is None else "") for i in range(4)]
    assert replies == whole
    assert wordings(lm, pairs, [task]).accuracy.tolist() == [1.0, 1.0]
    for model in (lm, Endpoint("http://localhost:9/v1", **QUICK)):
        assert transfer(model, table_for([task], ["do"]), {"t": task}, ("translator",)).accuracy.tolist() == [1.0]


def test_a_leading_break_ends_an_answer_of_one_line_here_and_behind_an_address(monkeypatch):
    task = task_with(" {}")
    said = [task_with("\n{}")]
    says(monkeypatch, said)
    for model in (lm_of(), Endpoint("http://localhost:9/v1", **QUICK)):
        assert transfer(model, table_for([task], ["do"]), {"t": task}, ("translator",)).accuracy.tolist() == [0.0]


def test_each_list_of_answers_has_its_own_end(monkeypatch):
    says(monkeypatch, [task_with(" {}\n{}")])
    plain, whole = ranking.answers_of(lm_of(), [None, None], [["a"], ["b"]], stop=["\n", None])
    assert (plain, whole) == ([" a"], [" b\nb\nand more"])
    dod = DoD([task_with(" {}", "one"), task_with(" {}\n{}", "two")])
    pairs = [SimpleNamespace(task=name) for name in ("two", "one")]
    assert module._stops(dod, pairs) == [None, "\n"]


def test_judging_fills_every_column():
    lm, tasks = lm_of(), tasks_of()
    pairs = Pairs(Pair(SoftPrompt.init(lm, 2, seed=i), t.instructions, t.name, "train", 0) for i, t in enumerate(tasks))
    rows = judge(lm, pairs, tasks, {"m": ["do 0", "make 1", "other"]}, inputs=2)
    assert rows.exact.tolist() == [1, 1, 0] and rows.rouge.tolist()[:2] == [1, 1]
    assert rows.notna().all().all() and (rows.kl >= 0).all()
    both = judge(lm, pairs, tasks, {"a": ["do 0", "", "make 2"], "m": ["do 0", "make 1", "other"]}, inputs=2)
    for m, alone in (("a", judge(lm, pairs, tasks, {"a": ["do 0", "", "make 2"]}, inputs=2)), ("m", rows)):
        pd.testing.assert_frame_equal(both[both.method == m].reset_index(drop=True), alone, rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="2 texts for 3 prompts"):
        judge(lm, pairs, tasks, {"m": ["a", "b"]})
    shots = executed(lm, pairs, tasks, "few-shot", shots=2)
    assert shots.accuracy.tolist() == [
        float(np.mean(s)) for s in execute(lm, tasks, [with_examples(t, 2) for t in tasks])
    ]
    with pytest.raises(ValueError, match="use one of"):
        executed(lm, pairs, tasks, "magic")


def test_prior_and_nearest():
    g = torch.Generator().manual_seed(0)
    pairs = Pairs(
        Pair(SoftPrompt(torch.randn(2, 6, generator=g)), (s,), s)
        for s in ["copy list", "copy list dots", "copy letters", "spell word"]
    )
    assert prior_text(pairs).startswith("copy")
    index, cos = nearest_pairs(pairs, [SoftPrompt(p.prompt.vectors * 1.01) for p in pairs], 2)
    assert index[:, 0].tolist() == [0, 1, 2, 3] and (cos[:, 0] > 0.99).all()
    with pytest.raises(ValueError, match="same n"):
        nearest_pairs(pairs, [SoftPrompt(torch.zeros(3, 6))])


# tables


def rows_of(seed=0, tasks=12, splits=("seen", "composition")):
    g, out = np.random.default_rng(seed), []
    for s in splits:
        for i in range(tasks):
            base = g.random()
            for m, d in (
                ("true instruction", 0.1),
                ("soft prompt", 0.2),
                ("translator", -0.1),
                ("translator, re-ranked", 0.0),
                ("translator, refined", 0.05),
                ("retrieval", -0.4),
                ("retrieval, re-ranked", -0.3),
                ("InSPEcT", -0.5),
                ("InSPEcT, oracle", -0.4),
                ("prior", -0.6),
                ("shuffled", -0.6),
                ("nearest tokens", -0.7),
                ("few-shot", -0.2),
                ("nothing", -0.8),
            ):
                out.append(
                    dict(
                        method=m,
                        task=f"{s}{i}",
                        split=s,
                        seed=seed,
                        text="" if m in ("soft prompt", "few-shot", "nothing") else f"text of {m}",
                        accuracy=float(np.clip(base + d, 0, 1)),
                        rouge=0.5,
                        confidence=base,
                    )
                )
    return out


def test_seeds_of_a_task_are_one_item():
    t = pd.DataFrame(rows_of(0) + rows_of(1) + rows_of(2))
    m = method_table(t, "composition", ("accuracy",))
    assert m.accuracy["translator"].n == 12 and m.accuracy["translator"].seeds == (0, 1, 2)
    w = by_task(t, split="composition")
    assert float(m.accuracy["translator"]) == pytest.approx(
        t[(t.method == "translator") & (t.split == "composition")].accuracy.mean()
    )
    d = gain(t, "translator", "retrieval", split="composition")
    assert float(d) == pytest.approx((w.translator - w.retrieval).mean()) and d.low > 0
    r = share_reached(t, "translator", "soft prompt", split="composition")
    assert float(r) == pytest.approx(w.translator.mean() / w["soft prompt"].mean()) and r.low < r.value < r.high
    with pytest.raises(ValueError, match="no method"):
        gain(t, "translator", "magic")


def test_a_gain_is_taken_over_the_seeds_that_have_both():
    t = pd.DataFrame(rows_of(0) + [r for r in rows_of(1) if r["method"] != "translator, refined"])
    both = ("translator, refined", "soft prompt")
    for compare in (gain, share_reached):
        assert repr(compare(t, *both)) == repr(compare(t[t.seed == 0], *both))
        assert compare(t, *both).seeds == (0,)
        assert compare(t, "translator", "prior").seeds == (0, 1)
    assert method_table(t, None, ("accuracy",)).accuracy["translator, refined"].seeds == (0,)


def test_best_and_worst_are_shown_as_they_are():
    t = pd.DataFrame(rows_of())
    side = examples_table(t, "translator", "composition", k=2)
    keep = t[t.split == "composition"].pivot_table(index="task", columns="method", values="accuracy")
    kept = (keep.translator - keep["soft prompt"]).sort_values(ascending=False, kind="stable")
    assert set(side.loc["worst"].index) <= set(kept[kept <= kept.iloc[-2]].index) and len(side) == 6
    with pytest.raises(ValueError, match="no texts"):
        examples_table(t, "few-shot")


def features(rows):
    g = np.random.default_rng(5)
    keys = sorted({(r["task"], r["split"], r["seed"]) for r in rows})
    return [dict(task=a, split=b, seed=c) | {f: float(g.random()) for f in module.FEATURES} for a, b, c in keys]


def study_of(seeds=(0, 1, 2)):
    runs = []
    for s in seeds:
        rows = rows_of(s)
        moved = [
            r | dict(accuracy=min(1.0, r["accuracy"] + 0.3))
            for r in rows
            if r["method"] in ("translator, re-ranked", "true instruction", "nothing")
        ]
        runs.append(
            dict(
                table=rows,
                moved=moved,
                features=features(rows),
                inspect={},
                seconds=dict(prompts=1.0, translators=1.0),
                counts={},
            )
        )
    return Study(runs)


def test_a_study_comes_back_and_says_how_far_its_claims_hold(tmp_path):
    s = study_of()
    again = Study.load(s.save(tmp_path / "study.json"))
    assert again.runs == s.runs and again.splits == ["seen", "composition"]
    assert not any(r["confidence"] is None for r in again.runs[0]["table"])
    columns = json.loads((tmp_path / "study.json").read_text())["runs"][0]["table"]
    assert columns["method"]["of"][0] == "true instruction"
    v, p = again.verdicts().measured, again.verdicts()["p (Holm)"]
    assert p["accuracy, share of the true instruction's"] == "" and 0 < float(p["accuracy, gain over retrieval"]) < 0.01
    assert v["accuracy, gain over retrieval"].low > 0
    assert v["accuracy, gain by re-ranking"].low > 0
    assert v["accuracy, share of the true instruction's"] < 1
    overview, predictors = again.overview(), again.predictors(draws=50)
    assert list(overview) == ["seen", "composition"] and overview.shape[0] == 14
    assert len(predictors) == len(module.FEATURES) and abs(float(predictors.iloc[0, 0])) < 0.6
    moved = again.transferred("big", split="composition")
    assert moved.wins > 0.9 and moved.gain.n == 12 and "big" in repr(moved)
    assert again.reliability().table.n.sum() == 72


def test_another_file_is_no_study(tmp_path):
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(ValueError, match="no saved study"):
        Study.load(tmp_path / "x.json")


def test_features_of_a_prompt_among_its_like():
    g = torch.Generator().manual_seed(0)
    train = Pairs(Pair(SoftPrompt(torch.randn(5, 8, generator=g)), ("x",), f"a{i}") for i in range(6))
    f = prompt_features(train, train[:3], near=3)
    assert f.cosine.min() > 0.999 and (f.components > 0).all() and set(module.FEATURES) < set(f)
    assert f.diagram.max() < 5 * torch.finfo(torch.float32).eps * train.points.abs().max()  # four distances in each


def test_a_study_goes_on_where_it_failed(tmp_path, monkeypatch):
    "The translators fail the first time; the second time no prompt is trained again."
    lm = lm_of()
    monkeypatch.setattr(module, "cached_lm", lambda name, device, dtype: lm)
    texts = [f"say {c}" for c in "abcdefghijklmnopqrst"]
    splits = ["train"] * 10 + ["validation"] * 8 + ["composition"] * 2
    dod = DoD(
        TaskSet(
            f"t{i}",
            splits[i],
            (t,),
            tuple(Example(c, f" {t[-1]}") for c in "uvwxyz"),
            (Example("q", f" {t[-1]}"),) * 2,
            ((f" {t[-1]}",),) * 2,
            "line",
        )
        for i, t in enumerate(texts)
    )
    kw = dict(
        seeds=(0,),
        model="tiny",
        larger=None,
        dod=str(dod.save(tmp_path / "dod.jsonl")),
        n=2,
        steps=2,
        batch_size=2,
        k=2,
        inputs=1,
        translator=dict(epochs=1),
        preferred=4,
        progress=False,
    )
    real = module.Translator.fit
    monkeypatch.setattr(module.Translator, "fit", lambda *a, **k: (_ for _ in ()).throw(MemoryError("too large")))
    with pytest.raises(RuntimeError, match="too large"):
        translation_study(tmp_path / "runs", **kw)
    monkeypatch.setattr(module.Translator, "fit", real)
    from softprompt_nb.translation.translator import train_prompts as prompts

    monkeypatch.setattr(prompts, "tune_many", lambda *a, **k: pytest.fail("a prompt was trained again"))
    study = translation_study(tmp_path / "runs", **kw)
    assert set(study.splits) == {"seen", "composition"} and study.moved is None
    assert {
        "translator",
        "translator, re-ranked",
        "translator, refined",
        "InSPEcT",
        "InSPEcT, oracle",
        "retrieval",
        "retrieval, re-ranked",
        "prior",
        "shuffled",
        "nearest tokens",
        "true instruction",
        "soft prompt",
        "few-shot",
        "nothing",
    } <= set(study.table.method)
    assert study.table[study.table.method == "translator"].confidence.notna().all()
    with pytest.raises(ValueError, match="how='x'"):
        StudyRun(translator=dict(how="x"))


# other models


class Server(BaseHTTPRequestHandler):
    "Says its input in capitals, after what `plan` tells it to do first."

    plan, asked = [], []

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        Server.asked.append((self.path, dict(self.headers), body))
        what = Server.plan.pop(0) if Server.plan else "answer"
        if what == "slow":
            time.sleep(0.6)
        if what == "cut":
            return self.wfile.write(b"HTTP/1.0 200 OK\r\nContent-Length: 900\r\n\r\n{")
        if isinstance(what, int):
            self.send_response(what)
            self.end_headers()
            return
        text = body["messages"][0]["content"] if "messages" in body else body["prompt"]
        good = dict(choices=[dict(message=dict(content=text.upper()), text=text.upper())])
        said = dict(
            html=b"<html>",
            empty=b"",
            none=b'{"choices": []}',
            number=b'{"choices": [{"message": {"content": 7}}]}',
            list=b"[1]",
        ).get(what, json.dumps(good).encode())
        try:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(said)
        except BrokenPipeError:
            pass

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    Server.plan, Server.asked = [], []
    s = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=s.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{s.server_port}/v1"
    s.shutdown()
    s.server_close()


QUICK = dict(model="m", wait=0.01, timeout=0.3, retries=2, together=1)


@pytest.mark.parametrize("trouble", ["html", "empty", "none", "number", "list", "slow", "cut", 500, 429])
def test_trouble_that_passes_costs_nothing(server, trouble):
    Server.plan = [trouble, trouble]
    e = Endpoint(server, **QUICK)
    assert e.complete(["a", "b"]) == ["A", "B"] and not e.errors and len(Server.asked) == 4


@pytest.mark.parametrize(
    "trouble, why",
    [
        ("cut", "the answer broke off"),
        ("html", "the answer is no JSON"),
        ("none", "the answer has no text"),
        ("slow", "no answer in time"),
        (503, "HTTP 503"),
    ],
)
def test_trouble_that_stays_is_none_with_its_reason(server, tmp_path, trouble, why):
    Server.plan = ["answer"] + [trouble] * 3
    e = Endpoint(server, cache=tmp_path / "c.jsonl", **QUICK)
    assert e.complete(["a", "b", "c"]) == ["A", None, "C"] and e.errors == {why: 1}
    n = len(Server.asked)
    assert (
        e.complete(["a", "b", "c"]) == ["A", "B", "C"] and len(Server.asked) == n + 1
    )  # only what was missing is asked


def test_what_will_not_change_is_asked_once(server):
    Server.plan = [401]
    e = Endpoint(server, **QUICK)
    assert e.complete(["a"]) == [None] and e.errors == {"HTTP 401": 1} and len(Server.asked) == 1


def test_a_server_that_is_down_is_given_up_and_keeps_what_it_said(server, tmp_path):
    e = Endpoint(server, cache=tmp_path / "c.jsonl", **QUICK)
    assert e.complete(["a"]) == ["A"]
    gone = Endpoint("http://127.0.0.1:9/v1", cache=tmp_path / "d.jsonl", **QUICK | dict(give_up=2))
    start = time.perf_counter()
    assert gone.complete([str(i) for i in range(200)]) == [None] * 200 and time.perf_counter() - start < 5
    assert sum(gone.errors.values()) == 200 and any("not asked" in k for k in gone.errors)
    with (tmp_path / "c.jsonl").open("a") as f:
        f.write('{"id": "half')
    assert (
        e.complete(["a", "b"]) == ["A", "B"]
        and Endpoint(server, cache=tmp_path / "c.jsonl", **QUICK).complete(["b"]) == ["B"]
        and len(Server.asked) == 2
    )


def test_both_forms_of_request_and_the_key(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    assert Endpoint(server, **QUICK).complete(["a"], 5) == ["A"] and Endpoint(
        server, chat=False, key="mine", **QUICK
    ).complete(["a"]) == ["A"]
    (p1, h1, b1), (p2, h2, b2) = Server.asked
    assert (
        p1 == "/v1/chat/completions"
        and h1["Authorization"] == "Bearer secret"
        and b1["temperature"] == 0
        and b1["max_tokens"] == 5
    )
    assert p2 == "/v1/completions" and h2["Authorization"] == "Bearer mine" and b2["prompt"] == "a"
    with pytest.raises(ValueError, match="http://"):
        Endpoint("localhost:8000", "m")


def test_many_requests_at_once_stay_in_order(server):
    e = Endpoint(server, "m", together=8, wait=0.01)
    assert e.complete([f"x{i}" for i in range(40)]) == [f"X{i}" for i in range(40)]


def table_for(tasks, texts=("do", "make", "say")):
    return pd.DataFrame(
        [
            dict(method=m, task=t.name, split="composition", seed=0, text=s, accuracy=0.4)
            for m in ("translator", "true instruction", "soft prompt")
            for t, s in zip(tasks, texts)
        ]
    )


def test_items_without_an_answer_do_not_count_as_wrong(server):
    task = TaskSet(
        "t",
        "composition",
        ("do",),
        (Example("a", " a"),),
        tuple(Example(c, c) for c in "abcd"),
        tuple((f"DO\n{c.upper()}", "DO") for c in "abcd"),
        "line",
    )
    Server.plan = [404, 404]
    moved = transfer(Endpoint(server, **QUICK), table_for([task], ["do"]), {"t": task}, ("translator",))
    assert (moved.accuracy[0], moved.asked[0], moved.answered[0]) == (1.0, 4, 2)
    with pytest.warns(UserWarning, match="items of 1 task only .of 't' 2 of 4."):
        found = compare_transfer(table_for([task], ["do"]), moved, "m")
    assert found.gain.value == pytest.approx(0.6) and "1 task answered in part" in repr(found)


def test_a_move_is_compared_seed_by_seed():
    home = [
        dict(method="soft prompt", task=f"t{i}", split="x", seed=seed, text="", accuracy=float(seed == 0))
        for i in range(6)
        for seed in range(3)
    ]
    there = [
        dict(method=m, task=f"t{i}", split="x", seed=0, text="z") for m in ("translator", "nothing") for i in range(7)
    ]
    moved = pd.DataFrame(there).assign(accuracy=0.9)
    found = compare_transfer(pd.DataFrame(home), moved, "big")
    assert found.gain.value == pytest.approx(-0.1) and float(found.wins) == 0 and found.gain.n == 6
    assert found.mean["nothing"].n == 7 and math.isnan(found.table["soft prompt"]["t6"])  # measured there alone
    with pytest.raises(ValueError, match="the same seed"):
        compare_transfer(pd.DataFrame(home), moved.assign(seed=5), "big")


def test_a_gain_is_taken_task_by_task_over_the_seeds_that_have_both():
    rows = []
    for i, seed, method in product(range(6), (0, 1), "AB"):
        accuracy = math.nan if (method, seed) == ("A", 1) and i < 5 else float(seed == 0)
        rows.append(dict(task=f"t{i}", split="x", seed=seed, method=method, text="z", accuracy=accuracy))
    assert gain(pd.DataFrame(rows), "A", "B").value == 0
    assert gain(pd.DataFrame(rows), "A", "A").value == 0


def test_examples_are_put_as_the_study_puts_texts(monkeypatch):
    seen = []
    monkeypatch.setattr(ranking, "generate", lambda lm, prompts, texts, *_, **__: seen.extend(texts) or list(texts))
    pair = Pair(SoftPrompt.init(lm_of(), 2, seed=0), ("do 0",), "t0", "train")
    task = tasks_of(1)[0]
    monkeypatch.setattr(module, "judge", lambda *_, **__: pd.DataFrame())
    config = StudyRun(template="<{instruction}> {input}")
    module._judged(config, lm_of(), {"t0": task}, Pairs([pair]), {})
    shots = "a a\nb b\nc c"
    assert [text for text in seen if "<" in text] == [f"<{shots}> {c}{c}" for c in "xyz"]


def test_a_model_that_answers_nothing_has_no_accuracy():
    tasks = tasks_of()
    moved = transfer(
        Endpoint("http://127.0.0.1:9/v1", **QUICK),
        table_for(tasks),
        {t.name: t for t in tasks},
        ("translator", "nothing"),
    )
    assert moved.accuracy.isna().all() and (moved.answered == 0).all()
    with pytest.raises(ValueError, match="No task"):
        compare_transfer(table_for(tasks), moved, "m")


def test_the_picture_shows_every_task_that_was_measured_on_both():
    home = pd.DataFrame(
        [
            dict(method=m, task=t, split="x", seed=0, text="a", accuracy=a)
            for m, a in (("translator", 0.5), ("soft prompt", 0.5))
            for t in ("a", "b")
        ]
    )
    moved = pd.DataFrame(
        [
            dict(method=m, task=t, split="x", seed=0, text="a", accuracy=a)
            for m, t, a in (
                ("translator", "a", 0.5),
                ("translator", "b", 0.9),
                ("nothing", "a", np.nan),
                ("nothing", "b", 0.1),
            )
        ]
    )
    assert compare_transfer(home, moved, "there").plot().get_title() == "2 tasks, 1 differ"


def test_moving_to_a_model_is_executing_there():
    lm, tasks = lm_of("gpt2"), tasks_of()
    moved = transfer(lm, table_for(tasks), {t.name: t for t in tasks}, ("translator", "nothing"))
    want = [float(np.mean(s)) for s in execute(lm, tasks, ["do", "make", "say"])] + [
        float(np.mean(s)) for s in execute(lm, tasks)
    ]
    assert moved.accuracy.tolist() == want
    with pytest.raises(ValueError, match="no texts"):
        transfer(lm, table_for(tasks), {}, ("magic",))


@pytest.mark.parametrize("lost", ["translator", "soft prompt"])
def test_a_seed_of_a_task_without_a_number_of_both_is_no_pair(lost):
    "Where one side lacked a number, its other seeds were compared with all of the other side's."
    rows = []
    for task in range(4):
        for seed in range(2):
            for method, accuracy in (("translator", 0.2 + 0.5 * seed), ("soft prompt", 0.4 + 0.5 * seed)):
                rows.append(dict(method=method, task=f"t{task}", split="s", seed=seed, text="x", accuracy=accuracy))
    t = pd.DataFrame(rows)
    t.loc[(t.method == lost) & (t.task != "t0") & (t.seed == 1), "accuracy"] = np.nan
    g, r = gain(t, "translator", "soft prompt"), share_reached(t, "translator", "soft prompt")
    assert g.value == pytest.approx(-0.2) and g.items == pytest.approx([-0.2] * 4) and g.seeds == (0, 1)
    assert r.value == pytest.approx((3 * 0.2 + 0.45) / (3 * 0.4 + 0.65)) and r.n == 4
    t.loc[t.seed == 1, "accuracy"] = np.nan
    assert gain(t, "translator", "soft prompt").seeds == (0,)
