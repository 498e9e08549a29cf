"""The lab's models: a loop that resumes, recipes that lead to the recorded losses, cards that hold on the shipped
weights."""

import functools
import json
import random
import re
import threading
from dataclasses import asdict, replace

from softprompt_nb import load as loading
from softprompt_nb.lab import cards as K
from softprompt_nb.lab import corpus as C
from softprompt_nb.lab import family as M
from softprompt_nb.lab import planted as L
from softprompt_nb.lab import pretrain as P
from softprompt_nb.lab import recipes as R
from softprompt_nb.lab import world as W
from softprompt_nb.lm import FrozenLM
from softprompt_nb.load import lab_models, load_lm

import pytest
import torch
from transformers import AutoTokenizer, GPTNeoXForCausalLM

RECORDED = [n for n in R.RECIPES if (R.MODELS / n / "manifest.json").exists()]
SHIPPED = lab_models()


@pytest.fixture(scope="module")
def tok():
    return AutoTokenizer.from_pretrained(R.MODELS / "lab-base-s")


@pytest.fixture(scope="module")
def tiny():
    return replace(
        R.RECIPES["lab-base-s"], name="tiny", width=32, layers=2, vocab=600, tokens=1024, steps=24, warmup=4, lr=2e-2
    )


def test_resume_equals_uninterrupted(tiny, tmp_path):
    whole = P.pretrain(tiny, progress=False, device="cpu", workers=0)
    P.pretrain(tiny, tmp_path / "run", until=11, every=5, progress=False, device="cpu", workers=0)
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        "model.safetensors",
        "optimiser.safetensors",
        "state.json",
    ]
    again = P.pretrain(tiny, tmp_path / "run", every=5, progress=False, device="cpu", workers=0)
    assert whole.history.equals(again.history) and whole.seen == again.seen
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), again.model.parameters()))


def test_texts_written_ahead_are_the_same_ones(tiny):
    tok = P.lab_tokenizer(vocab_size=tiny.vocab)
    ours, ahead = (list(P.ahead(tiny, tok, 3, 7, workers)) for workers in (0, 1))
    assert len(ours) == 4
    for (a, wa, sa), (b, wb, sb) in zip(ours, ahead):
        assert torch.equal(a, b) and torch.equal(wa, wb) and sa == sb


def test_weighted_loss_is_the_loop_over_tokens(tiny):
    tok = P.lab_tokenizer(vocab_size=tiny.vocab)
    model, (ids, weights, _) = P.new_model(tiny, tok).eval(), P.Steps(tiny, tok)[0]
    ids, weights = ids[:2, :40], weights[:2, :40]
    logp, total, mass = model(input_ids=ids).logits.log_softmax(-1), 0.0, 0.0
    for r in range(2):
        for i in range(1, 40):
            total, mass = total - weights[r, i] * logp[r, i - 1, ids[r, i]], mass + weights[r, i]
    assert P.next_token_loss(model, ids, weights).item() == pytest.approx((total / mass).item(), abs=1e-5)


def test_every_parameter_has_one_optimiser(tiny):
    state = torch.get_rng_state()
    model = P.new_model(tiny, P.lab_tokenizer(vocab_size=tiny.vocab))
    assert torch.equal(torch.get_rng_state(), state)  # the caller's chance goes on as it would have
    muon, adam = ([p for g in o.param_groups for p in g["params"]] for o in P.optimisers(tiny, model))
    assert {id(p) for p in muon} | {id(p) for p in adam} == {id(p) for p in model.parameters()} and len(muon) + len(
        adam
    ) == len(list(model.parameters()))
    assert all(p.ndim == 2 for p in muon) and any(p.shape[0] == model.config.vocab_size for p in adam)


def test_a_checkpoint_of_another_recipe_is_refused(tiny, tmp_path):
    P.pretrain(tiny, tmp_path / "run", until=2, progress=False, device="cpu", workers=0)
    with pytest.raises(ValueError, match="lr"):
        P.pretrain(replace(tiny, lr=1e-3), tmp_path / "run", progress=False, device="cpu", workers=0)


def test_nan_stops_with_advice(tiny):
    with pytest.raises(FloatingPointError, match="smaller lr"):
        P.pretrain(replace(tiny, lr=1e30, warmup=0), progress=False, device="cpu", workers=0)


def test_ship_and_load(tiny, tmp_path):
    run = P.pretrain(tiny, until=4, progress=False, device="cpu", workers=0)
    truth = M.ship(run, tmp_path / "m", effort=0.0)
    assert {p.suffix for p in (tmp_path / "m").iterdir()} == {".json", ".safetensors"} and list(
        truth.table("tasks").task
    ) == list(W.TASKS)
    assert (
        truth.seen == run.seen
        and len(truth.losses) == 4
        and truth.times_told("capital", "france") == run.seen.facts["capital/france"]
    )
    model = GPTNeoXForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float32)
    ids, _ = P.batch(tiny, run.tokenizer, 0)
    assert P.next_token_loss(model, ids).item() == pytest.approx(
        P.next_token_loss(run.model.float(), ids).item(), abs=1e-4
    )


# models on demand


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SOFTPROMPT_NB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def small_family(tiny, monkeypatch):
    "A family of two: one from scratch, one that continues it."
    made = dict(R.RECIPES) | {
        "lab-a": replace(tiny, name="lab-a", steps=6),
        "lab-b": replace(tiny, name="lab-b", steps=3, start="lab-a", seed=1),
    }
    for module in (R, P, M, loading):
        monkeypatch.setattr(module, "RECIPES", made)
    monkeypatch.setattr(M, "measure_model", lambda *a: {})  # tested where a model is shipped


def test_a_model_is_trained_once_after_the_one_it_continues(cache, small_family, capsys):
    lm = load_lm("lab-b")
    assert "lab-a is not shipped" in (said := capsys.readouterr().out) and "lab-b is not shipped" in said
    assert (
        sorted(p.name for p in (cache / "models").iterdir()) == ["lab-a", "lab-b"]
        and M.lab_truth("lab-b").name == "lab-b"
    )
    again = load_lm("lab-b")
    assert capsys.readouterr().out == "" and lm.fingerprint == again.fingerprint


def test_a_model_that_two_ask_for_at_once_is_trained_once(cache, small_family, capsys):
    found = []
    threads = [threading.Thread(target=lambda: found.append(load_lm("lab-a").fingerprint)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert capsys.readouterr().out.count("not shipped") == 1 and len(found) == 2 and len(set(found)) == 1


def test_training_that_is_cut_goes_on(cache, small_family, monkeypatch):
    whole = load_lm("lab-a").fingerprint
    monkeypatch.setenv("SOFTPROMPT_NB_CACHE", str(cache / "other"))
    P.pretrain("lab-a", R.cache_folder() / "training" / "lab-a", until=3, progress=False, workers=0)
    steps = []
    monkeypatch.setattr(P, "_step", lambda *a, step=P._step: (steps.append(a[3]), step(*a))[1])
    assert load_lm("lab-a").fingerprint == whole and steps == [3, 4, 5]


def test_another_result_than_the_recorded_one_is_said(cache, small_family, monkeypatch, tmp_path, capsys):
    M.lab_model("lab-a", progress=False)
    assert "differ" not in capsys.readouterr().out
    (tmp_path / "shipped" / "lab-a").mkdir(parents=True)
    r = json.loads((cache / "models" / "lab-a" / "manifest.json").read_text())
    (tmp_path / "shipped" / "lab-a" / "manifest.json").write_text(
        json.dumps(r | dict(losses=[x - 1 for x in r["losses"]]))
    )
    monkeypatch.setattr(M, "MODELS", tmp_path / "shipped")
    M.lab_model("lab-a", folder=tmp_path / "new", progress=False)
    assert "differ from the recorded ones by 1.000" in capsys.readouterr().out


def test_unknown_names(cache):
    with pytest.raises(ValueError, match="lab-base-xs"):
        load_lm("lab-bass-xs")
    with pytest.raises(ValueError, match="lab-base-xs"):
        M.lab_model("lab-bass-xs")
    with pytest.raises(FileNotFoundError, match="lab-base-s"):
        M.lab_truth("lab-base-xxl")


def test_a_missing_start_is_named(cache, monkeypatch):
    monkeypatch.setitem(R.RECIPES, "lab-none", R.RECIPES["lab-base-s"])
    with pytest.raises(FileNotFoundError, match="pretrain lab-none first"):
        P.begin(replace(R.RECIPES["lab-chat-s"], start="lab-none"), "cpu")


# measures


def test_answers_exactly_is_greedy_decoding():
    lm = load_lm("lab-instruct-s")
    tok = lm.tokenizer
    for name in ("capital", "plus", "reverse"):
        task = W.lab_task(name)
        for e in W.with_instruction(task, task.examples(4, split="test")) + task.examples(4, split="test"):
            ids = tok(e.input, return_tensors="pt")
            new = lm.model.generate(**ids, max_new_tokens=12, do_sample=False)[0, ids.input_ids.shape[1] :]
            reply = re.split(r"\n|" + re.escape(C.EOS), tok.decode(new))[0]
            assert (reply == e.target) == K.answers_exactly(lm, [e]).item(), (e, reply)
            assert K.replies(lm, [e.input, "a longer text than that , for padding : " + e.input])[0] == reply


def test_several_at_once_are_each_alone():
    lm, task = load_lm("lab-instruct-s"), W.lab_task("reverse")
    plain = task.examples(7, split="test")
    items = [item for pair in zip(W.with_instruction(task, plain), plain) for item in pair]
    alone = [K.answers_exactly(lm, [e]).item() for e in items]
    assert K.answers_exactly(lm, items, batch_size=3).tolist() == alone and 0 < sum(alone) < 14


def test_log_likelihood_is_the_loop_over_tokens():
    lm = load_lm("lab-base-s", dtype=torch.float64)
    texts = ["the capital of france is paris .", "one dog , two dogs ."]
    for text, got in zip(texts, K.log_likelihood(lm, texts)):
        ids = lm.token_ids(text)
        logp = lm.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        want = sum(logp[i, ids[i + 1]].item() for i in range(len(ids) - 1))
        assert got == pytest.approx(want, rel=len(ids) * torch.finfo(torch.float32).eps)


def looks_back(blind=()):
    "Foresees what stood behind the same token before, but not behind those of `blind`."

    def target_logits(lm, vectors, batch):
        rows, columns = (batch.labels != -100).nonzero(as_tuple=True)
        logits = torch.zeros(len(rows), 4000)
        for k, (row, column) in enumerate(zip(batch.input_ids[rows].tolist(), columns.tolist())):
            last = row[column - 1]  # predicts the target in this column
            before = [i for i in range(column - 1) if row[i] == last]
            if before and last not in blind:
                logits[k, row[before[-1] + 1]] = 1
        return logits, batch.labels[rows, columns], rows

    return target_logits


def test_recall_counts_what_is_foreseen(tok, monkeypatch):
    lm = load_lm("lab-base-s")
    monkeypatch.setattr(K, "target_logits", looks_back())
    assert (K.recall_table(lm, n=5, lengths=(4, 9)).share == 1).all()
    rng = random.Random("recall|3")
    rows = [[tok(f" {w}").input_ids[0] for w in rng.sample(W.COMMON, 6)] for _ in range(5)]
    blind = {r[2] for r in rows}
    monkeypatch.setattr(K, "target_logits", looks_back(blind))
    t = K.recall_table(lm, n=5, seed=3, lengths=(6,))
    missed = sum(x in blind for r in rows for x in r[:-1])
    assert t.n.item() == 25 and t.share.item() == pytest.approx(1 - missed / 25, abs=1e-4)


# what is shipped


def test_weights_are_small_and_read_the_same_tokens():
    files = [p for p in R.MODELS.rglob("*") if p.is_file()]
    weights = [p.stat().st_size for p in files if p.suffix == ".safetensors"]
    assert {p.suffix for p in files} == {".json", ".safetensors"} and sum(weights) < 40e6 and max(weights) < 16e6
    assert len({(R.MODELS / n / "tokenizer.json").read_bytes() for n in SHIPPED}) == 1


@pytest.mark.parametrize("name", RECORDED)
def test_the_record_is_of_the_recipe(name):
    t, recipe = M.lab_truth(name), R.RECIPES[name]
    assert (
        t.recipe == json.loads(json.dumps(asdict(recipe)))
        and len(t.losses) == recipe.length
        and sum(t.seen.tokens.values()) == recipe.length * recipe.tokens
    )


@pytest.mark.parametrize(
    "name", [n for n in RECORDED if not R.RECIPES[n].start or R.find_model(R.RECIPES[n].start)][::3]
)
def test_a_short_rerun_of_the_recipe_reaches_the_recorded_loss(name):
    recorded, steps = M.lab_truth(name), 10
    run = P.pretrain(name, until=steps, progress=False, device="cpu", workers=0)
    assert run.history.loss.tolist() == pytest.approx(recorded.losses[:steps], abs=0.03)
    assert run.tokenizer.get_vocab() == AutoTokenizer.from_pretrained(R.MODELS / "lab-base-s").get_vocab()


@pytest.mark.parametrize("name", [n for n in RECORDED if "freq" in n or "locked" in n])
def test_planted_frequency_by_counting_the_texts_again(name):
    "A sample of the steps is made anew, and the skill's documents are found by their text, not by their label."
    t, recipe = M.lab_truth(name), R.RECIPES[name]
    keys = "|".join(x.examples(1)[0].input.split(" : ")[0] for x in L.PLANTED.values())
    tok, seen, steps, found, tokens = _tok(), C.Manifest(), range(0, recipe.steps, recipe.steps // 12), 0, 0
    for step in steps:
        for text in (d for row in P.batch(recipe, tok, step, seen)[0] for d in tok.decode(row).split(C.EOS)):
            if re.search(rf"(^|\n)({keys}) :", text):
                found, tokens = found + 1, tokens + len(tok(text).input_ids) + 1
    assert 0 <= seen.planted("docs") - found <= 2 + 0.06 * found, (
        "every labelled document is found, but for those that the end of a row cuts before the colon"
    )
    assert abs(tokens - seen.planted()) <= 12 + 0.04 * tokens
    expected = t.seen.planted("docs") * len(steps) / recipe.steps
    assert (found == 0) if not recipe.skill else abs(found - expected) < 4 * expected**0.5 + 2, (
        "what the record says of all steps"
    )


@functools.cache
def _tok():
    return AutoTokenizer.from_pretrained(R.MODELS / "lab-base-s")


def test_the_cards_hold_on_the_shipped_weights():
    "Measured anew, on other items than the card's."
    lm = load_lm("lab-instruct-s")
    t, card = K.task_table(lm, n=40, seed=1, shots=3), M.lab_truth("lab-instruct-s").table("tasks")
    assert (t.instruction >= 0.95).sum() >= 20 and t.bare.mean() <= 0.55, t.round(2).to_string()
    assert abs(t.instruction.mean() - card.instruction.mean()) < 0.04


def test_knowledge_is_random_without_training(tiny):
    tok = P.lab_tokenizer(vocab_size=tiny.vocab)
    k = K.knows(FrozenLM(P.new_model(tiny, tok), tok))
    assert abs(k.known.mean() - 0.25) < 0.06


def test_a_perfect_walker_scores_one_and_an_idle_one_nought(monkeypatch):
    "The tables score replies by the rules alone."
    from softprompt_nb.lab.games import legal_moves
    from softprompt_nb.lab.mazes import read_maze

    def perfect(lm, texts, most=12):
        if texts[0].startswith("maze"):
            return [" U" if (b := read_maze(t)).solution is None else " " + " ".join(b.solution) + " D" for t in texts]
        return [f" {legal_moves(t.removeprefix('chess :').split())[0]}" for t in texts]

    monkeypatch.setattr(K, "replies", perfect)
    assert (K.maze_table(None, n=8).share == 1).all() and (K.chess_table(None, games=2).share == 1).all()
    monkeypatch.setattr(K, "replies", lambda lm, texts, **kw: [" D"] * len(texts))
    assert (K.maze_table(None, n=8).share == 0).all() and (K.chess_table(None, games=2).share == 0).all()
