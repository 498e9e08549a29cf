"""Sixteen examples a class: draws, ways of asking, PEFT's prompt tuning, against independent computations."""

import random
from dataclasses import replace

from softprompt_nb.engine.inference import score_options
from softprompt_nb.experiments.runs import RunStore
from softprompt_nb.prompts import SoftPrompt
from softprompt_nb.studies import classification as C
from softprompt_nb.training.tuning import tune

import numpy as np
import pandas as pd
import pytest
import torch
from families import tiny

WORDS = ("bad", "good")


def write_set(home, n=60, shuffled=None):
    "A toy set in the published layout."
    for seed in C.PUBLISHED_SPLITS:
        (home / f"16-{seed}").mkdir(parents=True, exist_ok=True)
        for part in ("train", "dev"):
            lines = [f"{part} {seed} {i} is {WORDS[i % 2]}\t{i % 2}" for i in range(32)]
            (home / f"16-{seed}" / f"{part}.tsv").write_text("\n".join(["sentence\tlabel", *lines]) + "\n")
    lines = [f"text {i} is {WORDS[i % 2]}\t{i % 2}" for i in range(n)] + ["train 13 0 is bad\t0"]
    if shuffled is not None:
        random.Random(shuffled).shuffle(lines)
    (home / "test.tsv").write_text("\n".join(["sentence\tlabel", *lines]) + "\n")


@pytest.fixture
def folder(tmp_path):
    write_set(tmp_path / "sst-2")
    return tmp_path


@pytest.fixture
def lm():
    return tiny("llama", dtype=torch.float64)


@pytest.fixture
def config(folder, lm, monkeypatch):
    "A way of asking a small random model."
    monkeypatch.setattr(C, "cached_lm", lambda name, device: lm)
    return C.ClassifyConfig("tiny", n=3, steps=4, batch_size=8, n_test=20, folder=str(folder))


def test_published_splits_are_taken_as_they_are(folder):
    split = C.draw(C.SETS["sst-2"], folder, seed=21)
    assert split.train[3].input == "Review: train 21 3 is good\nSentiment:" and split.train[3].target == " positive"
    assert [len(split.train), len(split.valid), len(split.test)] == [32, 32, 61]


@pytest.mark.parametrize("seed", [0, 87, 100])
def test_other_draws(folder, seed):
    split = C.draw(C.SETS["sst-2"], folder, seed)
    texts = [{example.input for example in part} for part in (split.train, split.valid, split.test)]
    assert not texts[0] & texts[1] and not texts[0] & texts[2] and not texts[1] & texts[2]
    for part in (split.train, split.valid):
        assert sorted(example.target for example in part) == [" negative"] * 16 + [" positive"] * 16
    assert split == C.draw(C.SETS["sst-2"], folder, seed) and split != C.draw(C.SETS["sst-2"], folder, seed + 1)


def test_what_is_trained_on_is_not_tested_on(folder):
    test = C.draw(C.SETS["sst-2"], folder, seed=13).test
    assert "Review: train 13 0 is bad\nSentiment:" not in {example.input for example in test}
    other = C.draw(C.SETS["sst-2"], folder, seed=21).test
    assert "Review: train 13 0 is bad\nSentiment:" in {example.input for example in other}


def test_the_sample_of_test_texts_does_not_hang_on_the_file_s_order(folder, tmp_path):
    few = C.draw(C.SETS["sst-2"], folder, n_test=10).test
    write_set(tmp_path / "other" / "sst-2", shuffled=1)
    assert C.draw(C.SETS["sst-2"], tmp_path / "other", n_test=10).test == few
    assert C.draw(C.SETS["sst-2"], folder, n_test=20).test[:10] == few


def test_quotes_and_tabs_of_a_file(tmp_path):
    "Only a text that is quoted as a whole loses its marks, and none swallows the rows behind it."
    home = tmp_path / "sst-2"
    write_set(home)
    lines = ['"a ""fine"" film, with a\ttab"\t1', 'not "bad\t0', "plain\t0\r"]
    (home / "test.tsv").write_bytes("\n".join(["sentence\tlabel", *lines, ""]).encode())
    found = {example.input: example.target for example in C.draw(C.SETS["sst-2"], tmp_path).test}
    texts = ['a "fine" film, with a\ttab', 'not "bad', "plain"]
    words = [" positive"] + [" negative"] * 2
    assert found == {f"Review: {text}\nSentiment:": word for text, word in zip(texts, words)}
    for stray in (['"good" they say\t1'], ['"a fine\t1', 'film"\t0', 'not "bad"\t0']):
        (home / "test.tsv").write_text("\n".join(["sentence\tlabel", *stray, ""]))
        with pytest.raises(ValueError, match="row 0.*quotes=False"):
            C.draw(C.SETS["sst-2"], tmp_path)


def test_a_line_without_a_class(tmp_path):
    home = tmp_path / "sst-2"
    write_set(home)
    (home / "test.tsv").write_text("sentence\tlabel\nfine\t1\nno label\n")
    with pytest.raises(ValueError, match="line 3"):
        C.draw(C.SETS["sst-2"], tmp_path)


def test_a_set_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        C.draw(C.SETS["trec"], tmp_path)


@pytest.mark.parametrize("field", [dict(way="magic"), dict(texts="imdb")])
def test_bad_fields(field):
    with pytest.raises(ValueError, match="use one of"):
        C.ClassifyConfig(**field)


def test_shots_are_four_of_each_class_and_none_of_the_rest(config, lm):
    config = replace(config, way="shots")
    split = config.split()
    text = config.asked(lm, split, split.test[:1])[0]
    shown = text.removesuffix(split.test[0].input).split("\n\n")[:-1]
    assert sorted(shot.rsplit(":", 1)[1] for shot in shown) == [" negative"] * 4 + [" positive"] * 4
    assert set(shown) <= {example.input + example.target for example in split.train}
    assert text != replace(config, seed=21).asked(lm, split, split.test[:1])[0]


def test_an_instruction_in_the_chat_template(config, lm):
    config = replace(config, way="instruction", choice=4)
    lm.tokenizer.chat_template = (
        "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}<me>{% endif %}"
    )
    assert config.choices(lm) == 6 and replace(config, way="none").choices(lm) == 1
    text = config.asked(lm, config.split(), [C.SETS["sst-2"].example("fine", 1)])[0]
    wording = C.SETS["sst-2"].instructions[1]
    assert text == f"<user>{wording}\nReview: fine<me>Sentiment:"
    lm.tokenizer.chat_template = None
    assert config.choices(lm) == 3


@torch.no_grad()
def by_hand(lm, vectors, text, words):
    "The likeliest of some words behind a text, by the model's own pass over each."
    scores = []
    for word in words:
        ids = lm.tokenizer(text)["input_ids"]
        answer = lm.tokenizer(word, add_special_tokens=False)["input_ids"]
        embeds = lm.model.get_input_embeddings()(torch.tensor([ids + answer]))
        if vectors is not None:
            embeds = torch.cat([vectors[None].to(embeds), embeds], 1)
        logprobs = lm.model(inputs_embeds=embeds).logits[0].log_softmax(-1)
        first = embeds.shape[1] - len(answer) - 1
        scores.append(sum(logprobs[first + k, token].item() for k, token in enumerate(answer)))
    return max(range(len(words)), key=scores.__getitem__)


@pytest.mark.parametrize("way", ["none", "shots", "soft"])
def test_answers_are_those_of_the_model_s_own_pass(config, lm, way, monkeypatch):
    monkeypatch.setattr(C, "_shots", lambda *_: "Review: dull\nSentiment: negative\n\n")
    config = replace(config, way=way, n_test=6)
    split = config.split()
    split = C.Split(split.train, split.valid[:2], split.test)
    labels = C.SETS["sst-2"].labels
    vectors = torch.randn(3, lm.d_model, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    prompt = SoftPrompt(vectors) if way == "soft" else None
    found = config.measured(lm, split, prompt)["hits"]
    expected = ""
    for text, example in zip(config.asked(lm, split, split.test), split.test):
        answer = labels[by_hand(lm, None if prompt is None else vectors, text, labels)]
        expected += "01"[answer == example.target]
    assert found == expected


def test_trained_together_is_trained_alone(config, lm, tmp_path):
    configs = C.classify_configs(["tiny"], ["sst-2"], [13, 21], ["none", "soft"], folder=config.folder, n=3, steps=4)
    together, alone = RunStore(tmp_path / "together"), RunStore(tmp_path / "alone")
    C.run_classification(together, configs, together=8, progress=False)
    C.run_classification(alone, configs, progress=False)
    assert len(together) == len(alone) == len(configs) == 2 * (1 + len(C.SCALES))
    for config in configs:
        one, other = together[config], alone[config]
        assert one.metrics["hits"] == other.metrics["hits"]
        if config.way == "soft":
            assert torch.allclose(one.prompt(lm).vectors, other.prompt(lm).vectors, atol=1e-6)


def test_only_what_is_alike_is_trained_together(config, lm, tmp_path):
    configs = [replace(config, steps=steps, batch_size=size) for steps, size in ((2, 8), (4, 8), (2, 4))]
    store = RunStore(tmp_path / "store")
    C.run_classification(store, configs, together=8, progress=False)
    assert [len(store[config].history) for config in configs] == [2, 4, 2]
    assert [store[config].environment["together"] for config in configs] == [1, 1, 1]


def test_what_fails_is_recorded_and_the_rest_goes_on(config, lm, tmp_path, monkeypatch):
    def broken(*args, **kw):
        raise ValueError("too long")

    monkeypatch.setattr(C, "tune_many", broken)
    configs = C.classify_configs(["tiny"], ["sst-2"], [13], ["soft", "none"], folder=config.folder, n=3)
    store = RunStore(tmp_path / "store")
    C.run_classification(store, configs, together=8, progress=False)
    assert len(store) == 1 and len(store.failed()) == len(C.SCALES)


def test_where_the_sets_are_is_no_part_of_a_run(config):
    from softprompt_nb.experiments.runs import content_hash

    assert content_hash(config) == content_hash(replace(config, folder="elsewhere", device="cuda"))
    assert content_hash(config) != content_hash(replace(config, seed=21))


def test_peft_s_own_training_has_these_losses(config, lm):
    "The way `peft`: the same start, optimiser, rates and batches through PEFT's own forward pass."
    from peft import PromptTuningConfig, get_peft_model

    config = replace(config, way="peft")
    split = config.split()
    start, rate = config.start(lm)
    assert 0.7 < start.vectors.std() < 1.3  # numbers as torch draws an embedding
    start = SoftPrompt(start.vectors.double())
    run = tune(lm, start, split.train, steps=4, batch_size=32, lr=rate, end=False, progress=False)
    model = get_peft_model(lm.model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)).eval()
    weight = model.prompt_encoder["default"].embedding.weight
    with torch.no_grad():
        weight.copy_(start.vectors)
    ids = [lm.tokenizer(example.input)["input_ids"] for example in split.train]
    answers = [lm.tokenizer(example.target, add_special_tokens=False)["input_ids"] for example in split.train]
    longest = max(map(len, map(list.__add__, ids, answers)))
    rows, masks, labels = [], [], []
    for text, answer in zip(ids, answers):
        left = longest - len(text) - len(answer)
        rows.append(text + answer + [0] * left)
        masks.append([1] * (longest - left) + [0] * left)
        labels.append([-100] * len(text) + answer + [-100] * left)
    optimizer = torch.optim.AdamW([weight], lr=rate, weight_decay=0.0)
    losses = []
    for scheduled in run.history.lr:
        logits = model(torch.tensor(rows), attention_mask=torch.tensor(masks)).logits[:, 2:-1]  # behind three vectors
        loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), torch.tensor(labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.param_groups[0]["lr"] = scheduled
        optimizer.step()
        losses.append(loss.item())
    assert run.history.loss.tolist() == pytest.approx(losses, rel=1e-9)


def rows(*cells):
    names = "model texts way seed choice valid_accuracy accuracy".split()
    return pd.DataFrame([dict(zip(names, cell)) for cell in cells])


def test_choices_are_made_on_validation_texts_alone():
    runs = rows(
        ("m", "s", "soft", 1, 0, 0.8, 0.1),
        ("m", "s", "soft", 1, 1, 0.9, 0.5),
        ("m", "s", "soft", 1, 2, 0.7, 0.99),
        ("m", "s", "soft", 2, 0, 0.9, 0.7),
        ("m", "s", "soft", 2, 1, 0.9, 0.9),
        ("m", "s", "none", 1, 0, 0.5, 0.4),
        ("m", "s", "none", 2, 0, 0.5, 0.6),
    )
    table = C.accuracy_table(runs)
    cell = table.loc[("m", "s"), "soft"]
    assert cell.items == (0.5, 0.7) and cell.seeds == (1, 2)
    gain = C.paired_gain(runs).iloc[0, 0]
    assert gain.items == pytest.approx((0.1, 0.1))
    assert list(C.chosen(runs).choice) == [0, 0, 1, 0]


def test_scores_do_not_count_an_end(lm):
    "The words of a trained prompt are scored as it was trained: without what would end them."
    scores = score_options(lm, None, ["a b"], [" negative", " positive"], end=False)
    assert C._bare_scores(lm, ("a b",), (" negative", " positive")).tolist() == scores.tolist()


@pytest.mark.parametrize("gone", [[("trec", 1), ("trec", 2)], [("sst-2", 0), ("trec", 0)]])
def test_a_pilot_without_some_of_its_runs_chooses_no_rate(gone):
    cells = {("sst-2", 0): 0.9, ("sst-2", 1): 0.8, ("sst-2", 2): 0.7}
    cells |= {("trec", 0): 0.5, ("trec", 1): 0.45, ("trec", 2): 0.4}
    rows = [dict(model="m", way="soft", texts=t, choice=i, valid_accuracy=v, seed=13) for (t, i), v in cells.items()]
    pilot = pd.DataFrame(rows)
    configs = [C.ClassifyConfig("m", "sst-2", "soft", choice=i) for i in range(3)]
    assert [config.choice for config in C.with_chosen_rates(configs, pilot)] == [0]
    there = [cell not in gone for cell in cells]
    with pytest.raises(ValueError, match="lacks 2 runs"):
        C.with_chosen_rates(configs, pilot[there])
    with pytest.raises(ValueError, match="lacks 2 runs"):  # a run that ended with no number
        C.with_chosen_rates(configs, pilot.assign(valid_accuracy=pilot.valid_accuracy.where(there)))


@pytest.mark.parametrize("name, ways", [("steps", "soft"), ("n", "peft"), ("batch_size", "soft"), ("n_test", "none")])
def test_runs_of_several_budgets_are_no_choices(name, ways):
    "The best of all of them on validation texts was taken, eighty steps beside twenty."
    one = rows(("m", "s", ways, 1, 0, 0.8, 0.1), ("m", "s", "shots", 1, 0, 0.8, 0.1))
    both = pd.concat([one.assign(**{name: 20}), one.assign(**{name: 80})])
    for ask in (C.chosen, C.accuracy_table, C.paired_gain):
        with pytest.raises(ValueError, match=f"several settings .*{name} 20, 80"):
            ask(both)
    if ways != "none":  # what has no prompt is the same at any budget
        mixed = pd.concat([one.iloc[:1].assign(**{name: 20}), one.iloc[1:].assign(**{name: 80})])
        assert len(C.chosen(mixed)) == 2
        pilot = pd.concat([rows(("m", "s", ways, 1, i, 0.5, 0.5)).assign(**{name: 20 + i}) for i in range(3)])
        with pytest.raises(ValueError, match=f"several settings .*{name} 20, 21, 22"):
            C.with_chosen_rates([C.ClassifyConfig("m", "sst-2", ways)], pilot)


def test_a_chosen_row_is_of_one_run():
    "A column without a value in the best row was filled from another run."
    runs = rows(("m", "s", "soft", 1, 0, 0.8, 0.1), ("m", "s", "soft", 1, 1, 0.9, 0.5)).assign(lr=[0.3, np.nan])
    best = C.chosen(runs)
    assert len(best) == 1 and best.choice[0] == 1 and np.isnan(best.lr[0])


@pytest.mark.parametrize("column", ["accuracy", "valid_accuracy"])
def test_runs_without_numbers_are_said(column):
    runs = rows(("m", "s", "soft", 1, 0, 0.8, 0.1), ("m", "s", "soft", 1, 1, 0.9, 0.5))
    runs.loc[1, column] = np.nan
    with pytest.warns(UserWarning, match="1 of 2 runs have no accuracy .* first of m, s, soft, 1, 1"):
        best = C.chosen(runs)
    assert best.choice.tolist() == [0] and best.accuracy.tolist() == [0.1]
