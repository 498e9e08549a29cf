"""Hard prompts against plain loops: scores, fluency, its gradient, what is kept."""

import math

from softprompt_nb.data import Example, encode
from softprompt_nb.engine.inference import exact_match, loss_on
from softprompt_nb.engine.labels import label_accuracy
from softprompt_nb.translation.hard.baselines import greedy_coordinate, random_search
from softprompt_nb.translation.hard.gcg import gcg
from softprompt_nb.translation.hard.objective import (
    Objective,
    Reader,
    Shortlist,
    as_hard,
    label_words,
    nll_gradient,
    retokenized,
    text_of,
    usable_tokens,
)
from softprompt_nb.translation.hard.pez import pez
from softprompt_nb.translation.hard.rlprompt import label_reward, rlprompt

import pytest
import torch
from families import FAMILIES, tiny
from hypothesis import given, settings
from hypothesis import strategies as st

EXAMPLES = [Example("abc", " de"), Example("a longer input", " x"), Example("q", " yes it is")]
PROMPTS = [(5, 40, 41), (70, 71, 72, 73, 74), (50, 51)]
# The models here compute in float64; the losses of their targets, at most 12 in a mean, come in float32.
ROUNDING = 12 * 8 * torch.finfo(torch.float32).eps


def double(name, **options):
    return tiny(name, dtype=torch.float64, **options)


def ids_of(lm, text):
    return tuple(lm.token_ids(text))


def losses_behind(lm, vectors, examples):
    "Cross-entropy of every target token behind a prompt, by the model's own forward pass."
    losses = []
    for example in examples:
        encoded = encode(lm, example)
        inputs = torch.cat([vectors, lm.embed_ids(encoded.ids)])
        logp = lm.model(inputs_embeds=inputs[None]).logits[0].log_softmax(-1)
        for i in range(encoded.n_input, len(encoded.ids)):
            losses.append(-logp[len(vectors) + i - 1, encoded.ids[i]])
    return torch.stack(losses)


def own_loss(lm, ids):
    "The loss that transformers itself gives."
    ids = torch.tensor([ids])
    return lm.model(input_ids=ids, labels=ids).loss.item()


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_scores_of_many_prompts_are_those_of_a_plain_loop(name):
    lm = double(name)
    objective = Objective(lm, EXAMPLES, fluency=0.5, rows_a_pass=7)
    want = []
    for prompt in PROMPTS:
        task = losses_behind(lm, lm.embed_ids(prompt), EXAMPLES).mean().item()
        want.append(task + 0.5 * own_loss(lm, prompt))
    assert objective.score(PROMPTS).tolist() == pytest.approx(want, rel=ROUNDING)
    assert objective.forwards == len(PROMPTS) * len(EXAMPLES)


@pytest.mark.parametrize("bos", [False, True])
@torch.no_grad()
def test_fluency_is_transformers_own_loss(bos):
    lm = double("llama", bos=bos)
    assert Reader(lm).nll([(9,)]).isnan().item() != bos  # asked first: nothing else has been read yet
    lead = [2] if bos else []
    for prompt, nll in zip(PROMPTS, Reader(lm).nll(PROMPTS).tolist()):
        assert nll == pytest.approx(own_loss(lm, [*lead, *prompt]), rel=ROUNDING)
    one = Reader(lm).nll([(9,)])[0]
    assert math.isfinite(one) == bos  # nothing stands in front of a single token


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma"])
def test_the_gradient_of_fluency_is_that_of_finite_differences(name, bos):
    lm = double(name, bos=bos)
    prompt = (40, 41, 50, 7)
    reader = Reader(lm)
    table = torch.cat(list(lm.embed_rows()))
    front = lm.embed_ids(reader.lead)
    first = 1 - int(bos)  # the first token that anything stands in front of

    def nll(rows):  # that need not be one-hot
        inputs = torch.cat([front, rows @ table])
        logp = lm.model(inputs_embeds=inputs[None]).logits[0].log_softmax(-1)
        in_front = logp[:-1]
        return -(rows[first:] * in_front).sum() / (len(prompt) - first)

    loss, gradient = nll_gradient(reader, prompt)
    rows = torch.nn.functional.one_hot(torch.tensor(prompt), lm.vocab_size).double()
    with torch.no_grad():
        assert loss == pytest.approx(nll(rows).item(), rel=1e-9)
        for place, token in [(0, 3), (1, 41), (2, 100), (3, 60), (3, 7), (0, 99)]:
            step = torch.zeros_like(rows)
            step[place, token] = 1e-3  # families that normalise in float32 round smaller steps away
            rise = (nll(rows + step) - nll(rows - step)) / 2e-3
            assert gradient[place, token].item() == pytest.approx(rise.item(), rel=2e-2, abs=1e-3)


def test_the_gradient_of_the_task_is_that_of_finite_differences():
    lm = double("gpt_neox")
    objective = Objective(lm, EXAMPLES)
    prompt = (40, 41, 50)
    vectors = lm.embed_ids(prompt)
    loss, gradient = objective.gradient(vectors)
    assert loss == pytest.approx(objective.score([prompt])[0].item(), rel=ROUNDING)
    assert objective.backwards == len(EXAMPLES)
    in_rows = gradient.double() @ torch.cat(list(lm.embed_rows())).T
    with torch.no_grad():
        for place, token in [(0, 7), (1, 60), (2, 99)]:
            step = torch.zeros_like(vectors)
            step[place] = 1e-3 * lm.embedding.weight[token]
            above, below = (losses_behind(lm, moved, EXAMPLES).mean() for moved in (vectors + step, vectors - step))
            rise = ((above - below) / 2e-3).item()
            assert in_rows[place, token].item() == pytest.approx(rise, rel=1e-3, abs=1e-4)


def test_tokens_that_show_nothing_and_banned_ones_are_left_out():
    lm = tiny("gpt2")
    ok = usable_tokens(lm, banned=[10, "xyz"])
    space = 3
    assert not ok[[0, 1, space, 10, *ids_of(lm, "xyz")]].any()
    assert not ok[98:].any()  # these have no token
    assert ok.sum() == 95 - 4  # this tokenizer does not say that its <bos> is special
    with pytest.raises(ValueError, match="banned"):
        usable_tokens(lm, banned=range(120))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(3, 97), min_size=1, max_size=8))
def test_what_is_typed_stays_what_it_is(ids):
    lm = tiny("gpt2")
    typed = retokenized(lm, ids)
    assert text_of(lm, typed) == text_of(lm, ids) and retokenized(lm, typed) == typed


def test_the_best_on_validation_is_kept_and_measured():
    lm = double("gpt2")
    objective = Objective(lm, EXAMPLES[:1], EXAMPLES[1:], fluency=0.2)
    shortlist = Shortlist(objective)
    scores = shortlist.offer([*PROMPTS, PROMPTS[0]])
    spent = objective.forwards
    assert shortlist.offer(PROMPTS) == scores[:3]
    assert objective.forwards == spent  # nothing is scored twice
    assert scores[:3] == pytest.approx(objective.score(PROMPTS, objective.held).tolist(), rel=ROUNDING)
    best = shortlist.best
    assert best == PROMPTS[scores.index(min(scores))]
    hard = as_hard(objective, best, "test", seed=3)
    soft = hard.soft(lm)
    assert float(hard.loss) == pytest.approx(float(loss_on(lm, soft, EXAMPLES[1:])), rel=ROUNDING)
    assert hard.accuracy == exact_match(lm, soft, EXAMPLES[1:])
    assert hard.perplexity == pytest.approx(Reader(lm).nll([best]).exp().item(), rel=ROUNDING)
    assert "test" in repr(hard)
    assert hard.record["valid"] == 2


REVIEWS = [Example(f"film {i}", " good" if i % 2 else " bad") for i in range(6)]


def test_answers_that_are_labels_are_judged_by_label_words():
    lm = double("gpt2")
    assert label_words(REVIEWS) == (" bad", " good") and label_words(EXAMPLES) is None
    assert label_words(REVIEWS[:5]) is None  # two labels want six examples
    objective = Objective(lm, REVIEWS[:4], REVIEWS[4:], fluency=0.2)
    assert (objective.measure, objective.labels, objective.end) == ("labels", (" bad", " good"), False)
    assert all(row.ids[-1] != lm.tokenizer.eos_token_id for row in [*objective.pool, *objective.held])
    want = []
    for prompt in PROMPTS:
        nats = []
        for example in REVIEWS[4:]:
            context = torch.tensor([[*prompt, *ids_of(lm, example.input)]])
            logps = []
            for label in objective.labels:
                ids = torch.tensor([ids_of(lm, label)])
                logits = lm.model(torch.cat([context, ids], 1)).logits[0, context.shape[1] - 1 : -1]
                logps.append(logits.log_softmax(-1).gather(1, ids[0][:, None]).sum())
            nats.append(-torch.stack(logps).log_softmax(0)[objective.labels.index(example.target)])
        want.append(torch.stack(nats).mean())
    assert objective.among_labels(PROMPTS).tolist() == pytest.approx(torch.stack(want).tolist(), rel=ROUNDING)
    assert objective.forwards == 2 * len(PROMPTS)
    shortlist = Shortlist(objective)
    scores = torch.tensor(shortlist.offer(PROMPTS))
    assert torch.allclose(scores, torch.stack(want).float() + 0.2 * Reader(lm).nll(PROMPTS).float(), rtol=ROUNDING)
    hard = as_hard(objective, shortlist.best, "test")
    assert hard.accuracy == label_accuracy(lm, hard.soft(lm), REVIEWS[4:], objective.labels, end=False).accuracy
    assert float(hard.loss) == pytest.approx(float(loss_on(lm, hard.soft(lm), REVIEWS[4:], end=False)), rel=ROUNDING)
    assert (hard.record["measure"], hard.record["end"]) == ("labels", False) and "by label words" in repr(hard)


def test_exact_match_is_what_it_was_where_it_is_asked_for():
    lm = double("gpt2")
    objective = Objective(lm, REVIEWS, measure="exact")
    assert (objective.measure, objective.labels, objective.end) == ("exact", None, True)
    assert objective.verdict(PROMPTS).equal(objective.score(PROMPTS, objective.held))
    hard = as_hard(objective, PROMPTS[0], "test")
    assert hard.accuracy == exact_match(lm, hard.soft(lm), REVIEWS) and "label" not in repr(hard)
    assert float(hard.loss) == pytest.approx(float(loss_on(lm, hard.soft(lm), REVIEWS)), rel=ROUNDING)


@pytest.mark.parametrize(
    "given, words",
    [
        (dict(measure="words"), "use 'labels', 'exact'"),
        (dict(measure="exact", labels=[" a", " b"]), "leave them out"),
        (dict(labels=[" good", " fine"]), "the target ' bad' is none"),
        (dict(labels=["bad", "good"]), "leading|as the targets are written"),
    ],
)
def test_labels_that_do_not_fit_are_refused(given, words):
    with pytest.raises(ValueError, match=words):
        Objective(double("gpt2"), REVIEWS, **given)


def test_a_label_that_begins_another_is_closed_by_its_end():
    lm = double("gpt2")
    rows = [Example("q", " good"), Example("r", " good and bad")] * 3
    assert Objective(lm, rows).end and Objective(lm, rows[:2], measure="labels").end
    assert not Objective(lm, rows[:2], measure="labels", labels=[" good", " good and bad"], end=False).end


def test_rlprompt_says_which_labels_its_reward_cannot_tell_apart():
    lm = double("gpt2")
    rows = [Example("f", label) for label in ("good", "grand", "bad")] * 3
    with pytest.warns(UserWarning, match="3 labels begin with 2 different"):
        label_reward(Objective(lm, rows), PROMPTS)


def test_bad_input_is_refused():
    lm = tiny("gpt2")
    with pytest.raises(ValueError, match="no examples"):
        Objective(lm, [])
    with pytest.raises(ValueError, match="fluency=-1"):
        Objective(lm, EXAMPLES, fluency=-1)
    with pytest.raises(ValueError, match="budget=0"):
        Objective(lm, EXAMPLES, budget=0)
    objective = Objective(lm, EXAMPLES, banned=["a"])
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(ValueError, match="n=0"):
        objective.start(0, generator)
    with pytest.raises(ValueError, match="banned"):
        objective.start(3, generator, "cab")
    with pytest.raises(ValueError, match="no tokens"):
        objective.start(3, generator, "")
    with pytest.raises(ValueError, match="limit of 128"):
        objective.start(120, generator)


@pytest.mark.parametrize("search", [pez, gcg, rlprompt, greedy_coordinate, random_search])
def test_fluency_of_a_single_token_with_nothing_in_front_is_refused(search):
    examples = [*EXAMPLES, Example("r", "no space")]
    with pytest.raises(ValueError, match="fluency=5 .* at least two tokens, or give fluency=0"):
        search(double("llama", bos=False), examples, n=1, fluency=5.0)


def test_what_cannot_be_read_is_never_the_best():
    for bos in (False, True):
        objective = Objective(double("llama", bos=bos), EXAMPLES, fluency=1.0)
        both = objective.score([(9,), (9, 10)])
        assert both.isfinite().tolist() == [bos, True]
        shortlist = Shortlist(objective)
        shortlist.offer([(9,), (9, 10), (40, 41, 50)])
        assert len(shortlist.best) > 1 or bos
    with pytest.raises(ValueError, match="at least two"):
        Objective(double("llama", bos=False), EXAMPLES, fluency=1.0).start(3, None, "a")
    assert Objective(double("llama", bos=False), EXAMPLES).start(3, None, "a")


@pytest.mark.parametrize(
    "search, settings",
    [
        (pez, dict(steps=1000)),
        (gcg, dict(steps=1000, candidates=8)),
        (rlprompt, dict(steps=1000, prompts=4, hidden=16)),
        (greedy_coordinate, dict(steps=1000, tries=8)),
        (random_search, dict(prompts=10**6)),
    ],
)
def test_a_search_ends_in_the_step_that_reaches_its_budget(search, settings):
    lm = double("gpt2")
    examples = [*EXAMPLES, Example("r", "no space")]  # RLPrompt needs two labels
    hard = search(lm, examples, n=4, budget=400, **settings)
    spent = hard.record["forwards"] + 3 * hard.record["backwards"]
    assert float(hard.loss) > 0
    if search is random_search:
        assert 400 - len(examples) < spent <= 400
    else:
        assert 400 <= spent < 600
        shorter = settings | dict(steps=len(hard.history))
        assert search(lm, examples, n=4, **shorter).tokens == hard.tokens
