"""Targets in front of a prompt, models that count distances over slots, what is asked without content in a chat."""

from softprompt_nb.data import Encoded, Example, pad_rows
from softprompt_nb.engine.forward import plan, prompted_loss
from softprompt_nb.engine.inference import exact_match, generate, score_options, target_logprobs
from softprompt_nb.engine.labels import label_accuracy
from softprompt_nb.lm import FrozenLM
from softprompt_nb.prompts import SoftPrompt

import pytest
import torch
from families import D, V, tiny, tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, BloomConfig, MptConfig, PreTrainedTokenizerFast

TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[me] {% endif %}"
)


def vectors_of(lm, n=4, seed=1):
    return torch.randn(n, D, dtype=lm.dtype, generator=torch.Generator().manual_seed(seed)) * lm.scale


@torch.no_grad()
def by_hand(lm, row, vectors):
    "Sum of log-probabilities of the labels, by the own pass of the model over the row; a first token is no target."
    embeds = lm.model.get_input_embeddings()(torch.tensor(row.ids))
    embeds = torch.cat([embeds[: row.at], vectors, embeds[row.at :]])
    labels = row.labels or [-100] * row.n_input + row.ids[row.n_input :]
    labels = labels[: row.at] + [-100] * len(vectors) + labels[row.at :]
    logprobs = lm.model(inputs_embeds=embeds[None]).logits[0].log_softmax(-1)
    return sum(logprobs[i - 1, label].item() for i, label in enumerate(labels) if i and label != -100)


@settings(max_examples=15, deadline=None)
@given(at=st.integers(0, 8), first=st.integers(0, 8), alike=st.booleans(), seed=st.integers(0, 3))
def test_targets_count_wherever_they_stand(at, first, alike, seed):
    "In front of the prompt too, where several rows share what stands there."
    lm = tiny("llama", dtype=torch.float64)
    vectors = vectors_of(lm)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, V, (9,), generator=generator).tolist()
    other = ids if alike else ids[:5] + torch.randint(3, V, (4,), generator=generator).tolist()
    rows = [Encoded(own, len(own), at, [-100] * first + own[first:]) for own in (ids, other)]
    want = [by_hand(lm, row, vectors) for row in rows]
    total, _ = target_logprobs(lm, vectors, rows)
    assert total.tolist() == pytest.approx(want, rel=1e-9)
    batch = pad_rows(lm, rows)
    both = [prompted_loss(lm, vectors, batch, shared_prefix=shared).item() for shared in (True, False)]
    assert both[0] == pytest.approx(both[1], rel=1e-9)


def of_config(config):
    torch.manual_seed(0)
    config.eos_token_id = 1
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float64)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(4)
    return FrozenLM(model, tokenizer(False), config.model_type)


SLOTS = {
    "mpt": lambda: MptConfig(vocab_size=V, d_model=D, n_heads=4, n_layers=3, expansion_ratio=2, max_seq_len=128),
    "bloom": lambda: BloomConfig(vocab_size=V, hidden_size=D, n_layer=3, n_head=4),
}


@pytest.mark.filterwarnings("ignore:.*does not give the same logits")
@pytest.mark.parametrize("family", SLOTS)
@settings(max_examples=8, deadline=None)
@given(lengths=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=2, max_size=5))
def test_rows_of_any_lengths_on_models_without_position_ids(family, lengths):
    "Their distances count slots, so no padding may come between a prompt and its text."
    lm = of_config(SLOTS[family]())
    vectors = vectors_of(lm)
    generator = torch.Generator().manual_seed(0)
    rows = []
    for n_input, n_target in lengths:
        ids = torch.randint(3, V, (n_input + n_target,), generator=generator).tolist()
        rows.append(Encoded(ids, n_input, n_input))
    total, _ = target_logprobs(lm, vectors, rows)
    assert total.tolist() == pytest.approx([by_hand(lm, row, vectors) for row in rows], rel=1e-8)


@pytest.mark.filterwarnings("ignore:.*does not give the same logits")
@pytest.mark.parametrize("family", SLOTS)
def test_texts_of_models_without_position_ids(family):
    lm = of_config(SLOTS[family]())
    prompt = SoftPrompt(vectors_of(lm), at="before_answer")
    texts = ["abcde", "fghij klm", "a", "b c d e f"]
    together = generate(lm, prompt, texts, max_new_tokens=6)
    assert together == [generate(lm, prompt, text, max_new_tokens=6)[0] for text in texts]
    for text, answer in zip(texts, together):
        ids = lm.token_ids(text)
        embeds = torch.cat([lm.embed_ids(ids), prompt.vectors])[None]
        new = []
        for _ in range(6):
            token = lm.model(inputs_embeds=embeds).logits[0, -1].argmax().item()
            if token == lm.tokenizer.eos_token_id:
                break
            new.append(token)
            embeds = torch.cat([embeds, lm.embed_ids([token])[None]], 1)
        assert answer == lm.tokenizer.decode(new, skip_special_tokens=True)


def test_models_that_take_position_ids_still_share():
    lm = tiny("llama", dtype=torch.float64)
    rows = [Encoded(list(range(3, 3 + n)), n - 2, 0) for n in (5, 9, 7)]
    assert plan(lm, vectors_of(lm), pad_rows(lm, rows)) not in ("head", "full", "single")


def test_an_input_without_content_goes_into_the_template_too():
    lm = tiny("llama", dtype=torch.float64)
    lm.tokenizer.chat_template = TEMPLATE
    examples = [Example("Review: good Sentiment:", " pos"), Example("Review: bad Sentiment:", " neg")]
    free = "Review: N/A Sentiment:"
    found = label_accuracy(lm, None, examples, by="prior", content_free=free, chat=True)
    text = lm.tokenizer.apply_chat_template(
        [dict(role="user", content=free)], tokenize=False, add_generation_prompt=True
    )
    want = score_options(lm, None, [text], ["pos", "neg"])[0].tolist()
    given_labels = [label.strip() for label in found.labels[0]]
    expected = [want[["pos", "neg"].index(label)] for label in given_labels]
    assert found.prior[0].tolist() == pytest.approx(expected, rel=1e-9)


def test_an_answer_may_need_more_tokens_than_its_words_alone(monkeypatch):
    "A tokenizer that puts a space in front has one token for a word alone, and many for it behind a bracket."
    words = ["▁photosynthesis", "▁yes"]
    letters = [chr(code) for code in range(33, 127)]
    vocabulary = ["<pad>", "<eos>", "<unk>", "▁", *letters, *words]
    pieces = [(piece, -1.0 if len(piece) > 1 else -5.0) for piece in vocabulary]
    made = Tokenizer(models.Unigram(pieces, unk_id=2))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    made.decoder = decoders.Metaspace()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
    lm = FrozenLM(tiny("llama").model, wrapped, "meta")
    from softprompt_nb.engine import inference

    asked = []

    def generated(lm, prompt, texts, max_new_tokens, batch_size):
        asked.append(max_new_tokens)
        return ["photosynthesis"]

    monkeypatch.setattr(inference, "generate", generated)
    assert exact_match(lm, None, [Example("name it (", "photosynthesis")]) == 1
    assert asked[0] > len("photosynthesis")


@pytest.mark.parametrize("family", SLOTS)
def test_nothing_but_a_prompt(family):
    lm = of_config(SLOTS[family]())
    prompt = SoftPrompt(vectors_of(lm))
    both = generate(lm, prompt, ["", "a b"], max_new_tokens=3)
    assert both == [generate(lm, prompt, text, max_new_tokens=3)[0] for text in ("", "a b")]


@pytest.mark.parametrize("name, instead", [("max_length", "max_new_tokens"), ("min_length", "min_new_tokens")])
def test_lengths_that_count_the_prompt_are_refused(name, instead):
    lm = tiny("llama")
    with pytest.raises(ValueError, match=instead):
        generate(lm, SoftPrompt(vectors_of(lm)), "abc", **{name: 12})


def test_spaces_of_an_answer_are_left_as_they_are():
    lm = tiny("llama")
    lm.tokenizer.clean_up_tokenization_spaces = True
    text = generate(lm, None, "a , b", max_new_tokens=8)[0]
    ids = lm.token_ids("a , b")
    out = lm.model.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False, pad_token_id=0)[0, len(ids) :]
    raw = lm.tokenizer.decode(out, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert text == raw


def test_the_part_that_inputs_share_is_put_into_the_template_whole():
    lm = tiny("llama", dtype=torch.float64)
    lm.tokenizer.chat_template = TEMPLATE.replace("{{ m['content'] }}", "{{ m['content'] }}<end>")
    examples = [Example("Review: good film", " pos"), Example("Review: bad play", " neg")]
    found = label_accuracy(lm, None, examples, by="prior", chat=True)
    assert found.content_free == ("[user] Review: N/A<end>\n[me] ",)


def test_an_answer_that_goes_on_behind_a_space_is_another(monkeypatch):
    "Where a space is a token of its own, one token more than the target's would show the space alone."
    from softprompt_nb.engine import inference

    asked = []

    def generated(lm, prompt, texts, max_new_tokens, batch_size):
        asked.append(max_new_tokens)
        return ["32 33"]

    monkeypatch.setattr(inference, "generate", generated)
    lm = tiny("llama")
    assert exact_match(lm, None, [Example("31", "32")]) == 0 and asked[0] >= len(lm.token_ids("32")) + 2


def test_a_typeset_minus_is_a_minus():
    from softprompt_nb.evaluation.formats.formats import final_number

    assert [final_number(text) for text in ("The answer is \u22125.", "#### \u22125", "x = \u221212")] == [
        "-5",
        "-5",
        "-12",
    ]
