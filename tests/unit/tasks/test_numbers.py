import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.examples import examples
from ziphius.tasks import TASKS, Problem
from ziphius.tasks.numbers import LONGEST_TEXT, final_number, read_number, written


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("72", "72"),
        ("5\u00b2", "25"),
        ("5 \u00d7 10\u00b3", "5000"),
        ("2\u00d710\u207b\u00b2", "1/50"),
        ("-\u00bd", "-1/2"),
        ("5 lakh", "500000"),
        ("\u7b54\u6848\u662f-18\u5143\u30023*6=18", "-18"),
        ("18\u4e07\u5143", "180000"),
        ("\u517118\u4e2a", "18"),
        ("#### 72", "72"),
        ("It costs $1,200.50.", "1200.5"),
        ("The answer is **72**.", "72"),
        ("72 apples", "72"),
        ("-$5", "-5"),
        ("$-5", "-5"),
        ("it is -5", "-5"),
        ("3 + 4 = 7\n#### 1,234,567", "1234567"),
        ("1,000,000", "1000000"),
        ("1'000", "1000"),
        ("1_000", "1000"),
        ("1 000 000", "1000000"),
        ("1\\,000", "1000"),
        ("$1{,}000$", "1000"),
        ("1 1/2", "3/2"),
        ("1\u00bd", "3/2"),
        ("\u00bd", "1/2"),
        ("1\\frac{1}{2}", "3/2"),
        ("\\boxed{-\\dfrac{3}{4}}", "-3/4"),
        ("\\frac34", "3/4"),
        ("3\u20444", "3/4"),
        ("#### 3 / 4", "3/4"),
        ("1.5e3", "1500"),
        ("1.5 \u00d7 10^3", "1500"),
        ("$1.5 \\times 10^{3}$", "1500"),
        ("2 x 10^-2", "1/50"),
        ("2^8", "256"),
        ("10^3", "1000"),
        ("2 million dollars", "2000000"),
        ("$1.2M", "1200000"),
        ("5k", "5000"),
        ("2 hundred thousand", "200000"),
        ("5m", "5"),
        ("18km", "18"),
        ("18 m^2", "18"),
        ("18 cm\u00b2", "18"),
        ("90^\\circ", "90"),
        ("90\u00b0", "90"),
        ("The answer is: 72", "72"),
        ("**Answer:** 72", "72"),
        ("Answer:18", "18"),
        ("answer=72", "72"),
        ("x=-5", "-5"),
        ("So => 18", "18"),
        ("\u2192 18", "18"),
        ("She sold 48/2 = 24 clips. She sold 48+24 = 72 clips altogether in April and May.", "72"),
        ("After 3 days, he has 18 apples.", "18"),
        ("After 3 days he has 18 apples.", "18"),
        ("The answer is 72 clips in 2 months.", "72"),
        ("= 18 (6 x 3)", "18"),
        ("Final answer: \\(\\boxed{18}\\)", "18"),
        ("\\boxed{18\\text{ dollars}}", "18"),
        ("\\boxed{x = 18}", "18"),
        ("It is \\boxed{18} and so \\boxed{18}.", "18"),
        ("#### \\boxed{18}", "18"),
        ("#### $18 per hour", "18"),
        ("\uff0d\uff15", "-5"),
        ("minus 5", "-5"),
        ("negative 5", "-5"),
        ("The answer is 18!", "18"),
        ("\u22121,234.5", "-1234.5"),
        ("18.", "18"),
        ("(18)", "18"),
        ("* 18", "18"),
        ("50 percent", "50"),
        ("Total: 18", "18"),
        ("costs$5", "5"),
        ("7.0", "7"),
        ("007", "7"),
        ("0", "0"),
        ("-0", "0"),
    ],
)
def test_a_number_however_it_is_written(text: str, number: str) -> None:
    found = final_number(text)
    assert found is not None
    assert found.value == Fraction(number)


@pytest.mark.parametrize(
    "text",
    [
        "73 or 72",
        "72\u621673",
        "72\u548c73",
        "72, 73",
        "1, 2, 3",
        "72 and 73",
        "between 70 and 72",
        "70-72",
        "70 to 72",
        "70\u201372",
        "either 73 or 72",
        "72/73/74",
        "73; 72",
        "72 73",
        "72\n or 73",
        "73. Or 72.",
        "not 72",
        "It is not 72 but 73",
        "It isn't 72",
        "12-5",
        "so 12-5",
        "(3)-5",
        "3*4",
        "3 * 4",
        "3x4",
        "3 \\times 4",
        "3+4",
        "2^8+1",
        "\\sqrt{16}",
        "\u221a16",
        "12,34",
        "1.2.3",
        "1,5",
        "1.000,5",
        "1,00",
        "1,0000",
        "3:4",
        "3:30",
        "9" * 31,
        "1e99",
        "1e-99",
        "9^99",
        "1/0",
        "\u0667\u0662",
        "7\u0662",
        "x5",
        "5x",
        "5\u03c0",
        "\\boxed{3, 4}",
        "\\boxed{73} or \\boxed{72}",
        "#### 72 or 73",
        "#### 72 73",
        "#### 72 (or 73)",
        "2 hours 30 minutes",
        "48 in April and 24 in May",
        "5'6",
        "0.333...",
        "18 and a half",
        "more than 72",
        "at least 72",
        "x > 72",
        "x \\geq 72",
        "x >= 72",
        "5 \u00b1 2",
        "Is it 7? #### ",
        "",
        "none",
        "#### ",
        "12 -5",
        "12 - 5",
        "0x10",
        "1 000 00",
        "\\frac{1}{0}",
        "3 4/2",
        "--5",
        "18 minus 5",
        "\\boxed{}",
        "\\boxed{18",
        "1 000/2",
        "A4",
        "72 vs 73",
        "The answer is 73 or 72.",
        "72~73",
        "72 & 73",
        "\\pm 5",
        "72^",
        "72" * LONGEST_TEXT,
    ],
)
def test_what_can_be_read_in_two_ways_is_no_number(text: str) -> None:
    assert final_number(text) is None


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("\u22125", "-5"),
        ("1,000", "1000"),
        (".5", "0.5"),
        ("+7", "7"),
        ("1e3", "1000"),
        ("3/4", "0.75"),
        ("1/3", "1/3"),
        ("75\u00b0", "75"),
        (" 12 ", "12"),
        ("12 apples", None),
        ("12.", None),
        ("5 6", None),
        ("", None),
        ("1" * (LONGEST_TEXT + 1), None),
    ],
)
def test_a_text_that_is_a_number_and_nothing_else(text: str, plain: str | None) -> None:
    number = read_number(text)
    assert (None if number is None else written(number.value)) == plain


@examples(300)
@given(st.fractions(min_value=-(10**12), max_value=10**12, max_denominator=10**6))
def test_what_is_written_is_read_again(value: Fraction) -> None:
    number = final_number(f"#### {written(value)}")
    assert number is not None
    assert number.value == value


@examples(300)
@given(st.text("0123456789.,-+*/^=%$ \n{}()\\abxek#\u2212\u00bd\u0661", max_size=40))
def test_no_text_is_an_error(text: str) -> None:
    final_number(text)
    read_number(text)


@pytest.mark.parametrize(
    "part", ["\\boxed{", "answer to ", "1 ", "1,", "9", "1 000 ", "\\frac{1", "`a", "- ", "a=1 or "]
)
def test_no_text_takes_long(part: str) -> None:
    start = time.process_time()
    final_number((part * LONGEST_TEXT)[:LONGEST_TEXT])
    assert time.process_time() - start < 0.5


@pytest.mark.parametrize(
    ("task", "facts", "right", "answers", "wrong"),
    [
        (
            "chain_sum",
            {"answer": "-5"},
            "-5",
            ["\u22125", "\u20135", "-5.0", "\uff0d\uff15"],
            ["5", "-5%", "-5 or 5", "-5 apples", "\u2212\u0665"],
        ),
        ("gcd", {"answer": "1200"}, "1200", ["1,200", "1 200", "1.2e3"], ["1,20", "12e", "1200/7"]),
    ],
)
def test_other_tasks_read_numbers_alike(
    task: str, facts: dict[str, str], right: str, answers: list[str], wrong: list[str]
) -> None:
    problem = Problem(task=task, level=1, question="", answer=right, content="", facts=facts)
    assert all(TASKS[task].verify(problem, answer) for answer in [right, *answers])
    assert not any(TASKS[task].verify(problem, answer) for answer in wrong)
