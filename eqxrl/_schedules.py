import equinox as eqx
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from eqxrl._typing import Scalar, as_scalar, typed


@typed
class LinearSchedule(eqx.Module):
    """`optax.linear_schedule` as a pytree: it can be compared, printed and logged, and its values can be swept by `vmap`. From
    `init_value` to `end_value` in `transition_steps` gradient updates (env steps, where it is said to go by these), constant afterwards."""

    init_value: Scalar = eqx.field(converter=as_scalar)
    end_value: Scalar = eqx.field(converter=as_scalar)
    transition_steps: int = eqx.field(static=True)

    def __call__(self, num_updates: Int[Array, ""] | Float[Array, ""]) -> Scalar:
        return jnp.asarray(optax.linear_schedule(self.init_value, self.end_value, self.transition_steps)(num_updates))
