"""GIFs and MP4s of episodes: as many frames as the episode has states, and the right states on them."""

import inspect
import sys

import equinox as eqx
import gymnasium
import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pygame
import pytest
from gymnax.environments.classic_control.cartpole import CartPole
from gymnax.visualize import Visualizer
from gymnax.wrappers.purerl import LogWrapper
from PIL import Image, ImageSequence

import eqxrl.viz._episode as episode
from eqxrl.envs import TimeLimit, TimeLimitIsTerminal
from eqxrl.spaces import Box, Discrete
from eqxrl.viz import render_episode
from eqxrl.viz._draw import BLUE, GREEN, GREY, ORANGE, RENDERERS

TITLE_HEIGHT = 36


def frames_of(path):
    with Image.open(path) as image:
        frames = ImageSequence.all_frames(image)
    return np.stack([np.asarray(frame.convert("RGB"), int) for frame in frames])


def cells_of(frame, rows, columns):
    """The colour at the centre of each cell of a board."""
    board = frame[TITLE_HEIGHT:]
    side = board.shape[0] // rows
    left = (board.shape[1] - columns * side) // 2
    return board[side // 2 :: side, left + side // 2 :: side][:rows, :columns]


def is_colour(pixels, colour):
    return np.abs(pixels - np.array(colour)).max(-1) < 20


def right(obs, rng):
    return jnp.array(1)


class Upright(CartPole):
    """Always starts at rest, upright."""

    def reset_env(self, key, params):
        obs, state = super().reset_env(key, params)
        zero = jnp.zeros_like(state.x)
        return jnp.zeros_like(obs), state.replace(x=zero, x_dot=zero, theta=zero, theta_dot=zero)


class GivesUp(Upright):
    """Truncates before its time limit."""

    def is_truncated(self, state, params):
        return state.time >= 2


@pytest.fixture
def titles(monkeypatch):
    """The titles drawn, in order."""
    drawn = []
    with_title = episode.with_title

    def spy(picture, left, right):
        drawn.append((left, right))
        return with_title(picture, left, right)

    monkeypatch.setattr(episode, "with_title", spy)
    return drawn


def test_every_frame_is_what_gymnasium_draws_until_the_pole_falls(tmp_path, key, titles):
    gym_env = gymnasium.make("CartPole-v1", render_mode="rgb_array").unwrapped
    gym_env.reset()
    gym_env.state = np.zeros(4)
    gym_env.screen = pygame.Surface((600, 400))  # without it pygame would look for a sound card
    expected, terminated = [gym_env.render()], False
    while not terminated:
        terminated = gym_env.step(1)[2]
        expected.append(gym_env.render())

    env = Upright()
    path = render_episode(env, env.default_params, right, tmp_path / "new" / "episode.gif", key)
    assert path == tmp_path / "new" / "episode.gif"
    assert [file.name for file in path.parent.iterdir()] == ["episode.gif"]
    frames = frames_of(path)
    assert len(frames) == len(expected)
    for frame, picture in zip(frames, expected, strict=True):
        off = np.abs(frame[TITLE_HEIGHT:] - picture).max(-1)
        assert (off > 16).mean() < 1e-3  # colours are quantised; float32 may move an edge by a pixel
    length = len(expected) - 1
    assert titles == [("CartPole-v1", f"step {t}   return {t:.2f}") for t in range(length + 1)]
    with Image.open(path) as image:
        durations = [frame.info["duration"] for frame in ImageSequence.Iterator(image)]
    assert durations == [20] * length + [1500]


ONE_PER_FAMILY = ("Pendulum-v1", "Catch-bsuite", "Breakout-MinAtar", "Pong-misc", "PointRobot-misc", "MetaMaze-misc")


@pytest.mark.parametrize(
    "name", [name if name in ONE_PER_FAMILY else pytest.param(name, marks=pytest.mark.slow) for name in RENDERERS]
)
def test_every_environment_that_gymnax_draws(name, tmp_path, key):
    env, params = gymnax.make(name)

    def act(obs, rng):
        return env.action_space(params).sample(rng)

    frames = frames_of(render_episode(env, params, act, tmp_path / "x.gif", key, max_steps=4))
    assert len(frames) == 5
    pictures = frames[:, TITLE_HEIGHT:]
    assert pictures[0].std() > 5  # something is on it
    assert (pictures[1:] != pictures[0]).any()  # and it moves


def test_the_list_is_the_one_of_gymnax():
    source = inspect.getsource(Visualizer.init)
    assert {name for name in gymnax.registered_envs if f'"{name}"' in source} == set(RENDERERS)


def test_catch_ends_where_the_ball_lands(tmp_path, key, titles):
    env, params = gymnax.make("Catch-bsuite")
    _, state = env.reset_env(key, params)
    frames = frames_of(render_episode(env, params, lambda obs, rng: jnp.array(0), tmp_path / "x.gif", key))
    boards = [cells_of(frame, env.rows, env.columns) for frame in frames]
    assert len(boards) == env.rows  # the ball falls a row a step
    for t, board in enumerate(boards):
        ball, paddle = is_colour(board, ORANGE), is_colour(board, BLUE)
        assert ball.sum() == 1 and ball[t].any()
        if not ball[-1, max(2 - t, 0)]:  # the disc hides the middle of the square
            assert paddle.sum() == 1 and paddle[-1, max(2 - t, 0)]
    caught = is_colour(boards[-1], ORANGE)[-1, 0]
    assert titles[-1] == ("Catch-bsuite", f"step 9   return {1 if caught else -1:.2f}")


def test_four_rooms(tmp_path, key):
    env, params = gymnax.make("FourRooms-misc")
    params = params.replace(fail_prob=0.0)
    frames = frames_of(
        render_episode(env, params, lambda obs, rng: jnp.array(1), tmp_path / "x.gif", key, max_steps=2)
    )  # two to the east of (4, 1)
    for t, frame in enumerate(frames):
        board = cells_of(frame, 13, 13)
        np.testing.assert_array_equal(is_colour(board, GREY), env.occupied_map.astype(bool))
        assert is_colour(board, ORANGE).sum() == 1 and is_colour(board, ORANGE)[4, 1 + t]
        assert is_colour(board, GREEN).sum() == 1 and is_colour(board, GREEN)[8, 9]


def test_minatar_paints_every_object(tmp_path, key):
    env, params = gymnax.make("Breakout-MinAtar")
    path = render_episode(env, params, lambda obs, rng: jnp.array(0), tmp_path / "x.gif", key, max_steps=1)
    board = cells_of(frames_of(path)[0], 10, 10)
    lit = board.sum(-1) > 60
    assert lit[1:4].all() and lit[9, 4]  # three rows of bricks, and the paddle
    assert lit.sum() <= 30 + 1 + 1  # and the ball, which may start on a brick
    assert np.abs(board[1] - board[1, 0]).max() < 20 < np.abs(board[1, 0] - board[9, 4]).max()


def test_truncation_ends_it_too(tmp_path, key):
    env = Upright()
    params = env.default_params.replace(max_steps_in_episode=3)
    assert len(frames_of(render_episode(env, params, right, tmp_path / "x.gif", key))) == 4
    assert len(frames_of(render_episode(GivesUp(), params, right, tmp_path / "x.gif", key))) == 3
    wrapped = TimeLimit(env, max_steps=2)  # its state is not the inner one
    assert len(frames_of(render_episode(wrapped, params, right, tmp_path / "x.gif", key))) == 3
    assert len(frames_of(render_episode(wrapped, params, right, tmp_path / "x.gif", key, max_steps=9))) == 3


def test_a_state_after_the_reset_is_never_shown(tmp_path, key):
    env = LogWrapper(Upright())  # only has the whole step, after which the last state is lost
    frames = frames_of(render_episode(env, env.default_params, right, tmp_path / "x.gif", key))
    pictures = frames[:, TITLE_HEIGHT:]
    np.testing.assert_array_equal(pictures[-1], pictures[-2])
    assert (pictures[-1] != pictures[0]).any()


class Lamps(eqx.Module):
    """Four lamps, of which step by step one more is lit, with a picture of its own."""

    max_steps: int = eqx.field(static=True, default=4)

    def reset(self, key, params):
        return jnp.zeros((1,)), {"lit": jnp.array(0), "key": key}

    def step(self, key, state, action, params):
        lit = state["lit"] + 1
        return jnp.zeros((1,)), {"lit": lit, "key": key}, 0.5, jnp.array(False), lit >= self.max_steps, {}

    def observation_space(self, params):
        return Box(-1, 1, (1,))

    def action_space(self, params):
        return Discrete(2)

    def picture(self, state, params):
        assert params is None and int(state["lit"]) >= 0  # its values are there to be looked at
        lit = (jnp.arange(4) < state["lit"])[None, :, None]
        return jnp.where(lit, jnp.array(GREEN), jnp.array(GREY)).astype(jnp.uint8)


@pytest.mark.parametrize(
    "wrap",
    [lambda env: env, lambda env: TimeLimit(env, 9), lambda env: TimeLimitIsTerminal(TimeLimit(TimeLimit(env, 9), 8))],
    ids=["bare", "time limit", "three wrappers"],
)
def test_a_picture_of_the_environments_own(wrap, tmp_path, key, titles):
    frames = frames_of(render_episode(wrap(Lamps()), None, right, tmp_path / "x.gif", key))
    assert frames.shape[1:] == (120 + TITLE_HEIGHT, 480, 3)  # scaled up
    lit = [is_colour(cells_of(frame, 1, 4), GREEN)[0].tolist() for frame in frames]
    assert lit == [[lamp < t for lamp in range(4)] for t in range(5)]
    assert titles[-1] == ("Lamps", "step 4   return 2.00")


class Large(Lamps):
    def picture(self, state, params):
        return np.full((300, 500, 3), 40 * state["lit"], np.uint8)


def test_a_large_picture_is_shown_as_it_is(tmp_path, key):
    frames = frames_of(render_episode(Large(), None, right, tmp_path / "x.gif", key))
    assert frames.shape == (5, 300 + TITLE_HEIGHT, 500, 3)
    np.testing.assert_allclose(frames[:, -1, -1, 0], 40 * np.arange(5), atol=15)


def test_a_picture_is_at_most_so_large(tmp_path, key):
    class Wide(Large):
        def picture(self, state, params):
            return np.zeros((600, 2401, 3), np.uint8)

    assert frames_of(render_episode(Wide(), None, right, tmp_path / "x.gif", key)).shape == (5, 240 + TITLE_HEIGHT, 960, 3)


def test_an_mp4_shows_what_the_gif_does(tmp_path, key):
    """Of Large's picture, as wide as an odd number, of which the last stays for a second and a half."""
    import av

    class Odd(Large):
        def picture(self, state, params):
            return super().picture(state, params)[:, :431]

    gif, mp4 = (render_episode(Odd(), None, right, tmp_path / name, key, fps=30) for name in ("x.gif", "x.mp4"))
    with av.open(str(mp4)) as file:
        rate = file.streams.video[0].average_rate
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]).astype(int)
    expected = frames_of(gif)
    assert expected.shape[1:3] == (336, 431) and frames.shape[1:] == (336, 432, 3)
    assert rate == 30 and len(frames) == 4 + 45
    for shown, still in zip(frames[[0, 1, 2, 3, 30]], expected):
        assert np.abs(shown[:, :431] - still).mean() < 6


def test_av_missing(tmp_path, key, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r"writing an MP4 needs av: pip install 'eqxrl\[mp4\]'"):
        render_episode(Large(), None, right, tmp_path / "x.mp4", key)


@pytest.mark.parametrize("picture", [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8)], ids=str)
def test_a_picture_that_is_none(picture, tmp_path, key):
    env = type("Broken", (Lamps,), {"picture": lambda self, state, params: picture})()
    with pytest.raises(ValueError, match=r"Broken.picture must return uint8 \[height width 3\], but returned (float64|uint8)\[4, 4"):
        render_episode(env, None, right, tmp_path / "x.gif", key)
    assert not list(tmp_path.iterdir())


def test_long_episodes_are_thinned(tmp_path, key, titles):
    path = render_episode(Lamps(1000), None, right, tmp_path / "x.gif", key, max_frames=5)
    assert len(frames_of(path)) == 5
    assert [right for _, right in titles] == [f"step {t}   return {t / 2:.2f}" for t in (0, 250, 500, 750, 1000)]
    titles.clear()
    render_episode(Lamps(1000), None, right, tmp_path / "x.gif", key)
    steps = [int(right.split()[1]) for _, right in titles]
    assert len(steps) == 500 and steps[0] == 0 and steps[-1] == 1000 and set(np.diff(steps)) == {2, 3}
    titles.clear()
    render_episode(Lamps(4), None, right, tmp_path / "x.gif", key, max_frames=5)
    assert len(titles) == 5


@pytest.mark.parametrize("lamps, limit", [(10, 100), (10, 7), (9, 9)])
def test_episodes_are_played_in_chunks(lamps, limit, tmp_path, key, titles, monkeypatch):
    """Which aren't to be seen, but for the memory and the time that a limit far beyond the end would take."""
    whole = frames_of(render_episode(Lamps(lamps), None, right, tmp_path / "x.gif", key, max_steps=limit))
    expected, chunks, go_on = list(titles), [], episode._go_on
    titles.clear()
    monkeypatch.setattr(episode, "CHUNK", 4)
    monkeypatch.setattr(episode, "_go_on", lambda *args: chunks.append(None) or go_on(*args))
    np.testing.assert_array_equal(frames_of(render_episode(Lamps(lamps), None, right, tmp_path / "x.gif", key, max_steps=limit)), whole)
    assert titles == expected and len(whole) == 1 + min(lamps, limit) and len(chunks) == -(-min(lamps, limit) // 4)


def test_an_environment_without_a_name_or_parameters(tmp_path, key, titles):
    render_episode(Lamps(), None, right, tmp_path / "x.gif", key, max_steps=1)
    assert titles[0][0] == "Lamps"


def test_other_weights_compile_nothing_new(tmp_path, key):
    traces = []

    class Linear(eqx.Module):
        weight: jax.Array

        def __call__(self, obs, rng):
            traces.append(None)
            return (obs @ self.weight > 0).astype(jnp.int32)

    env = Upright()
    for i in range(2):
        act = Linear(jnp.full((4,), float(i)))
        render_episode(env, env.default_params, act, tmp_path / "x.gif", jax.random.key(i), max_steps=2)
        if i == 0:
            first = len(traces)
    assert len(traces) == first > 0


def never(obs, rng):
    raise AssertionError("traced")


def test_an_environment_that_cannot_be_drawn(tmp_path, key):
    env, params = gymnax.make("Reacher-misc")
    with pytest.raises(
        ValueError,
        match=r"no picture of Reacher-misc can be drawn; give its class a method picture\(state, params\) that returns uint8 "
        r"pixels \[height width 3\]. Without one these can be drawn: Acrobot-v1, .*FourRooms-misc",
    ):
        render_episode(env, params, never, tmp_path / "x.gif", key)
    with pytest.raises(ValueError, match="no picture of Blind can be drawn; give its class a method picture"):
        render_episode(type("Blind", (Lamps,), {"picture": property()})(), None, never, tmp_path / "x.gif", key)


def test_pygame_missing(tmp_path, key, monkeypatch):
    monkeypatch.setitem(sys.modules, "pygame", None)
    env, params = gymnax.make("Pendulum-v1")
    with pytest.raises(ImportError, match=r"pip install 'eqxrl\[render\]'"):
        render_episode(env, params, never, tmp_path / "x.gif", key)
    env, params = gymnax.make("Catch-bsuite")  # does without
    render_episode(env, params, lambda obs, rng: jnp.array(0), tmp_path / "x.gif", key, max_steps=1)


def test_bad_arguments(tmp_path, key):
    env = Upright()
    for path, kwargs, message in (
        ("x.avi", {}, r"writes a \.gif or \.mp4 file, got the path '.*x\.avi'"),
        ("x.gif", {"max_steps": 0}, "max_steps must be at least 1, got 0"),
        ("x.gif", {"max_frames": 1}, "max_frames must be at least 2 .*, got 1"),
        ("x.gif", {"fps": 60}, "at most 50"),
        ("x.gif", {"fps": 0.0}, "above 0"),
    ):
        with pytest.raises(ValueError, match=message):
            render_episode(env, env.default_params, never, tmp_path / path, key, **kwargs)
    unlimited = env.default_params.replace(max_steps_in_episode=jnp.inf)
    with pytest.raises(ValueError, match="no time limit.*pass max_steps"):
        render_episode(env, unlimited, never, tmp_path / "x.gif", key)
    assert not list(tmp_path.iterdir())


def test_an_interrupt_leaves_the_old_gif(tmp_path, key, monkeypatch):
    path = tmp_path / "x.gif"
    path.write_bytes(b"old")
    with_title = episode.with_title

    def interrupted(picture, left, right):
        if "step 5" in right:
            raise KeyboardInterrupt
        return with_title(picture, left, right)

    monkeypatch.setattr(episode, "with_title", interrupted)
    env = Upright()
    with pytest.raises(KeyboardInterrupt):
        render_episode(env, env.default_params, right, path, key)
    assert list(tmp_path.iterdir()) == [path] and path.read_bytes() == b"old"
