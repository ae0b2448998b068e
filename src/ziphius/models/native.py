"""How modules write themselves into a native program (`ops/native/program.py`).

A module that a program can compute has a method `emit` beside its `forward`, and each class says it
for itself: one that inherited `emit` and changed `forward` would inherit a lie.
"""

from typing import Any

from ziphius.ops.native.program import NotNative


def native(part: Any) -> Any:
    """Return a module, or a pattern, if its own class has an `emit`.

    Raises:
        NotNative: it has none, or was changed from outside: by hooks, or a `forward` of its own.
    """
    name = type(part).__name__
    if "emit" not in vars(type(part)):
        raise NotNative(f"{name} has no native operation")
    changed = "forward" in vars(part) or any(
        getattr(part, hooks, None) for hooks in ("_forward_hooks", "_forward_pre_hooks")
    )
    if changed:
        raise NotNative(f"a {name} has hooks, or a forward of its own")
    return part
