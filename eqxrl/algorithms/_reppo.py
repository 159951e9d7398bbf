import dataclasses
import math
from typing import Any, Generic

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jaxtyping import Array, Float, Int, Key, PyTree

from eqxrl._structs import TrainStepMetrics, TrajectoryCollectionState, Transition, Transitions
from eqxrl._typing import KeyLike, Scalar, Schedule, TEnvState, as_key, as_schedule, field, one_more, strong, typed, validate, within
from eqxrl.advantages import soft_lambda_returns
from eqxrl.algorithms._base import AbstractAlgorithm
from eqxrl.algorithms._bitwise import tied_to
from eqxrl.algorithms._finite import assert_finite
from eqxrl.algorithms._hparams import AbstractHParams
from eqxrl.algorithms._parts import part
from eqxrl.collectors import AbstractCollector, RewardScaling, TransitionCollector
from eqxrl.learners import clipped, swap_or_not
from eqxrl.losses import PathwiseLoss, TemperedActor
from eqxrl.nn import ActionValue, HLGauss, Sampling, StochasticActor
from eqxrl.spaces import log_volume


class REPPOHParams(AbstractHParams):
    """How a REPPO is configured; see `PPOHParams`. The defaults are those of the authors' code for dm_control, but
    for the bounds of values, which there belong to an environment, as the scale of its rewards does."""

    num_epochs: int = field(default=8)
    """Passes over each rollout."""
    num_envs: int = field(default=1024)
    """Environments that are stepped at once."""
    num_steps: int = field(default=32)
    """Steps of each environment in a rollout."""
    num_minibatches: int = field(default=16)
    """Parts that a rollout is cut into for each pass."""
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
        super().__check_init__()  # the sizes themselves, before they are computed with
        low, high = self.value_low, self.value_high
        if not isinstance(low, Tracer) and not isinstance(high, Tracer) and not low < high:
            raise ValueError(f"value_low must be below value_high, got {float(low):g} and {float(high):g}")
        samples = self.num_envs * self.num_steps
        if rest := samples % self.num_minibatches:
            by = f"divisible by num_minibatches ({self.num_minibatches}); remainder {rest}"
            raise ValueError(f"num_envs * num_steps ({samples}) must be {by}")

    @property
    def num_updates(self) -> int:
        """Gradient updates in a run of `total_timesteps`: the horizon for a schedule that spans it."""
        return -(-self.total_timesteps // (self.num_envs * self.num_steps)) * self.num_epochs * self.num_minibatches


@typed
class REPPOState(eqx.Module, Generic[TEnvState]):
    """Everything that a continuation needs, and nothing else does."""

    learned: tuple[TemperedActor, PyTree]
    """The actor with its multipliers, and the critic."""
    opt_states: tuple[PyTree, PyTree]
    """Those of these two."""
    num_updates: Int[Array, ""]
    """Gradient updates so far."""
    rng: Key[Array, ""]
    data_collection_state: TrajectoryCollectionState[TEnvState]

    @property
    def num_iterations(self) -> Int[Array, "*seeds"]:
        return self.data_collection_state.global_step


class REPPO(AbstractAlgorithm[REPPOState, Transitions]):
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
        return TransitionCollector(num_envs=hp.num_envs, num_steps=hp.num_steps, reward_scaling=scaling)

    @part(PathwiseLoss)
    def loss(self):
        hp, space = self.hp, self.env.action_space(self.env_params)
        histogram = HLGauss(hp.value_low, hp.value_high, hp.num_bins)
        return PathwiseLoss(histogram, hp.target_entropy * math.prod(space.shape) + log_volume(space), hp.kl_bound)

    @part(optax.GradientTransformation)
    def optimizer(self):
        return clipped(self.hp.max_grad_norm, optax.adam(self.hp.learning_rate))

    def init_train_state(self, rng: KeyLike) -> REPPOState:
        """The state before training; `rng` is a key or a seed. The networks' keys and the environments' are separate."""
        actor_key, critic_key, env_key, key = jax.random.split(as_key(rng), 4)
        actor, critic = self.made(self.actor, actor_key), self.made(self.critic, critic_key)
        learned = TemperedActor(actor, jnp.log(self.hp.temperature), jnp.log(self.hp.kl_coef)), critic
        policy_opt, critic_opt = (strong(self.optimizer.init(eqx.filter(x, eqx.is_inexact_array))) for x in learned)
        state = self.collector.init(self.env, self.env_params, Sampling(actor), env_key)
        return tied_to(key, REPPOState(learned, (policy_opt, critic_opt), jnp.zeros((), jnp.int32), key, state))

    def get_batch(self, ts: REPPOState, batch_idx: int | Int[Array, ""]) -> tuple[REPPOState, Transitions]:
        """One rollout `[steps envs]` of the policy as it stands."""
        collector, hp = self.collector, self.hp
        state, batch = collector(self.env, self.env_params, self.policy(ts), ts.data_collection_state)
        validate(collector, state, batch="envs", kind=TrajectoryCollectionState, envs=hp.num_envs)
        validate(collector, batch, batch="steps envs", kind=Transitions, steps=hp.num_steps, envs=hp.num_envs)
        return dataclasses.replace(ts, data_collection_state=state), batch

    def training_step(
        self, batch_idx: int | Int[Array, ""], ts: REPPOState, batch: Transitions
    ) -> tuple[REPPOState, TrainStepMetrics]:
        """Learns from one rollout."""
        hp, t, (policy, _) = self.hp, batch.transitions, ts.learned
        rng, target_key, order_key, key = jax.random.split(ts.rng, 4)
        rollout = t.obs, t.action, self.targets(ts, t, target_key), jax.vmap(jax.vmap(policy.actor))(t.obs)
        samples = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rollout)
        order = jax.vmap(lambda key: swap_or_not(key, t.reward.size))(jax.random.split(order_key, hp.num_epochs))
        params, static = eqx.partition(ts.learned, eqx.is_inexact_array)

        def update(state: Any, indices_and_key: Any) -> Any:
            (params, opt_states, n), (indices, key) = state, indices_and_key
            minibatch = jax.tree.map(lambda x: x[indices], samples)
            grads, metrics = jax.grad(lambda params: self.loss(eqx.combine(params, static), *minibatch, key), has_aux=True)(params)
            stepped = [self.optimizer.update(*x) for x in zip(grads, opt_states, params)]
            updates, opt_states = zip(*stepped)
            return (optax.apply_updates(params, updates), opt_states, one_more(n)), metrics

        keys = jax.random.split(key, hp.num_epochs * hp.num_minibatches)
        state, metrics = jax.lax.scan(update, (params, ts.opt_states, ts.num_updates), (order.reshape(keys.size, -1), keys))
        learned, metrics = eqx.combine(state[0], static), jax.tree.map(jnp.mean, metrics)
        if hp.debug:
            learned = assert_finite(learned, batch=batch, metrics=metrics, learned=learned)
        ts = dataclasses.replace(ts, learned=learned, opt_states=state[1], num_updates=state[2], rng=rng)
        return ts, TrainStepMetrics(means=metrics, episodes=batch.episodes)

    def targets(self, ts: REPPOState, t: Transition, key: Key[Array, ""]) -> Float[Array, "steps envs"]:
        """What the critic should say of each step: its soft TD(λ) return."""
        policy, critic = ts.learned
        action, log_prob = jax.vmap(jax.vmap(policy.actor))(t.next_obs).sample_and_log_prob(key)
        value = self.loss.histogram.to_value(jax.vmap(jax.vmap(critic))(t.next_obs, action))
        entropy = -log_prob - log_volume(self.env.action_space(self.env_params))
        return soft_lambda_returns(t, value, jnp.exp(policy.log_temperature) * entropy, self.hp.gamma, self.hp.td_lambda)

    def policy(self, ts: REPPOState) -> Sampling:
        """Draws from the actor's distribution, or takes its mode."""
        return Sampling(ts.learned[0].actor)

    @property
    def iteration_size(self) -> int:
        """Env steps of one rollout, over all environments."""
        return self.collector.num_envs * self.collector.num_steps
