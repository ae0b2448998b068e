"""How each vocabulary of the family cuts text before BPE, in the notation of tokenizer.json.

Sources: the published tokenizer.json of DeepSeek-V3, Coder v1, Qwen2, Llama 3.1 and SmolLM2; for
the names that GGUF files use (`tokenizer.ggml.pre`), llama.cpp's table of regular expressions.
"""

from typing import Any

_HAN_V1 = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_ENGLISH_PARTS = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)"
_LLAMA_TAIL = " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
_LLAMA_HEAD = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|"
_V3_WORDS = (
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+"
    "|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
)
# Letters of the alphabets with case: Latin, Greek, Cyrillic, Armenian, Georgian, Cherokee, ...
_LLM_LETTERS = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af"
    "\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1"
    "\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd"
    "\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d"
    "\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4"
    "\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec"
    "\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128"
    "\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b"
    "\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787"
    "\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a"
    "\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2"
    "\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_LLM_MARKS = "!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002"


def _split(pattern: str) -> dict[str, Any]:
    regex = {"Regex": pattern}
    return {"type": "Split", "pattern": regex, "behavior": "Isolated", "invert": False}


def _bytes(use_regex: bool = False) -> dict[str, Any]:
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


def _sequence(*patterns: str) -> dict[str, Any]:
    """Cut by each expression in turn, then write bytes as letters."""
    steps = [*(_split(pattern) for pattern in patterns), _bytes()]
    return {"type": "Sequence", "pretokenizers": steps}


DEEPSEEK_V3 = _sequence("\\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+", _V3_WORDS)
QWEN2 = _sequence(_LLAMA_HEAD + "\\p{N}|" + _LLAMA_TAIL)

PRE_TOKENIZERS: dict[str, dict[str, Any]] = {
    "deepseek-v3": DEEPSEEK_V3,
    "deepseek-llm": _sequence(
        "[\r\n]", f"\\s?[{_LLM_LETTERS}]+", f"\\s?[{_LLM_MARKS}]+", "\\s+$", _HAN_V1, "\\p{N}+"
    ),
    "deepseek-coder": _sequence("[\r\n]", "\\s?\\p{L}+", "\\s?\\p{P}+", _HAN_V1, "\\p{N}"),
    "qwen2": QWEN2,
    "deepseek-r1-qwen": QWEN2,
    "llama-bpe": _sequence(_LLAMA_HEAD + "\\p{N}{1,3}|" + _LLAMA_TAIL),
    "smollm": {
        "type": "Sequence",
        "pretokenizers": [{"type": "Digits", "individual_digits": True}, _bytes(use_regex=True)],
    },
    "gpt-2": _bytes(use_regex=True),
    "default": _sequence("[\\p{P}\\$\\+<=>\\^~\\|]+", _ENGLISH_PARTS, "\\p{N}+", "[0-9][0-9][0-9]"),
}
"""GGUF's name of a pre-tokenizer -> the component of tokenizer.json that cuts the same way."""

IGNORE_MERGES = frozenset({"llama-bpe"})
"""Vocabularies in which a piece that is a token is taken whole, before any merge."""

NFC_NORMALIZED = frozenset({"qwen2", "deepseek-r1-qwen"})
"""Vocabularies whose text is brought to Unicode normal form C first."""
