"""Vectors of users in an encoder (Revisiting SASRec, experiment E6): added to the input, as a prefix token, or by FiLM.

u is the vector of the user whose history it is, ``W`` a map to the width D (left out where u has that width already):

    added    x_t + u W at every input position t                         (SSE-PT, Wu et al., RecSys 2020, concatenates)
    prefix   u W as a token in front of the sequence, seen by all of its positions; it sees itself alone
    film     h_t * (1 + u G) + u S at the last states h_t                (Perez et al., AAAI 2018, arXiv 1709.07871)

Vectors of users over-fit where users have few interactions. Against that: dropout of u, with one mask for each sequence; a
weight decay of its own (``optimizer.user_decay``); and stochastic swapping, which trains a sequence with the vector of
another user (stochastic shared embeddings, Wu et al., NeurIPS 2019, arXiv 1905.10630). A user whom training did not have has
no vector: the mean of those it had stands for it, or one that was learned on sequences whose user was hidden.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int

from jaxrec.errors import ConfigError
from jaxrec.nn.layers import Dense, Initializer, dropout_mask
from jaxrec.nn.segments import first_index
from jaxrec.nn.spec import DataSpec
from jaxrec.options import Range


@dataclasses.dataclass(frozen=True)
class UserOptions:
    """Options of an encoder that may have a vector for each user.

    Attributes:
      user: a vector for each user: "none", "added" (to every input), "prefix" (a token in front of the sequence) or "film"
        (scales and shifts the last states).
      user_width: numbers in the vector of a user; 0 = ``width``.
      user_dropout: rate on the vectors of users, with one mask for each sequence.
      user_swap: probability that a training sequence gets the vector of another user, drawn from all that training has.
      user_unknown: probability that a training sequence gets the vector of new users, which is learned so; 0 = new users get
        the mean of the known users' vectors.
    """

    user: Literal["none", "added", "prefix", "film"] = "none"
    user_width: Annotated[int, Range("[0, inf)")] = 0
    user_dropout: Annotated[float, Range("[0, 1)")] = 0.0
    user_swap: Annotated[float, Range("[0, 1)")] = 0.0
    user_unknown: Annotated[float, Range("[0, 1)")] = 0.0

    def check_user_options(self) -> None:
        """Refuse options of a vector that there is none of."""
        if self.user != "none":
            return
        for name in ("user_width", "user_dropout", "user_swap", "user_unknown"):
            if getattr(self, name):
                raise ConfigError(
                    f"--encoder.{name.replace('_', '-')} {getattr(self, name)} has nothing to act on without vectors of "
                    "users: expected --encoder.user added, prefix or film, got none; choose one, or leave the option out"
                )

    def check_users(self, spec: DataSpec) -> None:
        """Refuse data without users."""
        if self.user != "none" and not spec.n_users:
            raise ConfigError(
                f"--encoder.user {self.user} has a vector for each user: expected data with users, got none; choose "
                "--encoder.user none"
            )


class UserVectors(nn.Module):
    """The vector of each position's user: int32[B, L] -> float32[B, L, W].

    Parameters: ``U W`` for the users, U for the marks of those that training has (from the dataset, not trained), and with
    ``user_unknown`` W for new ones.

    Attributes:
      options: of the encoder.
      n_users: U.
      width: W.
      table_init: initialiser of the vectors.
      row_init: initialiser of the vector of new users, which is no matrix; None = ``table_init``.
    """

    options: UserOptions
    n_users: int
    width: int
    table_init: Initializer
    row_init: Initializer | None = None

    @nn.compact
    def __call__(
        self, users: Int[Array, "B L"], segments: Int[Array, "B L"], train: bool
    ) -> Float[Array, "B L W"]:
        """Look up the vectors of ``users`` int32[B, L]; below 0 = a new user.

        Args:
          users: the same at all positions of a sequence.
          segments: int32[B, L].
          train: whether users are swapped and hidden, and numbers dropped.
        """
        options = self.options
        table = self.param("table", self.table_init, (self.n_users, self.width), jnp.float32)
        known = lax.stop_gradient(
            self.param("known", nn.initializers.ones_init(), (self.n_users,), jnp.float32)
        )
        if options.user_unknown:
            new = self.param("new", self.row_init or self.table_init, (self.width,), jnp.float32)
        else:
            new = jnp.zeros((self.width,), jnp.float32) if train else mean_of_known(table, known)
        if train:
            users = self._drawn(users, segments, known)
        row = jnp.maximum(users, 0)
        is_known = users >= 0
        if not train:  # all users of training batches are known
            is_known = is_known & (jnp.take(known, row, mode="fill", fill_value=1.0) > 0)
        # "fill" answers an index beyond the table with NaN where plain indexing would silently take the last row.
        rows = jnp.take(table, row, axis=0, mode="fill")
        vectors = jnp.where(is_known[..., None], rows, new.reshape(1, 1, -1))
        if train and round(options.user_dropout * 256):
            keep, probability = dropout_mask(self.make_rng("dropout"), vectors.shape, options.user_dropout)
            keep = jnp.take_along_axis(keep, first_index(segments)[..., None], axis=1)
            vectors = jnp.where(keep, vectors / jnp.float32(probability), jnp.float32(0))
        return vectors

    def _drawn(
        self, users: Int[Array, "B L"], segments: Int[Array, "B L"], known: Float[Array, " U"]
    ) -> Int[Array, "B L"]:
        """``users`` after swapping and hiding, each drawn once for a sequence."""
        options, first = self.options, first_index(segments)

        def uniform() -> Array:
            draws = jax.random.uniform(self.make_rng("dropout"), users.shape, jnp.float32)
            return jnp.take_along_axis(draws, first, axis=1)

        if options.user_swap:
            counts = jnp.cumsum((known > 0).astype(jnp.int32))
            # The user whose number among the known ones is drawn.
            number = (uniform() * counts[-1].astype(jnp.float32)).astype(jnp.int32)
            number = jnp.minimum(number, counts[-1] - 1)
            other = jnp.searchsorted(counts, number, side="right").astype(jnp.int32)
            users = jnp.where((uniform() < options.user_swap) & (users >= 0), other, users)
        if options.user_unknown:
            users = jnp.where(uniform() < options.user_unknown, -1, users)
        return users


def mean_of_known(table: Float[Array, "U W"], known: Float[Array, " U"]) -> Float[Array, " W"]:
    """The mean of the vectors of the users marked in ``known``."""
    marks = (known > 0).astype(jnp.float32)
    return (marks[:, None] * table).sum(axis=0) / jnp.maximum(marks.sum(), 1.0)


def user_input(
    options: UserOptions, vectors: Float[Array, "B L W"], width: int, kernel_init: Initializer, dtype: Any
) -> Float[Array, "B L D"]:
    """``u W`` of "added" and "prefix": a map without bias, or the vectors themselves where they have the width D."""
    if vectors.shape[-1] == width:
        return vectors
    return Dense(width, use_bias=False, kernel_init=kernel_init, dtype=dtype, name=f"user_{options.user}")(
        vectors
    )


def modulated(
    states: Float[Array, "B S D"], vectors: Float[Array, "B S W"], kernel_init: Initializer, dtype: Any
) -> Float[Array, "B S D"]:
    """FiLM: ``h * (1 + u G) + u S``, the identity for the vector of zeros."""
    dense = Dense(
        2 * states.shape[-1], use_bias=False, kernel_init=kernel_init, dtype=dtype, name="user_film"
    )
    scale, shift = jnp.split(dense(vectors), 2, axis=-1)
    return states * (1.0 + scale) + shift


def user_count(options: UserOptions, spec: DataSpec, width: int) -> int:
    """Count the parameters of users: ``U (W + 1)``, and W for new ones where they are learned.

    Beside them ``W D`` for "added" and "prefix" where W is not D, and ``2 W D`` for "film".
    """
    if options.user == "none":
        return 0
    own = options.user_width or width
    count = spec.n_users * (own + 1) + (own if options.user_unknown else 0)
    if options.user == "film":
        return count + 2 * own * width
    return count + (own * width if own != width else 0)


def user_vectors(params: Mapping[str, Any]) -> Float[Array, "U W"]:
    """The table of users of an encoder's parameters."""
    table: Array = params["users"]["table"]
    return table
