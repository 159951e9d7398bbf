"""A policy that remembers: a bit is shown once, and has to be named ten steps later. Other memories are `eqxrl.nn.LSTMActorCritic` and
`LRUActorCritic`, or an `eqxrl.nn.ActorCritic` with an `AbstractMemory` of yours.
"""

import jax

import eqxrl


def main(total_timesteps: int = 131_072) -> float:
    env, params = eqxrl.make("MemoryChain-bsuite")
    hp = eqxrl.PPOHParams(
        num_envs=32, num_steps=64, num_minibatches=8, num_epochs=4, learning_rate=1e-3, max_grad_norm=0.5,
        total_timesteps=total_timesteps, eval_freq=total_timesteps // 4,
    )
    ppo = eqxrl.PPO.create(env=env, env_params=params.replace(memory_length=10), hp=hp, actor_critic=eqxrl.nn.GRUActorCritic)
    ts, metrics = ppo.train(0)
    print("mean return of each evaluation, at most 1:", metrics.cumulative_reward.mean(-1).round(2))

    act = ppo.make_actor(ts, deterministic=True)
    obs, _ = env.reset(jax.random.key(1), params)
    action, carry = act(obs, jax.random.key(2), act.initial_carry())  # `carry` goes into the next call
    print("the first action is", action, "and what is remembered has", sum(x.size for x in jax.tree.leaves(carry)), "numbers")
    return float(metrics.cumulative_reward[-1].mean())


if __name__ == "__main__":
    main()
