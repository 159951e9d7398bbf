import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import PyTree

from eqxrl._typing import Scalar


def clipped(max_grad_norm: Scalar | float, optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """The optimiser on gradients whose global norm is clipped, with all parameters as one array: a network has many small ones, and XLA's
    CPU backend pays for each operation on each. Not for an optimiser that tells parameters apart, such as `by_network`."""
    return optax.flatten(optax.chain(optax.clip_by_global_norm(max_grad_norm), optimizer))


def grad_norm(grads: PyTree) -> Scalar:
    """The global norm of gradients, before any clipping: of one array, as `clipped` computes it, so that both are one computation."""
    return optax.tree.norm(ravel_pytree(grads)[0])
