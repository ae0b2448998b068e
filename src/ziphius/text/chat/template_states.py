"""How to read what a model answers, told by the marks in its chat template.

A think block, DeepSeek's tool tokens, `<tool_call>` tags with JSON, and Llama's bare JSON are read;
calls in a syntax that is not known here stay content.
"""

from collections.abc import Mapping
from typing import NamedTuple

from ziphius.text import special
from ziphius.text.chat import parser
from ziphius.text.chat.deepseek_v3 import DeepSeekV3
from ziphius.text.chat.deepseek_v31 import DeepSeekV31
from ziphius.text.chat.deepseek_v32 import DeepSeekV32
from ziphius.text.chat.json_calls import tagged_calls, whole_calls
from ziphius.text.chat.parser import State, Step


class Reading(NamedTuple):
    """The states of a parser, and where it starts."""

    states: Mapping[str, State]
    thinks: bool
    lead: str
    """White space before an answer that belongs to its frame."""

    def first_step(self, thinking: bool) -> Step:
        """Say where the parser starts."""
        if thinking:
            return Step("reasoning")
        return Step("start" if "start" in self.states else "content", lead=self.lead)


def reading_of(source: str, end: str, gap: str, lead: str) -> Reading:
    """Derive the states from the text of a template.

    Args:
        source: of the template.
        end: what a model writes to end its turn.
        gap: white space that the template puts before it.
        lead: white space that it puts before an answer.
    """
    # A template that cuts past reasoning off names the end of a block alone.
    thinks = special.END_THINK in source
    states = dict(_calls(source, end))
    if gap and "content" in states:
        content = states["content"]
        ends = parser.ending(end) | parser.ending(gap + end)
        states["content"] = State(content.text, {**content.marks, **ends})
    if thinks and "reasoning" not in states:
        think = parser.thinking(end)
        if "start" in states:  # an answer that may be one call: the block comes before it
            after = Step("answer", lead="\n\n")
            marks = {special.END_THINK: after, "\n" + special.END_THINK: after}
            states["answer"] = states["start"]
            think["start"] = State(parser.content, think["start"].marks, otherwise="answer")
            think["reasoning"] = State(parser.reasoning, marks | parser.ending(end))
        states |= think
    return Reading(states, thinks, lead)


def _calls(source: str, end: str) -> Mapping[str, State]:
    is_deepseek = end == special.EOS
    if is_deepseek and special.DSML in source:
        return DeepSeekV32().states()
    if is_deepseek and special.CALL_SEP in source:
        return (DeepSeekV3() if "```json" in source else DeepSeekV31()).states()
    # The same word around parameters in tags of their own is another syntax.
    if special.TOOL_CALL in source and "<function=" not in source and "<arg_key>" not in source:
        return tagged_calls(end)
    if special.PYTHON_TAG in source or '"parameters": ' in source:
        return whole_calls(end)
    return {"content": State(parser.content, parser.ending(end))}
