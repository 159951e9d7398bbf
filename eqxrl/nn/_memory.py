import abc
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Complex, Float, Key

from eqxrl._typing import Carry


class AbstractMemory(eqx.Module):
    """What a policy remembers of an episode: a recurrence over vectors, which begins anew with each episode. `Cell` is a whole one."""

    @abc.abstractmethod
    def __call__(self, x: Float[Array, " in"], carry: Carry) -> tuple[Float[Array, " out"], Carry]:
        """One step: its output, and what is remembered then."""

    @abc.abstractmethod
    def sequence(
        self, xs: Float[Array, "steps in"], starts: Bool[Array, " steps"], carry: Carry
    ) -> tuple[Float[Array, "steps out"], Carry]:
        """The outputs of all steps of one environment, and what is remembered after the last; fresh at each step in `starts`, where an
        episode begins."""

    @abc.abstractmethod
    def initial_carry(self) -> Carry:
        """What is remembered at the start of an episode."""


def forgetting(starts: Bool[Array, ""], fresh: Carry, carry: Carry) -> Carry:
    """`carry`, or `fresh` where an episode starts. Chosen, not multiplied by 0: a NaN of the last episode ends with it."""
    return jax.tree.map(lambda a, b: jnp.where(starts, a, b), fresh, carry)


class Cell(AbstractMemory):
    """A recurrent cell of Equinox, or one of your own like `eqx.nn.GRUCell`: `cell(x, carry) -> carry`, one array of `hidden_size` numbers,
    which is also the output. Of an LSTM it is the first of two."""

    cell: eqx.Module
    fresh: Carry = eqx.field(static=True)
    """Shapes of what it remembers, zeros at the start of an episode."""

    def __init__(self, cell: Any):
        size = jax.ShapeDtypeStruct((cell.hidden_size,), jnp.float32)  # hashable, as what is static must be
        self.cell, self.fresh = cell, (size, size) if isinstance(cell, eqx.nn.LSTMCell) else size

    def __call__(self, x: Float[Array, " in"], carry: Carry) -> tuple[Float[Array, " out"], Carry]:
        carry = self.cell(x, carry)  # pyright: ignore[reportCallIssue]
        return carry[0] if isinstance(carry, tuple) else carry, carry

    def sequence(
        self, xs: Float[Array, "steps in"], starts: Bool[Array, " steps"], carry: Carry
    ) -> tuple[Float[Array, "steps out"], Carry]:
        def step(carry: Carry, x_and_start: Any) -> tuple[Carry, Array]:
            x, start = x_and_start
            out, carry = self(x, forgetting(start, self.initial_carry(), carry))
            return carry, out

        carry, outs = jax.lax.scan(step, carry, (xs, starts))
        return outs, carry

    def initial_carry(self) -> Carry:
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), self.fresh)


class LRU(AbstractMemory):
    r"""A linear recurrence with a complex diagonal, $h_t = \lambda h_{t-1} + \gamma B x_t$ and $y_t = \mathrm{Re}(C h_t) + D x_t$, so that
    a whole sequence is computed by an associative scan over chunks of it. $|\lambda| = e^{-e^\nu}$ is below 1 whatever is learned.

    Orvieto et al. 2023, https://arxiv.org/abs/2303.06349; resets inside the scan after Lu et al. 2023,
    https://arxiv.org/abs/2303.03982.
    """

    nu: Float[Array, " state"]
    theta: Float[Array, " state"]
    b: Float[Array, "2 state in"]
    """Real and imaginary part, as in what follows."""
    c: Float[Array, "2 out state"]
    d: Float[Array, "out in"]

    def __init__(self, in_size: int, size: int, *, radius: tuple[float, float] = (0.9, 0.999), phase: float = 0.314, key: Key[Array, ""]):
        """**Arguments:** between which bounds $|\\lambda|$, the decay of a step, is drawn at first, and below which its angle."""
        keys = jax.random.split(key, 5)
        low, high = radius
        squared = jax.random.uniform(keys[0], (size,), minval=low**2, maxval=high**2)
        self.nu = jnp.log(-0.5 * jnp.log(squared))
        self.theta = jnp.log(phase * jax.random.uniform(keys[1], (size,), minval=1e-3))
        self.b = jax.random.normal(keys[2], (2, size, in_size)) / jnp.sqrt(2 * in_size)
        self.c = jax.random.normal(keys[3], (2, size, size)) / jnp.sqrt(size)
        self.d = jax.random.normal(keys[4], (size, in_size)) / jnp.sqrt(in_size)

    def _decay(self) -> Any:
        return jnp.exp(jax.lax.complex(-jnp.exp(self.nu), jnp.exp(self.theta)))

    def _input(self, x: Float[Array, " in"]) -> Any:
        gamma = jnp.sqrt(1 - jnp.exp(-2 * jnp.exp(self.nu)))
        return jax.lax.complex(gamma * (self.b[0] @ x), gamma * (self.b[1] @ x))

    def _output(self, h: Any, x: Float[Array, " in"]) -> Float[Array, " out"]:
        return self.c[0] @ h.real - self.c[1] @ h.imag + self.d @ x

    def __call__(self, x: Float[Array, " in"], carry: Float[Array, "2 state"]) -> tuple[Float[Array, " out"], Float[Array, "2 state"]]:
        h = self._decay() * jax.lax.complex(carry[0], carry[1]) + self._input(x)
        return self._output(h, x), jnp.stack([h.real, h.imag])

    def sequence(
        self, xs: Float[Array, "steps in"], starts: Bool[Array, " steps"], carry: Float[Array, "2 state"]
    ) -> tuple[Float[Array, "steps out"], Float[Array, "2 state"]]:
        decay, inputs = self._decay(), jax.vmap(self._input)(xs)
        h = linear_recurrence(decay, inputs, starts, jax.lax.complex(carry[0], carry[1]))
        return jax.vmap(self._output)(h, xs), jnp.stack([h[-1].real, h[-1].imag])

    def initial_carry(self) -> Float[Array, "2 state"]:
        return jnp.zeros((2, self.nu.size), jnp.float32)


def linear_recurrence(
    decay: Complex[Array, " state"], inputs: Complex[Array, "steps state"], starts: Bool[Array, " steps"], h: Complex[Array, " state"]
) -> Complex[Array, "steps state"]:
    r"""$h_t = \lambda h_{t-1} + x_t$, and $h_t = x_t$ where an episode starts, from `h` on. Chunks of up to 32 steps are computed side by
    side, each one step after the other; then what each hands over to the next, by an associative scan."""
    size = math.gcd(len(inputs), 32)
    x, fresh = inputs.reshape(-1, size, *inputs.shape[1:]), starts.reshape(-1, size)

    def step(h: Any, x_and_start: Any) -> Any:
        x, start = x_and_start
        h = x + decay[None] * jnp.where(start[:, None], 0, h)
        return h, h

    _, within = jax.lax.scan(step, jnp.zeros_like(x[:, 0]), (x.swapaxes(0, 1), fresh.T))
    within, started = within.swapaxes(0, 1), jnp.cumsum(fresh, axis=1) > 0
    powers = jnp.cumprod(jnp.broadcast_to(decay, (size, *decay.shape)), axis=0)

    def after(one: Any, other: Any) -> Any:
        (a1, b1, s1), (a2, b2, s2) = one, other
        return jnp.where(s2, a2, a1 * a2), b2 + a2 * jnp.where(s2, 0, b1), s1 | s2

    last = jnp.broadcast_to(powers[-1], within[:, -1].shape), within[:, -1], jnp.broadcast_to(started[:, -1:], within[:, -1].shape)
    first = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b[:-1]]), (jnp.ones_like(h), h, jnp.zeros(h.shape, bool)), last)
    before = jax.lax.associative_scan(after, first)[1]  # each chunk
    handed_over = powers[None] * jnp.where(started[:, :, None], 0, before[:, None])
    return (within + handed_over).reshape(inputs.shape)
