import optax

from eqxrl._typing import Scalar


def clipped(max_grad_norm: Scalar | float, optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """The optimiser on gradients whose global norm is clipped, with all parameters as one array: a network has many small ones, and XLA's
    CPU backend pays for each operation on each. Not for an optimiser that tells parameters apart, such as `by_network`."""
    return optax.flatten(optax.chain(optax.clip_by_global_norm(max_grad_norm), optimizer))
