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
    lm = tiny(name, dtype=torch.float64)
    prompts = [(5, 40, 41), (70, 71, 72, 73), (50,)]
    rows = [encode(lm, example) for example in EXAMPLES]
    labels = sorted({row.ids[row.n_input] for row in rows})
    want = []
    for prompt in prompts:
        rewards = []
        for row in rows:
            inputs = torch.tensor([[*prompt, *row.ids[: row.n_input]]])
            probability = lm.model(input_ids=inputs).logits[0, -1, labels].softmax(-1).tolist()
            right = probability.pop(labels.index(row.ids[row.n_input]))
            gap = right - max(probability)
            rewards.append(gap * (200 if gap > 0 else 180))
        want.append(sum(rewards) / len(rows))
    assert label_reward(Objective(lm, EXAMPLES), prompts).tolist() == pytest.approx(want, rel=1e-9, abs=1e-9)


def in_terms(values, ids):
    "V and A of one prompt, step by step."
    V = [row.logsumexp(0) for row in values]
    A = [row[token] - total for row, token, total in zip(values, ids, V)]
    return V, A


def test_the_loss_by_hand():
    draws = dict(generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    fast, slow = torch.randn(2, 3, 5, **draws), torch.randn(2, 3, 5, **draws)
    reward = torch.tensor([1.0, -2.0], dtype=torch.float64)
    ids = torch.tensor([[0, 1, 2], [4, 4, 0]])
    terms = []
    for i in range(2):
        V, A = in_terms(fast[i], ids[i])
        slow_V, slow_A = in_terms(slow[i], ids[i])
        for step in range(3):
            behind = V[step + 1] if step < 2 else reward[i]
            slow_behind = slow_V[step + 1] if step < 2 else reward[i]
            terms += [
                A[step] - (slow_behind - slow_V[step]),
                slow_A[step] - (behind - V[step]),
                sum(A[step:]) - (reward[i] - slow_V[step]),
                sum(slow_A[step:]) - (reward[i] - V[step]),
            ]
    want = torch.stack(terms).square().mean().item()  # every kind of term has as many
    assert consistency_loss(fast, slow, ids, reward).item() == pytest.approx(want, rel=1e-9)


def test_the_policy_learns_a_planted_best_prompt():
    lm = tiny("gpt2")
    only = usable_tokens(lm)
    only[16:] = False  # twelve tokens, 144 prompts of two
    tokens = only.nonzero()[:, 0].tolist()
    worth = {}
    for first, second in product(tokens, tokens):
        generator = torch.Generator().manual_seed(first * 131 + second)
        worth[first, second] = torch.randn(1, generator=generator).item()
    best = (tokens[7], tokens[3])
    worth[best] = max(worth.values()) + 1
    policy = Policy(lm, only, hidden=256, seed=0)

    def reward(ids):
        return torch.tensor([worth[tuple(prompt)] for prompt in ids.tolist()])

    history = learn(policy, reward, RLConfig(n=2, steps=250, prompts=32, lr=2e-3, polyak=0.05, seed=0))
    (learned,) = write(policy, 1, 2, 1, torch.Generator().manual_seed(0)).tolist()
    assert tuple(learned) == best == max(worth, key=worth.get)
    assert history.reward.tail(20).mean() > history.reward.head(20).mean() + 1


def test_a_policy_writes_usable_tokens_only():
    lm = tiny("gpt2", dtype=torch.float64)
    ok = usable_tokens(lm, ["abc"])
    for fluent in (None, 4):
        policy = Policy(lm, ok, hidden=16, fluent=fluent)
        ids = write(policy, 8, 5, 50, torch.Generator().manual_seed(0))
        assert ok[ids].all()
        if fluent:
            lead = torch.tensor([1]).expand(8, 1)
            logits = lm.model(input_ids=torch.cat([lead, ids], 1)).logits.masked_fill(~ok, -torch.inf)
            likeliest = logits.topk(4, -1).indices
            assert (ids[..., None] == likeliest[:, :-1]).any(-1).all()


def test_another_model_may_be_the_policy():
    lm = tiny("gpt2")
    writer = tiny("llama", seed=2)
    given = dict(n=3, steps=6, prompts=4, hidden=16, eval_every=2, fluency=0.5, policy=writer, seed=1)
    first, second = (rlprompt(lm, EXAMPLES, **given) for _ in range(2))
    assert first.tokens == second.tokens
    assert first.record["policy"] == "tiny-llama"
    assert first.history.valid.dropna().is_monotonic_decreasing
    for model in (lm.model, writer.model):
        assert all(weight.grad is None for weight in model.parameters())


def test_small_pieces_and_bad_input():
    assert standard(torch.tensor([2.0, 2.0])).tolist() == [0, 0]
    assert standard(torch.tensor([1.0, 3.0])).tolist() == [-1, 1]
    nan = torch.nan
    for low in (-4.0, 3.0):  # NaN is the lowest there is, whatever the sign
        assert standard(torch.tensor([low, nan, low + 2, nan])).argsort(stable=True).tolist() == [0, 1, 3, 2]
    assert standard(torch.tensor([nan, nan])).tolist() == [0, 0]
    assert standard(torch.tensor([-torch.inf, 0.0, nan])).isfinite().all()
    lm = tiny("gpt2")
    with pytest.raises(ValueError, match="same token"):
        rlprompt(lm, EXAMPLES[:1], n=2, steps=1)
    with pytest.raises(ValueError, match="prompts=1"):
        RLConfig(prompts=1)
