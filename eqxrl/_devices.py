"""One agent on several devices: each has a share of the environments and of each minibatch, and what is learned is the mean over them."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree

from eqxrl._typing import T

AXIS = "agent_devices"
"""What the axis of the shares is called, as in `jax.lax.pmean`."""


def num_shares() -> int:
    """How many devices share the agent whose program is being traced; 1 outside of such a share."""
    try:
        return jax.lax.axis_size(AXIS)
    except NameError:
        return 1


def mean_over_devices(tree: T) -> T:
    """The mean of float arrays over the devices that share an agent, in one message; outside of such a share the arrays themselves."""
    return tree if num_shares() == 1 else _in_one(jax.lax.pmean, tree)


def sum_over_devices(tree: T) -> T:
    """The sum, likewise."""
    return tree if num_shares() == 1 else _in_one(jax.lax.psum, tree)


def of_the_first(tree: T) -> T:
    """What the first of the devices has; outside of a share the arrays themselves."""
    return tree if num_shares() == 1 else _in_one(lambda x, axis: jax.lax.all_gather(x, axis)[0], tree)


def _in_one(f: Callable, tree: Any) -> Any:
    numbers, unravel = ravel_pytree(tree)
    return unravel(f(numbers, AXIS))


def mesh_of(num_devices: int) -> Mesh | None:
    """The devices that share an agent; `None` for one, as it is where there are fewer, and under `jax.default_device`."""
    one_is_set = jax.config.jax_default_device is not None  # pyright: ignore[reportAttributeAccessIssue]
    if num_devices == 1 or num_devices > jax.device_count() or one_is_set:
        return None
    return Mesh(np.array(jax.devices()[:num_devices]), (AXIS,))


def on_each(f: Callable, num_devices: int, in_axes: PyTree, out_axes: PyTree) -> Callable:
    """`f` for each device's share of its arrays. The axes are prefixes of the arguments' and the results' trees, as in `jax.vmap`: along
    which axis arrays are cut into as many parts, and put together again; `None` for those that all devices have in common. What `f` closes
    over they have in common as well.

    Where there are fewer devices, or these have shares of the seeds already, one does the work of all, in `vmap`.
    """
    if num_devices == 1:
        return f
    mesh = mesh_of(num_devices)
    if mesh is not None and not _is_share_of_seeds():
        in_specs, out_specs = (jax.tree.map(_spec, axes, is_leaf=_is_none) for axes in (in_axes, out_axes))
        return jax.shard_map(f, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
    return in_turn(f, num_devices, in_axes, out_axes)


def in_turn(f: Callable, num_devices: int, in_axes: PyTree, out_axes: PyTree) -> Callable:
    """`on_each`, on one device. JAX sees then whether what all should have in common is the same.

    **Raises:** `ValueError` where it isn't.
    """

    def cut(axis: int | None, x: Any) -> Any:
        return x if axis is None else x.reshape(*x.shape[:axis], num_devices, -1, *x.shape[axis + 1 :])

    def joined(axis: int | None, x: Any) -> Any:
        return x if axis is None else x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])

    shares = jax.vmap(f, in_axes=in_axes, out_axes=out_axes, axis_name=AXIS, axis_size=num_devices)
    return lambda *args: _each(joined, out_axes, shares(*_each(cut, in_axes, args)))


def _each(f: Callable, axes: PyTree, tree: PyTree) -> PyTree:
    return jax.tree.map(lambda axis, x: jax.tree.map(lambda leaf: f(axis, leaf), x), axes, tree, is_leaf=_is_none)


def _spec(axis: int | None) -> P:
    return P() if axis is None else P(*[None] * axis, AXIS)


def _is_none(x: Any) -> bool:
    return x is None


def _is_share_of_seeds() -> bool:
    """Whether the program is one device's already, as `Trainer` spreads seeds: such programs can't be spread again."""
    return any(x == jax.sharding.AxisType.Manual for x in jax.sharding.get_abstract_mesh().axis_types)
