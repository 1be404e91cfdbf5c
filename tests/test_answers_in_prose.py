"""Answers are found in the prose around them, however a model words and marks it."""

import itertools
import random

import pytest

from tsi.results.answers import extract_answer, find_answer
from tsi.results.canonical import canonical

CUES = [
    "The answer is {}",
    "So the answer is therefore {}",
    "the final answer is: {}",
    "The answer, then, is {}",
    "the answer to the question must be {}",
    "The answer is that there are {}",
    "The answer is exactly {}",
    "Answer: {}",
    "ANSWER: {}",
    "Ans: {}",
    "**Answer**: {}",
    "**Answer:** {}",
    "_Answer_: {}",
    "> **Answer:** {}",
    "### Answer\n{}",
    "**Final Answer**\n\n{}",
    "Final Answer:\n\n{}",
    "Answer — {}",
    "Answer -> {}",
    "Answer = {}",
    "<answer>{}</answer>",
    "<answer>\n{}\n</answer>",
    "#### {}",
]
FORMS = [
    "4",
    "**4**",
    "`4`",
    '"4"',
    "$4$",
    "\\(4\\)",
    "<b>4</b>",
    "**4** apples",
    "4 apples",
    "$4$ apples",
    "4 cm",
    "$4\\text{ cm}$",
    "$4.00",
    "x = 4",
    "$x = 4$",
]
REMARKS = [
    "",
    ".",
    " (out of 9 in step 2)",
    ", since 3 + 1 is 4",
    ", because 9 fails",
    ", which took 3 steps",
    " - that is, 3 and 1",
    " — see step 3",
    ". I checked 3 ways",
    "\n\nI checked 3 ways",
    "\nStep 9 confirms that the answer is correct.",
]


@pytest.mark.parametrize("cue", CUES)
def test_cue_form_and_remark_do_not_change_an_answer(cue):
    # A line of words after #### is a heading of Markdown.
    forms = [
        form for form in FORMS if cue != "#### {}" or form.strip("x= $*")[0] == "4"
    ]
    for form, remark in itertools.product(forms, REMARKS):
        text = f"2 + 2, as step 1 says.\n{cue.format(form)}{remark}"
        assert extract_answer(text) == "4", text


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Answer: -3", "-3"),
        ("Answer: - 3", "-3"),
        ("Answer: – 3", "-3"),
        ("Answer: −3", "-3"),
        ("Answer: $-3$", "-3"),
        ("Answer: -$3$", "-3"),
        # A dash that stands for a colon or begins a list item is not a minus sign.
        ("Answer – 3", "3"),
        ("Answer — 3", "3"),
        ("Answer:\n- 3 apples", "3"),
        ("Answer:\n\\[\n4\n\\]\nafter 3 steps", "4"),
        ("Answer: $$4$$ after 3 steps", "4"),
        ("The answer is $\\frac{1}{2}$ of the cake.", "1/2"),
        ("The answer is $5$ and $7$", "5,7"),
        ("The answers are 3 and 5.", "3,5"),
        ("The answer is $3.50 per hour", "7/2"),
        ("Answer: 2 or 3", "2,3"),
        ("Answer: (1, 2)", "(1,2)"),
        ("The answer is (x+1)(x-2).", "(x+1)(x-2)"),
        ("The answer is 2 (x+1)", "2(x+1)"),
        ("Answer: 18 (mod 24)", "18(mod24)"),
        ("Answer: 10:30 a.m.", "10:30a.m"),
        ("The answer is 5 million people", "5000000"),
        ("The answer is yes, because 3 is prime.", "yes"),
        ("The answer is not 5 but 7.", "7"),
        ("Answer: 50% of 8", "50%"),
        ("The answer is 50 percent.", "50%"),
        ("The answer is \\boxed{12.5\\%}.", "25/2%"),
        ("Answer: $33\\frac{1}{3}\\%$", "100/3%"),
        ("We get 1/2, so 50 %", "50%"),
        ("Answer: 5 percentage points", "5%"),
        ("Answer: 1 1/2 cups", "3/2"),
        ("The answer isn't 5 or 6, so 7", "7"),
        ("I check the answers in step 2. It is 7", "7"),
        ("#### 18\nSo the answer is correct.", "18"),
        ("#### Step 3: add 4\nThe answer is 9\n#### Conclusion of 2", "9"),
        ("Final Answer: The final answer is 5. I hope it is correct.", "5"),
        ("\\boxed{4 \\text{ apples}}", "4"),
        ("\\boxed{x = y = 5}", "5"),
        ("\\boxed{5 e3}", "5000"),
        ("\\boxed {7}", "7"),
        ("\\fbox{7}, and 3 checks", "7"),
    ],
)
def test_an_answer_in_prose(text, answer):
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The answer is New York, because it is big.", "New York"),
        ("**Answer**: Alice\n\nBob came later.", "Alice"),
        ("\\boxed{\\text{Alice}}", "\\text{Alice}"),
        ("nothing", None),
    ],
)
def test_the_words_of_an_answer(text, words):
    assert find_answer(text) == words


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("There are 29 strings of length 6 with digits from 1 to 3.", "29"),
        ("The number of ways is 2^(n-1).", "2^{n-1}"),
        ("The number of ways is given by the formula D(n) = n(n-3)/2.", "n(n-3)/2"),
        ("The sum for all n up to 9 is \\(\\frac{n}{2}\\), where n > 3.", "n/2"),
        ("No, 3 does not divide 2^n for any n.", "no"),
        ("The smallest value of a/b + b/a is 2, and it occurs when a = b = 1.", "2"),
        ("The minimum is 0, which is attained at x = 3.", "0"),
        ("The minimum is attained at x = 3 and is 5.", "5"),
        (
            "The values of \\(a\\) and \\(b\\) are \\( a = 3 \\) and \\( b = -4 \\).",
            "a=3,b=-4",
        ),
        ("The solutions are (x, y) = (5, 6) and (x, y) = (6, 5).", "(5,6),(6,5)"),
        ("The value of f(x) = x^3(x+1) at its minimum is $-8$.", "-8"),
        ("It factorizes as \\((x+1)(x-2)\\).", "(x+1)(x-2)"),
        ("So 5 + 2 = 7 apples and 3 left", "7"),
        ("first 3, then 17.", "17"),
        ("3 + 4 = 7. Then she buys 2 more, so 9", "9"),
    ],
)
def test_a_text_without_cue_is_read_from_its_last_sentence(text, answer):
    assert extract_answer(text) == answer


TOKENS = [
    *"0123456789.,/+-*^_=()[]{}<>;: eExyAB$%\\!'",
    *(
        "\\frac",
        "\\frac{1}{2}",
        "\\sqrt",
        "\\text{",
        "\\boxed{",
        "\\{",
        "\\}",
        "\\left",
    ),
    *(" or ", " and ", "apples", " cm", "million", "\\pi", "\\pm", "–", "−", "½", "²"),
    *("√", "\\overline{3}", "10^{", "answer is ", "Answer:", "####", "**", "x=", "\n"),
    *(
        "e3",
        "1,000",
        " 1/2",
        "\\ ",
        "\\\\",
        "{,}",
        "°",
        "\\dfrac12",
        "(x,y)=",
        "\ud800",
    ),
    *(
        "\x00",
        "zero",
        "five",
        "dozen",
        "∞",
        "(A)",
        "\\%",
        "\\le",
        "\\leq",
        "٣",
        "f(x)=",
    ),
]


def test_canonical_forms_are_fixed_points():
    draw, given = random.Random(1), 0
    for _ in range(3000):
        length = draw.randint(1, draw.choice([4, 8, 16, 60]))
        text = "".join(draw.choice(TOKENS) for _ in range(length))
        for form in (canonical(text), extract_answer(text)):
            assert canonical(form) == form, text
            given += form is not None
    assert given > 4000


def test_canonical_forms_keep_the_meaning_of_formulas():
    assert canonical("\\frac{1}{2}\\pi") == "(1/2)\\pi"
    assert canonical("2^\\frac{1}{2}") == "2^{1/2}"
    assert canonical("a/\\frac{b}{c}") == "a/(b/c)"
    assert canonical("1\\frac12 x") == "(1+1/2)x"
    assert canonical("a \\cdot b") == "a\\cdot b"
    assert canonical("\\Delta x") != canonical("\\delta x")
    assert canonical("R^2-r^2") != canonical("r^2-r^2")
    assert canonical("\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}") == (
        "\\begin{pmatrix}1\\\\2\\end{pmatrix}"
    )
