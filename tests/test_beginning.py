"""How a text begins, and who stands in front of it: tokenizers of all kinds against what transformers itself does."""

import math
import warnings
from functools import partial

from softprompt_nb.data import (
    Encoded,
    Example,
    bare_examples,
    collate,
    encode,
    encode_at,
    encode_context,
    resolve_at,
    text_place,
)
from softprompt_nb.engine.inference import exact_match, generate, loss_on, score_options
from softprompt_nb.evaluation.distance.capabilities import from_examples, plain_text, repetition, skipping, windows
from softprompt_nb.evaluation.interpretability import _controls, divergence, faithfulness, scrutability
from softprompt_nb.experiments.runs import content_hash, plain_config
from softprompt_nb.lm import FrozenLM
from softprompt_nb.load import load_lm
from softprompt_nb.prompts import SoftPrompt
from softprompt_nb.studies.readable import HardConfig
from softprompt_nb.translation.hard.baselines import written
from softprompt_nb.translation.hard.objective import Objective, Reader, nll_gradient, text_of, usable_tokens
from softprompt_nb.translation.readings.inspect import TargetText
from softprompt_nb.translation.readings.verbalize import prompt_states
from softprompt_nb.translation.translator import rerank
from softprompt_nb.translation.translator.dods import TaskSet
from softprompt_nb.translation.translator.evaluate import execute, executed, judge
from softprompt_nb.translation.translator.rerank import text_divergence
from softprompt_nb.translation.translator.train_prompts import Pair, Pairs, PromptConfig, train_prompts

import pytest
import torch
from families import FAMILIES, tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

CLOSE = dict(rel=1e-9, abs=1e-9)
EXAMPLES = [Example("abc", " de"), Example("a longer input", " x"), Example("q", " yes it is")]
LETTERS = "abcdefghijklmnopqrstuvwxyz ABC.,:?\n"
SPECIAL = ["<pad>", "<eos>", "<bos>", "<start>", "<unused0>"]
TEMPLATES = dict(
    plain="[{{ messages[0].content }}][bot]",
    trim="[user]{{ messages[0].content | trim }}[/][bot]",
    bos="<bos>[{{ messages[0].content | trim }}]",
    upper="[{{ messages[0].content | upper }}][bot]",
)


def own_tokenizer(front="", behind="", prefix=False, reversed=False, stored=False, pad_beyond=False):
    "Letters, some pairs of them, and special tokens; what stands in front of a text and behind it as asked."
    letters = ["▁" if letter == " " and prefix else letter for letter in LETTERS]
    pairs = [("▁", "d") if prefix else (" ", "d"), ("a", "b"), ("c", "a")]
    words = [*SPECIAL, *letters, *("".join(pair) for pair in pairs)]
    if reversed:
        words = [*SPECIAL, *words[:4:-1]]
    made = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, pairs))
    if prefix:
        made.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
        made.decoder = decoders.Metaspace()
    else:
        made.decoder = decoders.Fuse()
    around = [(token, i) for i, token in enumerate(SPECIAL)]
    made.post_processor = TemplateProcessing(f"{front} $A {behind}".split(), special_tokens=around)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>")
    wrapped.add_tokens(AddedToken("<start>", special=True))
    wrapped.clean_up_tokenization_spaces = True
    if stored:
        wrapped.backend_tokenizer.enable_truncation(3)
        wrapped.backend_tokenizer.enable_padding(length=9, pad_id=0, pad_token="<pad>", direction="left")
    if pad_beyond:
        wrapped.add_special_tokens(dict(pad_token="<none>"))
        while wrapped.pad_token_id < 120:
            wrapped.add_tokens([f"<more{len(wrapped)}>"], special_tokens=True)
            wrapped.pad_token = f"<more{len(wrapped) - 1}>"
    return wrapped


VARIANTS = dict(
    nothing=own_tokenizer,
    bos=partial(own_tokenizer, "<bos>"),
    eos=partial(own_tokenizer, "", "<eos>"),
    both=partial(own_tokenizer, "<bos>", "<eos>"),
    two=partial(own_tokenizer, "<start> <bos>", "<eos>"),
    prefix=partial(own_tokenizer, "<bos>", prefix=True),
    stored=partial(own_tokenizer, "<bos>", stored=True),
    pad=partial(own_tokenizer, "<bos>", pad_beyond=True),
)
each_variant = pytest.mark.parametrize("variant", VARIANTS)
texts = st.text(LETTERS, max_size=12)


def lm_of(variant="bos", family="llama", template=None, seed=0):
    lm = tiny(family, dtype=torch.float64, seed=seed)
    lm = FrozenLM(lm.model, VARIANTS[variant](), f"tiny-{variant}")
    lm.tokenizer.chat_template = template and TEMPLATES[template]
    return lm


def own_ids(lm, text):
    "What the tokenizer's own call gives for a whole text, without what it puts behind."
    ids = lm.tokenizer(text)["input_ids"]
    behind = lm.tokenizer("")["input_ids"][len(lm.beginning) :]
    return ids[: len(ids) - len(behind)]


def own_nats(lm, ids, n_input):
    "Nats of each token of a row from a place on, by the model's own forward pass."
    with torch.no_grad():
        logp = lm.model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return [-logp[i - 1, ids[i]].item() for i in range(n_input, len(ids))]


def mean_nats(lm, rows):
    nats = [nat for row, n_input in rows for nat in own_nats(lm, row, n_input)]
    return sum(nats) / len(nats)


# tokens


@each_variant
@settings(max_examples=30, deadline=None)
@given(text=texts)
def test_a_text_has_the_tokenizers_own_tokens_and_begins_once(variant, text):
    lm = lm_of(variant)
    ids = lm.token_ids(text, special=True)
    assert ids == own_ids(lm, text)
    brought = "".join(lm.tokenizer.convert_ids_to_tokens(lm.beginning))
    if not lm.adds_space:  # else the tokenizer itself cuts text behind a mark in another way
        assert lm.token_ids(brought + text, special=True) == ids
        assert lm.text_ids(brought + text) == lm.token_ids(text) == ids[len(lm.beginning) :]


@pytest.mark.filterwarnings("ignore:Row 0. typed together")
@settings(max_examples=60, deadline=None)
@given(st.text("abcd ", min_size=1, max_size=6), st.text("abcd ", min_size=1, max_size=6))
def test_a_text_that_goes_on_has_no_space_of_its_own(first, second):
    lm = lm_of("prefix")
    assert lm.adds_space
    assert not lm_of("bos").adds_space
    ids = lm.token_ids("\n" + second)
    assert lm.token_ids(second, continuing=True) == ids[len(lm.token_ids("\n")) :]
    row = encode(lm, Example(first, second), end=False)
    assert lm.tokenizer.decode(row.ids, skip_special_tokens=True).strip() == (first + second).strip()


@each_variant
@pytest.mark.parametrize("family", FAMILIES)
def test_losses_are_those_of_transformers_on_the_tokenizers_own_tokens(variant, family):
    lm = lm_of(variant, family)
    rows = []
    for item in EXAMPLES:
        n_input = len(own_ids(lm, item.input))
        rows.append(([*own_ids(lm, item.input + item.target), 1], n_input))
    assert loss_on(lm, None, EXAMPLES).value == pytest.approx(mean_nats(lm, rows), **CLOSE)
    prompt = SoftPrompt(lm.embed_ids(lm.token_ids("do it")), "after_bos")
    said = [generate(lm, None, f"do it{item.input}", 3) for item in EXAMPLES] if not lm.adds_space else None
    if said:
        assert generate(lm, prompt, [item.input for item in EXAMPLES], 3) == [text for (text,) in said]


def test_rows_of_any_length_pad_with_a_token_that_the_model_has():
    lm, usual = lm_of("pad"), lm_of("bos")
    assert lm.tokenizer.pad_token_id >= lm.vocab_size > lm.pad_id
    prompt = SoftPrompt(torch.randn(3, lm.d_model, dtype=torch.float64))
    for other in (None, prompt):
        assert loss_on(lm, other, EXAMPLES).value == pytest.approx(loss_on(usual, other, EXAMPLES).value, **CLOSE)
    with pytest.raises(ValueError, match="120 tokens only"):
        lm.token_ids(lm.tokenizer.pad_token)
    lm.tokenizer.eos_token = lm.tokenizer.pad_token
    with pytest.raises(ValueError, match="end-of-text token"):
        encode(lm, EXAMPLES[0])
    assert encode(lm, EXAMPLES[0], end=False).n_input == 3


def test_tokens_that_merge_at_the_border_are_said_once():
    lm = lm_of()
    with pytest.warns(UserWarning, match="Row 1.*token in common") as said:
        rows = encode_at(lm, [Example("a", "d"), Example("a ", "d"), Example("a ", "da")])
    assert len(said) == 1 and "without the space" in str(said[0].message)
    assert rows[1].ids == [*lm.token_ids("a ", special=True), *lm.token_ids("d"), 1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert encode(lm, Example("a", " d"), end=False).ids == lm.token_ids("a d", special=True)
        encode(lm, Example("a ", "d"))


def test_special_tokens_are_known_and_never_drawn():
    lm = lm_of()
    pad, eos, bos, start, unused = range(5)
    table = {*range(lm.vocab_size)} - set(lm.tokenizer.get_vocab().values())
    assert lm.special_ids == {pad, eos, bos, start, unused, *table}
    assert load_lm().special_ids == set(load_lm().tokenizer.all_special_ids)
    assert not usable_tokens(lm)[sorted(lm.special_ids)].any()
    rows = lm.embed_ids(range(lm.vocab_size))
    for seed in range(20):
        vectors = SoftPrompt.init(lm, 8, seed=seed).vectors
        ids = torch.cdist(vectors, rows.detach()).argmin(-1).tolist()
        drawn = [token for ids in _controls(lm, [7, 8, 9], 4, seed)["random"] for token in ids]
        assert not lm.special_ids & {*ids, *drawn}


# the chat template


@each_variant
@pytest.mark.parametrize("template", TEMPLATES)
@settings(max_examples=8, deadline=None)
@given(text=st.text("abcd .\n", max_size=8))
def test_a_template_is_what_the_tokenizer_makes_of_it(variant, template, text):
    lm = lm_of(variant, template=template)
    turn = [dict(role="user", content=text)]
    want = lm.tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=True)["input_ids"]
    whole = lm.tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
    (bare,) = bare_examples(lm, [Example(text, " d")], "chat")
    assert encode_context(lm, bare.input).ids == want and encode(lm, bare).ids[: len(want)] == want
    for at in ("chat", "chat_end"):
        row = encode_context(lm, text, at)
        parts = lm.tokenizer.decode(row.ids[: row.at]), lm.tokenizer.decode(row.ids[row.at :])
        assert "".join(parts).replace(" ", "") == lm.tokenizer.decode(want).replace(" ", "")
        assert not parts[0].endswith("]") and (at == "chat" or len(parts[0]) >= len(whole) - len("][bot]") - 6)


def test_a_template_that_names_the_text_twice_has_no_place_for_a_prompt():
    lm = lm_of()
    lm.tokenizer.chat_template = "{{ messages[0].content }} | {{ messages[0].content }} |"
    with pytest.raises(ValueError, match="writes the user's text 2 times"):
        encode_context(lm, "ab", "chat")
    (bare,) = bare_examples(lm, EXAMPLES[:1], "chat")
    assert encode_context(lm, bare.input).ids == lm.token_ids("abc | abc |")
    lm.tokenizer.chat_template = "nothing"
    with pytest.raises(ValueError, match="rewrites the user's text"):
        encode_context(lm, "ab", "chat_end")


@pytest.mark.parametrize("family", FAMILIES)
def test_faithfulness_in_a_chat_asks_all_sides_in_the_template(family):
    lm = lm_of("nothing", family, "plain")
    prompt = SoftPrompt(lm.embed_ids(lm.token_ids("fed.")), "chat")
    measured = faithfulness(lm, prompt, "bead", EXAMPLES, draws=1)
    rows = {"prompt": "fed.", "text": "bead", "empty": ""}
    for name, text in rows.items():
        want = []
        for item in EXAMPLES:
            asked = lm.token_ids(f"[{text}{item.input}][bot]")
            want.append(mean_nats(lm, [([*asked, *lm.token_ids(item.target.strip()), 1], len(asked))]))
        assert list(measured.table.loss[name].items) == pytest.approx(want, **CLOSE)
    assert measured.table.kl["prompt"].value == pytest.approx(0, abs=1e-9)
    asked = [Example(f"[{item.input}][bot]", item.target.strip()) for item in EXAMPLES]
    assert measured.table.accuracy["empty"] == exact_match(lm, None, asked)
    nats = divergence(lm, prompt, None, EXAMPLES)
    for item, got in zip(EXAMPLES, nats):
        both = []
        for text in ("fed.", ""):
            ids = lm.token_ids(f"[{text}{item.input}][bot]{item.target.strip()}") + [1]
            n_target = len(lm.token_ids(item.target.strip())) + 1
            both.append(lm.model(torch.tensor([ids])).logits[0, -n_target - 1 : -1].log_softmax(-1))
        want = (both[0].exp() * (both[0] - both[1])).sum(-1).mean().item()
        assert got == pytest.approx(want, **CLOSE)


def chat_tasks():
    tests = tuple(Example(text, " d") for text in ("ab", "cde"))
    return [TaskSet(f"task {i}", "train", ("do it",), tests, tests, ((" d",),) * 2, "line") for i in range(2)]


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma"])
def test_executing_and_judging_in_a_chat_ask_in_the_template(family, monkeypatch):
    lm = lm_of("bos", family, "bos")
    tasks = chat_tasks()
    pairs = Pairs(Pair(SoftPrompt.init(lm, 2, seed=i, at="chat"), ("do it",), f"task {i}") for i in range(2))
    seen = []

    def watch(lm, prompts, inputs, *args, **options):
        seen.append([encode_context(lm, text).ids for prompt, text in zip(prompts, inputs) if prompt is None])
        return [" d"] * len(inputs)

    monkeypatch.setattr(rerank, "generate", watch)
    told = [lm.token_ids(f"<bos>[{text}{item.input}]") for text in ("do it\n", "") for item in tasks[0].test]
    bare = [lm.token_ids(f"<bos>[{item.input}]") for item in tasks[0].test] * 2
    execute(lm, tasks, ["do it", ""], at="chat")
    judge(lm, pairs, tasks, {"m": ["do it", ""]}, inputs=2)
    executed(lm, pairs, tasks, "nothing")
    assert seen == [told, told, [], bare]
    itself = SoftPrompt(lm.embed_ids(lm.token_ids("do it\n")), "chat")
    (same, other) = text_divergence(lm, itself, ["do it", "say"], ["ab", "cde"], [" d", " a"])
    assert same == pytest.approx(0, abs=1e-9) and other > 1e-3


def test_prompts_of_a_set_of_tasks_go_into_the_chat():
    lm = lm_of("bos", template="bos")
    pairs = train_prompts(lm, chat_tasks(), n=2, steps=2, batch_size=2, at="chat", progress=False)
    assert [prompt.at for prompt in pairs.prompts] == ["chat"] * 2


def test_runs_keep_their_names_and_may_go_into_the_chat():
    for kind in (partial(HardConfig, "GCG"), partial(PromptConfig, "a", "b", "c", "d")):
        assert "at" not in plain_config(kind()) if hasattr(kind(), "run") else True
        assert plain_config(kind(at="chat"))["at"] == "chat"
        assert content_hash(kind()) == content_hash(kind(at="start")) != content_hash(kind(at="chat"))


# texts that stand for a prompt


@each_variant
@pytest.mark.parametrize("at", ["start", "before_answer", "chat", "chat_end", 0])
def test_a_written_text_is_where_one_can_type_it(variant, at):
    lm = lm_of(variant, template="plain")
    hard = written(lm, "fed.", EXAMPLES, at=at)
    can = at != 0 or not lm.beginning
    assert hard.record["typed"] == can
    whole = {
        "start": lambda item: own_ids(lm, f"fed.{item.input}"),
        "before_answer": lambda item: own_ids(lm, f"{item.input}fed."),
        "chat": lambda item: lm.token_ids(f"[fed.{item.input}][bot]"),
        "chat_end": lambda item: lm.token_ids(f"[{item.input}fed.][bot]"),
    }
    if at == 0:
        assert hard.record["joined"] is None
        return
    together = [whole[at](item) for item in EXAMPLES]
    row = encode_at(lm, EXAMPLES, hard.record["at"])
    apart = [[*each.ids[: each.at], *hard.tokens, *each.ids[each.at : each.n_input]] for each in row]
    hits = [one == other for one, other in zip(together, apart)]
    assert hard.record["joined"] == sum(hits) / 3
    if all(hits):
        in_chat = str(at).startswith("chat")
        targets = [item.target.strip() if in_chat else item.target for item in EXAMPLES]
        rows = [([*ids, *lm.token_ids(target, continuing=True), 1], len(ids)) for ids, target in zip(together, targets)]
        assert hard.loss.value == pytest.approx(mean_nats(lm, rows), **CLOSE)
    assert sum(hits) or lm.adds_space


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_person_types_has_the_loss_that_is_reported(family):
    lm = lm_of("both", family)
    hard = written(lm, "<bos>fed.", EXAMPLES)
    assert (
        hard.tokens == tuple(lm.token_ids("fed.")) and hard.record["at"] == "after_bos" and hard.record["joined"] == 1
    )
    typed = loss_on(lm, None, [Example(f"fed.{item.input}", item.target) for item in EXAMPLES])
    assert hard.loss.value == pytest.approx(typed.value, **CLOSE)
    assert loss_on(lm, hard.soft(lm), EXAMPLES).value == pytest.approx(typed.value, **CLOSE)
    prompt = SoftPrompt.init(lm, 2, "gaussian")
    of_text = faithfulness(lm, prompt, "fed.", EXAMPLES, 1).table.loss["text"]
    assert list(of_text.items) == pytest.approx(list(typed.items), **CLOSE)


@pytest.mark.parametrize("variant", ["nothing", "bos", "prefix"])
def test_a_reader_with_another_tokenizer_reads_the_text(variant):
    lm = lm_of("bos")
    reader = lm_of(variant, "gpt2", seed=1)
    if variant != "prefix":
        reader = FrozenLM(reader.model, own_tokenizer(*["<bos>"][: variant == "bos"], reversed=True), "other")
    reading = Reader(lm, reader)
    lines = [tuple(lm.token_ids(text)) for text in ("do it.\n", "abca\nb? fed", "a")]
    assert not reading.same
    for prompt, got in zip(lines, reading.nll(lines).tolist()):
        ids = own_ids(reader, text_of(lm, prompt))
        first = max(1, len(reader.beginning))
        if len(ids) <= first:
            assert math.isnan(got)
            continue
        assert got == pytest.approx(mean_nats(reader, [(ids, first)]), **CLOSE)
        loss, gradient = nll_gradient(reading, prompt)
        assert loss == pytest.approx(got, rel=1e-5) and gradient.shape == (len(prompt), lm.vocab_size)
    assert Objective(lm, EXAMPLES, reader=reader, fluency=0.1).score(lines[:2]).isfinite().all()


def test_the_gradient_of_a_reader_that_only_numbers_tokens_otherwise_is_its_own_renumbered():
    lm = lm_of("bos")
    other = FrozenLM(lm.model, own_tokenizer("<bos>", reversed=True), "other")
    reading, own = Reader(lm, other), Reader(other)
    prompt = lm.token_ids("fed it.")
    loss, gradient = nll_gradient(reading, prompt)
    want, of_own = nll_gradient(own, other.token_ids("fed it."))
    assert loss == want
    for text in LETTERS:
        assert torch.equal(gradient[:, lm.token_ids(text)[0]], of_own[:, other.token_ids(text)[0]])
    assert not gradient[:, sorted(lm.special_ids)].any()


# texts to read


@each_variant
@settings(max_examples=10, deadline=None)
@given(length=st.integers(4, 20), at=st.sampled_from(["start", "after_bos", "random", 1]))
def test_running_text_begins_as_the_tokenizer_begins_it(variant, length, at):
    lm = lm_of(variant)
    stream = [f"abc d, {i}fed it." for i in range(40)] + ["".join(SPECIAL[i] for i in lm.beginning) + "a"]
    lead = list(lm.beginning)
    cut = list(windows(lm, stream, "train", length))
    assert all(window[: len(lead)] == lead and len(window) == length for window in cut)
    flat = [token for window in cut for token in window[len(lead) :]]
    assert 2 not in flat
    for make in (plain_text, partial(repetition, "ab"), partial(repetition, "ab", "itself"), partial(skipping, 1)):
        for row in make(texts=stream, length=length, at=at).rows(lm, "train", 3):
            assert row.ids[: len(lead)] == lead
            assert set(row.labels[: max(1, len(lead), row.at)]) == {-100}


@pytest.mark.parametrize("family", FAMILIES)
def test_text_without_a_prompt_has_transformers_own_loss(family):
    lm = lm_of("both", family)
    stream = [f"abc d, {letter}fed it." for letter in LETTERS]
    rows = plain_text(texts=stream, length=12).rows(lm, "train", 4)
    want = [([*lm.beginning, *row.ids[1:]], 1) for row in rows]
    assert loss_on(lm, None, rows).value == pytest.approx(mean_nats(lm, want), **CLOSE)
    again = SoftPrompt(lm.embed_ids([2]), "after_bos")  # the beginning itself is no skill: it stands there already
    twice = [([2, *row.ids], 2) for row in rows]
    placed = plain_text(texts=stream, length=12, at="after_bos").rows(lm, "train", 4)
    assert loss_on(lm, again, placed).value == pytest.approx(mean_nats(lm, twice), **CLOSE)
    assert from_examples(EXAMPLES * 4, at="after_bos").rows(lm, "train")[0].at == 1
    with pytest.raises(ValueError, match="no room for text"):
        next(windows(lm, stream, "train", 1))


def test_one_token_without_a_beginning_has_no_perplexity_and_says_so():
    lm = lm_of("nothing")
    with pytest.warns(UserWarning, match="nothing stands in front"):
        measured = scrutability(lm, "a", draws=4)
    assert math.isnan(measured.perplexity) and "nan" in repr(measured)
    begun = lm_of("bos")
    nats = own_nats(begun, begun.token_ids("a", special=True), 1)
    assert math.log(scrutability(begun, "a", draws=4).perplexity) == pytest.approx(nats[0], **CLOSE)
    assert scrutability(begun, "<bos>a", draws=4).perplexity == scrutability(begun, "a", draws=4).perplexity


@each_variant
def test_a_prompt_that_is_read_alone_stands_behind_what_is_in_front_of_it(variant):
    lm = lm_of(variant, template="plain")
    fronts = {"start": [], "after_bos": list(lm.beginning), "before_answer": list(lm.beginning)}
    fronts["chat"] = lm.token_ids("[")
    vectors = torch.randn(3, lm.d_model, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    states = prompt_states(lm, [SoftPrompt(vectors, at) for at in fronts])
    for front, got in zip(fronts.values(), states):
        inputs = torch.cat([lm.embed_ids(front), vectors])[None]
        want = lm.model(inputs_embeds=inputs, output_hidden_states=True).hidden_states
        for level in range(len(want) - 1):  # the last of them is behind the final norm
            assert torch.allclose(got[level], want[level][0, len(front) :], rtol=1e-9, atol=1e-9)
    ids, start = TargetText("ab. {} d.").encode(lm, 2)
    assert ids[:start] == own_ids(lm, "ab. ") and 1 not in ids


def test_places_of_texts_and_rows():
    assert text_place(lm_of("bos"), "start") == "after_bos" and text_place(lm_of("eos"), "start") == "start"
    assert text_place(lm_of("bos"), 0) == 0 and text_place(lm_of("bos"), [1, 2]) == [1, 2]
    lm = lm_of("two")
    assert resolve_at(lm, encode(lm, EXAMPLES[0]), "after_bos") == 2
    assert collate(lm, EXAMPLES, "after_bos").at.tolist() == [2] * 3
    asked = Encoded(lm.token_ids("abc", special=True), 5)
    scores = score_options(lm, None, [asked, "abc"], [" d", "a"])
    assert scores[0].tolist() == pytest.approx(scores[1].tolist(), **CLOSE)
