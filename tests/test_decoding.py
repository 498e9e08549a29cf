"""Greedy is the model's own argmax: whatever a checkpoint's settings, however the rows lie, at whatever length."""

import threading
from multiprocessing import get_context

from softprompt_nb.data import Encoded, Example, collate, encode_at, pad_rows
from softprompt_nb.engine import decoding
from softprompt_nb.engine.decoding import end_ids
from softprompt_nb.engine.forward import assemble, plan, prompted_loss, prompted_losses, target_logits
from softprompt_nb.engine.inference import generate, loss_on, score_options
from softprompt_nb.lm import FrozenLM
from softprompt_nb.prompts import SoftPrompt

import pytest
import torch
from families import NEWER, WINDOWED, tiny, tokenizer
from hypothesis import example as given_example
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, CTRLConfig, GenerationConfig

DOUBLE = torch.float64
WORDS = "abcdefghij klmnop"
_made = {}


def lm_of(name):
    "A model in float64, made once; Gemma 2 takes its softmax in float32 whatever the dtype."
    if name not in _made:
        _made[name] = tiny(name, dtype=torch.float32 if name == "gemma2" else DOUBLE)
    return _made[name]


def by_hand(lm, prompt, text, steps, ends=(1,)):
    "Argmax of the model's own call over the whole row, again for each token."
    embeds = lm.embed_ids(lm.tokenizer(text)["input_ids"])
    if prompt is not None:
        embeds = torch.cat([prompt.vectors.to(lm.dtype), embeds])
    out = []
    for _ in range(steps):
        token = lm.model(inputs_embeds=embeds[None], use_cache=False).logits[0, -1].argmax()
        if token in ends:
            break
        out.append(int(token))
        embeds = torch.cat([embeds, lm.embed(token)[None]])
    return lm.tokenizer.decode(out, skip_special_tokens=True)


def prompt_of(lm, n, seed=0):
    return None if n == 0 else SoftPrompt.init(lm, n, "gaussian", seed=seed)


def text_of(length, seed):
    return "".join(WORDS[(7 * k + seed) % len(WORDS)] for k in range(length))


ROWS = st.lists(st.tuples(st.integers(1, 18), st.sampled_from([0, 3, 9])), min_size=1, max_size=4)


@pytest.mark.parametrize("name", [*WINDOWED, "phi3_long"])
@settings(max_examples=8, deadline=None)
@given(rows=ROWS, steps=st.integers(1, 14))
@given_example(rows=[(1, 9), (3, 3)], steps=14)  # no row is beyond the border, and with its padding the batch is
@torch.no_grad()
def test_a_batch_around_a_border_says_what_each_row_says_by_hand(name, rows, steps):
    "Windows of twelve tokens, and positions that are scaled from the twenty-fifth on."
    lm = lm_of(name)
    prompts = {n: prompt_of(lm, n, seed=n) for n in (0, 3, 9)}
    texts = [text_of(length, i) for i, (length, _) in enumerate(rows)]
    each = [prompts[n] for _, n in rows]
    want = [by_hand(lm, prompt, text, steps) for prompt, text in zip(each, texts)]
    assert generate(lm, each, texts, steps) == want


@pytest.mark.parametrize("name", [*WINDOWED, "phi3_long"])
@settings(max_examples=8, deadline=None)
@given(rows=ROWS, side=st.sampled_from(["right", "left"]))
@given_example(rows=[(12, 9)], side="right")  # beyond the border by its last target, which is not read
@torch.no_grad()
def test_logits_around_a_border_are_each_rows_own_whatever_came_before(name, rows, side):
    lm = lm_of(name)
    tolerance = 1e-4 if name == "gemma2" else 1e-9
    generator = torch.Generator().manual_seed(3)
    prompts = [None, *(torch.randn(n, lm.d_model, generator=generator, dtype=lm.dtype) * lm.scale for n in (3, 9))]
    examples = [Example(text_of(length, i), " de") for i, (length, _) in enumerate(rows)]
    lanes = [[0, 3, 9].index(n) for _, n in rows]
    batch = pad_rows(lm, encode_at(lm, examples), side, lanes)
    ours, _, row = target_logits(lm, prompts, batch)
    for i, (example, lane) in enumerate(zip(examples, lanes)):
        alone = assemble(lm, prompts[lane], collate(lm, [example]))
        places = (alone.labels[0, 1:] != -100).nonzero()[:, 0]
        want = lm.model(inputs_embeds=alone.inputs_embeds).logits[0, places]
        assert (ours[row == i] - want).abs().max() <= tolerance * want.abs().max()
    fresh = FrozenLM(lm.model, lm.tokenizer, "fresh")
    assert plan(fresh, prompts, batch) == plan(lm, prompts, batch)


def test_a_long_row_between_short_ones_is_tuned_in_either_order():
    lm = lm_of("gemma3")
    losses = []
    for order in (1, -1):
        rows = ([Example("abc", " x")] * 3 + [Example(text_of(30, 0), " x")])[::order]
        vectors = prompt_of(lm, 8).vectors.double().requires_grad_()
        both = [prompted_loss(lm, vectors, collate(lm, rows), shared) for shared in (True, False)]
        grads = [torch.autograd.grad(loss, vectors)[0] for loss in both]
        assert (grads[0] - grads[1]).norm() < 1e-9 * grads[1].norm()
        losses.append(both[0].item())
        score_options(lm, None, ["abc", text_of(20, 1)], [" x", " y"])
    assert abs(losses[0] - losses[1]) < 1e-9


def test_a_long_common_beginning_within_the_window_is_still_packed():
    "The longest prefix and the longest rest belong to rows of their own; each row fits."
    lm = FrozenLM(lm_of("mistral_window").model, lm_of("mistral_window").tokenizer, "fresh")
    rows = [Encoded([5, 6, 7, 8, 9, 10, 3], 6), Encoded([5, 6, 7, 8, 9, 11, 3], 6), Encoded([12, 13, 14, 15, 3], 1)]
    prompts = [torch.randn(n, lm.d_model, dtype=DOUBLE) for n in (4, 5)]
    batch = pad_rows(lm, rows, lanes=[0, 0, 1])
    assert plan(lm, prompts, batch) in ("tree", "packed")
    both = [prompted_losses(lm, prompts, batch, shared) for shared in (True, False)]
    assert torch.allclose(*both, rtol=1e-9)


@pytest.mark.parametrize("at", ["start", "before_answer"])
@pytest.mark.parametrize("name", NEWER)
@torch.no_grad()
def test_newer_families_obey_the_laws(name, at):
    "Embedded text is text, a batch is its rows, both paddings, shared is plain; also beyond a window."
    lm = lm_of(name)
    examples = [Example("abc", " de"), Example("a much longer input", " x"), Example("q", " yes it is")]
    ids = lm.tokenizer("some text")["input_ids"]
    want = []
    for row in encode_at(lm, examples, at):
        whole = row.ids[: row.at] + ids + row.ids[row.at :]
        first = len(ids) + row.n_input
        want.append(lm.model(torch.tensor([whole])).logits[0, first - 1 : len(whole) - 1])
    want = torch.cat(want)
    for side in ("right", "left"):
        for shared in (True, False):
            batch = collate(lm, examples, at=at, padding_side=side)
            ours = target_logits(lm, lm.embed_ids(ids), batch, shared)[0]
            assert (ours - want).abs().max() <= 1e-9 * want.abs().max()
    prompt = SoftPrompt(lm.embed_ids(ids))
    texts = [example.input for example in examples]
    assert generate(lm, prompt, texts, 5) == [by_hand(lm, prompt, text, 5) for text in texts]


SETTINGS = dict(
    repetition_penalty=st.floats(1.1, 3),
    no_repeat_ngram_size=st.integers(1, 3),
    num_beams=st.integers(2, 3),
    do_sample=st.just(True),
    temperature=st.floats(0.3, 3),
    top_k=st.integers(1, 5),
    suppress_tokens=st.lists(st.integers(3, 100), min_size=1, max_size=40),
    min_new_tokens=st.integers(5, 9),
    max_length=st.integers(1, 9),
    return_dict_in_generate=st.just(True),
    output_scores=st.just(True),
    cache_implementation=st.sampled_from(["static", "hybrid", "offloaded"]),
    use_cache=st.just(False),
    forced_eos_token_id=st.just(110),
    guidance_scale=st.just(2.0),
    bad_words_ids=st.just([[k] for k in range(3, 60)]),
)


@settings(max_examples=15, deadline=None)
@given(of_checkpoint=st.fixed_dictionaries({}, optional=SETTINGS))
@torch.no_grad()
def test_a_checkpoints_settings_do_not_reach_generate(of_checkpoint):
    lm = FrozenLM(lm_of("llama3_scaled").model, lm_of("llama3_scaled").tokenizer, "with settings")
    usual = lm.model.generation_config
    prompt = prompt_of(lm, 3)
    want = [by_hand(lm, prompt, text, 6) for text in ("abc", "a longer one")]
    lm.model.generation_config = GenerationConfig(eos_token_id=1, **of_checkpoint)
    before = lm.model.generation_config.to_dict()
    try:
        assert generate(lm, prompt, ["abc", "a longer one"], 6) == want
        assert generate(lm, None, "abc", 6) == [by_hand(lm, None, "abc", 6)]
        assert lm.model.generation_config.to_dict() == before
    finally:
        lm.model.generation_config = usual


@torch.no_grad()
def test_all_end_tokens_of_a_checkpoint_end_a_text():
    lm = tiny("qwen3", dtype=DOUBLE)
    prompt = prompt_of(lm, 3)
    second = int(lm.tokenizer(by_hand(lm, prompt, "abc", 4))["input_ids"][1])
    lm.model.generation_config.eos_token_id = [1, second]
    assert end_ids(lm) == [1, second]
    want = [by_hand(lm, prompt, text, 6, ends=(1, second)) for text in ("abc", "q")]
    assert len(want[0]) == 1 and generate(lm, prompt, ["abc", "q"], 6) == want
    assert generate(lm, prompt, "abc", 6, eos_token_id=None) == [by_hand(lm, prompt, "abc", 6, ends=())]


@torch.no_grad()
def test_settings_that_look_at_the_text_are_those_of_transformers_on_each_row():
    lm = lm_of("qwen3")
    texts = ["abcabc", "a much longer text", "q", "abcabd"]
    for options in (dict(repetition_penalty=1.7), dict(no_repeat_ngram_size=1)):
        want = []
        for text in texts:
            ids = torch.tensor([lm.tokenizer(text)["input_ids"]])
            out = lm.model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0, **options)
            want.append(lm.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
        assert generate(lm, None, texts, 6, **options) == want
        prompt = SoftPrompt(lm.embed_ids(lm.tokenizer("ab")["input_ids"]))
        assert generate(lm, prompt, texts, 6, **options) == [generate(lm, prompt, x, 6, **options)[0] for x in texts]


@pytest.mark.parametrize("size, beams", [(64, 1), (2, 1), (64, 2)])
def test_what_asks_for_a_rows_number_is_told_the_callers(size, beams):
    lm = lm_of("qwen3")
    texts = ["aaaa", "b", "cc", "dd", "e"]
    letters = ["X", "Y", "Z", "V", "W"]
    seen = {}

    def allowed(row, ids):
        seen.setdefault(row, lm.tokenizer.decode(ids.tolist()))
        return lm.token_ids(letters[row], continuing=True)

    options = dict(batch_size=size, num_beams=beams, prefix_allowed_tokens_fn=allowed)
    for prompt in (None, prompt_of(lm, 3)):
        seen.clear()
        assert generate(lm, prompt, texts, 2, **options) == [2 * letter for letter in letters]
        assert [seen[row] for row in range(5)] == texts


@torch.no_grad()
@pytest.mark.parametrize("kind", ["logits", "states", "place"])
def test_a_hook_that_comes_later_changes_what_is_generated_as_in_transformers(kind):
    lm = tiny("llama", dtype=DOUBLE)
    prompt, texts = prompt_of(lm, 3), ["abc", "a longer one", "q"]
    plain = generate(lm, prompt, texts, 6)
    assert plain == [by_hand(lm, prompt, text, 6, end_ids(lm)) for text in texts]

    def turned(module, args, output):
        "The other sign for all logits, for all states of a layer, or for those of the fourth token of a row."
        if kind == "logits":
            output.logits = -output.logits
            return output
        states = (output[0] if isinstance(output, tuple) else output).clone()
        states[:, slice(3, 4) if kind == "place" else slice(None)] *= -9
        return (states, *output[1:]) if isinstance(output, tuple) else states

    handle = (lm.model if kind == "logits" else lm.layers[0]).register_forward_hook(turned)
    found = generate(lm, prompt, texts, 6)
    want = []
    for text in texts:
        row = torch.cat([prompt.vectors.to(lm.dtype), lm.embed_ids(lm.tokenizer(text)["input_ids"])])[None]
        out = lm.model.generate(
            inputs_embeds=row, max_new_tokens=6, do_sample=False, eos_token_id=end_ids(lm), pad_token_id=0
        )
        want.append(lm.tokenizer.decode(out[0], skip_special_tokens=True))
    handle.remove()
    assert found == want != plain
    assert generate(lm, prompt, texts, 6) == plain


@torch.no_grad()
def test_beams_caches_and_forms_of_output_that_a_user_asks_for():
    lm = lm_of("qwen3")
    prompt, texts = prompt_of(lm, 4), ["abc", "a longer one"]
    greedy = generate(lm, prompt, texts, 5)
    for options in (
        dict(return_dict_in_generate=True),
        dict(cache_implementation="static"),
        dict(use_cache=True),
        dict(generation_config=GenerationConfig(max_new_tokens=5)),
    ):
        assert generate(lm, prompt, texts, **dict(max_new_tokens=5) | options) == greedy
    beams = []
    for text in texts:
        row = torch.cat([prompt.vectors.to(lm.dtype), lm.embed_ids(lm.tokenizer(text)["input_ids"])])[None]
        out = lm.model.generate(inputs_embeds=row, max_new_tokens=5, num_beams=3, do_sample=False, pad_token_id=0)
        beams.append(lm.tokenizer.decode(out[0], skip_special_tokens=True))
    assert generate(lm, prompt, texts, 5, num_beams=3) == beams
    with pytest.raises(ValueError, match="max_new_tokens, which counts new tokens alone"):
        generate(lm, prompt, texts, max_length=9)
    with pytest.raises(ValueError, match="past_key_values: generate makes that"):
        generate(lm, prompt, texts, past_key_values=None)


def test_a_model_that_goes_on_wrongly_from_a_cache_is_decoded_without_one():
    lm = tiny("llama", dtype=DOUBLE)
    want = by_hand(lm, None, "abc", 5)
    real = lm.model.model.forward

    def forward(*args, past_key_values=None, **kwargs):
        "A trunk that forgets what is in its cache at every second token."
        if past_key_values is not None and past_key_values.get_seq_length() % 2:
            kwargs["position_ids"] = kwargs["position_ids"] + 7
        return real(*args, past_key_values=past_key_values, **kwargs)

    lm.model.model.forward = forward
    assert generate(lm, None, ["abc"], 5) == [want]
    assert "full" in lm.plans.values()
    with pytest.raises(ValueError, match="only be decoded greedily.*leave out temperature"):
        generate(lm, None, ["abc"], 5, temperature=0.5)


def test_one_model_in_three_threads():
    lm = tiny("qwen3", dtype=DOUBLE)
    lm.checkpointing = True
    prompt, texts = prompt_of(lm, 5), ["abc", "a longer one", "q"]
    examples = [Example(text, " de") for text in texts]

    def gradient():
        vectors = prompt.vectors.double().requires_grad_()
        return torch.autograd.grad(prompted_loss(lm, vectors, collate(lm, examples)), vectors)[0]

    jobs = dict(
        score=lambda: score_options(lm, prompt, texts, [" x", " yy"]).tolist(),
        text=lambda: generate(lm, prompt, texts, 4),
        loss=lambda: float(loss_on(lm, None, examples)),
        gradient=lambda: gradient().tolist(),
    )
    want = {name: job() for name, job in jobs.items()}
    found = []

    def work(name):
        for _ in range(6):
            found.append((name, jobs[name]()))

    threads = [threading.Thread(target=work, args=(name,)) for name in (*jobs, "score")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 30 and all(value == want[name] for name, value in found)


def _scores(job):
    lm, prompt = job
    torch.set_num_threads(1)
    return score_options(lm, prompt, ["abc", "q"], [" x", " yy"]).tolist(), generate(lm, prompt, ["abc", "q"], 4)


def test_one_model_in_two_processes():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        lm = lm_of("qwen3")
        job = (lm, prompt_of(lm, 5))
        want = _scores(job)
        with get_context("fork").Pool(2) as pool:
            jobs = [pool.apply_async(_forked, (k,)) for k in range(2)]
            assert [job.get(60) for job in jobs] == [want, want]
    finally:
        torch.set_num_threads(before)


def _forked(_):
    lm = _made["qwen3"]
    return _scores((lm, prompt_of(lm, 5)))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_model_is_whole_after_an_interrupt(error, checkpointing):
    lm = tiny("gpt_neox", dtype=DOUBLE)
    lm.checkpointing = checkpointing
    batch = collate(lm, [Example("abc", " de"), Example("q", " x")])
    vectors = prompt_of(lm, 4).vectors.double().requires_grad_()
    before = {name: dict(vars(module)) for name, module in lm.model.named_modules()}
    settings_before = dict(vars(lm.config))
    want = prompted_loss(lm, vectors, batch).item()

    def stop(*args):
        raise error

    handle = lm.layers[1].register_forward_hook(stop)
    for call in (lambda: prompted_loss(lm, vectors, batch), lambda: generate(lm, None, "abc", 3)):
        with pytest.raises(error):
            call()
    handle.remove()
    assert prompted_loss(lm, vectors, batch).item() == want
    assert vars(lm.config) == settings_before
    for name, module in lm.model.named_modules():
        assert vars(module).keys() == before[name].keys()
        assert all(vars(module)[key] is before[name][key] for key in before[name])


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_prompt_without_numbers_is_refused_when_its_kind_of_batch_is_known(family, beams):
    "The first-use check saw another prompt, so each step has to look."
    lm = tiny(family, dtype=torch.float64)
    good = SoftPrompt.init(lm, 3, seed=0)
    broken = SoftPrompt(torch.full((3, lm.d_model), torch.nan))
    texts = ["the cat", "a dog"]
    generate(lm, [good, good], texts, max_new_tokens=4, num_beams=beams)
    with pytest.raises(ValueError, match="NaN.*diverged"):
        generate(lm, [good, broken], texts, max_new_tokens=4, num_beams=beams)
    with pytest.raises(ValueError, match="NaN.*diverged"):
        generate(lm, broken, texts, max_new_tokens=4, num_beams=beams)


def test_a_step_without_numbers_is_refused_where_rows_are_decoded_whole(monkeypatch):
    lm = tiny("llama", dtype=torch.float64)
    monkeypatch.setattr(decoding, "way_to_decode", lambda *_: "full")
    broken = SoftPrompt(torch.full((3, lm.d_model), torch.nan))
    with pytest.raises(ValueError, match="NaN.*diverged"):
        generate(lm, broken, ["the cat"], max_new_tokens=4)


def test_a_model_that_scales_its_embeddings_in_place_says_what_it_says_token_by_token():
    torch.manual_seed(0)
    config = CTRLConfig(vocab_size=120, n_embd=32, n_layer=3, n_head=4, dff=48, n_positions=128, eos_token_id=1)
    model = AutoModelForCausalLM.from_config(config, dtype=DOUBLE)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(4)
    lm = FrozenLM(model, tokenizer(), name="ctrl")
    texts = [text_of(9, seed) for seed in range(12)]
    right = []
    for text in texts:
        ids = lm.token_ids(text)
        new = []
        for _ in range(6):
            new.append(int(model(torch.tensor([ids + new]), use_cache=False).logits[0, -1].argmax()))
            if new[-1] == 1:
                break
        right.append(lm.tokenizer.decode(new, skip_special_tokens=True))
    assert generate(lm, None, texts, 6) == right
