"""Tool calls between tokens, as V3, R1 and V3.1 write them: the parser states they share."""

from collections.abc import Mapping

from ziphius.text import special
from ziphius.text.chat import parser
from ziphius.text.chat.parser import State, Step


def states_with_calls(first: str, inside: Mapping[str, Mapping[str, Step]]) -> dict[str, State]:
    """Return the states of an answer that may hold a block of calls.

    Args:
        first: the state that a call begins with.
        inside: state inside a call -> its marks; the arguments are the state "arguments". Marks
            that cut a call off are added to each.
    """
    end = parser.ending(special.EOS)
    begin: dict[str, Step] = {special.CALLS_BEGIN: Step("calls"), special.CALL_BEGIN: Step(first)}
    cut_off: dict[str, Step] = {
        special.CALL_BEGIN: Step(first, parser.abort_call),
        special.CALLS_END: Step("tail", parser.abort_call),
        special.CALL_END: Step("calls", parser.abort_call),
    }
    between: dict[str, Step] = {special.CALL_BEGIN: Step(first), special.CALLS_END: Step("tail")}
    states = {
        "content": State(parser.content, begin | end),
        "calls": State(parser.content, between | end, skip_space=True),
        "tail": State(parser.content, begin | end, skip_space=True),
    }
    for name, marks in inside.items():
        text = parser.arguments if name == "arguments" else parser.hold
        states[name] = State(text, {**cut_off, **marks, **end})
    return states
