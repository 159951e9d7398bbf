import inspect
import pathlib

import gymnax
import pytest

from eqxrl.envs import make


def test_known_names():
    env, params = make("CartPole-v1")
    assert env.name == "CartPole-v1" and params == env.default_params
    assert make("Catch-bsuite", rows=7)[0].rows == 7


@pytest.mark.parametrize(
    "wrong, near", [("CartPole", "CartPole-v1"), ("pendulum-v0", "Pendulum-v1"), ("breakout", "Breakout-MinAtar")]
)
def test_unknown_names_are_answered_with_the_nearest(wrong, near):
    with pytest.raises(ValueError, match=f"no environment {wrong!r}; did you mean .*{near}"):
        make(wrong)


def test_names_that_are_near_to_nothing_get_the_list():
    with pytest.raises(ValueError, match="there are CartPole-v1, .*FrozenLake-misc"):
        make("qqqqqq")


@pytest.mark.parametrize("wrong", [None, 3, gymnax.make])
def test_names_are_strings(wrong):
    with pytest.raises(TypeError, match="name of an environment"):
        inspect.unwrap(make)(wrong)  # the check of types, in the tests, would speak first


def test_mnist_without_a_network(monkeypatch, tmp_path):
    import urllib.error

    from gymnax.utils import load_mnist

    def offline(url, path):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(load_mnist, "urlretrieve", offline)
    monkeypatch.setattr(load_mnist.load_mnist, "__defaults__", (str(tmp_path),))
    with pytest.raises(ConnectionError, match=f"no route to host.*t10k-labels-idx1-ubyte.gz.*into {tmp_path}") as error:
        make("MNISTBandit-bsuite")
    assert not isinstance(error.value, urllib.error.URLError)


@pytest.mark.parametrize("content", [b"half a file", b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03half"])
def test_mnist_with_a_broken_download(monkeypatch, tmp_path, content):
    from gymnax.utils import load_mnist

    monkeypatch.setattr(load_mnist, "urlretrieve", lambda url, path: pathlib.Path(path).write_bytes(content))
    monkeypatch.setattr(load_mnist.load_mnist, "__defaults__", (str(tmp_path),))
    with pytest.raises(ConnectionError, match="in place of what a broken download left there"):
        make("MNISTBandit-bsuite")


def test_environments_of_ones_own(monkeypatch):
    monkeypatch.setattr(gymnax.registration, "_registry", dict(gymnax.registration._registry))
    monkeypatch.setattr(gymnax.registration, "registered_envs", [])
    cartpole = type(gymnax.make("CartPole-v1")[0])
    gymnax.register("Mine-v0", cartpole)
    monkeypatch.setattr(gymnax, "registered_envs", gymnax.registration.registered_envs)
    assert type(make("Mine-v0")[0]) is cartpole
