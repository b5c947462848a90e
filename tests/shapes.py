"""Run-time check of the shapes in signatures.

`jaxtyping.install_import_hook` (see ``conftest.py``) decorates the functions of the modules that carry shapes. Only the
annotations that are shapes are checked: mypy checks the others.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, get_args

import beartype
import jaxtyping


def has_shape(annotation: Any) -> bool:
    """Whether an annotation is a shape, or a union or container of shapes."""
    if isinstance(annotation, str):
        return False
    if inspect.isclass(annotation) and issubclass(annotation, jaxtyping.AbstractArray):
        return True
    return any(has_shape(part) for part in get_args(annotation))


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a function with a check of its shapes; return it unchanged where it has none."""
    annotations = dict(getattr(function, "__annotations__", {}))
    if not any(map(has_shape, annotations.values())):
        return function
    function.__annotations__ = {
        name: annotation if has_shape(annotation) else Any for name, annotation in annotations.items()
    }
    return beartype.beartype(function)
