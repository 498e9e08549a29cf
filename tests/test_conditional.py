"""Rows with labels of their own, prompts from a condition and in a few directions: each equal to plain PyTorch.

Where two computations are the same number, model and prompts are in float64 and agree to 1e-9."""

from functools import cache

from softprompt_nb.conditional import (
    NET_KINDS,
    ConditionalPrompt,
    PromptNet,
    SubspacePrompt,
    _parts,
    directions,
    position_bits,
)
from softprompt_nb.data import Encoded, Example, encode_at, pad_rows
from softprompt_nb.engine.inference import generate, loss_on, target_logprobs
from softprompt_nb.prompts import SoftPrompt
from softprompt_nb.training.callbacks import Callback
from softprompt_nb.training.many import tune_many
from softprompt_nb.training.state import data_fingerprint
from softprompt_nb.training.tuning import tune

import pytest
import torch
from families import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

SAME = 1e-9  # two computations of one number in float64


@cache
def lm_of(name="gpt_neox"):
    return tiny(name, dtype=torch.float64)


def close(first, second):
    first, second = (torch.as_tensor(x, dtype=torch.float64) for x in (first, second))
    return (first - second).abs().max() < SAME


def rows_of(lm, n=12, seed=0, conditions=None):
    "Rows with random tokens, random places, random labels, some of them left out."
    generator = torch.Generator().manual_seed(seed)

    def draw(low, high, size=1):
        return torch.randint(low, high, (size,), generator=generator).tolist()

    rows = []
    for i in range(n):
        (length,) = draw(4, 11)
        ids = draw(0, lm.vocab_size, length)
        (place,) = draw(0, length - 2)
        labels = [token if j > place else -100 for j, token in enumerate(draw(0, lm.vocab_size, length))]
        if i % 3:
            labels[-1] = -100
        condition = None if conditions is None else conditions[i % len(conditions)]
        rows.append(Encoded(ids, 0, place, labels, condition))
    return rows


def plain_nll(lm, row, vectors):
    "Losses of one row, by the model's own forward pass over embeddings, without anything of ours."
    tokens = lm.model.get_input_embeddings()(torch.tensor(row.ids))
    x = torch.cat([tokens[: row.at], vectors.to(tokens), tokens[row.at :]])
    labels = row.labels[: row.at] + [-100] * len(vectors) + row.labels[row.at :]
    logprobs = lm.model(inputs_embeds=x[None]).logits[0].log_softmax(-1)
    return torch.stack([-logprobs[j - 1, y] for j, y in enumerate(labels) if y != -100])


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox"])
def test_labels_of_their_own_are_the_targets(name):
    lm = lm_of(name)
    rows = rows_of(lm)
    prompt = SoftPrompt.init(lm, 3, seed=1)
    total, count = target_logprobs(lm, prompt, rows)
    want = [plain_nll(lm, row, prompt.vectors) for row in rows]
    assert count.tolist() == [len(losses) for losses in want]
    assert close(total, torch.stack([-losses.sum() for losses in want]))
    none = torch.zeros(0, lm.d_model)
    bare = torch.stack([-plain_nll(lm, row, none).sum() for row in rows])
    assert close(target_logprobs(lm, None, rows)[0], bare)


def test_encoded_rows_are_what_their_examples_were():
    lm = lm_of()
    examples = [Example("abc", " de"), Example("", " fgh"), Example("xyz", " a")]
    rows = encode_at(lm, examples, "before_answer")
    prompt = SoftPrompt.init(lm, 2, at="before_answer")
    of_examples, of_rows = (target_logprobs(lm, prompt, data) for data in (examples, rows))
    assert all(close(first, second) for first, second in zip(of_examples, of_rows))
    first, second = (tune(lm, prompt, data, steps=5, progress=False) for data in (examples, rows))
    assert close(first.prompt.vectors, second.prompt.vectors)
    assert data_fingerprint(rows) != data_fingerprint(examples)
    assert data_fingerprint(rows) == data_fingerprint(list(rows))


def test_labels_must_be_as_many_as_tokens():
    with pytest.raises(ValueError, match="2 labels for 3 tokens"):
        Encoded([1, 2, 3], 0, 0, [1, 2])


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.sampled_from(["left", "right"]))
@settings(max_examples=30, deadline=None)
def test_labels_land_on_their_tokens_in_any_padding(lengths, side):
    lm = lm_of()
    rows = [Encoded(list(range(5, 5 + n)), 0, 0, [-100 if j % 2 else 90 + j for j in range(n)]) for n in lengths]
    batch = pad_rows(lm, rows, side)
    for row, ids, labels, real in zip(rows, batch.input_ids, batch.labels, batch.attention_mask.bool()):
        assert ids[real].tolist() == row.ids
        assert labels[real].tolist() == row.labels and (labels[~real] == -100).all()


def fresh(prompt):
    "The network of an untrained conditional prompt, as a module with weights."
    net = PromptNet(*prompt.spec).to(prompt.vectors)
    net.load_state_dict(_parts(prompt.spec, prompt.vectors[0].clone()))
    return net


@pytest.mark.parametrize("kind", NET_KINDS)
def test_a_conditional_prompt_trains_as_a_module_in_a_plain_loop(kind):
    lm = lm_of()
    rows = rows_of(lm, 8, conditions=[(0.0, 1.0), (1.0, 0.5), (-1.0, 2.0)])
    prompt = ConditionalPrompt.init(lm, 3, 2, kind, "vocab", hidden=16, layers=1)
    settings = dict(steps=6, batch_size=8, lr=0.01, weight_decay=1e-2, warmup=1, schedule="constant", progress=False)
    run = tune(lm, prompt, rows, **settings)
    net = fresh(prompt)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01, weight_decay=1e-2)
    conditions = torch.tensor([row.condition for row in rows], dtype=torch.float64)
    for loss in run.history.loss:
        made = prompt.start + lm.scale * net(conditions)
        plain = torch.cat([plain_nll(lm, row, vectors) for row, vectors in zip(rows, made)]).mean()
        assert close(plain.detach(), loss)
        optimizer.zero_grad()
        plain.backward()
        optimizer.step()
    assert isinstance(run.prompt, ConditionalPrompt) and run.record["n_vectors"] == 3
    want = lm.scale * net(torch.tensor([[1.0, 0.5]], dtype=torch.float64))[0] + prompt.start
    assert close(run.prompt((1.0, 0.5)).vectors, want.detach())


def test_conditional_and_plain_prompts_share_a_pass():
    lm = lm_of()
    rows = rows_of(lm, 8, conditions=[(0.0,), (1.0,)])
    starts = [ConditionalPrompt.init(lm, 2, 1, "mlp", hidden=8), SoftPrompt.init(lm, 4), SubspacePrompt.init(lm, 3, 5)]
    settings = dict(steps=6, batch_size=4, lr=0.02, valid=rows[:4], eval_every=3, progress=False)
    together = tune_many(lm, starts, rows, **settings)
    for run, start in zip(together, starts):
        alone = tune(lm, start, rows, **settings)
        for column in ("loss", "valid", "norm"):
            got, want = (history[column].dropna().to_list() for history in (run.history, alone.history))
            assert close(got, want)


def test_a_subspace_of_all_dimensions_is_the_plain_prompt():
    lm = lm_of()
    rows = rows_of(lm, 8)
    start = SoftPrompt.init(lm, 3, seed=4)
    whole = SubspacePrompt.init(lm, 3, basis=torch.eye(lm.d_model), how=start.vectors)
    plain, within = (tune(lm, prompt, rows, steps=8, lr=0.02, progress=False) for prompt in (start, whole))
    assert close(plain.prompt.vectors, within.prompt.plain().vectors)
    assert close(plain.history.norm.to_list(), within.history.norm.to_list())


def test_a_regulariser_sees_the_vectors_that_rows_get():
    lm = lm_of()
    rows = rows_of(lm, 8)
    start = SoftPrompt.init(lm, 3, seed=4)
    seen = []

    def pull(vectors):
        seen.append(vectors.detach().clone())
        return 0.3 * vectors.square().sum()

    options = dict(steps=5, lr=0.02, progress=False, regularizer=pull)
    whole = SubspacePrompt.init(lm, 3, basis=torch.eye(lm.d_model), how=start.vectors)
    plain, within = (tune(lm, prompt, rows, **options) for prompt in (start, whole))
    assert close(plain.prompt.vectors, within.prompt.plain().vectors)
    assert close(plain.history.regularizer.to_list(), within.history.regularizer.to_list())
    assert torch.equal(seen[5], start.vectors) and within.trajectory.shape[1:] == whole.vectors.shape


def test_a_regulariser_is_refused_where_rows_get_different_vectors():
    lm = lm_of()
    rows = rows_of(lm, 4, conditions=[(0.0,), (1.0,)])
    network = ConditionalPrompt.init(lm, 2, 1, hidden=4)
    options = dict(steps=2, progress=False, regularizer=lambda vectors: vectors.square().sum())
    with pytest.raises(ValueError, match="no .n, d. vectors that a regulariser could take"):
        tune(lm, network, rows, **options)
    with pytest.raises(ValueError, match="Lane 1: .*no .n, d. vectors"):
        tune_many(lm, [SoftPrompt.init(lm, 2), network], rows, **options)
    alike = rows_of(lm, 4, conditions=[(1.0,)])
    run = tune(lm, network, alike, **options)
    assert abs(run.history.regularizer[0] - network((1.0,)).vectors.square().sum().item()) < SAME


@pytest.mark.parametrize("kind", ["random", "pca"])
@pytest.mark.parametrize("k", [1, 5])
def test_directions_are_orthogonal_and_as_long_as_they_should_be(kind, k):
    "In float32, so to the rounding of a sum of products whose whole is the square of that length."
    lm = lm_of()
    basis = directions(lm, k, kind)
    square = lm.d_model / k
    rounding = torch.finfo(torch.float32).eps * lm.d_model
    assert (basis @ basis.T - torch.eye(k) * square).abs().max() < rounding * square
    if kind == "pca":
        table = torch.cat(list(lm.embed_rows()))
        _, _, axes = torch.linalg.svd(table - table.mean(0))
        along = (basis.double() @ axes[:k].T).norm(dim=1)
        assert (along - square**0.5).abs().max() < rounding * square**0.5


class Stop(Callback):
    def after_step(self, tuning):
        if tuning.step == 5:
            raise KeyboardInterrupt


def test_state_of_a_conditional_prompt_resumes(tmp_path):
    lm = lm_of()
    rows = rows_of(lm, 8, conditions=[(0.0,), (1.0,)])
    prompt = ConditionalPrompt.init(lm, 2, 1, "resnet", hidden=8, layers=1)
    state = tmp_path / "s.safetensors"
    settings = dict(steps=10, batch_size=3, lr=0.02, progress=False)
    whole = tune(lm, prompt, rows, **settings)
    tune(lm, prompt, rows, callbacks=[Stop()], state=state, save_every=2, **settings)
    resumed = tune(lm, prompt, rows, state=state, **settings)
    assert close(resumed.prompt.vectors, whole.prompt.vectors)
    other = ConditionalPrompt.init(lm, 2, 1, "resnet", "gaussian", hidden=8, layers=1)
    with pytest.raises(ValueError, match="another tuning"):
        tune(lm, other, rows, state=state, **settings)


def test_a_saved_network_gives_the_same_prompts(tmp_path):
    lm = tiny("gpt_neox")
    prompt = ConditionalPrompt.init(lm, 3, 2, "shared_resnet", "vocab", at=2, hidden=8, layers=2)
    again = ConditionalPrompt.load(prompt.save(tmp_path / "p"), lm)
    assert again.at == 2 and again.spec == prompt.spec
    assert torch.equal(again.vectors, prompt.vectors) and torch.equal(again.start, prompt.start)
    assert torch.equal(again((1, 2)).vectors, prompt((1, 2)).vectors)
    with pytest.raises(ValueError, match="embedding table"):
        ConditionalPrompt.load(tmp_path / "p", lm_of("gpt2"))
    (tmp_path / "p" / "else").write_text("")
    with pytest.raises(FileExistsError):
        prompt.save(tmp_path / "p")
    plain = SoftPrompt.load(SubspacePrompt.init(lm, 3, 2).save(tmp_path / "q"), lm)
    assert plain.n == 3


def test_prompts_in_float64_stay_so_and_are_saved_in_float32(tmp_path):
    lm = lm_of()
    network = ConditionalPrompt.init(lm, 3, 1)
    few = SubspacePrompt.init(lm, 3, 2)
    vectors = [network((0.3,)).vectors, few.plain().vectors, *few.given(few.vectors, [None])]
    assert {v.dtype for v in vectors} == {torch.float64}
    assert ConditionalPrompt.load(network.save(tmp_path / "p"), lm).vectors.dtype == torch.float32
    assert SoftPrompt.load(few.save(tmp_path / "q"), lm).vectors.dtype == torch.float32


@given(st.integers(1, 200))
@settings(max_examples=50, deadline=None)
def test_every_position_has_bits_of_its_own(n):
    bits = position_bits(n)
    assert len({tuple(row) for row in bits.tolist()}) == n
    assert set(bits.flatten().tolist()) <= {-1.0, 1.0}
    assert bits.shape[1] <= max(1, n.bit_length())


def test_bad_input():
    lm = lm_of()
    with pytest.raises(ValueError, match="kind='rnn'"):
        ConditionalPrompt.init(lm, kind="rnn")
    with pytest.raises(ValueError, match="at least one"):
        ConditionalPrompt.init(lm, conditions=0)
    prompt = ConditionalPrompt.init(lm, 2, 1)
    with pytest.raises(ValueError, match="made from a condition"):
        loss_on(lm, prompt, [Example("a", " b")])
    with pytest.raises(ValueError, match="made from a condition"):
        generate(lm, prompt, ["a"])
    with pytest.raises(ValueError, match="2 numbers"):
        prompt((1, 2))
    with pytest.raises(ValueError, match="directions"):
        SubspacePrompt.init(lm, k=10_000)
    with pytest.raises(ValueError, match="'random' or 'pca'"):
        SubspacePrompt.init(lm, k=2, basis="dct")
    with pytest.raises(ValueError, match="basis has shape"):
        SubspacePrompt.init(lm, basis=torch.ones(2, 3))
    assert len(generate(lm, prompt((1,)), ["ab"], 3)) == 1
