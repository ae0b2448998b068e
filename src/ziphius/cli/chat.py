"""`ziphius chat`: a conversation with a model."""

import contextlib
import importlib
import importlib.util
import json
import sys
from typing import TYPE_CHECKING, Annotated, Self

import tyro
from pydantic import model_validator
from rich.console import Console

from ziphius.cli.answering import AnswerOptions, AnswerPrinter, Speed, token_limit
from ziphius.cli.engine_options import EngineOptions, Session, load_model, open_session
from ziphius.core.errors import ConfigError, OutputError, ZiphiusError
from ziphius.core.files import existing_path, user_path, write_file

if TYPE_CHECKING:
    from ziphius.engine.answer import Prompt
    from ziphius.text.chat import ChatFormat, Event, Message

DEFAULT_MAX_NEW_TOKENS = 4096

HELP = """\
/reset         forget the conversation, keep the system message
/system TEXT   set the system message; without TEXT remove it
/save FILE     write the conversation to a new JSON file
/help          this list
/exit          leave, as does Ctrl-D; Ctrl-C stops an answer
A line that begins with a space is sent as it is, even if a / follows."""


class ChatConfig(EngineOptions, AnswerOptions):
    """What `ziphius chat` needs to know."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """Model folder, .gguf file, or preset (with random weights)."""
    system: Annotated[str | None, tyro.conf.arg(metavar="TEXT")] = None
    """System message to begin with."""

    @model_validator(mode="after")
    def _one_adapter(self) -> Self:
        if len(self.adapters) > (self.default_adapter != ""):
            raise ConfigError("a chat has one adapter: give --adapter its folder alone")
        return self


def chat(config: ChatConfig) -> None:
    """Talk with a model, turn by turn.

    What the model thinks is shown apart, dim. Ctrl-C stops an answer but not the chat; /help
    lists the commands inside. What was computed of earlier turns is kept: the time to the first
    token stays short. Lines of a pipe are turns, too; one that goes wrong is skipped, and makes the
    exit code 1.

    Example:
        ziphius chat ./my-model
        ziphius chat model.gguf --system "Answer in one sentence." --temperature 0
        ziphius chat ./my-model --adapter runs/lora/checkpoints/step-25
        ziphius chat ./my-model --disk-cache ~/.cache/my-chats --verbose
    """
    from ziphius.text.chat import get_chat_format

    loaded = load_model(config.model, config)
    name = config.chat_format or loaded.tokenizer.chat_format
    if name is None:
        raise ConfigError(
            f"{config.model} has no chat format: give one with --chat-format, or let it continue "
            "text with ziphius generate --raw"
        )
    chat_format = get_chat_format(name)
    if config.thinking and True not in chat_format.thinking_modes:
        raise ConfigError(f"chat format {name} does not think: --thinking would have no effect")
    with open_session(loaded, config, 1) as session:
        if Chat(config, session, chat_format).run():
            raise SystemExit(1)


class Chat:
    """The conversation so far, and the loop that carries it on."""

    def __init__(self, config: ChatConfig, session: Session, chat_format: "ChatFormat") -> None:
        self._config = config
        # One for the whole chat: it keeps what it has computed of earlier turns.
        self._session = session
        self._format = chat_format
        self._console = Console()
        self._turns: list[Message] = []
        self._answers = 0
        self._system: str | None = None
        if config.system is not None:
            self.set_system(config.system)

    def run(self) -> int:
        """Read lines until /exit or their end, and answer each; return how many went wrong."""
        is_interactive, wrong = sys.stdin.isatty(), 0
        if is_interactive:
            if importlib.util.find_spec("readline"):
                importlib.import_module("readline")  # gives input() its editing and its history
            self._console.print("/help lists the commands, Ctrl-D leaves", style="dim")
        read = self._typed if is_interactive else _piped
        while (line := read()) is not None:
            try:
                if not self._obey(_decoded(line)):
                    break
            except ZiphiusError as error:
                wrong += not is_interactive
                self._complain(str(error), is_interactive=is_interactive)
            except KeyboardInterrupt:
                # A second Ctrl-C, behind the one that stopped the answer, loses nothing either.
                if not is_interactive:
                    raise
        return wrong

    def _obey(self, line: str) -> bool:
        """Do what a line says; return False if it ends the chat."""
        if line.startswith("/"):
            return self.command(*line[1:].partition(" ")[::2])
        if line.strip():
            self.answer(line)
        return True

    def _complain(self, message: str, *, is_interactive: bool) -> None:
        """Say what is wrong with a line: a pipe's output holds answers alone."""
        if is_interactive:
            self._console.print(message, style="red", markup=False, highlight=False, soft_wrap=True)
        else:
            print(f"ziphius: error: {message}", file=sys.stderr)

    def _typed(self) -> str | None:
        """Return the next line of a person, None at the end of input."""
        while True:
            try:
                return input("> ")
            except EOFError:
                return None
            except UnicodeDecodeError as error:
                raise ConfigError(f"standard input is not UTF-8 text: {error}") from error
            except KeyboardInterrupt:
                self._console.print("\nCtrl-D or /exit leaves", style="dim")

    def command(self, name: str, argument: str) -> bool:
        """Run a / command; return False if it ends the chat."""
        if name == "exit":
            return False
        if name == "reset":
            self._turns.clear()
        elif name == "system":
            self.set_system(argument.strip() or None)
        elif name == "save":
            self.save(argument.strip())
        elif name == "help":
            self._console.print(HELP, markup=False, highlight=False)
        else:
            raise ConfigError(f"there is no command /{name}; /help lists them")
        return True

    def set_system(self, text: str | None) -> None:
        """Begin every further prompt with this system message."""
        if text and "system" not in self._format.roles:
            raise ConfigError(f"chat format {self._format.name} has no system message")
        self._system = text

    def answer(self, text: str) -> None:
        """Answer one user message; keep both if there is an answer, stopped early or not."""
        from ziphius.engine.answer import chat_prompt
        from ziphius.text.chat import ContentText, Message, ReasoningText

        question = Message("user", text)
        loaded = self._session.loaded
        prompt = chat_prompt(
            self._messages(question),
            loaded.tokenizer,
            self._format,
            thinking=self._config.thinking or None,
        )
        limit = token_limit(self._config, DEFAULT_MAX_NEW_TOKENS, loaded, prompt)
        events: list[Event] = []
        try:
            self._stream(prompt, limit, events)
        except KeyboardInterrupt:
            # It ends the answer, not the chat; the events so far are its answer.
            if not sys.stdin.isatty():
                raise
        # Calls are shown but not kept: nobody here could give them a result.
        content = "".join(event.text for event in events if isinstance(event, ContentText))
        reasoning = "".join(event.text for event in events if isinstance(event, ReasoningText))
        if content or reasoning:
            self._turns += [question, Message("assistant", content, reasoning)]

    def _stream(self, prompt: "Prompt", limit: int, events: "list[Event]") -> None:
        """Print one answer as it comes and collect its events."""
        from ziphius.engine.answering import Question

        printer = AnswerPrinter(self._console, self._console)
        speed = Speed(len(prompt.ids), self._session.cached_tokens)
        # Numbered over the whole chat: asking again after /reset gives another answer.
        number, self._answers = self._answers, self._answers + 1
        config = self._config
        question = Question(prompt, config.params(limit), config.default_adapter, number)
        with contextlib.closing(self._session.answers([question])) as steps:
            try:
                for step in steps:
                    speed.step(len(step))
                    for new in step:
                        events += new.events
                        printer.show(new.events)
            finally:
                printer.end()
                if speed.new_tokens:
                    self._console.print(speed.line(), style="dim", highlight=False, soft_wrap=True)

    def _messages(self, *further: "Message") -> "list[Message]":
        from ziphius.text.chat import Message

        system = [] if self._system is None else [Message("system", self._system)]
        return [*system, *self._turns, *further]

    def save(self, name: str) -> None:
        """Write the conversation to a new JSON file."""
        if not name:
            raise ConfigError("/save needs the name of a file")
        path = user_path(name)
        if existing_path(name) is not None:
            raise OutputError(f"{path} exists already: choose another name")
        messages = [
            {"role": message.role, "content": message.content}
            | (
                {"reasoning_content": message.reasoning_content}
                if message.reasoning_content
                else {}
            )
            for message in self._messages()
        ]
        document = {
            "model": self._config.model,
            "chat_format": self._format.name,
            "messages": messages,
        }
        write_file(path, json.dumps(document, indent=2, ensure_ascii=False) + "\n")
        self._console.print(
            f"Saved in {path}", style="dim", markup=False, highlight=False, soft_wrap=True
        )


def _piped() -> bytes | None:
    """Return the next line of a pipe as it is, None at the end."""
    return sys.stdin.buffer.readline() or None


def _decoded(line: str | bytes) -> str:
    """Return a line as text, without its end."""
    if isinstance(line, str):
        return line
    try:
        return line.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise ConfigError(f"a line is not UTF-8 text: {error}") from error
