"""`engine/grammar.py`: what grammars let through, and what hostile ones cannot do."""

import json
import time
from collections.abc import Iterator
from typing import Literal

import pytest
import torch

pytest.importorskip("llguidance")

from tests.mock_engine import Log
from tests.tiny import build
from tests.training import moe_config
from ziphius.core.errors import ConfigError
from ziphius.engine import grammar
from ziphius.engine.answer import Prompt
from ziphius.engine.build import build_engine
from ziphius.engine.config import EngineConfig
from ziphius.engine.grammar import COMPLETE, Grammar, GrammarCompiler, GrammarProcessor, Limits
from ziphius.engine.processors import ProcessorError, Thinking
from ziphius.engine.requests import RequestMaker
from ziphius.engine.sampler import BatchSampler
from ziphius.engine.sampling_params import SamplingParams, StructuredOutputs
from ziphius.engine.speculation_config import SpeculationConfig
from ziphius.ops.sampling_config import SamplingConfig
from ziphius.text import special
from ziphius.text.tokenizer import Tokenizer
from ziphius.text.vocabulary import MIN_SIZE, deepseek_tokenizer

SIZES = [MIN_SIZE, 4096]


@pytest.fixture(scope="module", params=SIZES, ids=["bytes", "deepseek"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return deepseek_tokenizer(request.param)


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer) -> Iterator[GrammarCompiler]:
    with GrammarCompiler(tokenizer, tokenizer.eos_ids) as made:
        yield made


@pytest.fixture(autouse=True, scope="module")
def _in_process() -> Iterator[None]:
    """Start no process for each of the harmless grammars; tests of the process ask for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GrammarCompiler, "_error_beside", lambda self, text: None)
        yield


BESIDE = GrammarCompiler._error_beside


def allowed(processor: GrammarProcessor, tokenizer: Tokenizer, more: int = 3) -> set[int]:
    logits_W = torch.zeros(tokenizer.vocab_size + more)  # a model has more rows than tokens
    processor(logits_W, [])
    return set((logits_W == 0).nonzero().flatten().tolist())


def written(compiled: Grammar, tokenizer: Tokenizer, seed: int, most: int = 200) -> str:
    """Let a model of random logits write under the grammar."""
    sampler = BatchSampler(limit=tokenizer.vocab_size)
    sampler.add(0, SamplingConfig(seed=seed), 0, (), [compiled.processor()])
    ids: list[int] = []
    for position in range(most):
        generator = torch.Generator().manual_seed(seed * 1000 + position)
        logits_LW = torch.randn(1, tokenizer.vocab_size + 3, generator=generator)
        sampled = sampler(logits_LW, [0], [position])
        assert not sampled.failures
        ids.append(int(sampled.ids_L[0]))
        if sampler.accept(0, ids[-1]) is not None or ids[-1] in tokenizer.eos_ids:
            return tokenizer.decode(ids, skip_special=True)
    raise AssertionError(f"no end: {tokenizer.decode(ids)!r}")


def test_answers_have_the_form_that_was_asked_for(
    compiler: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    schema = {
        "type": "object",
        "properties": {"age": {"type": "integer", "maximum": 99}, "ok": {"type": "boolean"}},
        "required": ["age", "ok"],
        "additionalProperties": False,
        "x-guidance": {"whitespace_flexible": False},
    }
    wanted = StructuredOutputs(json_schema=json.dumps(schema))
    for seed in range(4):
        answer = json.loads(written(compiler.compile(wanted), tokenizer, seed))
        assert answer.keys() == {"age", "ok"}
        assert isinstance(answer["ok"], bool)
        assert answer["age"] <= 99
    choice = compiler.compile(StructuredOutputs(choice=('a "b"', "yes", "no")))
    assert {written(choice, tokenizer, seed) for seed in range(12)} == {'a "b"', "yes", "no"}
    regex = compiler.compile(StructuredOutputs(regex="(ab|c){3}[0-9]"))
    lark = compiler.compile(
        StructuredOutputs(grammar='start: part part part /[0-9]/\npart: "ab" | "c"')
    )
    for compiled in (regex, lark):
        text = written(compiled, tokenizer, 1)
        assert text[-1].isdigit()
        assert set(text[:-1]) <= set("abc")


def test_an_object_is_an_object(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    processor = compiler.compile(StructuredOutputs(json_object=True)).processor()
    assert {tokenizer.decode([i])[0] for i in allowed(processor, tokenizer)} == {"{"}


def test_no_special_token_but_the_end_comes_through(
    compiler: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    """Text that spells one is text; nor does a row without a token."""
    compiled = compiler.compile(StructuredOutputs(regex=r"(?s:.*)"))
    found = allowed(compiled.processor(), tokenizer)
    assert found & tokenizer.special_ids == set(tokenizer.eos_ids)
    assert max(found) < tokenizer.vocab_size
    think = compiler.compile(StructuredOutputs(choice=(str(special.END_THINK),))).processor()
    assert tokenizer.token_id(special.END_THINK) not in allowed(think, tokenizer)


def test_the_end_comes_where_the_grammar_may_end(
    compiler: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    processor = compiler.compile(StructuredOutputs(regex="a{2,3}")).processor()
    [a] = tokenizer.encode("a")
    for _ in range(2):
        assert tokenizer.eos_ids[0] not in allowed(processor, tokenizer)
        assert processor.accept(a) is None
    assert tokenizer.eos_ids[0] in allowed(processor, tokenizer)
    assert processor.accept(a) == COMPLETE


def test_drafts_are_taken_back(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    processor = compiler.compile(StructuredOutputs(regex="abcd|abxy")).processor()
    [a], [b], [c], [d], [x] = (tokenizer.encode(letter) for letter in "abcdx")
    before = allowed(processor, tokenizer)
    for count, letters in enumerate(([a], [a, b], [a, b, c], [a, b, c, d]), start=1):
        reasons = [processor.accept(letter) for letter in letters]
        assert reasons[-1] == (COMPLETE if count == 4 else None)
        processor.rollback(count)
        assert allowed(processor, tokenizer) == before
    for letter in (a, b, c):
        processor.accept(letter)
    processor.rollback(1)
    assert {c, x} <= allowed(processor, tokenizer)


def test_a_grammar_begins_behind_the_thinking(
    compiler: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    end = tokenizer.token_id(special.END_THINK)
    compiled = compiler.compile(StructuredOutputs(regex="[ac]b"))
    processor = compiled.processor(Thinking((end,)))
    [a], [b], [z] = (tokenizer.encode(letter) for letter in "abz")
    every = allowed(processor, tokenizer)
    assert len(every) == tokenizer.vocab_size + 3
    for token_id in (z, a, end):
        assert allowed(processor, tokenizer) == every
        assert processor.accept(token_id) is None
    first = allowed(processor, tokenizer)
    assert a in first
    assert not {z, end} & first
    processor.accept(a)
    processor.rollback(2)
    assert allowed(processor, tokenizer) == every
    processor.accept(end)
    assert allowed(processor, tokenizer) == first
    processor.accept(a)
    assert processor.accept(b) == COMPLETE
    other = compiled.processor(Thinking((end,), is_open=False))
    assert allowed(other, tokenizer) == first


def test_sequences_of_one_grammar_are_apart(
    compiler: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    compiled = compiler.compile(StructuredOutputs(regex="[ab]c"))
    one, other = compiled.processor(), compiled.processor()
    before = allowed(other, tokenizer)
    one.accept(tokenizer.encode("a")[0])
    assert allowed(other, tokenizer) == before
    assert compiler.compile(StructuredOutputs(regex="[ab]c")) is compiled


def test_what_has_no_valid_token_fails_alone(
    compiler: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    processor = compiler.compile(StructuredOutputs(regex="ab")).processor()
    processor.accept(tokenizer.encode("z")[0])
    with pytest.raises(ProcessorError, match="the grammar of this request cannot go on"):
        processor(torch.zeros(tokenizer.vocab_size), [])
    sampler = BatchSampler(limit=tokenizer.vocab_size)
    sampler.add(0, SamplingConfig(), 0, (), [processor])
    sampler.add(1, SamplingConfig(), 1)
    logits_LW = torch.randn(2, tokenizer.vocab_size, generator=torch.Generator().manual_seed(0))
    sampled = sampler(logits_LW, [0, 1], [0, 0])
    assert list(sampled.failures) == [0]
    alone = BatchSampler(limit=tokenizer.vocab_size)
    alone.add(1, SamplingConfig(), 1)
    assert alone(logits_LW[1:], [1], [0]).ids_L[0] == sampled.ids_L[1]


def test_a_token_against_the_grammar_is_noticed(
    compiler: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    processor = compiler.compile(StructuredOutputs(regex="ab")).processor()
    assert processor.accept(tokenizer.encode("z")[0]) is None
    with pytest.raises(ProcessorError):
        processor(torch.zeros(tokenizer.vocab_size), [])


HOSTILE = {
    "too deep": ("json_schema", '{"type":"array","items":' * 65 + "{}" + "}" * 65),
    "far too deep": ("json_schema", "[" * 200_000),
    "no JSON": ("json_schema", '{"type": "object"'),
    "JSON of no schema": ("json_schema", "17"),
    "enum": ("json_schema", json.dumps({"enum": list(range(10_001))})),
    "anyOf": ("json_schema", json.dumps({"anyOf": [{"const": i} for i in range(501)]})),
    "url": ("json_schema", '{"$ref": "http://127.0.0.1:9/schema.json"}'),
    "file": ("json_schema", '{"$ref": "file:///etc/passwd"}'),
    "contradiction": ("json_schema", '{"allOf": [{"type": "string"}, {"type": "integer"}]}'),
    "false": ("json_schema", "false"),
    "no end of braces": ("regex", "((("),
    "look-ahead": ("regex", "(?=a)b"),
    "anchor": ("regex", "(a+)+$b"),
    "parentheses": ("regex", "(" * 20_000 + "a" + ")" * 20_000),
    "no grammar": ("grammar", "start: ((("),
    "unknown rule": ("grammar", "start: nothing"),
    "left recursion": ("grammar", "start: a\na: b\nb: a"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_grammar_is_one_short_error(name: str, compiler: GrammarCompiler) -> None:
    kind, text = HOSTILE[name]
    with pytest.raises((ConfigError, ProcessorError)) as caught:
        # Some are found to be empty only when a token is asked for.
        compiler.compile(StructuredOutputs.model_validate({kind: text})).processor()(
            torch.zeros(10), []
        )
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("regex", "((a{1,1000}){1,1000}){1,1000}"),
        ("regex", "(a|b)*a(a|b){25}"),
        ("regex", "(a|a)*b"),
        ("json_schema", '{"type": "array", "minItems": 1000000000}'),
        (
            "json_schema",
            '{"$defs": {"n": {"anyOf": [{"$ref": "#/$defs/n"}]}}, "$ref": "#/$defs/n"}',
        ),
        ("grammar", 'start: s\ns: s s | "a" |'),
        ("grammar", 'start: start "a" | "a"'),
    ],
)
def test_a_step_of_a_hostile_grammar_is_bounded(
    kind: str, text: str, compiler: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    """It goes on, ends or fails; the test's own deadline would see it hang."""
    try:
        processor = compiler.compile(StructuredOutputs.model_validate({kind: text})).processor()
        for _ in range(50):
            found = allowed(processor, tokenizer)
            if processor.accept(min(found)) is not None:
                return
    except (ConfigError, ProcessorError):
        return


def test_compiling_happens_in_a_process_with_limits(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GrammarCompiler, "_error_beside", BESIDE)
    with GrammarCompiler(tokenizer, tokenizer.eos_ids) as compiler:
        assert compiler.compile(StructuredOutputs(regex="a")).processor() is not None
        with pytest.raises(ConfigError, match=r"the regex of .* cannot be used: .*unclosed group"):
            compiler.compile(StructuredOutputs(regex="((("))
    small = Limits(memory=2**20)
    with (
        GrammarCompiler(tokenizer, tokenizer.eos_ids, small) as compiler,
        pytest.raises(ConfigError, match="took more than 1 MiB of memory"),
    ):
        compiler.compile(StructuredOutputs(choice=tuple(map(str, range(1000)))))


def test_a_process_that_takes_too_long_is_ended(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    monkeypatch.setattr(GrammarCompiler, "_error_beside", BESIDE)
    script = grammar.Path(str(tmp_path)) / "worker.py"
    for text, complaint in (
        ("import time; time.sleep(600)", "longer than 1 s"),
        ("import os; os.abort()", "ended early, by SIGABRT"),
        ("raise SystemExit(3)", "ended early, with status 3"),
        ("while True: pass", "longer than 1 s"),
    ):
        script.write_text(text)
        monkeypatch.setattr(grammar, "_SCRIPT", script)
        start = time.monotonic()
        with (
            GrammarCompiler(tokenizer, tokenizer.eos_ids, Limits(wall_s=1.0)) as compiler,
            pytest.raises(ConfigError, match=complaint),
        ):
            compiler.compile(StructuredOutputs(regex="a"))
        assert time.monotonic() - start < 60


def test_drafts_past_the_end_are_taken_back(
    compiler: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    """An end is a token of the grammar where it may go on, and none where it is over."""
    [a], [y] = tokenizer.encode("a"), tokenizer.encode("y")
    end = tokenizer.eos_ids[0]
    thinking = Thinking((tokenizer.token_id(special.END_THINK),))
    for past in ([a, a, a, end], [a, a, a, end, end], [a, a, end], [a, a, end, end]):
        for thinks in (None, thinking):
            processor = compiler.compile(StructuredOutputs(regex="a{2,3}")).processor(thinks)
            begun = [y, *thinking.end_ids] if thinks else []
            found: list[set[int]] = []
            for token_id in [*begun, *past]:
                found.append(allowed(processor, tokenizer))
                processor.accept(token_id)
            assert processor.accept(end) == COMPLETE
            processor.rollback(1)
            for count in range(1, len(found) + 1):
                processor.rollback(count)
                assert allowed(processor, tokenizer) == found[-count]
                for token_id in [*begun, *past][-count:]:
                    processor.accept(token_id)


@pytest.mark.parametrize("method", ["ngram", "model", "mtp"])
@pytest.mark.parametrize(
    "wanted",
    [
        StructuredOutputs(choice=("yes", "yesterday", "no")),
        StructuredOutputs(regex="([a-e]{2,4} )*x"),
    ],
    ids=["choice", "regex"],
)
def test_speculation_changes_nothing_of_an_answer(
    wanted: StructuredOutputs, method: Literal["ngram", "model", "mtp"]
) -> None:
    tokenizer = deepseek_tokenizer(MIN_SIZE)
    target, draft = (build(moe_config(vocab_size=MIN_SIZE), seed).eval() for seed in (0, 1))
    end = [*tokenizer.eos_ids] * 3
    text = [i for part in ("yes", "no", "ab ab x") for i in [*tokenizer.encode(part), *end]]
    told = {}
    with RequestMaker(tokenizer) as maker:
        for speculation in (None, SpeculationConfig(method=method, adaptive=False)):
            engine = build_engine(
                target,
                EngineConfig(num_blocks=60, max_num_seqs=1, speculation=speculation),
                vocab_limit=tokenizer.vocab_size,
                draft_model=draft if speculation and method == "model" else None,
            )
            log = Log(engine)
            for seed in range(12):
                params = SamplingParams(
                    max_tokens=20, seed=seed, temperature=seed % 2, structured_outputs=wanted
                )
                prompt = Prompt([9 + seed, *text, *text], tokenizer.eos_ids, None)
                engine.add(maker.ask(prompt, params).request)
            log.run()
            told[speculation] = [told.token_ids for told in log.told.values()], log.errors
        assert engine.metrics()["spec_decode_num_accepted_tokens"] > 0
    plain, drafted = told.values()
    assert not plain[1]
    assert drafted == plain


def test_a_waiting_process_that_was_ended_is_replaced(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GrammarCompiler, "_error_beside", BESIDE)
    with GrammarCompiler(tokenizer, tokenizer.eos_ids) as compiler:
        waiting = compiler._waiting
        waiting.kill()
        waiting.wait()
        assert compiler.compile(StructuredOutputs(regex="a")).processor() is not None


def test_cpu_time_and_memory_are_told_apart(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    """The worker itself, with something that has no end in the place of llguidance."""
    monkeypatch.setattr(GrammarCompiler, "_error_beside", BESIDE)
    real = grammar._SCRIPT.read_text()
    script = grammar.Path(str(tmp_path)) / "worker.py"
    monkeypatch.setattr(grammar, "_SCRIPT", script)
    for endless, complaint in (
        ("while True: pass", "took more than 1 s of CPU time"),
        ("kept = [bytes(2**20) for _ in range(10_000)]", "took more than 512 MiB of memory"),
    ):
        script.write_text(real.replace("    matcher = ", f"    {endless}\n    matcher = ", 1))
        with (
            GrammarCompiler(tokenizer, tokenizer.eos_ids, Limits(1, 300.0, 2**29)) as compiler,
            pytest.raises(ConfigError, match=complaint),
        ):
            compiler.compile(StructuredOutputs(regex="a"))


@pytest.mark.parametrize(
    ("schema", "complaint"),
    [
        ('{"maximum": 1e309}', "is not JSON: 1e309 is too large a number$"),
        ('{"const": NaN}', "is not JSON: NaN is no number$"),
        ('{"$ref": "#"}', "cannot be used: no text fits it .*only to itself"),
    ],
)
def test_errors_of_schemas_are_for_who_wrote_them(
    schema: str, complaint: str, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GrammarCompiler, "_error_beside", BESIDE)
    with (
        GrammarCompiler(tokenizer, tokenizer.eos_ids) as compiler,
        pytest.raises(ConfigError, match=complaint) as caught,
    ):
        compiler.compile(StructuredOutputs(json_schema=schema))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("regex", ["(a{1000}){1000}", "x(a{1000}){1000}"])
def test_what_is_too_large_to_begin_is_refused_before_any_step(
    regex: str, compiler: GrammarCompiler
) -> None:
    """The compiler does the work of the first step, and of little fuel."""
    before = time.process_time()
    with pytest.raises(ConfigError, match=r"the regex of .* cannot be used: it is too large"):
        compiler.compile(StructuredOutputs(regex=regex))
    assert time.process_time() - before < 0.6  # 0.1 s; with the fuel of the library 1.3 s


def test_what_grows_too_large_later_fails_in_one_short_step(
    compiler: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    processor = compiler.compile(StructuredOutputs(regex="[ab](a{1000}){1000}x")).processor()
    [a] = tokenizer.encode("a")
    allowed(processor, tokenizer)
    assert processor.accept(a) is None
    allowed(processor, tokenizer)
    assert processor.accept(a) is None
    with pytest.raises(ProcessorError, match="cannot go on: it is too large"):
        allowed(processor, tokenizer)


def test_large_schemas_are_not_too_large(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    entries = [f"value number {i}" for i in range(grammar.MAX_ENUM)]
    names = [f"p{i}" for i in range(grammar.MAX_ALTERNATIVES)]
    one_of = [{"properties": {p: {"maxLength": 200}}, "required": [p]} for p in names]
    for schema in ({"enum": entries}, {"type": "object", "anyOf": one_of}):
        wanted = StructuredOutputs(json_schema=json.dumps(schema))
        assert allowed(compiler.compile(wanted).processor(), tokenizer)
