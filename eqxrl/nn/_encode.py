"""Observations of any space as one vector: an encoder for each of the arrays in it."""

import abc
import math
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, DTypeLike, Float, Int, Key, Shaped

from eqxrl._typing import Observation
from eqxrl.nn._layers import Convolution, NormedLinear, apply_hidden, orthogonal_linear
from eqxrl.spaces import Box, Discrete, MultiDiscrete, parts

NATURE = ((32, 8, 4), (64, 4, 2), (64, 3, 1))
"""Channels, kernel and stride of each convolution, for a large image. Mnih et al. 2015, https://doi.org/10.1038/nature14236"""
MINATAR = ((16, 3, 1),)
"""For a small one. Young and Tian 2019, https://arxiv.org/abs/1903.03176"""


class AbstractEncoder(eqx.Module):
    """One array, or a whole observation, as a vector."""

    size: eqx.AbstractVar[int]
    """Of the vector."""

    @abc.abstractmethod
    def __call__(self, obs: Any, dtype: DTypeLike) -> Float[Array, " size"]:
        """**Arguments:** one observation, or an array of it; the dtype of the vector."""


class Flatten(AbstractEncoder):
    """The numbers as they are."""

    size: int = eqx.field(static=True)

    def __call__(self, obs: Shaped[Array, "..."], dtype: DTypeLike) -> Float[Array, " size"]:
        return jnp.ravel(obs).astype(dtype)


class OneHot(AbstractEncoder):
    """A choice as a vector that is 1 at its place and 0 elsewhere; several choices, one after the other."""

    nvec: tuple[int, ...] = eqx.field(static=True)
    size: int = eqx.field(static=True)

    def __init__(self, nvec: tuple[int, ...]):
        self.nvec, self.size = nvec, sum(nvec)

    def __call__(self, obs: Int[Array, "..."], dtype: DTypeLike) -> Float[Array, " size"]:
        starts = np.cumsum([0, *self.nvec[:-1]])
        choices = jnp.ravel(obs)
        if len(self.nvec) == 1:
            return jax.nn.one_hot(choices[0], self.nvec[0], dtype=dtype)
        owner = np.repeat(np.arange(len(self.nvec)), self.nvec)
        return (choices[owner] + starts[owner] == np.arange(self.size)).astype(dtype)


class Embed(AbstractEncoder):
    """A choice as one of `n` vectors that are learned."""

    vectors: eqx.nn.Linear
    size: int = eqx.field(static=True)

    def __init__(self, n: int, size: int, *, key: Key[Array, ""]):
        self.vectors, self.size = eqx.nn.Linear(n, size, use_bias=False, key=key), size

    def __call__(self, obs: Int[Array, ""], dtype: DTypeLike) -> Float[Array, " size"]:
        return self.vectors(jax.nn.one_hot(obs, self.vectors.weight.shape[1], dtype=dtype))


class Convolve(AbstractEncoder):
    """An image `[height width channels]` through convolutions and a layer. Bytes are divided by the highest that a channel may have."""

    convolutions: tuple[Convolution, ...]
    out: eqx.nn.Linear | NormedLinear
    activation: Callable = eqx.field(static=True)
    highest: tuple[float, ...] = eqx.field(static=True)
    size: int = eqx.field(static=True)

    def __init__(
        self, shape: tuple[int, ...], *, layers: Sequence[Sequence[int]] | None = None, size: int | None = None,
        activation: Callable = jax.nn.relu, layer_norm: bool = False, highest: Sequence[float] = (255.0,), key: Key[Array, ""],
    ):
        """**Arguments:** the image's shape; channels, kernel and stride of each convolution, and the size of the layer after them. By
        default these are `NATURE` and 512 for an image of at least 36 pixels on each side, else `MINATAR` and 128. `layer_norm`: of the
        channels at each place, and of the layer after them. `highest`: byte, of each channel or of all.

        **Raises:** `ValueError` for an image that is smaller than a kernel.
        """
        large = min(shape[:2]) >= 36
        layers = (NATURE if large else MINATAR) if layers is None else layers
        self.size, self.activation, self.highest = (512 if large else 128) if size is None else size, activation, tuple(highest)
        *keys, out_key = jax.random.split(key, len(layers) + 1)
        (rows, columns, channels), convolutions = shape, []
        for (out, kernel, stride), key in zip(layers, keys, strict=True):
            if min(rows, columns) < kernel:
                raise ValueError(f"a convolution of {kernel} x {kernel} doesn't fit {rows} x {columns} pixels, of an image {list(shape)}")
            convolutions.append(Convolution(channels, out, kernel=kernel, stride=stride, layer_norm=layer_norm, key=key))
            rows, columns, channels = (rows - kernel) // stride + 1, (columns - kernel) // stride + 1, out
        self.convolutions = tuple(convolutions)
        linear = orthogonal_linear(rows * columns * channels, self.size, scale=math.sqrt(2), key=out_key)
        self.out = NormedLinear(linear, eqx.nn.LayerNorm(self.size)) if layer_norm else linear

    def __call__(self, obs: Shaped[Array, "height width channels"], dtype: DTypeLike) -> Float[Array, " size"]:
        x = obs.astype(dtype) / jnp.asarray(self.highest, dtype)[None, None] if obs.dtype == jnp.uint8 else obs.astype(dtype)
        for convolution in self.convolutions:
            x = self.activation(convolution(x))
        return apply_hidden(self.out, self.activation, jnp.ravel(x))


class Encoder(AbstractEncoder):
    """A whole observation: arrays flattened, choices one-hot, one after the other in the order of the space's parts."""

    parts: tuple[AbstractEncoder, ...]
    paths: tuple[tuple[Any, ...], ...] = eqx.field(static=True)
    """Where in the observation each part is."""
    size: int = eqx.field(static=True)

    def __init__(
        self, observation_space: Any, *, only: Sequence[str] | None = None, convolve: bool = False, embed: int | None = None,
        layers: Sequence[Sequence[int]] | None = None, layer_norm: bool = False, key: Key[Array, ""],
    ):
        """**Arguments:**

        - `only`: names of the parts of a `Dict` that are looked at; by default all.
        - `convolve`: parts with three axes are images `[height width channels]`; `layers`: their convolutions; `layer_norm`: in them.
        - `embed`: the size of the vector that stands for a choice of a Discrete part, instead of one-hot.

        **Raises:** `ValueError` for a name that there isn't.
        """
        found = {_names(path): space for path, space in jax.tree.leaves_with_path(parts(observation_space))}
        there = {path[0] for path in found if path}
        if only is not None and (unknown := sorted(set(only) - there)):
            raise ValueError(f"the observation has no part {', '.join(map(repr, unknown))}; it has {', '.join(map(repr, sorted(there)))}")
        self.paths = tuple(path for path in found if only is None or path[0] in only)
        keys = jax.random.split(key, len(self.paths) or 1)

        def make(space: Box | Discrete | MultiDiscrete, key: Key[Array, ""]) -> AbstractEncoder:
            if isinstance(space, Discrete):
                return OneHot((space.n,)) if embed is None else Embed(space.n, embed, key=key)
            if isinstance(space, MultiDiscrete):
                return OneHot(space.nvec)
            if convolve and is_image(space):
                return Convolve(space.shape, layers=layers, layer_norm=layer_norm, highest=_highest(space), key=key)
            return Flatten(math.prod(space.shape))

        self.parts = tuple(make(found[path], key) for path, key in zip(self.paths, keys))
        self.size = sum(part.size for part in self.parts)

    def __call__(self, obs: Observation, dtype: DTypeLike) -> Float[Array, " size"]:
        given = {_names(path): x for path, x in jax.tree.leaves_with_path(obs)}
        vectors = [part(given[path], dtype) for part, path in zip(self.parts, self.paths, strict=True)]
        return vectors[0] if len(vectors) == 1 else jnp.concatenate(vectors)


def encoder_key(key: Key[Array, ""]) -> Key[Array, ""]:
    """That of an encoder, given the key of a network whose layers' keys come of a split: `fold_in` of a small number would give one of
    theirs."""
    return jax.random.fold_in(key, 0x656E63)


def is_image(space: Any) -> bool:
    """Of one array: whether it has the axes `[height width channels]`."""
    return isinstance(space, Box) and len(space.shape) == 3


def _highest(image: Box) -> tuple[float, ...]:
    """Of each channel: numbers of things, such as of the tiles of a grid, may not come near 255."""
    if image.dtype != jnp.uint8 or isinstance(image.high, Tracer):
        return (255.0,)
    high = np.broadcast_to(np.asarray(image.high, np.float32), image.shape)
    return tuple(np.maximum(high.max((0, 1)), 1.0).tolist())


def has_images(observation_space: Any) -> bool:
    """Whether a part of an observation is an image."""
    return any(map(is_image, jax.tree.leaves(parts(observation_space))))


def _names(path: Any) -> tuple[Any, ...]:
    """The path's keys, however the observation is made: a dict's keys, a struct's fields, a tuple's places."""
    return tuple(next(getattr(k, a) for a in ("key", "name", "idx") if hasattr(k, a)) for k in path)
