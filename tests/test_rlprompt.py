"""RLPrompt: the reward against a plain loop, the loss by hand, and a planted best prompt."""

from itertools import product

from softprompt_nb.data import Example, encode
from softprompt_nb.translation.hard.objective import Objective, usable_tokens
from softprompt_nb.translation.hard.rlprompt import (
    Policy,
    RLConfig,
    consistency_loss,
    label_reward,
    learn,
    rlprompt,
    standard,
    write,
)

import pytest
import torch
from families import tiny

EXAMPLES = [Example("abc", " de"), Example("a longer input", "x"), Example("q", "yes it is"), Example("zz top", " q")]


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "llama"])
@torch.no_grad()
def test_the_reward_of_many_prompts_is_a_plain_loop(name):
    lm = tiny(name)
    o, prompts = Objective(lm, EXAMPLES), [(5, 40, 41), (70, 71, 72, 73), (50,)]
    rows = [encode(lm, e) for e in EXAMPLES]
    labels = sorted({r.ids[r.n_input] for r in rows})
    want = []
    for p in prompts:
        total = 0
        for r in rows:
            prob = (
                lm.model(input_ids=torch.tensor([[*p, *r.ids[: r.n_input]]])).logits[0, -1, labels].softmax(-1).tolist()
            )
            mine = prob.pop(labels.index(r.ids[r.n_input]))
            total += (mine - max(prob)) * (200 if mine > max(prob) else 180)
        want.append(total / len(rows))
    assert label_reward(o, prompts).tolist() == pytest.approx(want, rel=1e-3, abs=1e-2)


def test_the_loss_by_hand():
    g = torch.Generator().manual_seed(0)
    Q, S, r = torch.randn(2, 3, 5, generator=g), torch.randn(2, 3, 5, generator=g), torch.tensor([1.0, -2.0])
    ids = torch.tensor([[0, 1, 2], [4, 4, 0]])
    terms = [[], [], [], []]
    for b in range(2):
        V, A, V_, A_ = (
            [(z[b, t].logsumexp(0), z[b, t, ids[b, t]] - z[b, t].logsumexp(0))[i] for t in range(3)]
            for z in (Q, S)
            for i in (0, 1)
        )
        for t in range(3):
            nxt, nxt_ = (V[t + 1], V_[t + 1]) if t < 2 else (r[b], r[b])
            terms[0].append((A[t] - (nxt_ - V_[t])) ** 2)
            terms[1].append((A_[t] - (nxt - V[t])) ** 2)
            terms[2].append((sum(A[t:]) - (r[b] - V_[t])) ** 2)
            terms[3].append((sum(A_[t:]) - (r[b] - V[t])) ** 2)
    assert consistency_loss(Q, S, ids, r).item() == pytest.approx(
        sum(torch.stack(t).mean() for t in terms).item() / 4, rel=1e-5
    )


def test_the_policy_learns_a_planted_best_prompt():
    lm = tiny("gpt2")
    only = usable_tokens(lm)
    only[16:] = False  # twelve tokens, 144 prompts of two
    tokens = only.nonzero()[:, 0].tolist()
    worth = {
        p: torch.randn(1, generator=torch.Generator().manual_seed(p[0] * 131 + p[1])).item()
        for p in product(tokens, tokens)
    }
    best = (tokens[7], tokens[3])
    worth[best] = max(worth.values()) + 1
    policy = Policy(lm, only, hidden=256, seed=0)
    reward = lambda ids: torch.tensor([worth[tuple(p)] for p in ids.tolist()])
    h = learn(policy, reward, RLConfig(n=2, steps=250, prompts=32, lr=2e-3, polyak=0.05, seed=0))
    assert (
        tuple(write(policy, 1, 2, 1, torch.Generator().manual_seed(0))[0].tolist()) == best == max(worth, key=worth.get)
    )
    assert h.reward.tail(20).mean() > h.reward.head(20).mean() + 1


def test_a_policy_writes_usable_tokens_only():
    lm = tiny("gpt2")
    ok = usable_tokens(lm, ["abc"])
    for fluent in (None, 4):
        policy = Policy(lm, ok, hidden=16, fluent=fluent)
        ids = write(policy, 8, 5, 50, torch.Generator().manual_seed(0))
        assert ok[ids].all()
        if fluent:
            z = lm.model(input_ids=torch.cat([torch.tensor([1]).expand(8, 1), ids], 1)).logits.masked_fill(
                ~ok, -torch.inf
            )
            assert all(ids[b, t] in z[b, t].topk(4).indices for b in range(8) for t in range(5))


def test_another_model_may_be_the_policy():
    lm, writer = tiny("gpt2"), tiny("llama", seed=2)
    kw = dict(n=3, steps=6, prompts=4, hidden=16, eval_every=2, fluency=0.5, policy=writer, seed=1)
    a, b = (rlprompt(lm, EXAMPLES, **kw) for _ in range(2))
    assert (
        a.tokens == b.tokens and a.record["policy"] == "tiny-llama" and a.history.valid.dropna().is_monotonic_decreasing
    )
    assert all(p.grad is None for p in lm.model.parameters()) and all(p.grad is None for p in writer.model.parameters())


def test_small_pieces_and_bad_input():
    assert standard(torch.tensor([2.0, 2.0])).tolist() == [0, 0] and standard(torch.tensor([1.0, 3.0])).tolist() == [
        -1,
        1,
    ]
    lm = tiny("gpt2")
    with pytest.raises(ValueError, match="same token"):
        rlprompt(lm, EXAMPLES[:1], n=2, steps=1)
    with pytest.raises(ValueError, match="prompts=1"):
        RLConfig(prompts=1)
