"""Watch a run from the host: a callback of your own, a built-in one, a logger, checkpoints, and going on after a stop."""

import tempfile
from pathlib import Path

from eqxrl import PPO, Callback, PPOHParams, Trainer
from eqxrl.training import EarlyStopping, JSONLLogger


class Diary(Callback):
    """Keeps the mean return of every evaluation; `state` goes into the checkpoints."""

    def __init__(self):
        self.state = []

    def on_validation_epoch_end(self, trainer, algo, state, metrics):
        self.state.append(float(metrics.cumulative_reward.mean()))
        print(f"{trainer.env_steps:6} steps: {self.state[-1]:.1f}")


def main(total_timesteps: int = 100_000, folder: str | None = None) -> list[float]:
    folder = Path(folder or tempfile.mkdtemp())
    hp = PPOHParams(num_envs=16, num_steps=32, num_minibatches=4, learning_rate=1e-3, total_timesteps=total_timesteps)
    ppo = PPO.create("CartPole-v1", hp=hp)

    diary = Diary()
    callbacks = [diary, EarlyStopping(threshold=450.0)]
    trainer = Trainer(callbacks, loggers=[JSONLLogger(folder / "metrics.jsonl")], folder=folder / "checkpoints")
    trainer.fit(ppo, 0)  # after a kill, fit(ppo, resume=True) goes on; with a larger total_timesteps also after the end
    print("stopped early:", trainer.stop_reason)
    return diary.state


if __name__ == "__main__":
    main()
