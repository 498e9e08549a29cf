"""Replies as people's models write them, each with its reading by hand.

SmolLM2-135M-Instruct wrote those that are marked so, greedily, in its chat template (or behind two solved examples), to
questions of ARC-Easy, BoolQ, SVAMP and GSM8K."""

from softprompt_nb.evaluation.formats.formats import FORMATS, Item, letter_format, plain_number
from softprompt_nb.evaluation.formats.replies import (
    letter_doubt,
    mentioned,
    own_part,
    plain_reply,
    said_letter,
    said_number,
    said_short,
    said_yesno,
)

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

FORMS = ("hot spot", "rift valley", "subduction zone", "transform boundary")
CORE = ("crust", "mantle", "outer core", "inner core")
ELEMENTS = ("sodium [Na]", "lithium [Li]", "sulfur [S]", "carbon [C]")
AIR = ("a compound.", "an element.", "a mixture.", "a molecule.")
WATER = ("land.", "snow.", "clouds.", "oceans.")
ROCKS = ("metamorphic", "sedimentary", "igneous", "weathered")
SOIL = (
    "It adds nutrients to the soil.",
    "It helps the soil to dry out.",
    "It keeps the soil cool.",
    "It destroys bacteria in the soil.",
)
CELL = ("a ribosome", "the endoplasmic reticulum", "the Golgi apparatus", "a vacuole")
ICE = ("20° Celsius", "40 grams", "60 milliliters", "80 seconds")
FLOOD = (
    "a decrease in the erosion of riverbanks",
    "a decrease in the number of native plants",
    "an increase in the number of animal habitats",
    "an increase in the diversity of insect species",
)
GENES = (
    "capable of reproducing by meiosis",
    "ability to reproduce without a mate",
    "ability to produce genetically different offspring",
    "capable of producing offspring genetically identical to parent",
)
STATES = ("water boiling", "ice melting", "water freezing", "snow falling")
RAIN = (
    "Radiation from the Sun warms the ground.",
    "Conduction through the atmosphere causes evaporation to occur over oceans, resulting in rainfall.",
)

LETTERS = [  # (options, reply, letter or None)
    # SmolLM2, ARC-Easy
    (FORMS, "B. rift valley", "B"),
    (CORE, "C. outer core", "C"),
    (
        ELEMENTS,
        "D. carbon [C]\n\nThe correct answer is C. Carbon is the only element that can combine with itself.",
        None,
    ),
    (AIR, "A. a compound.", "A"),
    (WATER, "B. clouds.", None),
    (CELL, "A. the ribosome\n\nThe ribosome is a protein complex that plays a crucial role in protein synthesis.", "A"),
    (CORE, "The section of Earth that is primarily composed of liquid metal is the outer core.", "C"),
    (ROCKS, "C. sedimentary", None),
    (
        SOIL,
        "A. It helps the soil to dry out.\nB. It helps the soil to dry out.\nC. It kills bacteria in the soil.",
        None,
    ),
    (SOIL, "The correct answer is C. It keeps the soil cool.", "C"),
    (ICE, "The correct answer is C. 60 milliliters.", "C"),
    (FLOOD, "A. an increase in the number of animal habitats\n\nThe answer is A. a decrease in the erosion.", None),
    (("Grass", "Aluminum", "Sunlight", "Oxygen"), "D. Oxygen is a nonrenewable resource.", "D"),
    (GENES, "C. ability to produce offspring genetically identical to parent\n\nThe answer is D.", None),
    (RAIN, "B. Conduction through the atmosphere causes evaporation to occur over oceans, resulting in rain", "B"),
    (("muscles.", "tissues.", "bones.", "cells."), "B. tissues.", "B"),
    (ROCKS, "You've already identified the correct answer. The answer you provided is the most likely answer.", None),
    # as the issues of evaluation harnesses and people's logs have them
    (CORE, "**C**", "C"),
    (CORE, "option C", "C"),
    (CORE, "Option C: outer core", "C"),
    (CORE, "The answer is option C.", "C"),
    (CORE, "The answer is option **C**.", "C"),
    (CORE, "**Answer:** C", "C"),
    (CORE, "(C) outer core", "C"),
    (CORE, "C) outer core", "C"),
    (CORE, "\\boxed{C}", "C"),
    (CORE, "The correct option is (C), since it is liquid.", "C"),
    (CORE, "The answer to the question is C.", "C"),
    (CORE, "The answer is not A, it is C.", "C"),
    (CORE, "I would choose C.", "C"),
    (CORE, "C is the correct answer, as A is solid.", "C"),
    (CORE, "C because the outer core is liquid.", "C"),
    (CORE, "A is wrong, since the crust is solid. So the answer is C.", "C"),
    (CORE, "Final answer: C", "C"),
    (CORE, "The answer is B. Wait, the crust is not liquid. Final answer: C", "C"),
    (CORE, "A. crust\nB. mantle\nC. outer core\nD. inner core\n\nAnswer: C", "C"),
    (CORE, "A. crust\nB. mantle\nC. outer core\nD. inner core", None),
    (CORE, "A. inner core", None),
    (CORE, "I think that it is the outer core, not the inner core.", "C"),
    (CORE, "It could be the mantle or the outer core.", None),
    (CORE, "A good question! I do not know.", None),
    (CORE, "E", None),
    (CORE, "", None),
    # negations: what is only denied is nobody's answer, and what is chosen instead is read
    (CORE, "I would not choose A.", None),
    (CORE, "I would not choose A. I would choose C.", "C"),
    (CORE, "I wouldn’t go with A.", None),
    (CORE, "I would never pick B", None),
    (CORE, "Don't choose A", None),
    (CORE, "I don't think A is correct", None),
    (CORE, "Option A is incorrect.", None),
    (CORE, "A is incorrect, C is correct.", "C"),
    (CORE, "A is false.", None),
    (CORE, "(A) is wrong", None),
    (CORE, "A: wrong", None),
    (CORE, "A, B and D are wrong", None),
    (CORE, "It's not A, B or D.", None),
    (CORE, "Option B can be ruled out", None),
    (CORE, "I'd rule out A and B; so the answer is D.", "D"),
    (CORE, "The correct answer is not B, but C", "C"),
    (CORE, "Not A but C", "C"),
    (CORE, "The answer is C, not A", "C"),
    (CORE, "The answer cannot be A.", None),
    (CORE, "The answer is neither A nor B.", None),
    (CORE, "The correct answer is not (A).", None),
    (CORE, "Anything but A", None),
    (CORE, "I choose C instead of A", "C"),
    (CORE, "Rather than A I choose C", "C"),
    (CORE, "The answer is A and C", None),
    (CORE, "It can't be the mantle.", None),
    (CORE, "It can't be the mantle; it is the outer core.", "C"),
    (CORE, "It couldn’t be the crust", None),
    (CORE, "The crust is wrong", None),
    (CORE, "The crust is not the answer.", None),
    (CORE, "No, the crust is incorrect. The outer core is right.", "C"),
    (CORE, "It's anything but the crust.", None),
    (CORE, "I doubt that it is the crust", None),
    (CORE, "The crust? No.", None),
    (CORE, "Neither the crust nor the mantle", None),
    (CORE, "I don't think it is the crust.", None),
    (CORE, "It's the outer core, isn't it?", "C"),
    (CORE, "The answer is C, because the mantle is not liquid.", "C"),
    (("does not change", "rises", "falls"), "It does not change.", "A"),
    (("does not change", "rises", "falls"), "A. does not change", "A"),
    (("does not change", "rises", "falls"), "It does not change, it rises.", None),
    (STATES, "A. water freezing", None),
    (STATES, "C. water freezing", "C"),
    # as chat models write: markup, units, corrections, hedges, restated options, quotation marks
    (CORE, "The wrong answer is A.", None),
    (CORE, "The wrong answer is A, the right one is C: answer C.", "C"),
    (CORE, "The least likely answer is B.", None),
    (CORE, "The least plausible option is (B).", None),
    (CORE, "Option B is the worst.", None),
    (CORE, "B is the least likely.", None),
    (CORE, "B is a common distractor.", None),
    (CORE, "B is very unlikely, so I'd say C.", "C"),
    (CORE, "None of A or B is right.", None),
    (CORE, "The answer is not: A", None),
    (CORE, "Answer choices: A, B, C", None),
    (CORE, "Options: A, B, C, D", None),
    (CORE, "Answer choices: A, B, C, D. Answer: C", "C"),
    (CORE, "A) crust B) mantle C) outer core D) inner core. The answer is C.", "C"),
    (CORE, "Which is it: A. crust B. mantle C. outer core D. inner core?", None),
    (CORE, "B or C", None),
    (CORE, "B, C", None),
    (CORE, "C, or maybe B", None),
    (CORE, "B/C", None),
    (CORE, "The answer is either A or B.", None),
    (CORE, "The answers are A, B.", None),
    (CORE, "It could be A or B, but I'd go for C.", "C"),
    (CORE, "The answer is A. Wait, no, it is C.", "C"),
    (CORE, "A. Hmm, let me reconsider. The liquid layer is C.", None),
    (CORE, "The answer is B. Actually, it's C.", "C"),
    (CORE, "I'd say B — I mean C.", "C"),
    (CORE, "The answer is A. Wait, that is wrong.", None),
    (CORE, "<think>Is it A? The answer is A.</think>The answer is C.", "C"),
    (CORE, "<answer>C</answer>", "C"),
    (CORE, "$\\boxed{\\text{C}}$", "C"),
    (CORE, "The answer is $\\boxed{\\textbf{(C)}\\ \\text{outer core}}$", "C"),
    (CORE, "“C”", "C"),
    (CORE, "«C»", "C"),
    (CORE, "The answer is „C“.", "C"),
    (CORE, "「C」", "C"),
    (CORE, "The answer is 'C'.", "C"),
    (CORE, "The answer is ‘A’.", "A"),
    (CORE, "✅ C. outer core", "C"),
    (CORE, "❌ A\n✅ C", "C"),
    (CORE, "- **C) outer core**", "C"),
    (CORE, "### Answer: **C**", "C"),
    (CORE, "> C", "C"),
    (CORE, "<b>C</b>", "C"),
    (CORE, "My answer → C", "C"),
    (CORE, "A and B are solid, thus C.", None),
    (CORE, "We can rule out A and B, leaving C.", "C"),
    (CORE, "B? No, C.", "C"),
    (CORE, "I'm torn between B and C.", None),
    (CORE, "C\n\nQuestion: Which layer is solid?\nAnswer: A", "C"),
    (CORE, "I don't know, so I'll guess C.", "C"),
]
YESNO = [  # (reply, "yes", "no" or None)
    # SmolLM2, BoolQ
    ("No.", "no"),
    ("No, I don't get paid when on administrative leave.", "no"),
    ("No, the latent heat of vaporization does not change with temperature. It is a fundamental concept.", "no"),
    ("No, they are not making a season 8 of suits.", "no"),
    ("No, a standard deviation cannot be greater than 1. This is a fundamental concept in statistics.", "no"),
    ("No, I'm not able to provide that information. I'm designed to provide information about products.", None),
    ("The Nobel Peace Prize is a prestigious award awarded to individuals.", None),
    ("A ventilator is a machine that helps to breathe, while a ventilator is a device that helps to breathe.", None),
    # as people report them
    ("There is no specific season", None),
    ("No one knows.", None),
    ("No specific season is known for it.", None),
    ("**Yes**", "yes"),
    ("Yes", "yes"),
    ("yes, it is", "yes"),
    ("The answer is no.", "no"),
    ("The answer is: **True**", "yes"),
    ("That statement is false.", "no"),
    ("This is not true.", "no"),
    ("No it is not.", "no"),
    ("False. Water boils at 100 degrees.", "no"),
    ("It depends on the state. Yes and no.", None),
    ("Most metals conduct. So yes.", "yes"),
    ("The answer is no specific season.", None),
    # as chat models write: markup, units, corrections, hedges, restated options, quotation marks
    ("True, but no", None),
    ("No, I think yes", None),
    ("Yes, but no.", None),
    ("No, wait, yes.", "yes"),
    ("Yes or no? Yes.", "yes"),
    ("It depends on whether it is true.", None),
    ("If that is true, it freezes.", None),
    ("The answer is a clear no.", "no"),
    ("“Yes”", "yes"),
    ("«No», it does not.", "no"),
    ("„Yes.“", "yes"),
    ("_Yes_, it does.", "yes"),
    ("<answer>no</answer>", "no"),
    ("No. 5 is the one.", None),
    ("I'd say yes.", "yes"),
    ("It is, so yes!", "yes"),
    ("No doubt about it, yes.", "yes"),
    ("Yes? No.", "no"),
    ("\\boxed{\\text{Yes}}", "yes"),
    ("Yes, that's right, isn't it?", "yes"),
    ("It would be false to say so.", None),
    ("No\n\nQuestion: Is snow hot?\nAnswer: yes", "no"),
    ("This isn't false.", None),
    ("Yes—it is.", "yes"),
    ("Is it? I'd rather say no.", "no"),
]
NUMBERS = [  # (reply, number or None)
    # SmolLM2, SVAMP and GSM8K
    ("Baker made 155 cakes.\nThen Baker still has 155 - 140 = 50 cakes left.\n#### 50\nThe answer is: 50", "50"),
    ("Jake has 12 + 15 = 26 more apples than Steven.\n#### 26\nThe answer is: 26", "26"),
    (
        "So, 43 * 23 = 988 pieces.\nTherefore, Robin has 988 - 23 = 992 pieces of gum.\n#### 992\nThe answer is: 99",
        "992",
    ),
    ("The number of seats in each bus is 98 * 7 = 664.\n#### 664\nThe answer is: 664", "664"),
    ("Paco had 40 cookies, and he ate 5 cookies. So, he had 40 - 5 = 25 cookies left.\n\nThe answer is 25.", "25"),
    ("There are 50 x 10 = 500 leftover burritos.\n\n#### 500\n\nThe answer is 500.", "500"),
    (
        " The bed is 6 feet long by 8 feet wide.\n#### 6\n\nQuestion: A bat and a ball cost $1.10?\nAnswer: x\n#### 10",
        "6",
    ),
    ("So, Mr. Yu delivers 1 message.\n\n#### 1\n\n#### 1\n#### 1\n####", "1"),
    ("The total cost is $600 * $125 = $7200.\n\nSo, the answer is 7200.", "7200"),
    (
        "1 hour and 30 minutes + 2 hours and 5 minutes = 31 minutes.\n#### 31\nThe answer is 31.\n\nThe answer is 31.",
        "31",
    ),
    ("The total cost is 12 + 24 = 48 hours\n#### 48\n\nQuestion: How much does the ball cost?\n#### 10", "48"),
    ("1. 90\n2. 16\n3. 10\n4. 12\n5. 18\n6. 20\n7. 21\n8. 22", None),
    # as people report them
    ("The answer is 4. There were 7 crayons.", "4"),
    ("12 (3 * 4)", "12"),
    ("#### 4\n\nQuestion: What is 3 + 4?\n#### 7", "4"),
    ("The answer is 4.\n\nQ: And 3 + 4?\nA: The answer is 7.", "4"),
    ("5 + 7 = 12", "12"),
    ("The answer is 3 * 4 = 12 apples.", "12"),
    ("The answer is **$1,234.50**.", "1234.5"),
    ("$\\boxed{42}$", "42"),
    ("So x = 7. The final answer is \\boxed{42}.", "42"),
    ("12 apples", "12"),
    ("12 apples. He had 5 before.", "12"),
    ("He has 5 apples and 7 pears, which makes 12 in all.", "12"),
    ("5 apples and 7 pears make 12", "12"),
    ("The answer is four.", "4"),
    ("The answer is 3/4.", None),
    ("#### 1/2", None),
    ("x = 1/2", None),
    ("3 1/2 cups", None),
    ("\\boxed{\\frac{1}{2}}", None),
    ("The answer is 1 234.", "1234"),
    ("1\u202f234", "1234"),
    ("12 345 678 people", "12345678"),
    ("#### 1 234", "1234"),
    ("1'234", "1234"),
    ("1.5e3", "1500"),
    ("The answer is 1.5e-3.", "0.0015"),
    ("1.5 × 10^3", "1500"),
    ("The answer is 10^3", None),
    ("The answer is 2 * 3", None),
    ("The answer is 2*3 = 6", "6"),
    ("1,234.50", "1234.5"),
    ("1.234,50", None),
    ("The answer is 3,5.", None),
    ("1,2,3", None),
    ("The answer is \u22125.", "-5"),
    ("$5.00", "5"),
    ("-$5.00", "-5"),
    ("\u2212$5.00", "-5"),
    ("The answer is 5-10.", None),
    ("The answer is 5 million.", None),
    ("5 dozen", None),
    ("The answer is twenty-five.", "25"),
    ("The answer is twenty five apples.", "25"),
    ("The answer is thirteen.", "13"),
    ("The answer is two hundred.", None),
    ("The answer is not 5 but 6.", "6"),
    ("The answer isn't 5.", None),
    ("It is not 5.", None),
    ("-3", "-3"),
    ("1. He had 40.\n2. He ate 5, so 40 - 5 = 35.\n3. He gave 13, so 35 - 13 = 22.", "22"),
    ("I do not know.", None),
    ("", None),
    # as chat models write: markup, units, corrections, hedges, restated options, quotation marks
    ("1 2/3", None),
    ("The answer is 1 2/3.", None),
    ("3½", None),
    ("The answer is 3½ cups.", None),
    ("10⁵", None),
    ("The answer is 10⁵.", None),
    ("1.5 × 10⁵", "150000"),
    ("12:30", None),
    ("The answer is 12:30.", None),
    ("between 5 and 6", None),
    ("The answer is between 5 and 6.", None),
    ("3 or 4", None),
    ("The answer is either 3 or 4.", None),
    ("3 apples or 4 apples", None),
    ("1.2k", None),
    ("The answer is $1.2M.", None),
    ("7? No, the answer is 8", "8"),
    ("7? No, 8.", "8"),
    ("7?", None),
    ("The answer is 5. Wait, no, it is 6.", "6"),
    ("5, I mean 6", "6"),
    ("The answer is 5. Hmm, that is wrong.", None),
    ("The answer is 5. So the answer is 6.", None),
    ("The answer is 5. So the answer is 5.0 apples.", "5"),
    ("I would say 5, but it could be 6.", None),
    ("The answer is at least 5.", None),
    ("x > 5", None),
    ("x = 5 or x = -5", None),
    ("x = \\pm 5", None),
    ("a = 5 and b = 7, so a + b = 12", "12"),
    ("The answer is 5, 7.", None),
    ("\\boxed{5, 7}", None),
    ("\\boxed{(3, 4)}", None),
    ("\\boxed{1{,}234}", "1234"),
    ("\\boxed{10^{5}}", None),
    ("\\boxed{2\\sqrt{3}}", None),
    ("\\boxed{12\\text{ cm}^2}", "12"),
    ("$\\frac12$", None),
    ("\\(3 \\times 4 = \\boxed{12}\\)", "12"),
    ("The answer is 50\\%.", "50"),
    ("2 hours and 30 minutes", None),
    ("The answer is 5 feet 6 inches.", None),
    ("5'6\"", None),
    ("He finished 3rd.", None),
    ("The answer is H2O.", None),
    ("The answer is negative 5.", "-5"),
    ("The answer is minus five.", "-5"),
    ("The answer is - 5", "-5"),
    ("10 - 4", None),
    ("€1,234.50", "1234.5"),
    ("12,50 €", None),
    ("₹ 500", "500"),
    ("USD 1 234", "1234"),
    ("-€5", "-5"),
    ("<answer>42</answer>", "42"),
    ("<think>Maybe 41.</think>42", "42"),
    ("<b>42</b>", "42"),
    ("10<sup>5</sup>", None),
    ('{"answer": 12, "confidence": 0.9}', "12"),
    ("12\nConfidence: 90%", "12"),
    ("It is 12 [1].", "12"),
    ("The answer is “12”.", "12"),
    ("«12»", "12"),
    ("The wrong answer is 5.", None),
    ("5 is incorrect; it should be 6.", "6"),
    ("The answer is one of those.", None),
    ("No one knows.", None),
    ("5 out of 6", None),
    ("5 lakh", None),
    ("3x", None),
    ("0x1F", None),
    ("What is 5 + 3? 8", "8"),
    ("Is 3 + 4 = 7? Yes.", None),
    ("So we get **42** dollars.", "42"),
    ("~42", "42"),
    ("about 42 km", "42"),
    ("The answer is 5!", "5"),
    ("2024-05-06", None),
    ("The answer is 5 and a half.", None),
]
SHORT = [  # (reply, short answer)
    ("Paris", "paris"),
    ("**Paris**.", "paris"),
    ("The answer is Paris. It lies on the Seine.", "paris"),
    ("The correct answer is: **Paris**", "paris"),
    ("Answer: St. Louis", "st louis"),
    ("Paris\n\nQuestion: What is the capital of Italy?\nAnswer: Rome", "paris"),
    # as chat models write: markup, units, corrections, hedges, restated options, quotation marks
    ("The answer is „Paris“.", "paris"),
    ("<answer>Paris</answer>", "paris"),
    ("\\boxed{\\text{Paris}}", "paris"),
    ("«Paris».", "paris"),
    ("The wrong answer is Lyon. The answer is Paris.", "paris"),
]
JSON = [  # (reply, answer)
    ('```json\n{"answer": "Paris"}\n```', "paris"),
    ('{"answer": "Paris", "confidence": 0.9}', "paris"),
    ('{"answer": 5, "why": "x"}', "5"),
    ("The answer is Paris.", "paris"),
    # as chat models write: markup, units, corrections, hedges, restated options, quotation marks
    ('<think>{"answer": "Rome"}</think>{"answer": "Paris"}', "paris"),
    ('Reply with {"answer": "..."}: {"answer": "Paris"}', "paris"),
    ('{"answer": "Paris"} or {"answer": "Rome"}', None),
    ('{"answer": "Paris"}\n\nQuestion: And Italy?\n{"answer": "Rome"}', "paris"),
]


@pytest.mark.parametrize("options, reply, right", LETTERS)
def test_letters(options, reply, right):
    item = Item("q", options[0], options)
    assert FORMATS["letter"].find(item, reply) == right


@pytest.mark.parametrize("reply, right", YESNO)
def test_yes_and_no(reply, right):
    assert FORMATS["yesno"].find(Item("q", "yes", ("yes", "no")), reply) == right


@pytest.mark.parametrize("name", ["number", "solution"])
@pytest.mark.parametrize("reply, right", NUMBERS)
def test_numbers(name, reply, right):
    assert FORMATS[name].find(Item("q", "1"), reply) == right


@pytest.mark.parametrize("reply, right", SHORT)
def test_short_answers(reply, right):
    assert FORMATS["exact"].find(Item("q", "x"), reply) == right


@pytest.mark.parametrize("reply, right", JSON)
def test_objects(reply, right):
    assert FORMATS["json"].find(Item("q", "x"), reply) == right


def test_the_table_is_as_long_as_it_must_be():
    assert len(LETTERS) + len(YESNO) + len(NUMBERS) + len(SHORT) + len(JSON) >= 340


def test_what_contradicts_itself_is_said_to():
    doubts = {reply: letter_doubt(reply, "ABCD", options) for options, reply, _ in LETTERS}
    assert doubts["B. clouds."] == "B stands beside the words of C"
    assert doubts["A. water freezing"] == "A stands beside the words of C"
    assert "both said" in letter_doubt("The answer is A. No, the answer is B.", "ABCD", CORE)
    for _, reply, right in LETTERS:
        assert right is None or doubts[reply] is None
    item = Item("q", "mantle", CORE)
    assert FORMATS["letter"].doubts(item, "A. mantle") and FORMATS["letter"].doubts(item, "B. mantle") is None
    assert FORMATS["number"].doubts(item, "x") is None


wrong_words = st.sampled_from(range(4))
openings = st.sampled_from(
    ["{}", "({})", "**{}**", "Option {}", "The answer is {}:", "The correct option is ({})", "{}."]
)


@given(said=wrong_words, words=wrong_words, opening=openings)
@settings(max_examples=200, deadline=None)
def test_a_letter_is_read_if_its_words_are_its_own(said, words, opening):
    reply = opening.format("ABCD"[said]) + f" {STATES[words]}"
    if opening == "{}":
        reply = f"{'ABCD'[said]}: {STATES[words]}"
    found = said_letter(reply, "ABCD", STATES)
    assert found == ("ABCD"[said] if said == words else None)
    assert bool(letter_doubt(reply, "ABCD", STATES)) == (said != words)
    renamed = letter_format("wxyz")
    item = Item("q", STATES[0], STATES)
    told = opening.format("wxyz"[said]) + "."
    assert renamed.find(item, told) == "wxyz"[said]


@given(
    number=st.integers(-999, 99999),
    other=st.integers(0, 999),
    behind=st.sampled_from(["Question:", "Q:", "**Question 2:**"]),
)
@settings(max_examples=200, deadline=None)
def test_a_next_question_is_nobodys_answer(number, other, behind):
    for own in (f"Some steps.\n#### {number}", f"So the answer is {number}.", f"{number}"):
        reply = f"{own}\n\n{behind} what is {other} + 1?\n#### {other}"
        assert said_number(reply) == str(number), reply
        assert own_part(reply) == own_part(own_part(reply)) and str(number) in own_part(reply)
    assert FORMATS["solution"].read(Item("q", "1"), f"Steps.\n#### {number}\n\n{behind} x\n#### {other}") == str(number)


@given(text=st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_text_is_read_without_an_exception(text):
    for found in (said_number(text), said_yesno(text), said_short(text), said_letter(text, "ABCD", CORE)):
        assert found is None or isinstance(found, str)
    assert letter_doubt(text, "ABCD", CORE) is None or said_letter(text, "ABCD", CORE) is None
    assert isinstance(plain_reply(text), str) and text.startswith(own_part(text))
    assert mentioned(text, ()) is None


ways_to_deny = st.sampled_from(
    [
        "I would not choose {0}.",
        "It can't be {0}.",
        "The answer isn’t {0}.",
        "{0} is wrong.",
        "{0} is not the right answer.",
        "I'd never say {0}.",
        "Anything but {0}.",
        "We can rule out {0}.",
        "I doubt that it is {0}.",
    ]
)
ways_to_choose = st.sampled_from(["", " I choose {0}.", " The answer is {0}.", " So the correct option is ({0})."])


@given(
    denied=st.permutations("ABCD"), deny=ways_to_deny, choose=ways_to_choose, words=st.booleans(), n=st.integers(1, 2)
)
@settings(max_examples=200, deadline=None)
def test_what_is_denied_is_not_read_and_what_is_chosen_is(denied, deny, choose, words, n):
    names = dict(zip("ABCD", STATES))
    *left, chosen = denied[: n + 1]
    reply = " ".join(deny.format(names[letter] if words else letter) for letter in left) + choose.format(chosen)
    assert said_letter(reply, "ABCD", STATES) == (chosen if choose else None), reply


@given(
    number=st.decimals(-(10**9), 10**9, places=2),
    mark=st.sampled_from(["", ",", " ", "\u202f", "'"]),
    dollar=st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_a_number_is_read_whole_however_it_is_written(number, mark, dollar):
    written = f"{abs(number):,.2f}".replace(",", mark)
    written = ("\u2212" if number < 0 else "") + ("$" if dollar else "") + written
    for reply in (written, f"The answer is {written}.", f"#### {written}", f"x = {written}"):
        assert FORMATS["number"].find(Item("q", "1"), reply) == plain_number(f"{number:.2f}"), reply
