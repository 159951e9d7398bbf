import functools
import importlib.util
from pathlib import Path
from typing import Any

from eqxrl._extras import how_to_install
from eqxrl._user_code import from_file, is_user_code
from eqxrl.envs._contract import as_environment
from eqxrl.envs._wrappers import Options, SelectObservation, WithOptions
from eqxrl.envs.suites import (
    _brax,
    _craftax,
    _envpool,
    _gymnasium,
    _gymnax,
    _jaxmarl,
    _jumanji,
    _navix,
    _pgx,
    _playground,
    _popgym,
    _xminigrid,
)

NO_VELOCITY = {
    "CartPoleNoVel-v1": ("CartPole-v1", (0, 2)),
    "PendulumNoVel-v1": ("Pendulum-v1", (0, 1)),
    "MountainCarContinuousNoVel-v0": ("MountainCarContinuous-v0", (0,)),
}
"""gymnax's, and the components of their observations that are no velocities."""
SUITES: dict[str, Any] = {
    "brax": _brax, "craftax": _craftax, "envpool": _envpool, "gymnasium": _gymnasium, "jaxmarl": _jaxmarl, "jumanji": _jumanji,
    "navix": _navix, "pgx": _pgx, "playground": _playground, "popgym": _popgym, "xminigrid": _xminigrid,
}
"""Environments called `suite/name`. Each has `PACKAGE`, what is imported (`None` for our own), `names()`, and `make(env_id, env_kwargs)`,
which gives one and its parameters. A package's extra is called as the suite."""


def make(env_id: str, **env_kwargs: Any) -> tuple[Any, Any]:
    """The environment called `env_id`, made with `env_kwargs`, and its default parameters (`None` where it has none). The same
    id and arguments give the same object each time, so that nothing is compiled twice for it.

    **Arguments:**

    - `env_id`: the name of an environment of gymnax (or one added with `gymnax.register`), such as `"CartPole-v1"`;
      `suite/name`, such as `"popgym/RepeatPreviousEasy"` (POPGym's tasks of memory) or `"brax/ant"` (brax:
      `pip install 'eqxrl[brax]'`), which `env_ids(suite)` lists; or `"path/to/file.py:Name"` for a class, or a function that returns an
      environment, in a file of your own;
    - `env_kwargs`: options of the suite, such as `max_episode_steps` of gymnasium and envpool, or of an environment, as `frameskip` of
      `"gymnasium/ALE/Pong-v5"` and `episodic_life` and `frame_skip` of `"envpool/Pong-v5"`.

    **Raises:** `TypeError` for an id that is no string, `ValueError` for an unknown one, with the names that come nearest;
    what `from_file` raises for a file; `ConnectionError` when the data of MNISTBandit can't be had.
    """
    if not isinstance(env_id, str):
        raise TypeError(f"env_id must be the name of an environment, such as 'CartPole-v1', got {env_id!r}")
    if is_user_code(env_id):
        file, _, name = env_id.rpartition(":")
        env_id = f"{Path(file).expanduser().resolve()}:{name}"  # the same file, whatever the folder
    env_kwargs = dict(sorted(env_kwargs.items()))
    try:
        hash(tuple(env_kwargs.values()))
    except TypeError:
        return _make.__wrapped__(env_id, **env_kwargs)
    return _make(env_id, **env_kwargs)


def known_suites() -> dict[str, str]:
    """Each suite, and the command that installs it where it isn't there, else "". Imports none of them."""
    packages = {"gymnax": None} | {name: suite.PACKAGE for name, suite in SUITES.items()}
    there = {name: package is None or importlib.util.find_spec(package) is not None for name, package in packages.items()}
    return {name: "" if there[name] else how_to_install(name) for name in packages}


def env_ids(suite: str = "gymnax") -> list[str]:
    """What `make` takes of a suite.

    **Raises:** `ValueError` for an unknown suite, `ImportError` for one that isn't installed, with the command that installs it.
    """
    if suite == "gymnax":
        return _gymnax.names() + list(NO_VELOCITY)
    if suite not in SUITES:
        raise ValueError(f"there is no suite {suite!r}; the suites are gymnax, {', '.join(SUITES)}")
    return [f"{suite}/{name}" for name in SUITES[suite].names()]


@functools.lru_cache(maxsize=None, typed=True)
def _make(env_id: str, **env_kwargs: Any) -> tuple[Any, Any]:
    env, params = _made(env_id, env_kwargs)
    return WithOptions(env, env_id, Options(env_kwargs)) if env_kwargs else env, params


def _made(env_id: str, env_kwargs: dict[str, Any]) -> tuple[Any, Any]:
    if is_user_code(env_id):
        factory = from_file(env_id)
        if not callable(factory):
            raise TypeError(f"{env_id} is a {type(factory).__name__}; name a class, or a function that returns an environment")
        env = factory(**env_kwargs)
        return as_environment(env), getattr(env, "default_params", None)
    if "/" in env_id or env_id.endswith(".py"):
        suite = env_id.partition("/")[0]
        if suite in SUITES and not env_id.endswith(".py"):
            return SUITES[suite].make(env_id, env_kwargs)
        raise ValueError(
            f"there is no environment {env_id!r}: names with a slash are 'suite/name', and the suites are {', '.join(SUITES)}; "
            "an environment of your own is 'path/to/file.py:Name', with the name of its class"
        )
    if env_id in NO_VELOCITY:
        inner, components = NO_VELOCITY[env_id]
        env, params = _gymnax.make(inner, env_kwargs)
        return SelectObservation(env, components, env_id), params
    return _gymnax.make(env_id, env_kwargs)
