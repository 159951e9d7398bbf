import dataclasses
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from eqxrl._structs import TrainStepMetrics, Transition, Transitions
from eqxrl._typing import Scalar, Schedule, as_schedule, check_below, field, strong, typed, within
from eqxrl.advantages import soft_lambda_returns
from eqxrl.algorithms._finite import assert_finite
from eqxrl.algorithms._hparams import AbstractMinibatchHParams
from eqxrl.algorithms._parts import part
from eqxrl.algorithms._transitions import AbstractOnTransitions, TransitionsState
from eqxrl.collectors import AbstractCollector, RewardScaling, TransitionCollector
from eqxrl.envs import default_stepper
from eqxrl.learners import clipped, swap_or_not
from eqxrl.losses import PathwiseLoss, TemperedActor
from eqxrl.nn import ActionValue, HLGauss, Sampling, StochasticActor, trainable
from eqxrl.spaces import log_volume


class REPPOHParams(AbstractMinibatchHParams):
    """How a REPPO is configured; see `PPOHParams`. The defaults are those of the authors' code for dm_control, but
    for the bounds of values, which there belong to an environment, as the scale of its rewards does."""

    num_envs: int = field(default=1024)
    num_steps: int = field(default=32)
    num_bins: int = field(default=151)
    """Bins of the critic's distribution of values."""
    normalize_rewards: bool = field(default=True)
    """Divide rewards by the deviation of the running return; without it `value_low` and `value_high` must be set to fit them."""
    value_low: Scalar = field(default=-20.0)
    """Lowest value that the critic can tell, in the units of the training reward."""
    value_high: Scalar = field(default=20.0)
    """Highest value that the critic can tell."""
    learning_rate: Schedule = field(default=3e-4, converter=as_schedule, metadata=within(0.0))
    """Adam's step size, for the actor with the two multipliers, and for the critic."""
    max_grad_norm: Scalar = field(default=0.5, metadata=within(0.0))
    """Global norm that the gradients of each of these two are clipped to."""
    gamma: Scalar = field(default=0.99, metadata=within(0.0, 1.0))
    """The discount of a reward one step later."""
    td_lambda: Scalar = field(default=0.95, metadata=within(0.0, 1.0))
    """How far targets trust rewards over values: 0 one step, 1 the whole rollout."""
    temperature: Scalar = field(default=0.01, metadata=within(0.0, open_low=True))
    """What a nat of entropy is worth at first."""
    target_entropy: Scalar = field(default=-0.5)
    """Where the temperature is to hold the entropy: nats for each number of an action, as if its bounds were [-1, 1]."""
    kl_coef: Scalar = field(default=0.01, metadata=within(0.0, open_low=True))
    """What a nat of KL divergence from the policy that acted costs at first."""
    kl_bound: Scalar = field(default=0.1, metadata=within(0.0, open_low=True))
    """Where `kl_coef` is to hold that divergence; nats."""

    def __check_init__(self):
        check_below(self, "value_low", "value_high")


@typed
class REPPOLearner(eqx.Module):
    """The actor with its multipliers, the critic, and the optimisers' states of these two."""

    networks: tuple[TemperedActor, PyTree]
    opt_states: tuple[PyTree, PyTree]


class REPPO(AbstractOnTransitions):
    """Relative entropy pathwise policy optimisation, for actions in a Box: on each rollout a categorical critic of observation and action
    learns soft TD(λ) returns, and the actor goes up its slope, held near the policy that acted. It needs neither a replay buffer nor a
    target network. Voelcker et al. 2025, https://arxiv.org/abs/2507.11019.

    Unlike the authors' code, https://github.com/cvoelcker/reppo, it has no auxiliary loss, doesn't standardise observations, takes the KL
    divergence in closed form, not by samples, moves actor and critic at once, and learns from truncated steps too, since it has the
    observations that they led to. Theirs starts environments at random points of an episode; here they begin together, so that a rollout
    much shorter than an episode shows one part of it only.
    """

    HParams = REPPOHParams

    @part(eqx.Module, made_later=True)
    def actor(self):
        return lambda *spaces, key: StochasticActor(*spaces, activation=jax.nn.swish, layer_norm=True, key=key)

    @part(eqx.Module, made_later=True)
    def critic(self):
        """Gives the logits of the value of an action: `critic(obs, action) -> [num_bins]`."""
        options: Any = dict(hidden_sizes=(256, 256), activation=jax.nn.swish, layer_norm=True, out_size=self.hp.num_bins)
        return lambda *spaces, key: ActionValue(*spaces, **options, key=key)

    @part(AbstractCollector)
    def collector(self):
        hp = self.hp
        scaling = RewardScaling(gamma=hp.gamma) if hp.normalize_rewards else None
        return TransitionCollector(hp.num_envs, hp.num_steps, default_stepper(self.env), reward_scaling=scaling)

    @part(PathwiseLoss)
    def loss(self):
        hp, space = self.hp, self.env.action_space(self.env_params)
        histogram = HLGauss(hp.value_low, hp.value_high, hp.num_bins)
        return PathwiseLoss(histogram, hp.target_entropy * math.prod(space.shape) + log_volume(space), hp.kl_bound)

    @part(optax.GradientTransformation)
    def optimizer(self):
        return clipped(self.hp.max_grad_norm, optax.adam(self.hp.learning_rate))

    def init_learner(self, key: Key[Array, ""]) -> REPPOLearner:
        actor_key, critic_key = jax.random.split(key)
        policy = TemperedActor(self.made(self.actor, actor_key), jnp.log(self.hp.temperature), jnp.log(self.hp.kl_coef))
        networks = policy, self.made(self.critic, critic_key)
        opt_states = [strong(self.optimizer.init(eqx.filter(x, trainable(x)))) for x in networks]
        return REPPOLearner(networks, (opt_states[0], opt_states[1]))

    def behaviour(self, learner: REPPOLearner, num_iterations: Int[Array, ""]) -> Sampling:
        return Sampling(learner.networks[0].actor)

    def training_step(
        self, batch_idx: int | Int[Array, ""], ts: TransitionsState, batch: Transitions
    ) -> tuple[TransitionsState, TrainStepMetrics]:
        """Learns from one rollout."""
        hp, t, networks = self.hp, batch.transitions, ts.learner.networks
        rng, target_key, order_key, key = jax.random.split(ts.rng, 4)
        rollout = t.obs, t.action, self.targets(networks, t, target_key), jax.vmap(jax.vmap(networks[0].actor))(t.obs)
        samples = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rollout)
        order = jax.vmap(lambda key: swap_or_not(key, t.reward.size))(jax.random.split(order_key, hp.num_epochs))
        params, static = eqx.partition(networks, trainable(networks))

        def update(learned: Any, indices_and_key: Any) -> Any:
            (params, opt_states), (indices, key) = learned, indices_and_key
            minibatch = jax.tree.map(lambda x: x[indices], samples)
            grads, metrics = jax.grad(lambda params: self.loss(eqx.combine(params, static), *minibatch, key), has_aux=True)(params)
            updates, opt_states = zip(*(self.optimizer.update(*x) for x in zip(grads, opt_states, params)))
            return (optax.apply_updates(params, updates), opt_states), metrics

        keys = jax.random.split(key, hp.num_epochs * hp.num_minibatches)
        (params, opt_states), metrics = jax.lax.scan(update, (params, ts.learner.opt_states), (order.reshape(keys.size, -1), keys))
        learner, metrics = REPPOLearner(eqx.combine(params, static), opt_states), jax.tree.map(jnp.mean, metrics)
        if hp.debug:
            learner = assert_finite(learner, batch=batch, metrics=metrics, learner=learner)
        ts = dataclasses.replace(ts, learner=learner, num_updates=ts.num_updates + keys.size, rng=rng)
        return ts, TrainStepMetrics(means=metrics, episodes=batch.episodes)

    def targets(self, networks: tuple[TemperedActor, PyTree], t: Transition, key: Key[Array, ""]) -> Float[Array, "steps envs"]:
        """What the critic should say of each step: its soft TD(λ) return."""
        policy, critic = networks
        action, log_prob = jax.vmap(jax.vmap(policy.actor))(t.next_obs).sample_and_log_prob(key)
        value = self.loss.histogram.to_value(jax.vmap(jax.vmap(critic))(t.next_obs, action))
        entropy = -log_prob - log_volume(self.env.action_space(self.env_params))
        return soft_lambda_returns(t, value, jnp.exp(policy.log_temperature) * entropy, self.hp.gamma, self.hp.td_lambda)
