"""An off-policy algorithm of your own that learns from sequences: Q-learning with Retrace(λ), https://arxiv.org/abs/1606.02647. The policy
remembers the distribution of each action, and `replay` gives `update` what came after the steps that were drawn from the buffer."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from eqxrl import AbstractOffPolicy, AbstractOffPolicyHParams, Scalar, Schedule, advantages, buffers, field, learners, losses, nn
from eqxrl.algorithms import AbstractEpsilonGreedyHParams, copied, descended


class RetraceHParams(AbstractOffPolicyHParams, AbstractEpsilonGreedyHParams):
    n_step: int = field(default=8)
    learning_rate: Schedule = field(default=1e-3)
    retrace_lambda: Scalar = field(default=0.9)


class Retrace(AbstractOffPolicy):
    HParams = RetraceHParams

    def init_learner(self, key):
        q = nn.QNetwork(*self.spaces, key=key)
        return q, copied(q), optax.adam(self.hp.learning_rate).init(eqx.filter(q, eqx.is_inexact_array))

    def behaviour(self, learner, num_iterations):
        epsilon = self.hp.epsilon(self.env_steps_after(num_iterations))
        return nn.ActorCriticPolicy(nn.Exploring(nn.QActorCritic(learner[0]), epsilon))

    def replay(self, buffer_state, drawn):
        t, there = buffers.sequences(buffer_state, drawn.index, self.hp.n_step)
        next_there = jnp.pad(there[:, 1:], ((0, 0), (0, 1)))
        return dataclasses.replace(t, truncated=t.truncated | ~next_there), there

    def update(self, learner, batch, num_updates, key):
        (q, target, opt_state), (t, there), hp = learner, batch, self.hp
        each = lambda function: jax.vmap(jax.vmap(function))  # noqa: E731  (of [batch n_step] steps)
        value = nn.value_of(each(target)(t.obs), t.action)
        next_value = nn.value_of(each(target)(t.next_obs), jnp.argmax(each(q)(t.next_obs), axis=-1))
        (behaviour, _), greedy = t.remembered, nn.Greedy(each(q)(t.obs), jnp.zeros(t.reward.shape))
        log_ratio = greedy.log_prob(t.action) - behaviour.log_prob(t.action)
        returns = jax.vmap(lambda *sequence: advantages.retrace_returns(*sequence, hp.gamma, hp.retrace_lambda))
        targets = returns(t, value, next_value, log_ratio)

        def loss(q):
            errors, values = each(losses.td_loss)(each(q)(t.obs), t.action, targets)
            return jnp.mean(errors, where=there), values

        q, opt_state, values, _ = descended(loss, optax.adam(hp.learning_rate), q, opt_state)
        target = learners.Polyak(0.02)(target, q, num_updates)
        return (q, target, opt_state), jnp.abs(values - targets).mean(axis=1), {"value": values.mean()}


def main(total_timesteps: int = 20_000) -> float:
    retrace = Retrace.create("CartPole-v1", hp=RetraceHParams(total_timesteps=total_timesteps, eval_freq=5_000, batch_size=32, gamma=0.98))
    _, metrics = retrace.train(jax.random.key(0))
    print("mean return of each evaluation:", metrics.cumulative_reward.mean(-1).round())
    return float(metrics.cumulative_reward[-1].mean())
