"""gymnasium: environments that aren't written in JAX, stepped on the host one after the other."""

from functools import partial
from typing import Any

from eqxrl._extras import extra
from eqxrl.envs.suites._host import Host, OnHost
from eqxrl.envs.suites._names import unknown

PACKAGE = "gymnasium"
NOT_RESTORED = "gymnasium's environments can't be saved, so the episodes that were going on are cut off, and new ones begin"


def names() -> list[str]:
    """Without those that are written in JAX a second time."""
    registry = extra("gymnasium", "gymnasium", "the suite gymnasium").registry
    return [name for name in registry if not name.startswith(("phys2d/", "tabular/"))]


def make(env_id: str, env_kwargs: dict[str, Any]) -> tuple[OnHost, None]:
    """With the arguments of `gymnasium.make`, such as `max_episode_steps`, or of the environment, such as `frameskip` of `ALE/Pong-v5`."""
    gymnasium: Any = extra("gymnasium", "gymnasium", env_id)
    name = env_id.partition("/")[2]
    if name.startswith("ALE/"):
        extra("ale_py", "atari", env_id)  # importing it registers its games
    if name not in gymnasium.registry and ":" not in name:  # a module to import first, which registers it
        raise unknown("gymnasium", env_id, names())
    try:
        host = Host(partial(gymnasium.make, name, **{"disable_env_checker": True} | env_kwargs))
    except gymnasium.error.DependencyNotInstalled as error:
        raise ImportError(f"{env_id}: {error}") from error
    limit = host.spare[0].spec.max_episode_steps
    return OnHost(host, env_id, limit, NOT_RESTORED), None
