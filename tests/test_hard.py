"""Hard prompts against plain loops: scores, fluency, its gradient, what is kept."""

import math

from softprompt_nb.data import Example, encode
from softprompt_nb.engine.inference import exact_match, loss_on
from softprompt_nb.lm import FrozenLM
from softprompt_nb.translation.hard.baselines import greedy_coordinate, random_search
from softprompt_nb.translation.hard.gcg import gcg
from softprompt_nb.translation.hard.objective import (
    Objective,
    Reader,
    Shortlist,
    as_hard,
    nll_gradient,
    retokenized,
    text_of,
    usable_tokens,
)
from softprompt_nb.translation.hard.pez import pez
from softprompt_nb.translation.hard.rlprompt import rlprompt

import pytest
import torch
from families import FAMILIES, tiny
from hypothesis import given, settings
from hypothesis import strategies as st

EXAMPLES = [Example("abc", " de"), Example("a longer input", " x"), Example("q", " yes it is")]
PROMPTS = [(5, 40, 41), (70, 71, 72, 73, 74), (50, 51)]


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_scores_of_many_prompts_are_those_of_a_plain_loop(name):
    lm = tiny(name)
    o = Objective(lm, EXAMPLES, fluency=0.5, rows_a_pass=7)
    want = []
    for p in PROMPTS:
        losses = []
        for ex in EXAMPLES:
            e = encode(lm, ex)
            ids = torch.tensor([*p, *e.ids])
            logp = lm.model(input_ids=ids[None]).logits[0].log_softmax(-1)
            losses += [-logp[t - 1, ids[t]].item() for t in range(len(p) + e.n_input, len(ids))]
        reading = lm.model(input_ids=torch.tensor([p]), labels=torch.tensor([p])).loss.item()  # transformers' own
        want.append(sum(losses) / len(losses) + 0.5 * reading)
    assert torch.allclose(o.score(PROMPTS), torch.tensor(want), rtol=1e-4)
    assert o.forwards == len(PROMPTS) * len(EXAMPLES)


@pytest.mark.parametrize("bos", [False, True])
@torch.no_grad()
def test_fluency_is_transformers_own_loss(bos):
    lm = tiny("llama", bos=bos)
    assert Reader(lm).nll([(9,)]).isnan().item() != bos  # asked first: nothing else has been read yet
    for p, nll in zip(PROMPTS, Reader(lm).nll(PROMPTS).tolist()):
        ids = torch.tensor([[*([2] if bos else []), *p]])
        assert nll == pytest.approx(lm.model(input_ids=ids, labels=ids).loss.item(), rel=1e-5)
    one = Reader(lm).nll([(9,)])[0]
    assert math.isfinite(one) == bos  # nothing stands in front of a single token


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma"])
def test_the_gradient_of_fluency_is_that_of_finite_differences(name, bos):
    lm = tiny(name, bos=bos, dtype=torch.float64)
    p, reader, k = (40, 41, 50, 7), Reader(lm), int(bos)
    E = torch.cat(list(lm.embed_rows()))
    front = lm.embed(torch.tensor(reader.lead, dtype=torch.long))

    def nll(X):  # of rows that need not be one-hot
        logp = lm.model(inputs_embeds=torch.cat([front, X @ E])[None]).logits[0].log_softmax(-1)
        first = 1 - k
        return -sum((X[t] * logp[t + k - 1]).sum() for t in range(first, len(p))) / (len(p) - first)

    loss, G = nll_gradient(reader, p)
    X = torch.nn.functional.one_hot(torch.tensor(p), lm.vocab_size).double()
    with torch.no_grad():
        assert loss == pytest.approx(nll(X).item(), rel=1e-5)
        for t, v in [(0, 3), (1, 41), (2, 100), (3, 60), (3, 7), (0, 99)]:
            e = torch.zeros_like(X)
            e[t, v] = 1e-3  # families that normalise in float32 round smaller steps away
            assert G[t, v].item() == pytest.approx(((nll(X + e) - nll(X - e)) / 2e-3).item(), rel=2e-2, abs=1e-3)


def test_the_gradient_of_the_task_is_that_of_finite_differences():
    lm = tiny("gpt_neox", dtype=torch.float64)
    o, p = Objective(lm, EXAMPLES), (40, 41, 50)
    v = lm.embed(torch.tensor(p)).detach()
    loss, g = o.gradient(v)
    assert loss == pytest.approx(o.score([p])[0].item(), rel=1e-4) and o.backwards == len(EXAMPLES)
    G = g.double() @ torch.cat(list(lm.embed_rows())).T  # in the one-hot rows
    E = lm.embedding.weight
    for t, token in [(0, 7), (1, 60), (2, 99)]:
        moved = [v.clone() for _ in (0, 1)]
        for m, sign in zip(moved, (1, -1)):
            m[t] += sign * 1e-3 * E[token]
        rise = (o.gradient(moved[0])[0] - o.gradient(moved[1])[0]) / 2e-3
        assert G[t, token].item() == pytest.approx(rise, rel=2e-2, abs=1e-3)


def test_tokens_that_show_nothing_and_banned_ones_are_left_out():
    lm = tiny("gpt2")
    ok = usable_tokens(lm, banned=[10, "xyz"])
    assert (
        not ok[[0, 1, 3, 10, *lm.tokenizer("xyz")["input_ids"]]].any() and not ok[98:].any()
    )  # 3 is the space; 98 and more have no token
    assert ok.sum() == 95 - 4  # this tokenizer does not say that its <bos> is special
    with pytest.raises(ValueError, match="banned"):
        usable_tokens(lm, banned=range(120))


class Renamed:
    "The same tokenizer with its ids turned around."

    def __init__(self, tok):
        self.tok = tok

    def __getattr__(self, k):
        return getattr(self.tok, k)

    def __len__(self):
        return len(self.tok)

    def get_vocab(self):
        return {t: 97 - i for t, i in self.tok.get_vocab().items() if t != "~"}

    def __call__(self, *a, **kw):
        return self.tok(*a, **kw)


def test_a_reader_with_another_vocabulary_is_asked_by_the_tokens_texts():
    lm, other = tiny("gpt2"), tiny("llama", seed=1)
    other = FrozenLM(other.model, Renamed(other.tokenizer), "other")
    r, p = Reader(lm, other), (40, 41, 50)
    mapped = torch.tensor([[97 - i for i in p]])
    with torch.no_grad():
        want = other.model(input_ids=mapped, labels=mapped).loss.item()
    assert not r.same and r.nll([p])[0] == pytest.approx(want, rel=1e-5)
    loss, G = nll_gradient(r, p)
    assert loss == pytest.approx(want, rel=1e-5) and G.shape == (3, lm.vocab_size)
    tilde = lm.tokenizer("~")["input_ids"][0]
    assert (G[:, tilde] == 0).all() and not Objective(lm, EXAMPLES, reader=other).ok[tilde]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(3, 97), min_size=1, max_size=8))
def test_what_is_typed_stays_what_it_is(ids):
    lm = tiny("gpt2")
    typed = retokenized(lm, ids)
    assert text_of(lm, typed) == text_of(lm, ids) and retokenized(lm, typed) == typed


def test_the_best_on_validation_is_kept_and_measured():
    lm = tiny("gpt2")
    o = Objective(lm, EXAMPLES[:1], EXAMPLES[1:], fluency=0.2)
    s = Shortlist(o)
    scores = s.offer([*PROMPTS, PROMPTS[0]])
    spent = o.forwards
    assert s.offer(PROMPTS) == scores[:3] and o.forwards == spent  # nothing is scored twice
    assert (
        scores[:3] == pytest.approx(o.score(PROMPTS, o.held).tolist()) and s.best == PROMPTS[scores.index(min(scores))]
    )
    hard = as_hard(o, s.best, "test", seed=3)
    soft = hard.soft(lm)
    assert float(hard.loss) == pytest.approx(float(loss_on(lm, soft, EXAMPLES[1:]))) and hard.accuracy == exact_match(
        lm, soft, EXAMPLES[1:]
    )
    assert (
        hard.perplexity == pytest.approx(Reader(lm).nll([s.best]).exp().item())
        and "test" in repr(hard)
        and hard.record["valid"] == 2
    )


def test_bad_input_is_refused():
    lm = tiny("gpt2")
    with pytest.raises(ValueError, match="no examples"):
        Objective(lm, [])
    with pytest.raises(ValueError, match="fluency=-1"):
        Objective(lm, EXAMPLES, fluency=-1)
    with pytest.raises(ValueError, match="budget=0"):
        Objective(lm, EXAMPLES, budget=0)
    o, g = Objective(lm, EXAMPLES, banned=["a"]), torch.Generator().manual_seed(0)
    with pytest.raises(ValueError, match="n=0"):
        o.start(0, g)
    with pytest.raises(ValueError, match="banned"):
        o.start(3, g, "cab")
    with pytest.raises(ValueError, match="no tokens"):
        o.start(3, g, "")
    with pytest.raises(ValueError, match="limit of 128"):
        o.start(120, g)


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
    lm, some = tiny("gpt2"), [*EXAMPLES, Example("r", "no space")]  # RLPrompt needs two labels
    hard = search(lm, some, n=4, budget=400, **settings)
    spent = hard.record["forwards"] + 3 * hard.record["backwards"]
    assert (400 - len(some) < spent <= 400 if search is random_search else 400 <= spent < 600) and float(hard.loss) > 0
    if search is not random_search:
        assert search(lm, some, n=4, **settings | dict(steps=len(hard.history))).tokens == hard.tokens
