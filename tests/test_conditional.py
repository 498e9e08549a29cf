"""Rows with labels of their own, prompts from a condition and prompts in a few directions: each equal to a plain loop with plain PyTorch."""

import pytest
import torch
from families import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

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
from softprompt_nb.training.many import tune_many
from softprompt_nb.training.state import data_fingerprint
from softprompt_nb.training.tuning import tune

_made = {}


def lm_of(name="gpt_neox"):
    if name not in _made:
        _made[name] = tiny(name)
    return _made[name]


def rows_of(lm, n=12, seed=0, conditions=None):
    "Rows with random tokens, random places, random labels, some of them left out."
    g = torch.Generator().manual_seed(seed)
    out = []
    for i in range(n):
        T = int(torch.randint(4, 11, (1,), generator=g))
        ids = torch.randint(0, lm.vocab_size, (T,), generator=g).tolist()
        place = int(torch.randint(0, T - 2, (1,), generator=g))
        labels = [
            t if j > place else -100 for j, t in enumerate(torch.randint(0, lm.vocab_size, (T,), generator=g).tolist())
        ]
        if i % 3:
            labels[-1] = -100
        out.append(Encoded(ids, 0, place, labels, None if conditions is None else conditions[i % len(conditions)]))
    return out


def plain_nll(lm, row, vectors):
    "Losses of one row, by the model's own forward pass over embeddings, without anything of ours."
    e = lm.model.get_input_embeddings()(torch.tensor(row.ids))
    x = torch.cat([e[: row.at], vectors.to(e), e[row.at :]])
    labels = row.labels[: row.at] + [-100] * len(vectors) + row.labels[row.at :]
    z = lm.model(inputs_embeds=x[None]).logits[0].log_softmax(-1)
    return torch.stack([-z[j - 1, y] for j, y in enumerate(labels) if y != -100])


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox"])
def test_labels_of_their_own_are_the_targets(name):
    lm = lm_of(name)
    rows, prompt = rows_of(lm), SoftPrompt.init(lm, 3, seed=1)
    total, count = target_logprobs(lm, prompt, rows)
    want = [plain_nll(lm, r, prompt.vectors) for r in rows]
    assert count.tolist() == [len(w) for w in want]
    assert (total + torch.stack([w.sum() for w in want])).abs().max() < 1e-3
    bare = target_logprobs(lm, None, rows)[0]
    assert (bare + torch.stack([plain_nll(lm, r, torch.zeros(0, lm.d_model)).sum() for r in rows])).abs().max() < 1e-3


def test_encoded_rows_are_what_their_examples_were():
    lm = lm_of()
    ex = [Example("abc", " de"), Example("", " fgh"), Example("xyz", " a")]
    rows = encode_at(lm, ex, "before_answer")
    p = SoftPrompt.init(lm, 2, at="before_answer")
    assert all(torch.equal(a, b) for a, b in zip(target_logprobs(lm, p, ex), target_logprobs(lm, p, rows)))
    a, b = tune(lm, p, ex, steps=5, progress=False), tune(lm, p, rows, steps=5, progress=False)
    assert torch.equal(a.prompt.vectors, b.prompt.vectors)
    assert data_fingerprint(rows) != data_fingerprint(ex) and data_fingerprint(rows) == data_fingerprint(list(rows))


def test_labels_must_be_as_many_as_tokens():
    with pytest.raises(ValueError, match="2 labels for 3 tokens"):
        Encoded([1, 2, 3], 0, 0, [1, 2])


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.sampled_from(["left", "right"]))
@settings(max_examples=30, deadline=None)
def test_labels_land_on_their_tokens_in_any_padding(lengths, side):
    lm = lm_of()
    rows = [Encoded(list(range(5, 5 + n)), 0, 0, [-100 if j % 2 else 90 + j for j in range(n)]) for n in lengths]
    b = pad_rows(lm, rows, side)
    for r, ids, labels, real in zip(rows, b.input_ids, b.labels, b.attention_mask.bool()):
        assert ids[real].tolist() == r.ids and labels[real].tolist() == r.labels and (labels[~real] == -100).all()


def fresh(prompt):
    "The network of an untrained conditional prompt, as a module with weights."
    net = PromptNet(*prompt.spec)
    net.load_state_dict(_parts(prompt.spec, prompt.vectors[0].clone()))
    return net


@pytest.mark.parametrize("kind", NET_KINDS)
def test_a_conditional_prompt_trains_as_a_module_in_a_plain_loop(kind):
    lm = lm_of()
    rows = rows_of(lm, 8, conditions=[(0.0, 1.0), (1.0, 0.5), (-1.0, 2.0)])
    prompt = ConditionalPrompt.init(lm, 3, 2, kind, "vocab", hidden=16, layers=1)
    run = tune(
        lm,
        prompt,
        rows,
        steps=6,
        batch_size=8,
        lr=0.01,
        weight_decay=1e-2,
        warmup=1,
        schedule="constant",
        progress=False,
    )
    net = fresh(prompt)
    opt = torch.optim.AdamW(net.parameters(), lr=0.01, weight_decay=1e-2)
    for loss in run.history.loss:
        vs = prompt.start + lm.scale * net(torch.tensor([r.condition for r in rows]))
        mine = torch.cat([plain_nll(lm, r, v) for r, v in zip(rows, vs)]).mean()
        assert abs(mine.item() - loss) < 1e-4
        opt.zero_grad()
        mine.backward()
        opt.step()
    assert isinstance(run.prompt, ConditionalPrompt) and run.record["n_vectors"] == 3
    want = lm.scale * net(torch.tensor([[1.0, 0.5]]))[0] + prompt.start
    assert (run.prompt((1.0, 0.5)).vectors - want).abs().max() < 1e-3


def test_conditional_and_plain_prompts_share_a_pass():
    lm = lm_of()
    rows = rows_of(lm, 8, conditions=[(0.0,), (1.0,)])
    starts = [ConditionalPrompt.init(lm, 2, 1, "mlp", hidden=8), SoftPrompt.init(lm, 4), SubspacePrompt.init(lm, 3, 5)]
    kw = dict(steps=6, batch_size=4, lr=0.02, valid=rows[:4], eval_every=3, progress=False)
    for a, b in zip(tune_many(lm, starts, rows, **kw), [tune(lm, p, rows, **kw) for p in starts]):
        assert (a.history.loss - b.history.loss).abs().max() < 1e-4 and (
            a.history.valid.dropna() - b.history.valid.dropna()
        ).abs().max() < 1e-4
        assert (a.history.norm - b.history.norm).abs().max() < 1e-3


def test_a_subspace_of_all_dimensions_is_the_plain_prompt():
    lm = lm_of()
    rows, start = rows_of(lm, 8), SoftPrompt.init(lm, 3, seed=4)
    whole = SubspacePrompt.init(lm, 3, basis=torch.eye(lm.d_model), how=start.vectors)
    a, b = (tune(lm, p, rows, steps=8, lr=0.02, progress=False) for p in (start, whole))
    assert (a.prompt.vectors - b.prompt.plain().vectors).abs().max() < 1e-4
    assert (a.history.norm - b.history.norm).abs().max() < 1e-4


@pytest.mark.parametrize("kind", ["random", "pca"])
@pytest.mark.parametrize("k", [1, 5])
def test_directions_are_orthogonal_and_as_long_as_they_should_be(kind, k):
    lm = lm_of()
    B = directions(lm, k, kind)
    assert (B @ B.T - torch.eye(k) * lm.d_model / k).abs().max() < 1e-3
    if kind == "pca":
        E = torch.cat(list(lm.embed_rows()))
        _, _, V = torch.linalg.svd(E - E.mean(0))
        assert ((B @ V[:k].T).norm(dim=1) - (lm.d_model / k) ** 0.5).abs().max() < 1e-2


def test_state_of_a_conditional_prompt_resumes(tmp_path):
    from softprompt_nb.training.callbacks import Callback

    class Stop(Callback):
        def after_step(self, t):
            if t.step == 5:
                raise KeyboardInterrupt

    lm = lm_of()
    rows, p = (
        rows_of(lm, 8, conditions=[(0.0,), (1.0,)]),
        ConditionalPrompt.init(lm, 2, 1, "resnet", hidden=8, layers=1),
    )
    kw = dict(steps=10, batch_size=3, lr=0.02, progress=False)
    whole = tune(lm, p, rows, **kw)
    tune(lm, p, rows, callbacks=[Stop()], state=tmp_path / "s.safetensors", save_every=2, **kw)
    assert torch.equal(tune(lm, p, rows, state=tmp_path / "s.safetensors", **kw).prompt.vectors, whole.prompt.vectors)
    other = ConditionalPrompt.init(lm, 2, 1, "resnet", "gaussian", hidden=8, layers=1)
    with pytest.raises(ValueError, match="another tuning"):
        tune(lm, other, rows, state=tmp_path / "s.safetensors", **kw)


def test_a_saved_network_gives_the_same_prompts(tmp_path):
    lm = lm_of()
    p = ConditionalPrompt.init(lm, 3, 2, "shared_resnet", "vocab", at=2, hidden=8, layers=2)
    q = ConditionalPrompt.load(p.save(tmp_path / "p"), lm)
    assert q.at == 2 and torch.equal(q((1, 2)).vectors, p((1, 2)).vectors) and q.spec == p.spec
    with pytest.raises(ValueError, match="embedding table"):
        ConditionalPrompt.load(tmp_path / "p", lm_of("gpt2"))
    (tmp_path / "p" / "else").write_text("")
    with pytest.raises(FileExistsError):
        p.save(tmp_path / "p")
    r = SoftPrompt.load(SubspacePrompt.init(lm, 3, 2).save(tmp_path / "q"), lm)
    assert r.n == 3


@given(st.integers(1, 200))
@settings(max_examples=50, deadline=None)
def test_every_position_has_bits_of_its_own(n):
    bits = position_bits(n)
    assert (
        len({tuple(b) for b in bits.tolist()}) == n
        and set(bits.flatten().tolist()) <= {-1.0, 1.0}
        and bits.shape[1] <= max(1, n.bit_length())
    )


def test_bad_input():
    lm = lm_of()
    with pytest.raises(ValueError, match="kind='rnn'"):
        ConditionalPrompt.init(lm, kind="rnn")
    with pytest.raises(ValueError, match="at least one"):
        ConditionalPrompt.init(lm, conditions=0)
    p = ConditionalPrompt.init(lm, 2, 1)
    with pytest.raises(ValueError, match="made from a condition"):
        loss_on(lm, p, [Example("a", " b")])
    with pytest.raises(ValueError, match="made from a condition"):
        generate(lm, p, ["a"])
    with pytest.raises(ValueError, match="2 numbers"):
        p((1, 2))
    with pytest.raises(ValueError, match="directions"):
        SubspacePrompt.init(lm, k=10_000)
    with pytest.raises(ValueError, match="'random' or 'pca'"):
        SubspacePrompt.init(lm, k=2, basis="dct")
    with pytest.raises(ValueError, match="basis has shape"):
        SubspacePrompt.init(lm, basis=torch.ones(2, 3))
    assert len(generate(lm, p((1,)), ["ab"], 3)) == 1
