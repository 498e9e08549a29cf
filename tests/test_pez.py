"""PEZ against a loop written by hand, and what the algorithm promises."""

from softprompt_nb.data import Example, collate
from softprompt_nb.engine.forward import prompted_loss
from softprompt_nb.load import load_lm
from softprompt_nb.translation.hard import pez as module
from softprompt_nb.translation.hard.objective import Objective, Reader, nll_gradient, usable_tokens
from softprompt_nb.translation.hard.pez import PEZConfig, Projection, parsability, pez, pez_gradient, straight_through

import pytest
import torch
import torch.nn.functional as F
from double_projection import compare, double_projection
from families import tiny

EXAMPLES = [Example("abc", " de"), Example("a longer input", " x"), Example("q", " yes it is"), Example("zz top", " q")]


@pytest.mark.parametrize("how", ["cosine", "euclidean"])
def test_projection_is_a_search_through_all_usable_tokens(how):
    lm = tiny("llama")
    proj, g = Projection(lm, usable_tokens(lm), how), torch.Generator().manual_seed(0)
    for v in torch.randn(20, lm.d_model, generator=g):
        far = [(1 - F.cosine_similarity(v, e, dim=0) if how == "cosine" else (v - e).norm()).item() for e in proj.table]
        assert proj.nearest(v[None]).item() == far.index(min(far))


@pytest.mark.parametrize("how", ["cosine", "euclidean"])
def test_a_search_is_the_loop_of_the_paper(how):
    lm = tiny("gpt_neox")
    kw = dict(n=4, steps=12, batch_size=len(EXAMPLES), lr=0.7, seed=5, projection=how)
    hard = pez(lm, EXAMPLES, **kw)
    o = Objective(lm, EXAMPLES)
    P = lm.embed(torch.tensor(o.start(4, torch.Generator().manual_seed(5)))).detach().clone().requires_grad_()
    usable = usable_tokens(lm).nonzero()[:, 0]
    opt, losses, visited = torch.optim.AdamW([P], lr=0.7, weight_decay=0), [], []
    batch = collate(lm, EXAMPLES)
    for _ in range(12):
        E = lm.embedding.weight[usable]
        near = (
            (F.normalize(P, dim=-1) @ F.normalize(E, dim=-1).T).argmax(-1)
            if how == "cosine"
            else torch.cdist(P, E).argmin(-1)
        )
        v = E[near].detach().requires_grad_()
        visited.append(tuple(usable[near].tolist()))
        loss = prompted_loss(lm, v, batch)
        (P.grad,) = torch.autograd.grad(loss, v)
        opt.step()
        losses.append(loss.item())
    assert hard.history.loss.tolist() == pytest.approx(losses, rel=1e-4)
    assert len(set(visited)) > 3 and min(losses) >= float(hard.loss) - 1e-5


def test_a_constant_push_moves_it_steadily():
    "A vocabulary in steps of 1 and a push of 0.3: what does not add up stays at the first token for ever."
    lm = tiny("gpt2")
    with torch.no_grad():
        lm.embedding.weight.zero_()
        lm.embedding.weight[:, 0] = torch.arange(lm.vocab_size, dtype=torch.float)
    proj, at, P, twice = Projection(lm, usable_tokens(lm), "euclidean"), [], torch.zeros(1, lm.d_model), []
    P[0, 0] = Q = 10.0
    for _ in range(20):
        at.append(proj.ids[proj.nearest(P)].item())
        P[0, 0] += 0.3
        Q = round(Q + 0.3)  # the projection put in place of the vector
        twice.append(Q)
    assert at == [round(10 + 0.3 * i) for i in range(20)] and set(twice) == {10}


@pytest.mark.parametrize("twice", [False, True])
def test_the_search_itself_adds_up_small_steps(monkeypatch, twice):
    "The same line of tokens, through `pez`: AdamW makes steps of its rate under a constant gradient."
    lm = tiny("gpt2")
    with torch.no_grad():
        lm.embedding.weight.zero_()
        lm.embedding.weight[:, 0] = torch.arange(lm.vocab_size, dtype=torch.float)
    at = []

    def push(objective, proj, P, rows, config):
        at.append(proj.ids[proj.nearest(P)].tolist())
        g = torch.zeros_like(P)
        g[:, 0] = -1
        return at[-1], g, dict(loss=0.0, objective=0.0)

    monkeypatch.setattr(module, "pez_gradient", push)
    kw = dict(steps=40, lr=0.31, projection="euclidean", text="!")
    if twice:
        with double_projection():
            pez(lm, EXAMPLES, **kw)
    else:
        pez(lm, EXAMPLES, **kw)
    (first,) = lm.tokenizer("!")["input_ids"]
    assert [a for (a,) in at] == [first if twice else round(first + 0.31 * i) for i in range(40)]


def test_at_equal_budget_it_finds_more_than_the_variant_that_projects_twice():
    "A small rate, where the variant cannot leave its first tokens; the full comparison, at larger rates too, is a script."
    t = compare(load_lm("lab-base-s"), ("class",), (0, 1, 2), (0.1,), 1000)
    ours, other = (t[t.method == m].reset_index() for m in ("PEZ", "double projection"))
    assert (
        (ours.changed > 2 * other.changed).all()
        and ours.spent.between(1000, 1500).all()
        and other.spent.between(1000, 1500).all()
    )
    assert ours.valid_loss.mean() < other.valid_loss.mean() and (ours.valid_loss <= other.valid_loss).sum() >= 2


def test_fluency_has_a_gradient_that_lowers_it():
    lm = tiny("gpt2")
    proj, reader, g = Projection(lm, usable_tokens(lm)), Reader(lm), torch.Generator().manual_seed(0)
    fell = 0
    for _ in range(8):
        P = proj.table[torch.randint(len(proj.ids), (6,), generator=g)].clone()
        seen = []
        for _ in range(40):
            nll, G = nll_gradient(reader, proj.ids[proj.nearest(P)].tolist())
            step = straight_through(proj, P, G)
            assert step.isfinite().all() and step.abs().max() > 0
            P -= 0.3 * P.norm(dim=-1, keepdim=True) * F.normalize(step, dim=-1)
            seen.append(nll)
        fell += min(seen) < seen[0] - 0.1
    assert fell >= 7


def test_straight_through_is_autograd_through_the_soft_rows():
    lm = tiny("llama")
    for how in ("cosine", "euclidean"):
        proj, g = Projection(lm, usable_tokens(lm), how), torch.Generator().manual_seed(1)
        P, G = torch.randn(3, lm.d_model, generator=g, requires_grad=True), torch.randn(3, lm.vocab_size, generator=g)
        s = (proj.similarity(P) / 0.3).softmax(-1)
        x = F.one_hot(proj.nearest(P), len(proj.ids)) + s - s.detach()
        (want,) = torch.autograd.grad((x * G[:, proj.ids]).sum(), P)
        assert torch.allclose(straight_through(proj, P, G, 0.3), want, atol=1e-6)


def test_the_terms_are_added_with_their_weights():
    lm = tiny("gpt2")
    o = Objective(lm, EXAMPLES, fluency=0.4)
    proj = Projection(lm, o.ok)
    P = proj.table[[3, 30, 60]] + 0.01
    ids, g, row = pez_gradient(o, proj, P, o.pool, PEZConfig(parsability=0.7))
    nll, G = nll_gradient(o.reading, ids)
    v = proj.table[[3, 30, 60]].clone().requires_grad_()
    want = o.gradient(v)[1] + 0.4 * straight_through(proj, P, G) + 0.7 * torch.autograd.grad(parsability(lm, v), v)[0]
    assert torch.allclose(g, want, atol=1e-5) and row["objective"] == pytest.approx(o.score([ids])[0].item(), rel=1e-4)


def test_parsability_is_a_plain_sum():
    lm = tiny("gpt2")
    v = torch.randn(4, lm.d_model, requires_grad=True)
    p = lm.model(inputs_embeds=v[None]).logits[0].softmax(-1)
    want = -sum(F.cosine_similarity(v[i], p[i - 1] @ lm.embedding.weight, dim=0) for i in (1, 2, 3)) / 3
    got = parsability(lm, v)
    assert torch.allclose(got, want, atol=1e-6)
    a, b = (torch.autograd.grad(x, v)[0] for x in (got, want))
    assert torch.allclose(a, b, atol=1e-6) and a.abs().max() > 0
    assert parsability(lm, torch.ones(3, lm.d_model)).isfinite()
    with pytest.raises(ValueError, match="at least two"):
        parsability(lm, v[:1])


def test_the_result_is_the_best_validated_prompt_and_never_worse_than_the_start():
    lm = tiny("gpt2")
    for seed in range(3):
        o = Objective(lm, EXAMPLES[:2], EXAMPLES[2:])
        first = o.score([o.start(5, torch.Generator().manual_seed(seed))], o.held)[0].item()
        hard = pez(lm, EXAMPLES[:2], n=5, valid=EXAMPLES[2:], steps=15, lr=1.0, seed=seed, eval_every=4)
        valid = hard.history.valid.dropna()
        assert (
            float(hard.loss) <= first + 1e-5
            and valid.is_monotonic_decreasing
            and valid.iloc[-1] == pytest.approx(float(hard.loss), rel=1e-4)
        )


def test_the_same_seed_gives_the_same_prompt():
    lm = tiny("gpt2")
    a, b = (pez(lm, EXAMPLES, n=4, steps=6, lr=1.0, batch_size=2, seed=2) for _ in range(2))
    assert a.tokens == b.tokens and a.history.equals(b.history)


def test_bad_settings_are_refused():
    lm = tiny("gpt2")
    with pytest.raises(ValueError, match="projection='dot'"):
        pez(lm, EXAMPLES, projection="dot")
    with pytest.raises(ValueError, match="no setting 'temprature'"):
        pez(lm, EXAMPLES, temprature=1)
    with pytest.raises(ValueError, match="steps=0"):
        pez(lm, EXAMPLES, steps=0)
    with pytest.raises(ValueError, match="lr=-1"):
        pez(lm, EXAMPLES, lr=-1)
