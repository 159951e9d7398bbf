"""An algorithm of your own, in a file of yours: REINFORCE with a critic as its baseline. The command takes it, too:

    eqxrl train CartPole-v1 --algo examples/custom_algorithm.py:Reinforce --hp.learning-rate 1e-3
"""

import jax
import jax.numpy as jnp
import optax

import eqxrl
from eqxrl import field, part


class ReinforceHParams(eqxrl.AbstractHParams):
    num_envs: int = field(default=16)
    num_steps: int = field(default=64)
    total_timesteps: int = field(default=204_800)
    normalize_observations: bool = field(default=False)
    learning_rate: eqxrl.Scalar = field(default=3e-3)
    """Adam's step size."""
    gamma: eqxrl.Scalar = field(default=0.99, metadata=eqxrl.within(0.0, 1.0))
    """The discount of a reward one step later."""

    @property
    def num_updates(self) -> int:
        return -(-self.total_timesteps // (self.num_envs * self.num_steps))


class ReinforceLoss(eqxrl.AbstractLoss):
    def __call__(self, agent, minibatch):
        distribution, value = eqxrl.nn.evaluate(agent, minibatch)
        policy_loss = -jnp.mean(distribution.log_prob(minibatch.trajectories.action) * minibatch.advantages)
        value_loss = jnp.mean((value - minibatch.targets) ** 2)
        return policy_loss + value_loss, {"policy_loss": policy_loss, "value_loss": value_loss}

    def at_step(self, num_updates):
        return self


class Reinforce(eqxrl.AbstractOnPolicy):
    HParams = ReinforceHParams

    @part(eqxrl.AbstractCollector)
    def collector(self):
        return eqxrl.RolloutCollector(num_envs=self.hp.num_envs, num_steps=self.hp.num_steps)

    @part(eqxrl.AbstractAdvantage)
    def advantage(self):
        return eqxrl.GAE(gamma=self.hp.gamma, gae_lambda=1.0)

    @part(eqxrl.AbstractLearner)
    def learner(self):
        return eqxrl.MinibatchLearner(ReinforceLoss(), optax.adam(self.hp.learning_rate), num_epochs=1, num_minibatches=1)


def main(total_timesteps: int = 204_800) -> float:
    reinforce = Reinforce.create("CartPole-v1", hp=ReinforceHParams(total_timesteps=total_timesteps))
    _, metrics = reinforce.train(jax.random.key(0))
    print("mean return of each evaluation:", metrics.cumulative_reward.mean(-1).round())
    return float(metrics.cumulative_reward[-1].mean())
