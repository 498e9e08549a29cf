"""When a generated answer is right, and examples in a chat template."""

import json
import unicodedata

from softprompt_nb.chat import as_chat, chat_text
from softprompt_nb.data import Example
from softprompt_nb.engine import inference
from softprompt_nb.engine.answers import are_right, begins_with
from softprompt_nb.engine.inference import exact_match, generate, loss_on
from softprompt_nb.engine.labels import label_accuracy
from softprompt_nb.evaluation.formats.formats import final_number
from softprompt_nb.load import load_lm
from softprompt_nb.measure import mean, over_runs, proportion
from softprompt_nb.prompts import SoftPrompt
from softprompt_nb.training.tuning import tune
from softprompt_nb.translation.translator.dods import CHECKERS

import pytest
import torch
from families import tiny
from hypothesis import assume, given, settings
from hypothesis import strategies as st

words = st.text("ab é\n", min_size=1, max_size=6).filter(str.strip)


@pytest.fixture
def says(monkeypatch):
    "Lets the model say what a test wants."

    def put(answers):
        monkeypatch.setattr(inference, "generate", lambda *args, **kwargs: list(answers))
        monkeypatch.setattr(inference, "_check_misses", lambda *args: None)

    return put


def match(says, answers, targets, **options):
    says(answers)
    examples = [Example("q", target) for target in targets]
    return [bool(hit) for hit in exact_match(load_lm(), None, examples, **options).items]


def test_a_target_of_several_lines_is_compared_whole(says):
    right, wrong = (json.dumps(dict(name="Ann", city=city), indent=2) for city in ("Bonn", "Atlantis"))
    assert match(says, [right, wrong, right + "\nText:"], [right] * 3) == [True, False, False]
    assert match(says, [right + "\nText: Bo\n"], [right], stop="\nText:") == [True]
    assert match(says, [" paris\nCountry: spain", "\n\nparis"], [" paris"] * 2) == [True, True]
    assert match(says, [" paris\nrome"], [" paris"], stop="\n\n") == [False]
    with pytest.raises(ValueError, match="Row 0: the target .* holds the stop"):
        match(says, ["a"], ["a\nb"], stop="\n")
    with pytest.raises(ValueError, match="ends nothing"):
        match(says, ["a"], ["a"], stop="")


@settings(max_examples=60, deadline=None)
@given(words, words, st.sampled_from(["NFC", "NFD"]))
def test_answers_are_equal_as_composed_texts(answer, target, form):
    right = are_right([unicodedata.normalize(form, answer)], [target])[0]
    whole = answer.strip() if "\n" in target.strip() else answer.strip().split("\n")[0].strip()
    assert right is (whole == target.strip())


def test_compatible_signs_are_other_signs(says):
    assert match(says, ["x²", "ﬁt"], ["x2", "fit"]) == [False, False]


def test_a_model_that_does_not_stop_may_begin_with_the_answer(says):
    said = [" positive. The film", " positively bad", " 10.5", " 10. And", " 10%", " so-so", " good and bad, I think"]
    targets = [" positive", " positive", " 10", " 10", " 10", " so", " good and bad"]
    assert match(says, said, targets, begins=True) == [True, False, False, True, True, False, True]
    assert match(says, said, targets) == [False] * 7
    assert match(says, [" good and bad"] * 2, [" good", " good and bad"], begins=True) == [False, True]
    with pytest.raises(ValueError, match="one of them"):
        match(says, ["a"], ["a"], begins=True, read=str.lower)


@given(st.text("a1. ", min_size=1, max_size=4).filter(str.strip), st.text("a1. ", max_size=4))
def test_what_begins_with_an_answer_contains_it(target, more):
    if begins_with(target + more, target):
        assert (target + more).strip().startswith(target.strip())
    assert begins_with(target, target) and not begins_with("x" + target, target)


def test_what_is_read_from_both_is_compared(says):
    def number(text):
        digits = "".join(filter(str.isdigit, text))
        return int(digits) if digits else None

    assert match(says, ["it is 7 .", "none", "007"], [" 7", " 7", " 7"], read=number) == [True, False, True]
    with pytest.raises(ValueError, match="Row 0: read finds nothing"):
        match(says, ["none"], ["nothing"], read=number)


def test_exact_match_of_a_model_that_overflows_is_refused():
    lm = tiny("llama", dtype=torch.float16)
    with torch.no_grad():
        lm.model.get_output_embeddings().weight.mul_(1e5)
    with pytest.raises(ValueError, match="NaN.*bfloat16"):
        exact_match(lm, None, [Example("ab", " c")])


def test_exact_match_is_that_of_generated_texts():
    lm = tiny("gpt2", dtype=torch.float64)
    texts = ["abc", "a longer one", "q"]
    said = generate(lm, None, texts, 9)
    assert exact_match(lm, None, [Example(*pair) for pair in zip(texts, said)], max_new_tokens=9) == 1
    assert exact_match(lm, None, [Example(text, each[:-1] + "#") for text, each in zip(texts, said)]) == 0


TEMPLATE = (
    "{{ bos_token }}{% if messages[0].role != 'system' %}[be kind]{% endif %}"
    "{% for turn in messages %}[{{ turn.role }}: {{ turn.content }}]{% endfor %}"
    "{% if add_generation_prompt %}[answer: {% endif %}"
)


@pytest.mark.parametrize(
    "system, want",
    [
        (None, "<bos>[be kind][user: hi][answer: "),
        ("short", "<bos>[system: short][user: hi][answer: "),
        ("", "<bos>[user: hi][answer: "),
    ],
)
def test_the_system_message_is_the_template_s_or_ours_or_none(system, want):
    lm = tiny("llama", bos=True)
    lm.tokenizer.chat_template = TEMPLATE
    assert chat_text(lm, "hi", system) == want
    assert as_chat(lm, [Example("hi", " x")], system) == [Example(want, "x")]


def test_chat_is_one_argument_and_the_examples_stay():
    lm = tiny("llama", dtype=torch.float64)
    lm.tokenizer.chat_template = TEMPLATE.replace("{{ bos_token }}", "")
    examples = [Example("hi", " x"), Example("ho", " y")]
    for chat, system in ((True, None), ("short", "short"), ("", "")):
        ready = as_chat(lm, examples, system)
        for prompt in (None, SoftPrompt.init(lm, 2)):
            assert loss_on(lm, prompt, examples, chat=chat) == loss_on(lm, prompt, ready)
            assert exact_match(lm, prompt, examples, chat=chat) == exact_match(lm, prompt, ready)
            ours = label_accuracy(lm, prompt, examples, [" x", " y"], chat=chat)
            theirs = label_accuracy(lm, prompt, ready, ["x", "y"])
            assert (ours.scores == theirs.scores).all() and ours.labels == (("x", "y"),) * 2
            assert ours.content_free == (as_chat(lm, [Example("N/A", "")], system)[0].input,)
    with pytest.raises(ValueError, match="makes its chat template itself"):
        loss_on(lm, SoftPrompt.init(lm, 2, at="chat"), examples, chat=True)
    lm.tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        loss_on(lm, None, examples, chat=True)


@pytest.mark.parametrize(
    "template, message",
    [
        ("{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}", "does not take these"),
        ("{% for turn in messages %}{{ loop.length }}{{ turn.content }}{% endfor %}", "cannot be left out"),
    ],
)
def test_templates_that_cannot_do_it_say_so(template, message):
    lm = tiny("llama")
    lm.tokenizer.chat_template = template
    with pytest.raises(ValueError, match=message):
        chat_text(lm, "hi", "short" if "raise" in template else "")


@pytest.mark.parametrize("take", [mean, over_runs, proportion])
def test_no_mean_and_no_share_of_what_is_not_a_number(take):
    with pytest.raises(ValueError, match="Item 1|Run 1"):
        take([1.0, float("nan"), 0.0])


def test_shares_are_of_truth_values_and_weights_are_weights():
    for wrong in ("False", 0.5, 2):
        with pytest.raises(ValueError, match="neither right nor wrong"):
            proportion([True, wrong])
    for weights in ([1.0], [0.0, 0.0], [1.0, -1.0], [1.0, float("nan")]):
        with pytest.raises(ValueError, match="weights for 2 items"):
            mean([1.0, 2.0], weights=weights)


@given(st.lists(st.tuples(st.floats(-9, 9), st.integers(0, 3)), min_size=1, max_size=8))
def test_items_of_weight_zero_take_no_part_in_a_mean(pairs):
    counted = [pair for pair in pairs if pair[1]]
    assume(counted)
    values, weights = zip(*pairs)
    found, want = (
        mean(values, weights=weights),
        mean([value for value, _ in counted], weights=[weight for _, weight in counted]),
    )
    assert (found.value, found.low, found.high, found.n) == (want.value, want.low, want.high, len(counted))
    assert found.items == values and (found.low <= found.high or len(counted) == 1)  # one item has no interval


def test_checkers_of_tasks_compare_right_answers_of_several_lines_whole():
    right = "a b\nc d"
    for name, check in CHECKERS.items():
        assert check(right, [right]) == 1 and check("a b\nmore", ["a b"]) == 1, name
        assert check("a b\nx y", [right]) < 1, name


def test_worked_solutions_are_compared_by_their_last_number(says):
    said = ["3 * 24 = 72\n#### 72", "The answer is 72.0 eggs.", "24 + 48 = 72", "so 1,072", "no idea"]
    assert match(says, said, ["#### 72"] * 5, read=final_number) == [True, True, True, False, False]


@pytest.mark.parametrize("prompted", [False, True])
def test_nothing_is_said_by_a_model_that_overflows(prompted):
    lm = tiny("llama", dtype=torch.float16)
    with torch.no_grad():
        lm.model.get_output_embeddings().weight.mul_(1e5)
    prompt = SoftPrompt.init(lm, 2) if prompted else None
    with pytest.raises(ValueError, match="NaN.*bfloat16"):
        generate(lm, prompt, ["ab", "a longer text"], 4)


def test_nothing_is_said_behind_a_prompt_that_diverged():
    lm = tiny("gpt2")
    with pytest.raises(ValueError, match="NaN.*diverged"):
        generate(lm, SoftPrompt(torch.full((2, lm.d_model), torch.nan)), "ab", 4)


@pytest.mark.parametrize("kind", ["plain", "as_chat", "chat"])
def test_a_target_that_writes_its_own_end_is_the_target(kind):
    lm = tiny("llama", dtype=torch.float64)
    lm.tokenizer.chat_template = "{% for turn in messages %}[{{ turn.content }}]{% endfor %}"
    at, chat = ("chat" if kind == "chat" else "start"), kind == "as_chat"
    prompt = SoftPrompt.init(lm, 3, at=at)
    bare = [Example("ab", " cd"), Example("xy", " z")]
    ended = [Example(each.input, each.target + lm.tokenizer.eos_token) for each in bare]
    assert loss_on(lm, prompt, ended, chat=chat).items == loss_on(lm, prompt, bare, chat=chat).items
    assert loss_on(lm, prompt, ended, chat=chat, end=False).items == loss_on(lm, prompt, bare, chat=chat).items
    twice = [tune(lm, prompt, each, steps=3, progress=False).prompt.vectors for each in (bare, ended)]
    assert twice[0].equal(twice[1])
    labels = [label_accuracy(lm, prompt, each, end=True, chat=chat) for each in (bare, ended)]
    assert (labels[0].scores == labels[1].scores).all() and (labels[0].tokens == labels[1].tokens).all()


def test_an_answer_is_compared_without_the_end_that_its_target_writes(says):
    end = load_lm().tokenizer.eos_token
    targets = [f" paris{end}", " rome"]
    assert (
        match(says, [" paris", " rome"], targets)
        == match(says, [" paris", " rome"], targets, begins=True)
        == [True] * 2
    )
    assert match(says, [" paris is", " rome\n"], targets, stop="\n") == [False, True]
    with pytest.raises(ValueError, match="Row 1: the target .* a mark of the tokenizer"):
        match(says, ["a", "b"], [" paris", f" paris{end} and{end}"])
    with pytest.raises(ValueError, match="Row 0: .* nothing but an end"):
        match(says, ["a"], [end], begins=True)
    assert match(says, ["7"], [f"#{end} 7"], read=lambda text: text[-1]) == [True]


def test_a_target_in_which_nothing_is_read_is_refused(says):
    with pytest.raises(ValueError, match="Row 1: read finds nothing in the target ' none'"):
        match(says, ["7", "7"], [" 7", " none"], read=final_number)
    assert match(says, ["none", "7"], [" 7", " 7"], read=final_number) == [False, True]


@pytest.mark.parametrize(
    "answer, target",
    [
        ("3/4", "3"),
        ("C++", "C"),
        ("C# and Java", "C"),
        ("10^3", "10"),
        ("2*3", "2"),
        ("10 / 3", "10"),
        ("5 + 5 = 10", "5"),
    ],
)
def test_a_part_of_a_sum_or_a_name_is_no_beginning(answer, target):
    assert not begins_with(answer, target) and begins_with(answer, answer)
    assert are_right([answer], [target], begins=True) == [False]


@pytest.mark.parametrize(
    "answer, target",
    [
        ("3, of 4", "3"),
        ("**10** apples".strip("*"), "10"),
        ("10\n- 3 left", "10"),
        ("C - the third", "C"),
        ("10 = 5 + 5", "10"),
    ],
)
def test_what_only_follows_an_answer_is_no_part_of_it(answer, target):
    assert begins_with(answer, target)
