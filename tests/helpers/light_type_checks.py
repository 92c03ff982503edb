"""Makes the checks of annotations in the tests cheap where they say nothing of shapes.

`--jaxtyping-packages` wraps every function of rfjax in a check that binds the arguments twice and keeps a record of
the sizes of axes: 7 us a call, and 1 ms each time a function that holds another one is called. A function without
annotations has nothing to check, and where no annotation is jaxtyping's, beartype alone checks the same at a tenth of
the cost. All others are wrapped as before.
"""

import builtins
import functools
import inspect
import re
import typing

import beartype
import jaxtyping

_WHOLE = jaxtyping.jaxtyped
_UNKNOWN = object()
_NAME = re.compile(r"[A-Za-z_]\w*")


def install() -> None:
    """Replaces `jaxtyping.jaxtyped`, which the import hook's code calls by this name. To be called before rfjax is
    imported."""
    jaxtyping.jaxtyped = jaxtyped


def jaxtyped(fn=None, *, typechecker):
    """`jaxtyping.jaxtyped`, for what has something to check."""
    if fn is None:
        return functools.partial(jaxtyped, typechecker=typechecker)
    if inspect.isfunction(fn):
        annotations = list(fn.__annotations__.values())
        if not annotations:
            return fn
        if not any(speaks_of_shapes(each, fn.__globals__) for each in annotations):
            return beartype.beartype(fn)
    return _WHOLE(fn, typechecker=typechecker)


def speaks_of_shapes(annotation: object, names: dict[str, object]) -> bool:
    """Whether jaxtyping has a part in an annotation, also under another name; True where a name is not known."""
    if isinstance(annotation, str):
        return any(speaks_of_shapes(_known(name, names), names) for name in _NAME.findall(annotation))
    if annotation is _UNKNOWN or (getattr(annotation, "__module__", None) or "").partition(".")[0] == "jaxtyping":
        return True
    return any(speaks_of_shapes(part, names) for part in typing.get_args(annotation) if not isinstance(part, str))


def _known(name, names):
    return names[name] if name in names else getattr(builtins, name, _UNKNOWN)
