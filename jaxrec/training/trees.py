"""Names of the arrays of a tree."""

from __future__ import annotations

from typing import Any

import jax


def flatten(tree: Any) -> dict[str, Any]:
    """Array leaves by path, as in ``params/items/table``."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {path_name(path): leaf for path, leaf in leaves}


def path_name(path: tuple[Any, ...]) -> str:
    """Join the keys of a path by slashes."""
    parts = (getattr(entry, "key", getattr(entry, "name", getattr(entry, "idx", entry))) for entry in path)
    return "/".join(str(part) for part in parts)
