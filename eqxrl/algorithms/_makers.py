"""What makes networks and parts, as plain values."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax

from eqxrl import nn
from eqxrl.buffers import PrioritizedBuffer, UniformBuffer
from eqxrl.evaluators import EpisodeEvaluator
from eqxrl.losses import HistogramMinimum

_ACTIVATIONS = {"tanh": jax.nn.tanh, "relu": jax.nn.relu, "swish": jax.nn.swish}
_KINDS: dict[str, Any] = {
    "mlp": nn.MLPActorCritic, "cnn": nn.CNNActorCritic, "gru": nn.GRUActorCritic, "lstm": nn.LSTMActorCritic, "lru": nn.LRUActorCritic,
    "q": nn.QNetwork, "actor": nn.StochasticActor, "deterministic": nn.DeterministicActor,
    "action_value": nn.ActionValue, "q_policy": lambda *spaces, **options: nn.QActorCritic(nn.QNetwork(*spaces, **options)),
    "agents": lambda *spaces, of="mlp", **options: nn.SharedAgents(*spaces, make=_KINDS[of], **options),
}
_PARTS: dict[str, Callable[..., Any]] = {
    "uniform": lambda hp, **options: UniformBuffer(hp.buffer_size, hp.batch_size, **options),
    "prioritized": lambda hp, **options: PrioritizedBuffer(hp.buffer_size, hp.batch_size, **options),
    "mixed_noise": lambda hp, **options: nn.MixedNoise(**options),
    "lasting_noise": lambda hp, **options: nn.OrnsteinUhlenbeckNoise(**options),
    "episodes": lambda hp, **options: EpisodeEvaluator(hp.num_seeds_per_eval, **options),
    "histogram": lambda hp, **options: HistogramMinimum(nn.HLGauss(**options)),
}


@dataclasses.dataclass(frozen=True)
class MakeNetwork:
    """What makes a network, with its options as plain values: it can be compared, so that building the same network twice doesn't compile
    twice, and written to a run's configuration.

    **Raises:** `ValueError` for an unknown kind or activation.
    """

    kind: str
    """mlp, cnn, gru, lstm or lru (see `nn.ActorCritic`), q (`nn.QNetwork`), actor (`nn.StochasticActor`), deterministic
    (`nn.DeterministicActor`), action_value (`nn.ActionValue`), q_policy (an `nn.QNetwork` as `nn.QActorCritic`) or agents
    (`nn.SharedAgents`)."""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Those of that network; `activation` by name: tanh, relu, swish; of agents, `of` is the kind of one agent's, mlp by default."""

    def __post_init__(self):
        activation, of = self.options.get("activation", "relu"), self.options.get("of", "mlp")
        for what, name, known in (("kind", self.kind, _KINDS), ("activation", activation, _ACTIVATIONS), ("kind of agent", of, _KINDS)):
            if name not in known:
                raise ValueError(f"MakeNetwork got the {what} {name!r}; there is {', '.join(known)}")
        object.__setattr__(self, "options", {name: _hashable(x) for name, x in self.options.items()})

    def __hash__(self) -> int:
        return hash((self.kind, tuple(sorted(self.options.items()))))

    def __call__(self, observation_space: Any, action_space: Any, *, key: Any) -> Any:
        options = {name: _ACTIVATIONS[x] if name == "activation" else x for name, x in self.options.items()}
        return _KINDS[self.kind](observation_space, action_space, **options, key=key)


@dataclasses.dataclass(frozen=True)
class MakePart:
    """What makes a part of the hyperparameters, with its options as plain values; see `MakeNetwork`. It makes no array before it is called,
    and so doesn't start JAX.

    **Raises:** `ValueError` for an unknown kind.
    """

    kind: str
    """uniform (`UniformBuffer`), prioritized (`PrioritizedBuffer`), mixed_noise (`nn.MixedNoise`),
    lasting_noise (`nn.OrnsteinUhlenbeckNoise`), episodes (`EpisodeEvaluator`) or histogram (`HistogramMinimum`)."""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Those of that part; of histogram, those of its `nn.HLGauss`."""

    def __post_init__(self):
        if self.kind not in _PARTS:
            raise ValueError(f"MakePart got the kind {self.kind!r}; there is {', '.join(_PARTS)}")
        object.__setattr__(self, "options", {name: _hashable(x) for name, x in self.options.items()})

    def __hash__(self) -> int:
        return hash((self.kind, tuple(sorted(self.options.items()))))

    def __call__(self, hp: Any) -> Any:
        return _PARTS[self.kind](hp, **self.options)


def _hashable(x: Any) -> Any:
    """Lists, which JSON has in the place of tuples, as tuples."""
    return tuple(map(_hashable, x)) if isinstance(x, list) else x
