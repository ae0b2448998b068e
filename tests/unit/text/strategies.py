"""Random conversations and model outputs, made to come close to the marks of chat formats."""

import json

from hypothesis import strategies as st

from ziphius.text import special
from ziphius.text.chat import ChatFormat, Message, Tool, ToolCall
from ziphius.text.chat.plain import ANSWER, END_ANSWER

MARKS = [
    *special.HEAD_TOKENS,
    *special.TAIL_TOKENS[:18],
    special.IM_START,
    special.IM_END,
    ANSWER,
    END_ANSWER,
]
DSML = special.DSML
# What stands between marks in tool calls, and beginnings of marks that never come.
NEAR = [
    *(
        "<",
        "</",
        "<\uff5c",
        "\uff5c",
        "\u2581",
        "</think",
        "<think",
        "\uff5cDSML",
        "tool\u2581calls",
    ),
    *(
        "\n",
        "\n\n",
        "\n```",
        "```json\n",
        " ",
        "{",
        "}",
        '"',
        '">',
        "function",
        "\u4f60",
        "\U0001f40b",
    ),
]
FRAMES = [
    *MARKS,
    "{}",
    '{"x": 1}',
    "function",
    "get_time",
    "\n```json\n",
    "\n```",
    "\n" + special.EOT,
    "\n" + special.END_THINK,
    f"\n\n<{DSML}function_calls>\n",
    f'<{DSML}invoke name="',
    '">\n',
    f'<{DSML}parameter name="',
    '" string="true">',
    '" string="false">',
    f"</{DSML}parameter>\n",
    f"</{DSML}invoke>\n",
    f"</{DSML}function_calls>",
]

text_near_marks = st.lists(st.one_of(st.sampled_from(NEAR), st.text(max_size=3)), max_size=6).map(
    "".join
)
clean_text = text_near_marks.filter(lambda text: not any(mark in text for mark in MARKS))
"""Text without a whole mark, which as text would read like the mark itself."""

adversarial_text = st.lists(st.one_of(st.sampled_from(FRAMES), text_near_marks), max_size=5).map(
    "".join
)
"""Text with marks in it."""

outputs = st.lists(st.one_of(st.sampled_from(FRAMES), text_near_marks), max_size=14).map("".join)
"""What a model could emit, from well-formed to hopeless."""

names = st.from_regex(r"[A-Za-z0-9_.:/-]{1,12}", fullmatch=True)
numbers = st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False))
values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, clean_text),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(clean_text, inner, max_size=2),
    max_leaves=4,
)
tool_calls = st.builds(
    ToolCall,
    names,
    st.dictionaries(clean_text, values, max_size=3).map(
        lambda arguments: json.dumps(arguments, ensure_ascii=False)
    ),
)
tools = st.builds(
    Tool, names, adversarial_text, st.dictionaries(st.just("properties"), values, max_size=1)
)


def replies(chat_format: ChatFormat, *, thinks: bool, calls: bool) -> st.SearchStrategy[Message]:
    """Assistant messages that a format can say."""
    reasoning = clean_text.filter(bool) if thinks else st.none()
    called = st.lists(tool_calls, max_size=3).map(tuple) if calls else st.just(())
    return st.builds(Message, st.just("assistant"), clean_text, reasoning, called)
