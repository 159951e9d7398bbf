"""Environments by name."""

import difflib
import inspect
from typing import Any


def make(env_id: str, **env_kwargs: Any) -> tuple[Any, Any]:
    """The environment that gymnax calls `env_id` (one of its own, or one added with `gymnax.register`), made with `env_kwargs`,
    and its default parameters.

    **Raises:** `TypeError` for an id that is no string, `ValueError` for an unknown one, with the names that come nearest,
    and `ConnectionError` when the data of MNISTBandit cannot be had.
    """
    if not isinstance(env_id, str):
        raise TypeError(f"env_id must be the name of an environment, such as 'CartPole-v1', got {env_id!r}")
    import gymnax  # takes seconds

    if env_id not in gymnax.registered_envs:
        by_lower = {name.lower(): name for name in gymnax.registered_envs}
        near = [by_lower[name] for name in difflib.get_close_matches(env_id.lower(), by_lower, n=3, cutoff=0.5)]
        hint = f"did you mean {', '.join(near)}?" if near else f"there are {', '.join(gymnax.registered_envs)}"
        raise ValueError(f"gymnax has no environment {env_id!r}; {hint}")
    if env_id == "MNISTBandit-bsuite":
        return _make_with_mnist(env_id, env_kwargs)
    return gymnax.make(env_id, **env_kwargs)


def _make_with_mnist(env_id: str, env_kwargs: dict[str, Any]) -> tuple[Any, Any]:
    import gymnax
    from gymnax.utils.load_mnist import load_mnist

    try:
        return gymnax.make(env_id, **env_kwargs)
    except (OSError, EOFError) as error:  # URLError is an OSError; a file cut short is either
        folder = inspect.signature(load_mnist).parameters["directory"].default
        raise ConnectionError(
            f"{env_id} needs the MNIST images, and gymnax could not download or read them ({type(error).__name__}: {error}). "
            "Get train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz and "
            "t10k-labels-idx1-ubyte.gz from https://storage.googleapis.com/cvdf-datasets/mnist/ and put them into "
            f"{folder}, in place of what a broken download left there"
        ) from error
