"""Run-time check of the shapes in signatures.

`jaxtyping.install_import_hook` (see ``conftest.py``) decorates the functions of the modules that carry shapes. Only the
annotations that are shapes are checked: mypy checks the others. A NumPy array passes where a JAX array is expected, as it
does in JAX. Dataclasses that are pytrees carry no shapes: JAX builds them with leaves of any kind.
"""

from __future__ import annotations

import functools
import inspect
import operator
import types
from collections.abc import Callable
from typing import Any, Union, get_args, get_origin

import beartype
import jax
import jaxtyping
import numpy as np


def is_shape(annotation: Any) -> bool:
    """Whether an annotation is a shape."""
    return inspect.isclass(annotation) and issubclass(annotation, jaxtyping.AbstractArray)


def has_shape(annotation: Any) -> bool:
    """Whether an annotation is a shape, or a union or container of shapes."""
    if isinstance(annotation, str):
        return False
    return is_shape(annotation) or any(has_shape(part) for part in get_args(annotation))


def with_numpy(annotation: Any) -> Any:
    """The annotation with NumPy arrays allowed wherever it has JAX arrays of some shape."""
    if is_shape(annotation):
        allowed = jax.Array | np.ndarray if annotation.array_type is jax.Array else annotation.array_type
        return annotation.dtype[allowed, annotation.dim_str]
    if not has_shape(annotation):
        return annotation
    parts = tuple(map(with_numpy, get_args(annotation)))
    origin = get_origin(annotation)
    return functools.reduce(operator.or_, parts) if origin in (Union, types.UnionType) else origin[parts]


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a function with a check of its shapes; return it unchanged where it has none."""
    annotations = dict(getattr(function, "__annotations__", {}))
    if not any(map(has_shape, annotations.values())):
        return function
    function.__annotations__ = {
        name: with_numpy(annotation) if has_shape(annotation) else Any
        for name, annotation in annotations.items()
    }
    return beartype.beartype(function)
