"""What ends an answer in a chat, and where texts meet the template's own: on all paths the same."""

import pickle
import warnings

from softprompt_nb.chat import ChatText, as_chat, chat_text, turn_end
from softprompt_nb.data import Example, bare_context, bare_examples, encode, encode_at, encode_context
from softprompt_nb.engine.decoding import end_ids
from softprompt_nb.engine.inference import generate, loss_on, option_logprobs
from softprompt_nb.engine.labels import label_accuracy
from softprompt_nb.evaluation.formats.knowledge import _line_ends
from softprompt_nb.prompts import SoftPrompt
from softprompt_nb.training.tuning import tune
from softprompt_nb.translation.translator.rerank import divergence_parts

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_beginning import CLOSE, EXAMPLES, lm_of, own_nats

TURNS = "{% for turn in messages %}{{ turn.role }}: {{ turn.content }}END{% endfor %}"
GENERATION = "{% if add_generation_prompt %}assistant: {% endif %}"
MARKED = "{% for turn in messages %}{{ '<start>' if turn.role == 'user' else 'me: ' }}{{ turn.content }}{% endfor %}"
ENDINGS = {  # template: the token that ends an answer in it
    "own": (TURNS.replace("END", "<start>\n") + GENERATION, "<start>"),
    "behind a space": (TURNS.replace("END", " <start>\n") + GENERATION, "<start>"),
    "and the end of text": (TURNS.replace("END", "<start>\n<eos>") + GENERATION, "<start>"),
    "the end of text": (TURNS.replace("END", "<eos>") + GENERATION, "<eos>"),
    "nothing": (TURNS.replace("END", "\n") + GENERATION, "<eos>"),
    "a word": (TURNS.replace("END", " over <start>") + GENERATION, "<eos>"),
    "no turns of the model": ("<bos>{{ messages[0].content }}:", "<eos>"),
    "refused": ("{% if messages[1] %}{{ raise_exception('one turn') }}{% endif %}{{ messages[0].content }}:", "<eos>"),
    "the next turn": (MARKED + "{% if add_generation_prompt %}me: {% endif %}", "<start>"),
}
each_ending = pytest.mark.parametrize("name", ENDINGS)


def chat_of(name, variant="bos", seed=0):
    template, ending = ENDINGS[name]
    lm = lm_of(variant, seed=seed)
    lm.tokenizer.chat_template = template
    if name == "the next turn":  # the checkpoint names it
        lm.model.generation_config.eos_token_id = [1, lm.tokenizer.convert_tokens_to_ids("<start>")]
    return lm, lm.tokenizer.convert_tokens_to_ids(ending)


@each_ending
@pytest.mark.parametrize("variant", ["nothing", "bos", "prefix"])
@settings(max_examples=8, deadline=None)
@given(text=st.text("abcd .", min_size=1, max_size=8), answer=st.sampled_from(["x", " de", "yes it is"]))
def test_all_paths_close_an_answer_alike(name, variant, text, answer):
    lm, closing = chat_of(name, variant)
    example = Example(text, answer)
    assert turn_end(lm) == closing and {closing, lm.tokenizer.eos_token_id} <= set(end_ids(lm))
    rows = [encode(lm, bare) for bare in bare_examples(lm, [example], "chat")]
    rows += encode_at(lm, as_chat(lm, [example]))
    for at in ("chat", "chat_end"):
        try:
            rows += encode_at(lm, [example], at)
        except ValueError as error:
            assert "the user's text" in str(error)
            continue
        rows.append(encode(lm, Example(encode_context(lm, text, at), answer)))
    begun = Example(chat_text(lm, text) + "So:", answer)
    rows.append(encode(lm, begun))
    rows.append(encode(lm, pickle.loads(pickle.dumps(begun))))
    assert {row.ids[-1] for row in rows} == {closing}
    assert encode_at(lm, [example], end=False)[0].ids[-1] != closing
    assert encode(lm, example).ids[-1] == lm.tokenizer.eos_token_id


@pytest.mark.parametrize("space", ["", " "])
@pytest.mark.parametrize("answer", ["x", " x", "  x y"])
def test_an_answer_is_held_in_its_turn_as_the_template_writes_it(space, answer):
    lm = lm_of("nothing", seed=0)
    lm.tokenizer.chat_template = (
        "{% for turn in messages %}{{ turn.role }} :" + space + "{{ turn.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}assistant :{% endif %}"
    )
    turns = [dict(role="user", content="ab"), dict(role="assistant", content=answer.strip())]
    whole = lm.tokenizer.apply_chat_template(turns, tokenize=False)
    example = Example("ab", answer)
    (asked,) = as_chat(lm, [example])
    assert asked.input + asked.target + "</s>" == whole
    placed = [encode_at(lm, [example], at)[0] for at in ("chat", "chat_end")]
    assert [row.ids for row in placed] == [encode(lm, asked).ids] * 2
    assert label_accuracy(lm, None, [example], [answer, "z"], chat=True).labels[0][0] == space + answer.strip()


@each_ending
def test_loss_options_and_labels_count_the_turn_s_end(name):
    lm, closing = chat_of(name)
    turns = [[dict(role="user", content=example.input)] for example in EXAMPLES]
    nats, counts, options = [], [], []
    for turn, example in zip(turns, EXAMPLES):
        asked = lm.tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=True)["input_ids"]
        for answers, of in (([example.target.lstrip()], nats), (["x", "x y"], options)):
            for answer in answers:
                row = [*asked, *lm.token_ids(answer), closing]
                of.append(sum(own_nats(lm, row, len(asked))))
                counts.append(len(row) - len(asked)) if of is nats else None
    assert loss_on(lm, None, EXAMPLES, chat=True).value == pytest.approx(sum(nats) / sum(counts), **CLOSE)
    texts = [chat_text(lm, example.input) for example in EXAMPLES]
    scores, _ = option_logprobs(lm, None, texts, ["x", "x y"])
    assert scores.flatten().tolist() == pytest.approx([-each for each in options], **CLOSE)
    labelled = [Example(example.input, " x") for example in EXAMPLES]
    found = label_accuracy(lm, None, labelled, [" x", " x y"], chat=True)
    assert found.scores.flatten().tolist() == pytest.approx([-each for each in options], **CLOSE)


@each_ending
def test_generation_stops_where_training_ends(name):
    lm, closing = chat_of(name)
    asked = chat_text(lm, "abc")
    with torch.no_grad():
        ids = torch.tensor([encode_context(lm, asked).ids])
        options = dict(max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=None)
        third = lm.model.generate(ids, **options)[0, ids.shape[1] + 2]
        lm.model.lm_head.weight[closing] = 3 * lm.model.lm_head.weight[third]
        new = lm.model.generate(ids, **options)[0, ids.shape[1] :].tolist()
    assert closing in new
    want = lm.tokenizer.decode(new[: new.index(closing)], skip_special_tokens=True)
    assert generate(lm, None, [asked], max_new_tokens=6) == [want]
    assert generate(lm, None, [bare_context(lm, "abc", "chat")], max_new_tokens=6) == [want]
    assert closing in _line_ends(lm)


def test_a_prompt_in_a_chat_learns_the_turn_s_end():
    lm, closing = chat_of("own")
    start = SoftPrompt.init(lm, 2, at="chat")
    other, _ = chat_of("the end of text")
    other.tokenizer.chat_template = lm.tokenizer.chat_template.replace("<start>", "<eos>")
    options = dict(steps=1, batch_size=3, lr=1e-9, progress=False)
    rows = encode_at(lm, EXAMPLES, "chat")
    with torch.no_grad():
        nats = []
        for row in rows:
            assert row.ids[-1] == closing
            embeds = lm.embed_ids(row.ids)
            whole = torch.cat([embeds[: row.at], start.vectors.to(embeds), embeds[row.at :]])
            logp = lm.model(inputs_embeds=whole[None]).logits[0].log_softmax(-1)
            nats += [-logp[1 + i, row.ids[i]].item() for i in range(row.n_input, len(row.ids))]
    found = tune(lm, start, EXAMPLES, **options).history.loss.iloc[0]
    assert found == pytest.approx(sum(nats) / len(nats), rel=1e-6)
    assert tune(other, start, EXAMPLES, **options).history.loss.iloc[0] != pytest.approx(found, rel=1e-3)


def test_a_divergence_of_ends_is_of_the_turn_s_end(monkeypatch):
    lm, closing = chat_of("own")
    from softprompt_nb.translation.translator import rerank

    seen = []
    plain = rerank._label_logprobs
    monkeypatch.setattr(
        rerank,
        "_label_logprobs",
        lambda lm, vectors, rows, *lanes: seen.extend(rows) or plain(lm, vectors, rows, *lanes),
    )
    parts = divergence_parts(lm, SoftPrompt.init(lm, 2, at="chat"), ["ab", "abc"], ["a", "ab"], ["x", "de"])
    assert len(seen) == 6 and {row.ids[-1] for row in seen} == {closing} and parts.ends.tolist() == [2, 2]


def test_a_text_goes_into_the_template_once():
    lm, _ = chat_of("own")
    asked = as_chat(lm, EXAMPLES)
    for again in (lambda: as_chat(lm, asked), lambda: loss_on(lm, None, asked, chat=True)):
        with pytest.raises(ValueError, match="in the chat template already"):
            again()
    for at in ("chat", "chat_end"):
        with pytest.raises(ValueError, match="in the chat template already"):
            encode_at(lm, asked, at)
    with pytest.raises(ValueError, match="is a Encoded"):
        as_chat(lm, [Example(encode_context(lm, "abc"), " x")])
    assert isinstance("so " + asked[0].input, ChatText)


@pytest.mark.parametrize("variant", ["nothing", "bos"])
def test_both_ways_into_a_chat_read_the_same_tokens(variant):
    lm, _ = chat_of("own", variant)
    turn = [dict(role="user", content="abc")]
    want = lm.tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=True)["input_ids"]
    (asked,) = as_chat(lm, [Example("abc", "x")])
    assert encode_context(lm, asked.input).ids == encode_context(lm, "abc", "chat").ids == want


@pytest.mark.parametrize("at", ["chat", "chat_end", "bare"])
def test_a_token_across_the_template_s_border_is_said_once(at):
    lm = lm_of("bos")  # which has a token for "ab", one for "ca" and one for " d"
    lm.tokenizer.chat_template = "{{ messages[0].content }} answer: a"

    def rows(target):
        if at == "bare":
            return [encode(lm, bare) for bare in bare_examples(lm, [Example("x", target)] * 2, "chat")]
        return encode_at(lm, [Example("x", target)] * 2, at)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows("x")
    with pytest.warns(UserWarning, match="merge with the chat template's own text") as said:
        found = rows("b")
    assert len(said) == 1 and found[0].ids[-2:] == [*lm.token_ids("b"), lm.tokenizer.eos_token_id]


@pytest.mark.parametrize("at, text, other", [("chat", "bc", "cb"), ("chat_end", "bc", "cb")])
def test_a_token_across_the_prompt_s_place_is_said_once(at, text, other):
    lm = lm_of("bos")
    lm.tokenizer.chat_template = "a{{ messages[0].content }}a:"
    text, other = (text, other) if at == "chat" else (other.replace("b", "") + "x" + "c", "xb")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encode_context(lm, other, at)
    with pytest.warns(UserWarning, match="a token across its place") as said:
        encode_context(lm, text, at)
        encode_context(lm, text, at)
    assert len(said) == 1
