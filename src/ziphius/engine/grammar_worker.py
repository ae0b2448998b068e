"""Compiles one grammar in a process of its own, bounded; `grammar.py` starts it as a script.

The first argument is the folder of llguidance. A line of JSON comes in: what to compile, and the
limits; one goes out: the error, or none. Nothing of this package is imported.
"""

import json
import resource
import sys


def main() -> None:
    """Say whether llguidance takes the grammar, and whether any token can begin it."""
    sys.path.append(sys.argv[1])  # it starts without site packages
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

    tokenizer = LLTokenizer("byte")
    line = sys.stdin.readline()
    if not line:
        return
    job = json.loads(line)
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = int(used.ru_utime + used.ru_stime) + 1 + job["cpu_s"]
    # A hard limit as low would send SIGKILL, which says nothing.
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (job["memory"], job["memory"]))
    limits = LLParserLimits(verbose_errors=False)  # its inner state is nothing for users
    matcher = LLMatcher(tokenizer, job["grammar"], log_level=0, limits=limits)
    if not matcher.is_error():
        matcher.compute_bitmask()
    print(json.dumps({"error": matcher.get_error() or None}))


if __name__ == "__main__":
    main()
