"""Which units of this machine's CPU the kernels are compiled for."""

import subprocess

from ziphius.ops.native import build

UNITS = {
    "AVX2": "__AVX2__",
    "AVX-512": "__AVX512F__",
    "AVX-512 VNNI": "__AVX512VNNI__",
    "AVX-512 BF16": "__AVX512BF16__",
    "AMX BF16": "__AMX_BF16__",
    "AMX INT8": "__AMX_INT8__",
    "NEON": "__ARM_NEON",
}
"""Names that people know -> the macro by which the sources ask for the unit."""


def compiled_units() -> list[str]:
    """Ask the compiler which units it compiles the kernels for; none where nothing is compiled."""
    compiler = build.find_compiler()
    if compiler is None or build.library() is None:
        return []
    words = [compiler, *build.COMMON_FLAGS, "-dM", "-E", "-x", "c++", "/dev/null"]
    macros = subprocess.run(words, capture_output=True, text=True).stdout
    defined = {line.split()[1] for line in macros.splitlines() if line.startswith("#define ")}
    return [name for name, macro in UNITS.items() if macro in defined]
