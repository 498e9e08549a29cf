"How texts begin on the real models, against what transformers itself does with the tokenizer's own call."

import math

from softprompt_nb.data import Example, bare_examples, encode, encode_context
from softprompt_nb.engine.inference import loss_on
from softprompt_nb.evaluation.distance.capabilities import plain_text
from softprompt_nb.evaluation.interpretability import faithfulness, scrutability
from softprompt_nb.load import load_lm
from softprompt_nb.prompts import SoftPrompt
from softprompt_nb.translation.hard.baselines import written
from softprompt_nb.translation.hard.objective import Reader, text_of, usable_tokens
from softprompt_nb.translation.translator.rerank import text_divergence

import pytest
import torch
from real_models import real_lm

EXAMPLES = [
    Example("The capital of France is", " Paris"),
    Example("The capital of Japan, a country in Asia, is", " Tokyo"),
]
LINES = ["It was a bright cold day in April, and the clocks were striking thirteen.\n"] * 4
CLOSE = dict(rel=2e-5)  # float32, sums of a few hundred terms


@pytest.fixture(scope="module", params=["smollm2-135m-instruct", "gemma-3-270m"])
def lm(request):
    return real_lm(request.param)


@torch.no_grad()
def own_nats(lm, ids, first):
    "Nats of each token of a row from a place on, by the model's own forward pass."
    logp = lm.model(torch.tensor([ids])).logits[0, first - 1 : -1].float().log_softmax(-1)
    return (-logp.gather(1, torch.tensor(ids[first:])[:, None])[:, 0]).tolist()


def typed_loss(lm, inputs, targets):
    "Loss of targets behind texts that are tokenised whole by the tokenizer itself."
    nats = []
    for text, target in zip(inputs, targets):
        ids = lm.tokenizer(text + target)["input_ids"]
        nats += own_nats(lm, ids, len(lm.tokenizer(text)["input_ids"]))
    return sum(nats) / len(nats)


def test_a_typed_text_has_the_loss_of_the_tokenizers_own_call(lm):
    inputs = [example.input for example in EXAMPLES]
    targets = [example.target for example in EXAMPLES]
    bare = typed_loss(lm, inputs, targets)
    assert loss_on(lm, None, EXAMPLES, end=False).value == pytest.approx(bare, **CLOSE)
    brought = [Example(lm.tokenizer.decode(list(lm.beginning)) + e.input, e.target) for e in EXAMPLES]
    assert loss_on(lm, None, brought, end=False).value == pytest.approx(bare, **CLOSE)
    told = typed_loss(lm, [f"Answer with the city. {text}" for text in inputs], targets)
    hard = written(
        lm, "Answer with the city. ".strip(), [Example(f" {e.input}", e.target) for e in EXAMPLES], end=False
    )
    assert hard.record["typed"] and hard.record["joined"] == 1
    assert hard.loss.value == pytest.approx(told, **CLOSE)


def test_running_text_begins_as_the_tokenizer_begins_it(lm):
    (row,) = plain_text(lambda split: LINES, length=16).rows(lm, "test", 1)
    text = lm.tokenizer.decode(row.ids[len(lm.beginning) :])
    assert row.ids == lm.tokenizer(text)["input_ids"]
    want = own_nats(lm, row.ids, 1)
    assert loss_on(lm, None, [row]).value == pytest.approx(sum(want) / len(want), **CLOSE)
    if lm.beginning:  # the beginning is no skill that a prompt could bring along
        without = own_nats(lm, row.ids[1:], 1)
        assert sum(without) / len(without) > 1.3 * sum(want) / len(want)


def test_marks_and_free_places_are_never_drawn(lm):
    marks = [i for i, token in lm.tokenizer.added_tokens_decoder.items() if token.special]
    assert set(marks) <= lm.special_ids and len(lm.special_ids) < len(marks) + 100
    assert not usable_tokens(lm)[sorted(lm.special_ids)].any()
    rows = lm.embed_ids(marks)
    for seed in range(5):
        vectors = SoftPrompt.init(lm, 40, seed=seed).vectors
        assert torch.cdist(vectors, rows).min() > 0


def test_one_token_and_a_reader_with_another_tokenizer(lm):
    if not lm.beginning:
        lm.told.discard("one token")
        with pytest.warns(UserWarning, match="nothing stands in front"):
            assert math.isnan(scrutability(lm, " happy", draws=2).perplexity)
    ours = load_lm("lab-instruct-s")  # another tokenizer
    ids = ours.token_ids("it 's a list :\n\nthe child 's café")
    own = lm.tokenizer(text_of(ours, ids))["input_ids"]
    want = own_nats(lm, own, 1)
    assert Reader(ours, lm).nll([ids]).item() == pytest.approx(sum(want) / len(want), **CLOSE)


def test_the_template_is_the_tokenizers_own(lm):
    if not lm.tokenizer.chat_template:
        with pytest.raises(ValueError, match="no chat template"):
            bare_examples(lm, EXAMPLES, "chat")
        return
    want = []
    for example in EXAMPLES:
        turn = [dict(role="user", content=example.input)]
        asked = lm.tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=True)["input_ids"]
        (bare,) = bare_examples(lm, [example], "chat")
        row = encode(lm, bare)
        assert row.ids[: row.n_input] == asked == encode_context(lm, example.input, "chat").ids
        nats = own_nats(lm, row.ids, row.n_input)
        want.append(sum(nats) / len(nats))
    prompt = SoftPrompt.init(lm, 4, "text", text="Answer with the city.\n", at="chat")
    measured = faithfulness(lm, prompt, "Answer with the city.\n", EXAMPLES, draws=1)
    assert list(measured.table.loss["empty"].items) == pytest.approx(want, **CLOSE)
    itself = SoftPrompt(lm.embed_ids(lm.token_ids("Answer with the city.\n")), "chat")
    same, other = text_divergence(lm, itself, ["Answer with the city.", "Say no."], [EXAMPLES[0].input], [" Paris"])
    assert abs(same) < 1e-3 < other
