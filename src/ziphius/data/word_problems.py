"""Exercises told in words: buying, sharing, travelling, units, means, sequences, shapes."""

from itertools import pairwise
from random import Random

from ziphius.data.arithmetic import Both, Exercise


def percentage(random: Random) -> Exercise:
    """Take a percentage of a number by way of one percent."""
    percent, hundreds = random.randint(1, 99), random.randint(1, 60)
    base = hundreds * 100
    steps: list[str | Both] = [
        f"{base} / 100 = {hundreds}",
        f"{hundreds} * {percent} = {hundreds * percent}",
    ]
    question = (
        f"What is {percent}% of {base}?",
        f"{base} \u7684 {percent}% \u662f\u591a\u5c11\uff1f",
    )
    return Exercise(question, steps, str(hundreds * percent))


_UNITS = (
    (("hours", "\u5c0f\u65f6"), ("minutes", "\u5206\u949f"), 60),
    (("minutes", "\u5206\u949f"), ("seconds", "\u79d2"), 60),
    (("days", "\u5929"), ("hours", "\u5c0f\u65f6"), 24),
    (("weeks", "\u5468"), ("days", "\u5929"), 7),
    (("kilometres", "\u5343\u7c73"), ("metres", "\u7c73"), 1_000),
    (("metres", "\u7c73"), ("centimetres", "\u5398\u7c73"), 100),
    (("kilograms", "\u5343\u514b"), ("grams", "\u514b"), 1_000),
)


def conversion(random: Random) -> Exercise:
    """Turn a larger and a smaller unit into the smaller one."""
    large, small, factor = random.choice(_UNITS)
    a, b = random.randint(2, 40), random.randint(1, factor - 1)
    steps: list[str | Both] = [
        f"{a} * {factor} = {a * factor}",
        f"{a * factor} + {b} = {a * factor + b}",
    ]
    question = (
        f"How many {small[0]} are {a} {large[0]} and {b} {small[0]}?",
        f"{a} {large[1]} {b} {small[1]}\u7b49\u4e8e\u591a\u5c11{small[1]}\uff1f",
    )
    return Exercise(question, steps, str(a * factor + b))


_GOODS = (
    ("pencils", "\u94c5\u7b14"),
    ("apples", "\u82f9\u679c"),
    ("books", "\u4e66"),
    ("tickets", "\u7968"),
    ("cups", "\u676f\u5b50"),
    ("stamps", "\u90ae\u7968"),
)
_PEOPLE = (
    ("Anna", "\u5c0f\u7ea2"),
    ("Tom", "\u5c0f\u660e"),
    ("Mei", "\u5c0f\u7f8e"),
    ("Li", "\u5c0f\u674e"),
    ("Sam", "\u5c0f\u738b"),
)


def shopping(random: Random) -> Exercise:
    """Buy things of two kinds and count the change."""
    person = random.choice(_PEOPLE)
    first, second = random.sample(_GOODS, 2)
    m, n, p, q = (random.randint(2, 12) for _ in range(4))
    total = m * p + n * q
    paid = (total // 50 + 1) * 50
    steps: list[str | Both] = [
        f"{m} * {p} = {m * p}",
        f"{n} * {q} = {n * q}",
        f"{m * p} + {n * q} = {total}",
        f"{paid} - {total} = {paid - total}",
    ]
    question = (
        f"{person[0]} buys {m} {first[0]} at {p} yuan each and {n} {second[0]} at {q} yuan each, "
        f"and pays with {paid} yuan. How much change is there?",
        f"{person[1]}\u4e70\u4e86\u5355\u4ef7 {p} \u5143\u7684{first[1]} {m} \u4ef6"
        f"\u548c\u5355\u4ef7 {q} \u5143\u7684{second[1]} {n} \u4ef6\uff0c"
        f"\u4ed8\u4e86 {paid} \u5143\u3002\u5e94\u627e\u56de\u591a\u5c11\u5143\uff1f",
    )
    return Exercise(question, steps, str(paid - total))


def sharing(random: Random) -> Exercise:
    """Give some away and share out the rest evenly."""
    person, things = random.choice(_PEOPLE), random.choice(_GOODS)
    friends, each, kept = random.randint(2, 9), random.randint(2, 20), random.randint(1, 15)
    total = friends * each + kept
    steps: list[str | Both] = [
        f"{total} - {kept} = {friends * each}",
        f"{friends * each} / {friends} = {each}",
    ]
    question = (
        f"{person[0]} has {total} {things[0]}, keeps {kept} and shares the rest evenly among "
        f"{friends} friends. How many does each friend get?",
        f"{person[1]}\u6709 {total} \u4ef6{things[1]}\uff0c"
        f"\u81ea\u5df1\u7559\u4e0b {kept} \u4ef6\uff0c"
        f"\u5176\u4f59\u5e73\u5747\u5206\u7ed9 {friends} \u4e2a\u670b\u53cb\u3002"
        "\u6bcf\u4e2a\u670b\u53cb\u5f97\u5230\u591a\u5c11\u4ef6\uff1f",
    )
    return Exercise(question, steps, str(each))


def travel(random: Random) -> Exercise:
    """Add two stretches of a journey."""
    v, w = random.randint(20, 90), random.randint(20, 90)
    t, s = random.randint(2, 9), random.randint(2, 9)
    steps: list[str | Both] = [
        f"{v} * {t} = {v * t}",
        f"{w} * {s} = {w * s}",
        f"{v * t} + {w * s} = {v * t + w * s}",
    ]
    question = (
        f"A train travels {t} hours at {v} km/h and then {s} hours at {w} km/h. How many "
        "kilometres is that?",
        "\u4e00\u5217\u706b\u8f66"
        f"\u5148\u4ee5\u6bcf\u5c0f\u65f6 {v} \u5343\u7c73\u7684\u901f\u5ea6"
        f"\u884c\u9a76 {t} \u5c0f\u65f6\uff0c"
        f"\u518d\u4ee5\u6bcf\u5c0f\u65f6 {w} \u5343\u7c73\u7684\u901f\u5ea6"
        f"\u884c\u9a76 {s} \u5c0f\u65f6\u3002"
        "\u4e00\u5171\u884c\u9a76\u591a\u5c11\u5343\u7c73\uff1f",
    )
    return Exercise(question, steps, str(v * t + w * s))


def sequence(random: Random) -> Exercise:
    """Continue an arithmetic sequence."""
    start, difference = random.randint(-20, 50), random.choice([-7, -4, -3, 2, 3, 5, 6, 8, 11])
    terms = [start + i * difference for i in range(5)]
    shown = ", ".join(map(str, terms[:4]))
    steps: list[str | Both] = [f"{b} - ({a}) = {difference}" for a, b in pairwise(terms[:4])]
    steps.append(f"{terms[3]} + ({difference}) = {terms[4]}")
    question = (
        f"What is the next number of the sequence {shown}?",
        f"\u6570\u5217 {shown} \u7684\u4e0b\u4e00\u4e2a\u6570\u662f\u591a\u5c11\uff1f",
    )
    return Exercise(question, steps, str(terms[4]))


def mean(random: Random) -> Exercise:
    """Average a few numbers whose mean is whole."""
    count, average = random.randint(3, 5), random.randint(10, 90)
    values = [average + random.randint(-9, 9) for _ in range(count - 1)]
    values.append(average * count - sum(values))
    total = average * count
    steps: list[str | Both] = [
        f"{' + '.join(map(str, values))} = {total}",
        f"{total} / {count} = {average}",
    ]
    shown = ", ".join(map(str, values))
    return Exercise(
        (
            f"What is the mean of {shown}?",
            f"{shown} \u7684\u5e73\u5747\u6570\u662f\u591a\u5c11\uff1f",
        ),
        steps,
        str(average),
    )


def rectangle(random: Random) -> Exercise:
    """Find the area or the perimeter of a rectangle."""
    a, b = random.randint(2, 60), random.randint(2, 60)
    if random.random() < 0.5:
        question = (
            f"What is the area of a rectangle of {a} m by {b} m, in square metres?",
            f"\u957f {a} \u7c73\u3001\u5bbd {b} \u7c73\u7684\u957f\u65b9\u5f62\uff0c"
            "\u9762\u79ef\u662f\u591a\u5c11\u5e73\u65b9\u7c73\uff1f",
        )
        return Exercise(question, [f"{a} * {b} = {a * b}"], str(a * b))
    question = (
        f"What is the perimeter of a rectangle of {a} m by {b} m, in metres?",
        f"\u957f {a} \u7c73\u3001\u5bbd {b} \u7c73\u7684\u957f\u65b9\u5f62\uff0c"
        "\u5468\u957f\u662f\u591a\u5c11\u7c73\uff1f",
    )
    steps: list[str | Both] = [f"{a} + {b} = {a + b}", f"{a + b} * 2 = {2 * (a + b)}"]
    return Exercise(question, steps, str(2 * (a + b)))
