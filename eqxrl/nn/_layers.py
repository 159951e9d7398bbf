import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from eqxrl._threefry import computed_once
from eqxrl._typing import T
from eqxrl.nn._batch_renorm import BatchRenorm


def orthogonal_linear(in_size: int, out_size: int, *, scale: float, key: Key[Array, ""]) -> eqx.nn.Linear:
    """A linear layer with orthogonal weights times `scale` and zero bias. Saxe et al. 2014, https://arxiv.org/abs/1312.6120"""
    return _orthogonal_linears([[in_size, out_size]], [[scale]], key[None])[0][0]


def _orthogonal_linears(
    sizes: Sequence[Sequence[int]], scales: Sequence[Sequence[float]], keys: Key[Array, " networks"]
) -> list[list[eqx.nn.Linear]]:
    """The layers of several networks, whose numbers are drawn at once."""

    def make(noise: Float[Array, "out in"], scale: float) -> eqx.nn.Linear:
        layer = _unset_linear(noise.shape)
        return eqx.tree_at(lambda m: (m.weight, m.bias), layer, (scale * _orthogonal(noise), jnp.zeros(noise.shape[0], jnp.float32)))

    noise = _normals(keys, [list(zip(x[1:], x[:-1])) for x in sizes])
    return [[make(*layer) for layer in zip(*network, strict=True)] for network in zip(noise, scales)]


def _unset_linear(shape: tuple[int, ...]) -> eqx.nn.Linear:
    """Without numbers."""
    key = jax.eval_shape(jax.random.key, 0)
    return eqx.filter_eval_shape(lambda key: eqx.nn.Linear(shape[1], shape[0], key=key), key)


def _uniform_linears(sizes: Sequence[int], key: Key[Array, ""]) -> list[eqx.nn.Linear]:
    """What `eqx.nn.Linear` makes of a key for each layer, number by number, but all drawn at once, as many for each as for the largest:
    each draw by itself would be a loop of its own to compile."""
    shapes = list(zip(sizes[1:], sizes[:-1]))
    if not shapes:
        return []
    limits = jnp.asarray([1 / math.sqrt(in_size) for _, in_size in shapes])
    keys = jax.vmap(jax.random.split)(jax.random.split(key, len(shapes)))  # of weights and biases

    def draw(key: Key[Array, ""], limit: Float[Array, ""]) -> Float[Array, " size"]:
        return jax.random.uniform(key, (max(map(math.prod, shapes)),), limit.dtype, -limit, limit)

    drawn = computed_once(jax.vmap(jax.vmap(draw, (0, None)))(keys, limits))

    def make(shape: tuple[int, int], numbers: Float[Array, "2 size"]) -> eqx.nn.Linear:
        weight, bias = numbers[0, : math.prod(shape)].reshape(shape), numbers[1, : shape[0]]
        return eqx.tree_at(lambda m: (m.weight, m.bias), _unset_linear(shape), (weight, bias))

    return [make(*x) for x in zip(shapes, drawn)]


def orthogonal_cell(make_cell: Callable, in_size: int, size: int, *, key: Key[Array, ""]) -> Any:
    """A recurrent cell of Equinox with orthogonal weights, gate by gate, and zero biases."""
    cell, static = eqx.partition(eqx.filter_eval_shape(make_cell, in_size, size, key=key), lambda x: isinstance(x, jax.ShapeDtypeStruct))
    leaves, structure = jax.tree.flatten(cell)

    def initialize(noise: Float[Array, "..."]) -> Float[Array, "..."]:
        if noise.ndim == 1:
            return jnp.zeros_like(noise)
        return jnp.concatenate([_orthogonal(gate) for gate in noise.reshape(-1, size, noise.shape[1])])

    [noise] = _normals(key[None], [[x.shape for x in leaves]])
    return eqx.combine(jax.tree.unflatten(structure, [initialize(x) for x in noise]), static)


def _normals(keys: Key[Array, " keys"], shapes: Sequence[Sequence[tuple[int, ...]]]) -> list[list[Float[Array, "..."]]]:
    """Of each key, standard normal numbers of its shapes. All are drawn at once, as many of each key as of the one that needs most: each
    draw by itself would be a loop of its own to compile, and each shape would have its own copy of what makes numbers normal."""
    sizes = [[math.prod(shape) for shape in of_key] for of_key in shapes]
    drawn = jax.vmap(lambda key: jax.random.normal(key, (max(map(sum, sizes)),), jnp.float32))(keys)
    drawn = computed_once(drawn)

    def parts(numbers: Float[Array, " numbers"], sizes: Sequence[int], shapes: Sequence[tuple[int, ...]]) -> list[Array]:
        ends = [sum(sizes[:i]) for i in range(1, len(sizes) + 1)]
        return [x.reshape(shape) for x, shape in zip(jnp.split(numbers, ends), shapes)]

    return [parts(*x) for x in zip(drawn, sizes, shapes)]


def _orthogonal(noise: Float[Array, "rows columns"]) -> Float[Array, "rows columns"]:
    """Uniform among the matrices with orthonormal rows, or columns if those are fewer, given standard normal numbers, which JAX's own
    initialiser draws by itself."""
    if noise.shape[0] < noise.shape[1]:
        return _orthogonal(noise.T).T
    # One after the other under vmap: jaxlib's batched QR waits, on a thread of XLA's pool, for other threads of that pool, and two
    # of them at once (actor and critic, on two cores) wait for good.
    q, r = jax.custom_batching.sequential_vmap(lambda x: tuple(jnp.linalg.qr(x)))(noise)
    return q * jnp.sign(r.ravel()[None, :: r.shape[1] + 1])  # the diagonal; `jnp.diag` is a gather, which takes long to compile


def apply_linear(layer: eqx.nn.Linear, x: Float[Array, " in"]) -> Float[Array, " out"]:
    """What the layer makes of `x`, as a product from the right: under `vmap`, XLA's CPU backend computes few rows several times as fast
    as `W @ x`, whose result it has to transpose."""
    weight = layer.weight.T
    if 4 * weight.shape[0] <= weight.shape[1]:
        # Few inputs: laid out anew, the product and its gradient take half of the time (gradients of a whole policy that sees four numbers
        # a sixth less). With as many inputs as outputs it would take longer.
        weight = jax.lax.optimization_barrier(weight)
    return x @ weight if layer.bias is None else x @ weight + layer.bias


class NoisyLinear(eqx.Module):
    """A linear layer whose numbers can be drawn anew, with learned deviations, so that a policy explores by them. Called, it computes with
    their means; `perturbed` draws. Noise is factorised. Fortunato et al. 2018, https://arxiv.org/abs/1706.10295"""

    linear: eqx.nn.Linear
    """The means."""
    deviation: eqx.nn.Linear
    """Of each number."""

    def __init__(self, linear: eqx.nn.Linear, sigma: float = 0.5):
        """**Arguments:** the means; the deviations at the start, which are divided by √(inputs)."""
        self.linear = linear
        self.deviation = jax.tree.map(lambda x: jnp.full_like(x, sigma / math.sqrt(linear.weight.shape[1])), linear)

    def __call__(self, x: Float[Array, " in"]) -> Float[Array, " out"]:
        return apply_linear(self.linear, x)

    @property
    def weight(self) -> Array:
        return self.linear.weight

    def drawn(self, key: Key[Array, ""]) -> eqx.nn.Linear:
        """The layer with one draw of its numbers."""
        out_size, in_size = self.weight.shape
        noise = jax.random.normal(key, (out_size + in_size,), self.weight.dtype)
        noise = jnp.sign(noise) * jnp.sqrt(jnp.abs(noise))
        of_bias, of_input = noise[:out_size], noise[out_size:]
        factors = eqx.tree_at(lambda x: (x.weight, x.bias), self.linear, (of_bias[:, None] * of_input[None], of_bias))
        return jax.tree.map(lambda mean, deviation, factor: mean + deviation * factor, self.linear, self.deviation, factors)


def perturbed(net: T, key: Key[Array, ""]) -> T:
    """A network with one draw of each `NoisyLinear` in it; any other as it is."""
    is_noisy, number = lambda x: isinstance(x, NoisyLinear), itertools.count()
    draw = lambda x: x.drawn(jax.random.fold_in(key, next(number))) if is_noisy(x) else x  # noqa: E731
    return jax.tree.map(draw, net, is_leaf=is_noisy)


class NormedLinear(eqx.Module):
    """A linear layer whose outputs are standardised over the layer. Ba et al. 2016, https://arxiv.org/abs/1607.06450"""

    linear: eqx.nn.Linear | NoisyLinear
    norm: eqx.nn.LayerNorm

    def __call__(self, x: Float[Array, " in"]) -> Float[Array, " out"]:
        return self.norm(apply_layer(self.linear, x))

    @property
    def weight(self) -> Array:
        return self.linear.weight


class PrenormedLinear(eqx.Module):
    """A linear layer of standardised inputs."""

    norm: eqx.nn.LayerNorm | BatchRenorm
    linear: eqx.nn.Linear | NoisyLinear

    def __call__(self, x: Float[Array, " in"]) -> Float[Array, " out"]:
        return apply_layer(self.linear, self.norm(x))

    @property
    def weight(self) -> Array:
        return self.linear.weight


class Residual(eqx.Module):
    """A block that adds to its input what two linear layers make of it standardised, with the activation and four times as many numbers
    between them. Lee et al. 2024, https://arxiv.org/abs/2410.09754"""

    resize: eqx.nn.Linear | NoisyLinear | None
    """Before all, where the block's input has another size than its output."""
    inner: PrenormedLinear
    outer: eqx.nn.Linear | NoisyLinear

    def __call__(self, x: Float[Array, " in"], activation: Callable) -> Float[Array, " out"]:
        x = x if self.resize is None else apply_layer(self.resize, x)
        return x + apply_layer(self.outer, activation(self.inner(x)))

    @property
    def weight(self) -> Array:
        return self.outer.weight


Layer = eqx.nn.Linear | NoisyLinear | NormedLinear | PrenormedLinear
Layers = tuple[Layer | Residual, ...]


def make_layers(
    sizes: Sequence[int], key: Key[Array, ""], layer_norm: bool = False, noisy: bool = False, residual: bool = False,
    batch_renorm: bool = False,
) -> Layers:
    """Layers initialised as Equinox does. `layer_norm`: of all but the last. `residual`: blocks in their place, and a layer norm before the
    last; Lee et al. 2024. `batch_renorm`: of what each layer sees; Bhatt et al. 2024.

    **Raises:** `ValueError` where more than one of the three is chosen.
    """
    if layer_norm + residual + batch_renorm > 1:
        raise ValueError(f"got {layer_norm=}, {residual=}, {batch_renorm=}; choose one of them")
    if residual:
        return _residual_layers(sizes, jax.random.split(key, len(sizes) - 1), noisy)
    layers = _uniform_linears(sizes, key)
    layers = [NoisyLinear(x) for x in layers] if noisy else layers
    if batch_renorm:
        return tuple(PrenormedLinear(BatchRenorm(size), x) for x, size in zip(layers, sizes))
    return _with_norms(layers, layer_norm)


def make_orthogonal_layers(
    sizes: Sequence[Sequence[int]], out_scales: Sequence[float], keys: Key[Array, " networks"], layer_norm: bool = False
) -> list[Layers]:
    """The layers of several networks, orthogonal, those before the last with scale √2. `layer_norm`: of all but the last."""
    scales = [[math.sqrt(2)] * (len(x) - 2) + [out_scale] for x, out_scale in zip(sizes, out_scales)]
    return [_with_norms(layers, layer_norm) for layers in _orthogonal_linears(sizes, scales, keys)]


def _with_norms(layers: Sequence[Any], layer_norm: bool) -> Layers:
    hidden = [NormedLinear(x, eqx.nn.LayerNorm(x.weight.shape[0])) for x in layers[:-1]] if layer_norm else layers[:-1]
    return *hidden, *layers[-1:]


def _residual_layers(sizes: Sequence[int], keys: Key[Array, " layers"], noisy: bool) -> Layers:
    def linear(in_size: int, out_size: int, key: Key[Array, ""]) -> eqx.nn.Linear | NoisyLinear:
        layer = eqx.nn.Linear(in_size, out_size, key=key)
        return NoisyLinear(layer) if noisy else layer

    def block(in_size: int, size: int, key: Key[Array, ""]) -> Residual:
        resize_key, inner_key, outer_key = jax.random.split(key, 3)
        resize = None if in_size == size else linear(in_size, size, resize_key)
        inner = PrenormedLinear(eqx.nn.LayerNorm(size), linear(size, 4 * size, inner_key))
        return Residual(resize, inner, linear(4 * size, size, outer_key))

    blocks = [block(*x) for x in zip(sizes[:-2], sizes[1:-1], keys)]
    last = linear(sizes[-2], sizes[-1], keys[-1])
    return *blocks, PrenormedLinear(eqx.nn.LayerNorm(sizes[-2]), last) if blocks else last


def apply_layer(layer: Layer, x: Float[Array, " in"]) -> Float[Array, " out"]:
    """One of `make_layers` that isn't a block."""
    return apply_linear(layer, x) if isinstance(layer, eqx.nn.Linear) else layer(x)


def apply_hidden(layer: Layer | Residual, activation: Callable, x: Float[Array, " in"]) -> Float[Array, " out"]:
    """One of `make_layers` that isn't the last, and the activation."""
    return layer(x, activation) if isinstance(layer, Residual) else activation(apply_layer(layer, x))


def apply_layers(layers: Layers, activation: Callable, x: Float[Array, " in"]) -> Float[Array, " out"]:
    """The activation comes between them, not after the last."""
    last: Any = layers[-1]
    for layer in layers[:-1]:
        x = apply_hidden(layer, activation, x)
    return apply_layer(last, x)


def layers_on_batch(layers: Layers, activation: Callable, x: Float[Array, "batch in"]) -> tuple[Float[Array, "batch out"], Layers]:
    """What layers with `batch_renorm` make of a batch by its own statistics, and these layers with their running ones moved."""
    after, given = [], cast(tuple[Any, ...], layers)
    for i, layer in enumerate(given):
        x, norm = layer.norm.on_batch(activation(x) if i else x)
        x = jax.vmap(functools.partial(apply_layer, layer.linear))(x)
        after.append(PrenormedLinear(norm, layer.linear))
    return x, tuple(after)


class Convolution(eqx.Module):
    """A convolution over an image `[height width in]`, without padding, as a product of matrices: under `vmap` over policies XLA's own
    becomes a grouped one, which its CPU backend computes more slowly."""

    linear: eqx.nn.Linear | NormedLinear
    """Of `kernel * kernel * in` numbers."""
    kernel: int = eqx.field(static=True)
    stride: int = eqx.field(static=True)

    def __init__(self, in_size: int, out_size: int, *, kernel: int, stride: int, layer_norm: bool = False, key: Key[Array, ""]):
        """`layer_norm`: of the channels at each place."""
        linear = orthogonal_linear(kernel * kernel * in_size, out_size, scale=math.sqrt(2), key=key)
        self.linear = NormedLinear(linear, eqx.nn.LayerNorm(out_size)) if layer_norm else linear
        self.kernel, self.stride = kernel, stride

    def __call__(self, x: Float[Array, "height width in"]) -> Float[Array, "rows columns out"]:
        rows, columns = ((size - self.kernel) // self.stride + 1 for size in x.shape[:2])

        def shifted(i: int, j: int) -> Float[Array, "rows columns in"]:
            return x[i :: self.stride, j :: self.stride][:rows, :columns]

        patches = jnp.concatenate([shifted(i, j) for i in range(self.kernel) for j in range(self.kernel)], axis=-1)
        return jax.vmap(jax.vmap(self.linear))(patches)
