"""Rows that begin alike, computed once, against the model's plain pass over each whole row in float64."""

import warnings

from softprompt_nb.data import Encoded, Example, encode_at
from softprompt_nb.engine.beginnings import beginnings
from softprompt_nb.engine.inference import generate, option_logprobs, score_options, target_logprobs
from softprompt_nb.prompts import SoftPrompt

import pytest
import torch
from families import FAMILIES, MORE, tiny
from hypothesis import given, settings
from hypothesis import strategies as st

DOUBLE = torch.float64
EXACT = 1e-9
IN_SINGLE = ("gemma2", "gpt_oss")  # these take a softmax in float32 whatever the dtype
SHOTS = "in: sun out: moon\nin: hot out: cold\nin: up out: down\n"
_made = {}


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def lm_of(name):
    if name not in _made:
        _made[name] = tiny(name, dtype=DOUBLE)
    return _made[name]


def whole_row(lm, prompt, row):
    "A row's embeddings with its prompt in place, and how many of them stand in front of the target."
    embeds = lm.embed_ids(row.ids)
    if prompt is None:
        return embeds, row.n_input
    parts = [embeds[: row.at], prompt.vectors.to(lm.dtype), embeds[row.at :]]
    return torch.cat(parts), row.n_input + len(prompt.vectors)


@torch.no_grad()
def plainly(lm, prompt, example, end):
    "Log-probability of a target by the model's own call on its whole row, without any cache."
    (row,) = encode_at(lm, [example], "start" if prompt is None else prompt.at, end)
    embeds, n_front = whole_row(lm, prompt, row)
    logprobs = lm.model(inputs_embeds=embeds[None], use_cache=False).logits[0].log_softmax(-1)
    target = torch.tensor(row.ids[row.n_input :])
    return logprobs[n_front - 1 : -1].gather(1, target[:, None]).sum()


def close(ours, theirs, name):
    return (ours - theirs).abs().max() <= (1e-4 if name in IN_SINGLE else EXACT) * theirs.abs().max().clamp(min=1)


@pytest.mark.parametrize("end", [False, True])
@pytest.mark.parametrize("name", [*FAMILIES, *MORE])
def test_few_shot_options_are_the_plain_pass_over_each_whole_row(name, end):
    lm = lm_of(name)
    texts = [f"{SHOTS}in: {word} out:" for word in ("day", "in", "deep sea", "left", "o")]
    labels = [" x", " yes it is", " ye", " q"]
    want = [[plainly(lm, None, Example(text, label), end) for label in labels] for text in texts]
    for size in (64, 7):
        ours = score_options(lm, None, texts, labels, batch_size=size, end=end)
        assert close(ours, torch.tensor(want, dtype=DOUBLE), name)


_TEXTS = st.lists(st.text("abc", min_size=1, max_size=9), min_size=1, max_size=6)
_GROUPS = st.lists(st.tuples(st.text("abcd ", max_size=24), _TEXTS), min_size=1, max_size=3)
_LABELS = st.lists(st.text("xyz", min_size=1, max_size=3).map(" ".__add__), min_size=1, max_size=3, unique=True)
_PLACES = st.sampled_from(["start", "before_answer", 1])


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from([*FAMILIES, *MORE]),
    groups=_GROUPS,
    labels=_LABELS,
    at=_PLACES,
    prompts=st.sampled_from(["none", "one", "two", "some"]),
    end=st.booleans(),
    size=st.sampled_from([3, 64]),
)
def test_any_rows_that_begin_alike_are_scored_as_each_alone(name, groups, labels, at, prompts, end, size):
    lm = lm_of(name)
    texts = [front + text for front, behind in groups for text in behind]
    one, other = (SoftPrompt.init(lm, n, "gaussian", seed=n, at=at) for n in (3, 5))
    among = dict(none=[None], one=[one], two=[one, other], some=[None, one])[prompts]
    each = [among[i % len(among)] for i in range(len(texts))]
    given = among[0] if len(among) == 1 else each
    ours, _ = option_logprobs(lm, given, texts, labels, size, end)
    want = [[plainly(lm, one, Example(text, label), end) for label in labels] for one, text in zip(each, texts)]
    assert close(ours, torch.tensor(want, dtype=DOUBLE), name)


@torch.no_grad()
def greedily(lm, prompt, text, steps):
    "Continuation by the model's own call on the whole text for each token."
    ids = lm.tokenizer(text)["input_ids"]
    place = {"start": 0, "before_answer": len(ids), 1: 1}["start" if prompt is None else prompt.at]
    embeds = lm.embed_ids(ids)
    if prompt is not None:
        embeds = torch.cat([embeds[:place], prompt.vectors.to(lm.dtype), embeds[place:]])
    out = []
    for _ in range(steps):
        token = lm.model(inputs_embeds=embeds[None], use_cache=False).logits[0, -1].argmax()
        if token == lm.tokenizer.eos_token_id:
            break
        out.append(int(token))
        embeds = torch.cat([embeds, lm.embed(token)[None]])
    return lm.tokenizer.decode(out, skip_special_tokens=True)


@pytest.mark.parametrize("at", [None, "start", "before_answer"])
@pytest.mark.parametrize("name", [*FAMILIES, *MORE])
def test_texts_that_begin_alike_are_continued_as_each_alone(name, at):
    lm = lm_of(name)
    prompt = None if at is None else SoftPrompt.init(lm, 3, "gaussian", seed=1, at=at)
    texts = [f"{SHOTS}in: {word} out:" for word in ("day", "in", "deep sea")] + ["another one", "day"]
    want = [greedily(lm, prompt, text, 6) for text in texts]
    assert generate(lm, prompt, texts, 6) == generate(lm, prompt, texts, 6, batch_size=2) == want


def test_a_front_is_computed_once_a_pass_and_its_rows_behind_it(monkeypatch):
    lm = tiny("llama")
    texts = [f"{SHOTS}in: {word} out:" for word in ("day", "inn", "sea", "war")]
    score_options(lm, None, texts, [" x", " y"])  # the first use is checked
    embedded = []
    embed = type(lm).embed

    def counted(self, ids):
        embedded.append(ids.numel())
        return embed(self, ids)

    monkeypatch.setattr(type(lm), "embed", counted)
    score_options(lm, None, texts, [" x", " y"])
    front, text = (len(lm.tokenizer(part)["input_ids"]) for part in (f"{SHOTS}in: ", texts[0]))
    rest = text - front + 1  # and the space of an answer, whose last token predicts nothing
    assert sum(embedded) <= front + 8 * rest


def test_settings_that_look_at_the_text_see_all_of_it():
    lm = lm_of("llama")
    texts = [f"{SHOTS}in: {word} out:" for word in ("day", "inn", "sea")]
    each = [generate(lm, None, text, 6, repetition_penalty=5.0)[0] for text in texts]
    assert generate(lm, None, texts, 6, repetition_penalty=5.0) == each
    assert each != generate(lm, None, texts, 6)


def test_what_is_not_a_number_is_refused_behind_a_common_front_too():
    lm = tiny("llama", dtype=DOUBLE)
    examples = [Example(f"{SHOTS}in: {word} out:", " x") for word in ("day", "inn", "sea")]
    broken = SoftPrompt(torch.full((2, lm.d_model), torch.nan))
    with pytest.raises(ValueError, match="diverged"):
        target_logprobs(lm, broken, examples)
    with pytest.raises(ValueError, match="diverged"):
        generate(lm, broken, [example.input for example in examples])
    with pytest.raises(ValueError, match="Row 1 has .* limit of 128"):
        target_logprobs(lm, None, [examples[0], Example(3 * SHOTS, " x"), examples[1]])


def assembled(lm, vectors, row):
    "A row's embeddings with vectors at their place."
    embeds = lm.embed_ids(row.ids)
    return embeds if vectors is None else torch.cat([embeds[: row.at], vectors, embeds[row.at :]])


@settings(max_examples=200, deadline=None)
@given(
    texts=st.lists(st.text("ab", min_size=1, max_size=8), min_size=1, max_size=8),
    places=st.lists(st.integers(0, 8), min_size=8, max_size=8),
    lanes=st.lists(st.integers(0, 2), min_size=8, max_size=8),
    spare=st.integers(0, 1),
)
def test_every_row_is_its_beginning_and_what_is_left(texts, places, lanes, spare):
    "Nothing is lost or moved, no batch costs more than before, and something is left to go on from."
    lm = lm_of("llama")
    vectors = [None, *(torch.full((n, lm.d_model), float(n), dtype=DOUBLE) for n in (1, 3))]
    lanes = lanes[: len(texts)]
    n_vectors = [0 if vectors[lane] is None else len(vectors[lane]) for lane in lanes]
    rows = []
    for text, place in zip(texts, places):
        ids = lm.token_ids(text)
        rows.append(Encoded(ids if spare else [*ids, 5], len(ids), min(place, len(ids))))
    found = beginnings(rows, lanes, n_vectors, spare)
    batches = found.batches(3)
    assert sorted(i for batch in batches for i in batch) == list(range(len(rows)))
    for batch in batches:
        prompts, behind, numbers = found.joined(lm, vectors, batch)
        without, _ = found.tokens(batch)
        made = [prompts[number] for number in set(numbers)]
        assert sum(len(each) for each in made if each is not None) + sum(row.n_input for row in behind) <= without
        for i, row, number in zip(batch, behind, numbers):
            assert assembled(lm, prompts[number], row).equal(assembled(lm, vectors[lanes[i]], rows[i]))
            assert len(row.ids) - row.n_input == len(rows[i].ids) - rows[i].n_input and len(row.ids) > 0
