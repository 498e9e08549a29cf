"""GCG and the plain searches: the gradient against finite differences of one-hot inputs, and what each search promises."""

from softprompt_nb.data import Example, collate
from softprompt_nb.engine.forward import prompted_loss
from softprompt_nb.translation.hard.baselines import greedy_coordinate, random_search, written
from softprompt_nb.translation.hard.gcg import GCGConfig, gcg, swaps, token_gradient
from softprompt_nb.translation.hard.objective import Objective, retokenized

import pytest
import torch
from families import tiny

EXAMPLES = [Example("abc", " de"), Example("a longer input", " x"), Example("q", " yes it is"), Example("zz top", " q")]


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "llama"])
def test_the_gradient_is_that_of_finite_differences_of_one_hot_rows(name):
    lm = tiny(name)
    o, ids = Objective(lm, EXAMPLES, fluency=0.5), (40, 41, 50, 7)
    value, G = token_gradient(o, ids)
    E = torch.cat(list(lm.embed_rows()))
    batch = collate(lm, EXAMPLES)

    def objective(X):
        logp = lm.model(inputs_embeds=(X @ E)[None]).logits[0].log_softmax(-1)
        return prompted_loss(lm, X @ E, batch) - 0.5 * (X[1:] * logp[:-1]).sum() / (len(ids) - 1)

    X = torch.nn.functional.one_hot(torch.tensor(ids), lm.vocab_size).float()
    with torch.no_grad():
        assert value == pytest.approx(objective(X).item(), rel=1e-4)
        for t, v in [(0, 7), (1, 60), (2, 99), (3, 11), (3, 7)]:
            e = torch.zeros_like(X)
            e[t, v] = 1e-2
            assert G[t, v].item() == pytest.approx(
                ((objective(X + e) - objective(X - e)) / 2e-2).item(), rel=5e-2, abs=1e-2
            )


def test_swaps_change_one_token_among_the_most_promising():
    lm = tiny("gpt2")
    o, ids, g = Objective(lm, EXAMPLES, banned=["aeiou"]), (40, 41, 50, 7), torch.Generator().manual_seed(0)
    G = torch.randn(4, lm.vocab_size, generator=g)
    allowed = G.masked_fill(~o.ok, torch.inf)
    made = swaps(o, ids, G, 12, 5, g)
    assert len(made) == len(set(made)) > 5
    for p in made:
        (place,) = [i for i in range(4) if p[i] != ids[i]]
        better = (allowed[place] < allowed[place, p[place]]).nonzero()[:, 0].tolist()
        assert o.ok[p[place]] and len([i for i in better if i != ids[place]]) < 5


@pytest.mark.parametrize("fluency", [0.0, 0.3])
@pytest.mark.parametrize("batch_size", [2, 16])
def test_the_objective_never_rises_and_is_what_it_says(fluency, batch_size):
    lm = tiny("gpt2")
    for seed in range(2):
        hard = gcg(
            lm,
            EXAMPLES,
            n=4,
            fluency=fluency,
            steps=12,
            candidates=16,
            topk=8,
            batch_size=batch_size,
            buffer=2,
            patience=1,
            restarts=1,
            seed=seed,
        )
        h = hard.history
        assert h.objective.is_monotonic_decreasing and h.valid.is_monotonic_decreasing and h.accepted.any()
        o = Objective(lm, EXAMPLES, fluency=fluency)
        assert h.objective.iloc[-1] == pytest.approx(
            o.score([hard.tokens])[0].item(), rel=1e-4
        )  # all examples are the validation examples here
        assert retokenized(lm, hard.tokens) == hard.tokens and len(hard.tokens) == 4


def test_a_search_without_neighbours_left_starts_anew_and_then_ends():
    lm = tiny("gpt2")
    only = [i for i in range(3, 98) if i not in (40, 41)]
    hard = gcg(lm, EXAMPLES, n=2, steps=60, candidates=8, buffer=2, patience=1, restarts=2, banned=only + [2])
    assert hard.history.restarts.max() == 2 and len(hard.history) < 60
    o = Objective(lm, EXAMPLES)
    every = [(a, b) for a in (40, 41) for b in (40, 41)]
    assert o.score([hard.tokens])[0] == o.score(every).min()  # four prompts in all, and the best is found


def test_gcg_finds_more_than_random_prompts_for_the_same_passes():
    lm, won = tiny("gpt_neox"), 0
    for seed in range(4):
        hard = gcg(lm, EXAMPLES, n=4, steps=12, candidates=24, topk=16, seed=seed)
        cost = hard.record["forwards"] + 2 * hard.record["backwards"]
        won += hard.loss < random_search(lm, EXAMPLES, n=4, prompts=cost // len(EXAMPLES), seed=seed).loss
    assert won >= 3


def test_random_search_is_the_best_of_its_prompts():
    lm = tiny("gpt2")
    hard = random_search(lm, EXAMPLES, n=3, prompts=20, seed=4)
    o = Objective(lm, EXAMPLES)
    assert float(hard.loss) == pytest.approx(min(hard.history.loss), rel=1e-4) and o.score([hard.tokens])[
        0
    ].item() == pytest.approx(float(hard.loss), rel=1e-4)
    assert hard.record["forwards"] == (20 + 8) * len(EXAMPLES)


def test_greedy_coordinate_never_rises_and_keeps_to_its_budget():
    lm = tiny("gpt2")
    hard = greedy_coordinate(lm, EXAMPLES, n=3, steps=6, tries=10, fluency=0.1)
    assert (
        hard.history.objective.is_monotonic_decreasing
        and (hard.history.tried <= 10).all()
        and hard.record["backwards"] == 0
    )
    assert Objective(lm, EXAMPLES, fluency=0.1).score([hard.tokens])[0].item() == pytest.approx(
        hard.history.objective.iloc[-1], rel=1e-4
    )


def test_a_written_prompt_is_measured_as_it_stands():
    lm = tiny("gpt2")
    hard = written(lm, "do it", EXAMPLES)
    assert (
        hard.text == "do it"
        and hard.record["method"] == "hand"
        and float(hard.loss) == pytest.approx(Objective(lm, EXAMPLES).score([hard.tokens])[0].item(), rel=1e-4)
    )


def test_bad_settings_are_refused():
    lm = tiny("gpt2")
    with pytest.raises(ValueError, match="candidates=0"):
        GCGConfig(candidates=0)
    with pytest.raises(ValueError, match="no setting 'topp'"):
        gcg(lm, EXAMPLES, topp=3)
    with pytest.raises(ValueError, match="prompts=0"):
        random_search(lm, EXAMPLES, prompts=0)
    with pytest.raises(ValueError, match="tries=0"):
        greedy_coordinate(lm, EXAMPLES, tries=0)
    with pytest.raises(ValueError, match="no tokens"):
        written(lm, "", EXAMPLES)
