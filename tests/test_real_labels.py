"""Log-probabilities, label accuracy and exact match of the two real models against a plain `transformers` loop."""

import json
import re
from functools import cache
from pathlib import Path

from softprompt_nb.data import Example
from softprompt_nb.engine.inference import exact_match, loss_on, option_logprobs
from softprompt_nb.engine.labels import label_accuracy

import numpy as np
import pytest
import torch
from real_models import FOLDERS, real_lm

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
sst2 = DATA / "sentence_classification" / "stsa.binary.dev"
arc = DATA / "commonsense_and_arithmetic" / "ARC-Easy" / "test.json"
LABELS = (" negative", " positive")
FREE = "Review: N/A\nSentiment:"
CLOSE = 1e-4  # nats


def needs(path):
    return pytest.mark.skipif(not path.exists(), reason=f"{path.name} does not lie beside this clone")


def reviews(n=50):
    "Short reviews, as many of each label."
    of_label = {"0": [], "1": []}
    for line in sst2.read_text(encoding="utf-8").splitlines():
        label, text = line.split(" ", 1)
        if len(text) < 44:
            of_label[label].append(Example(f"Review: {text}\nSentiment:", LABELS[int(label)]))
    return [example for pair in zip(*of_label.values()) for example in pair][:n]


def questions(n=20):
    "ARC-Easy as cloze: a question, its options, and the right one."
    found = []
    for row in json.loads(arc.read_text(encoding="utf-8")):
        question, listed = re.search(r"question: (.*?)\n\n(.*?)\n\nAnswer format", row["instruction"], re.S).groups()
        options = [" " + text.strip() for text in re.split(r"Answer\d: ", listed)[1:]]
        right = options[int(row["answer"].removeprefix("answer")) - 1]
        if len(question) < 70 and len(listed) < 110 and len(set(options)) == len(options):
            found.append((Example(f"Question: {question}\nAnswer:", right), options))
    return found[:n]


@torch.no_grad()
def plain(lm, text, options):
    "Sum of log-probabilities and number of tokens of each option behind a text, one call an option."
    found = []
    for option in options:
        ids = lm.tokenizer(text + option, return_tensors="pt")["input_ids"].to(lm.device)
        size = ids.shape[1] - len(lm.tokenizer(text)["input_ids"])
        logprobs = lm.model(ids, logits_to_keep=size + 1).logits[0, :-1].float().log_softmax(-1)
        found.append((logprobs.gather(1, ids[0, -size:, None]).sum().item(), size))
    return found


@cache
def plain_reviews(name):
    "For each review and for the text without content: log-probability of both labels, and two greedy tokens as text."
    lm = real_lm(name)
    ids_of_labels = [lm.tokenizer(label, add_special_tokens=False)["input_ids"] for label in LABELS]
    assert all(len(ids) == 1 for ids in ids_of_labels)
    scores, said = [], []
    with torch.no_grad():
        for text in [*(example.input for example in reviews()), FREE]:
            ids = lm.tokenizer(text, return_tensors="pt")["input_ids"].to(lm.device)
            out = lm.model(ids, logits_to_keep=1, use_cache=True)
            logits = out.logits[0, -1].float()
            scores.append([logits.log_softmax(-1)[ids[0]].item() for ids in ids_of_labels])
            first = logits.argmax()
            second = lm.model(first[None, None], past_key_values=out.past_key_values).logits[0, -1].argmax()
            tokens = [first, second] if first != lm.tokenizer.eos_token_id else [first]
            said.append(lm.tokenizer.decode(torch.stack(tokens), skip_special_tokens=True))
    return np.array(scores), said[:-1]


@needs(sst2)
@pytest.mark.parametrize("name", FOLDERS)
def test_reviews_have_the_scores_accuracies_and_answers_of_a_plain_loop(name):
    lm = real_lm(name)
    examples = reviews()
    scores, said = plain_reviews(name)
    result = label_accuracy(lm, None, examples, LABELS, content_free=FREE)
    assert np.abs(result.scores - scores[:-1]).max() < CLOSE and np.abs(result.prior - scores[-1]).max() < CLOSE
    right = np.array([LABELS.index(example.target) for example in examples])
    for by, want in dict(sum=scores[:-1], tokens=scores[:-1], prior=scores[:-1] - scores[-1]).items():
        assert result.accuracy_by(by) == (want.argmax(1) == right).mean()
    targets = [example.target.strip() for example in examples]
    lines = [(text.strip().splitlines() or [""])[0].strip() for text in said]
    assert exact_match(lm, None, examples) == np.mean([line == target for line, target in zip(lines, targets)])
    loss = -np.mean([row[i] for row, i in zip(scores[:6], right)])
    assert abs(float(loss_on(lm, None, examples[:6], end=False)) - loss) < CLOSE


@needs(arc)
@pytest.mark.parametrize("name", FOLDERS)
def test_contents_of_questions_have_the_scores_of_a_plain_loop(name):
    lm = real_lm(name)
    examples, options = zip(*questions())
    result = label_accuracy(lm, None, examples, options, "tokens", end=False)  # " C" begins " Co": else its end counts
    right = []
    for i, (example, of_row) in enumerate(zip(examples, options)):
        want = plain(lm, example.input, of_row)
        k = len(of_row)
        sums, sizes = map(np.array, zip(*want))
        assert np.abs(result.scores[i, :k] - sums).max() < CLOSE
        assert result.tokens[i, :k].tolist() == sizes.tolist()
        means = [score / n for score, n in want]
        right.append(of_row[int(np.argmax(means))] == example.target)
    assert result.accuracy == np.mean(right)


@needs(sst2)
def test_a_chat_model_is_asked_in_its_template():
    lm = real_lm("smollm2-135m-instruct")
    examples = reviews(3)
    for chat, turns in ((True, []), ("Answer with one word.", [dict(role="system", content="Answer with one word.")])):
        result = label_accuracy(lm, None, examples, LABELS, chat=chat)
        for example, scores in zip(examples, result.scores):
            asked = [*turns, dict(role="user", content=example.input)]
            text = lm.tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
            want = plain(lm, text, [label.strip() for label in LABELS])
            assert np.abs(scores - [score for score, _ in want]).max() < CLOSE
    scores, _ = option_logprobs(lm, None, [FREE], LABELS)
    assert scores.isfinite().all()
