import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float

from eqxrl._typing import Observation
from eqxrl.spaces import Discrete, parts


@dataclasses.dataclass(frozen=True)
class Encoder:
    """An observation of any space as one float vector: arrays flattened, Discrete parts one-hot."""

    categories: tuple[tuple[tuple[Any, ...], int], ...]
    """The path and the number of choices of each Discrete part."""
    size: int
    """Of the vector."""

    @classmethod
    def of(cls, observation_space: Any) -> "Encoder":
        leaves = jax.tree.leaves_with_path(parts(observation_space))
        categories = tuple((_names(path), leaf.n) for path, leaf in leaves if isinstance(leaf, Discrete))
        return cls(categories, sum(leaf.n if isinstance(leaf, Discrete) else math.prod(leaf.shape) for _, leaf in leaves))

    def __call__(self, obs: Observation, dtype: DTypeLike) -> Float[Array, " obs"]:
        """**Arguments:** one observation; the dtype of the vector."""
        flats, categories = [], dict(self.categories)
        for path, x in jax.tree.leaves_with_path(obs):
            n = categories.get(_names(path))
            flats.append(jnp.ravel(x).astype(dtype) if n is None else jax.nn.one_hot(x, n, dtype=dtype))
        return flats[0] if len(flats) == 1 else jnp.concatenate(flats)


def _names(path: Any) -> tuple[Any, ...]:
    """The path's keys, however the observation is made: a dict's keys, a struct's fields, a tuple's places."""
    return tuple(next(getattr(k, a) for a in ("key", "name", "idx") if hasattr(k, a)) for k in path)
