"""rejax as an oracle: made to run on gymnax 1.x and translated into eqxrl's terms. Nothing that it computes is rewritten."""

from typing import Any
from unittest import mock

import equinox as eqx
import jax
import jax.numpy as jnp
import rejax
from rejax.algos.algorithm import register_init

from eqxrl.nn import ActorCritic


class FiveValueStep:
    """A gymnax 1.x environment with the step that rejax unpacks: obs, state, reward, done, info. Dtypes cross it as they cross
    eqxrl's seam: actions in that of their space, rewards in float32. (gymnax's own `LegacyStepAPIWrapper` delegates
    `__deepcopy__` to itself for ever, and rejax copies its configuration.)"""

    def __init__(self, env):
        self.env = env

    def __getattr__(self, name):
        return getattr(self.env, name)

    def __deepcopy__(self, memo):
        return self

    def step(self, key, state, action, params):
        action = jnp.asarray(action, self.env.action_space(params).dtype)
        obs, state, reward, terminated, truncated, info = self.env.step(key, state, action, params)
        return obs, state, reward.astype(jnp.float32), terminated | truncated, info


def chained_keys(rng: Any, num_steps: int, num_envs: int) -> Any:
    """`draw_keys` of eqxrl's collectors with rejax's keys, each of which is split from the one before."""

    def step(rng: Any, _: Any) -> Any:
        rng, step_rng = jax.random.split(rng)
        step_key, action_key = jax.random.split(step_rng)
        return rng, (action_key, jax.vmap(jax.random.split)(jax.random.split(step_key, num_envs)).T)

    rng, refresh_key = jax.random.split(rng)
    rng, keys = jax.lax.scan(step, rng, length=num_steps)
    return rng, refresh_key, *keys


class RejaxPPO(rejax.PPO):
    """rejax's PPO with two chains of keys, as eqxrl has them: one for acting, which is split once before each rollout (for the reset
    strategy), and one for learning."""

    @register_init
    def initialize_keys(self, rng):
        return {"acting_rng": rng, "learning_rng": rng}

    def collect_trajectories(self, ts):
        ts, trajectories = super().collect_trajectories(ts.replace(rng=jax.random.split(ts.acting_rng)[0]))
        learning_rng, rng = jax.random.split(ts.learning_rng)
        return ts.replace(acting_rng=ts.rng, learning_rng=learning_rng, rng=rng), trajectories


def to_agent(template: ActorCritic, actor: Any, critic: Any) -> ActorCritic:
    """flax's parameters of rejax's policy and critic (or gradients with respect to them) in the place of `template`'s."""
    actor, critic = actor["params"], critic["params"]
    head = actor["action_logits"] if "action_logits" in actor else actor["action_mean"]
    layers = lambda dense: [dense[f"Dense_{i}"] for i in range(len(dense))]  # noqa: E731

    def linears(old, new):
        return tuple(
            eqx.tree_at(lambda m: (m.weight, m.bias), linear, (dense["kernel"].T, dense["bias"]))
            for linear, dense in zip(old, new, strict=True)
        )

    networks = linears(template.actor, [*layers(actor["features"]), head]), linears(template.critic, layers(critic))
    agent = eqx.tree_at(lambda m: (m.actor, m.critic), template, networks)
    return eqx.tree_at(lambda m: m.head.log_std, agent, actor["action_log_std"]) if "action_log_std" in actor else agent


def losses_and_gradients(algo: rejax.PPO, ts: Any, minibatch: Any) -> tuple[list[jax.Array], list[Any]]:
    """Of the policy and of the critic, for one minibatch; rejax doesn't return them, so they are caught on their way."""
    losses, gradients = [], []

    def catching_grad(fn):
        def grad(params):
            loss, gradient = jax.value_and_grad(fn)(params)
            losses.append(loss)
            gradients.append(gradient)
            return gradient

        return grad

    with mock.patch.object(jax, "grad", catching_grad):
        algo.update_critic(algo.update_actor(ts, minibatch), minibatch)
    return losses, gradients
