from typing import Any

import jax
import optax
from jaxtyping import PyTree

_DEFAULT = ""  # the label of what has no optimiser of its own; no attribute is called so


def by_network(default: optax.GradientTransformation, /, **optimizers: optax.GradientTransformation) -> optax.GradientTransformation:
    """An optimiser for each network of an actor-critic, by the attribute under which its parameters lie, such as `actor` or `critic`, also
    within wrappers; where several of them are named, the outermost counts, and what isn't named gets the default one. With weight decay
    for the critic alone:

        by_network(optax.adam(3e-4), critic=optax.adamw(1e-3, weight_decay=1e-4))

    Each sees its own part of the gradient only; the norm of all of it is clipped before, as in
    `optax.chain(optax.clip_by_global_norm(0.5), by_network(...))`. Running statistics are no parameters, and no optimiser sees them.
    `optax.set_to_zero()` keeps a network as it is.

    **Raises:** `ValueError`, when it is given its parameters, for a name that none of them has.
    """

    def labels(params: PyTree) -> PyTree:
        names = {path: _attributes(path) for path, _ in jax.tree.leaves_with_path(params)}
        there = {name: None for of_leaf in names.values() for name in of_leaf}
        if unknown := [name for name in optimizers if name not in there]:
            these = ", ".join(there)
            raise ValueError(f"by_network got an optimiser for {', '.join(unknown)}, but there are only {these}; name one of these")
        return jax.tree.map_with_path(lambda path, _: next((x for x in names[path] if x in optimizers), _DEFAULT), params)

    return optax.multi_transform({_DEFAULT: default, **optimizers}, labels)


def _attributes(path: tuple[Any, ...]) -> list[str]:
    """The attributes on the way to a leaf, outermost first."""
    return [key.name for key in path if isinstance(key, jax.tree_util.GetAttrKey)]
