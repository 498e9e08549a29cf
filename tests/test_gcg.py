"""GCG and the plain searches: the gradient against finite differences, and what each search promises."""

from itertools import product

from softprompt_nb.data import Example, collate
from softprompt_nb.engine.forward import prompted_loss
from softprompt_nb.translation.hard.baselines import greedy_coordinate, random_search, written
from softprompt_nb.translation.hard.gcg import GCGConfig, gcg, swaps, token_gradient
from softprompt_nb.translation.hard.objective import Objective, retokenized

import pytest
import torch
from families import tiny

EXAMPLES = [Example("abc", " de"), Example("a longer input", " x"), Example("q", " yes it is"), Example("zz top", " q")]


# The models here compute in float64; the losses of their targets, about 20 in a mean, come in float32.
ROUNDING = 20 * 8 * torch.finfo(torch.float32).eps


def double(name):
    return tiny(name, dtype=torch.float64)


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "llama"])
def test_the_gradient_is_that_of_finite_differences_of_one_hot_rows(name):
    lm = double(name)
    objective = Objective(lm, EXAMPLES, fluency=0.5)
    ids = (40, 41, 50, 7)
    value, G = token_gradient(objective, ids)
    table = torch.cat(list(lm.embed_rows()))
    batch = collate(lm, EXAMPLES)

    def plain(rows):
        vectors = rows @ table
        logp = lm.model(inputs_embeds=vectors[None]).logits[0].log_softmax(-1)
        nats = -(rows[1:] * logp[:-1]).sum() / (len(ids) - 1)
        return prompted_loss(lm, vectors, batch) + 0.5 * nats

    rows = torch.nn.functional.one_hot(torch.tensor(ids), lm.vocab_size).double()
    with torch.no_grad():
        assert value == pytest.approx(plain(rows).item(), rel=ROUNDING)
        for place, token in [(0, 7), (1, 60), (2, 99), (3, 11), (3, 7)]:
            step = torch.zeros_like(rows)
            step[place, token] = 1e-2
            rise = (plain(rows + step) - plain(rows - step)) / 2e-2
            assert G[place, token].item() == pytest.approx(rise.item(), rel=5e-2, abs=1e-2)


def test_swaps_change_one_token_among_the_most_promising():
    lm = tiny("gpt2")
    objective = Objective(lm, EXAMPLES, banned=["aeiou"])
    ids = (40, 41, 50, 7)
    generator = torch.Generator().manual_seed(0)
    G = torch.randn(4, lm.vocab_size, generator=generator)
    allowed = G.masked_fill(~objective.ok, torch.inf)
    made = swaps(objective, ids, G, 12, 5, generator)
    assert len(made) == len(set(made)) > 5
    for prompt in made:
        (place,) = [i for i in range(4) if prompt[i] != ids[i]]
        token = prompt[place]
        better = (allowed[place] < allowed[place, token]).nonzero()[:, 0].tolist()
        assert objective.ok[token]
        assert len([other for other in better if other != ids[place]]) < 5


@pytest.mark.parametrize("fluency", [0.0, 0.3])
@pytest.mark.parametrize("batch_size", [2, 16])
def test_the_objective_never_rises_and_is_what_it_says(fluency, batch_size):
    lm = double("gpt2")
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
        history = hard.history
        assert history.objective.is_monotonic_decreasing
        assert history.valid.is_monotonic_decreasing
        assert history.accepted.any()
        score = Objective(lm, EXAMPLES, fluency=fluency).score([hard.tokens])[0].item()
        assert history.objective.iloc[-1] == pytest.approx(score, rel=ROUNDING)  # validated on the same examples here
        assert retokenized(lm, hard.tokens) == hard.tokens
        assert len(hard.tokens) == 4


def test_a_search_without_neighbours_left_starts_anew_and_then_ends():
    lm = double("gpt2")
    banned = [i for i in range(2, 98) if i not in (40, 41)]
    hard = gcg(lm, EXAMPLES, n=2, steps=60, candidates=8, buffer=2, patience=1, restarts=2, banned=banned)
    assert hard.history.restarts.max() == 2
    assert len(hard.history) < 60
    objective = Objective(lm, EXAMPLES)
    every = list(product((40, 41), repeat=2))
    best = every[objective.score(every).argmin()]
    assert hard.tokens == best  # of four prompts in all


def test_gcg_finds_more_than_random_prompts_for_the_same_passes():
    lm = double("gpt_neox")
    won = 0
    for seed in range(4):
        hard = gcg(lm, EXAMPLES, n=4, steps=12, candidates=24, topk=16, seed=seed)
        cost = hard.record["forwards"] + 2 * hard.record["backwards"]
        by_chance = random_search(lm, EXAMPLES, n=4, prompts=cost // len(EXAMPLES), seed=seed)
        won += hard.loss < by_chance.loss
    assert won >= 3


def test_random_search_is_the_best_of_its_prompts():
    lm = double("gpt2")
    hard = random_search(lm, EXAMPLES, n=3, prompts=20, seed=4)
    score = Objective(lm, EXAMPLES).score([hard.tokens])[0].item()
    assert float(hard.loss) == pytest.approx(min(hard.history.loss), rel=ROUNDING)
    assert float(hard.loss) == pytest.approx(score, rel=ROUNDING)
    assert hard.record["forwards"] == (20 + 8) * len(EXAMPLES)


def test_greedy_coordinate_never_rises_and_keeps_to_its_budget():
    lm = double("gpt2")
    hard = greedy_coordinate(lm, EXAMPLES, n=3, steps=6, tries=10, fluency=0.1)
    history = hard.history
    assert history.objective.is_monotonic_decreasing
    assert (history.tried <= 10).all()
    assert hard.record["backwards"] == 0
    score = Objective(lm, EXAMPLES, fluency=0.1).score([hard.tokens])[0].item()
    assert score == pytest.approx(history.objective.iloc[-1], rel=ROUNDING)


def test_a_written_prompt_is_measured_as_it_stands():
    lm = double("gpt2")
    hard = written(lm, "do it", EXAMPLES)
    assert hard.text == "do it"
    assert hard.record["method"] == "hand"
    score = Objective(lm, EXAMPLES).score([hard.tokens])[0].item()
    assert float(hard.loss) == pytest.approx(score, rel=ROUNDING)


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
