"""What an environment's states look like: for each environment that can be drawn, a generator of pictures.

Besides environments with a picture of their own, these are the environments of `gymnax.visualize.Visualizer`. It is not
used itself: it builds a Gymnasium environment and a Matplotlib figure for every frame's sake, 20 times slower than below, and
opens windows where pyplot's backend has some.
Classic control keeps Gymnasium's own renderer; boards and discs are painted with Pillow.
"""

import contextlib
import io
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree, UInt8

from eqxrl._extras import extra
from eqxrl.envs import env_name

if TYPE_CHECKING:
    from PIL.Image import Image

LONG_SIDE = 480
"""Boards are scaled to about this many pixels."""
MOST = 960
"""Larger pictures are shrunk."""

WHITE, GREY, BLACK = (255, 255, 255), (70, 70, 70), (0, 0, 0)
BLUE, LIGHT_BLUE, ORANGE, GREEN = (0, 114, 178), (170, 208, 230), (213, 94, 0), (0, 158, 115)  # Okabe & Ito, colour-blind safe


class Renderer(NamedTuple):
    pictures: "Callable[[Any, PyTree, Iterator[PyTree]], Iterator[Image]]"
    """`(env, env_params, env_states) -> pictures`, one for each state, all of the same size."""
    fps: int


def require_pygame() -> None:
    with contextlib.redirect_stdout(io.StringIO()):  # pygame greets on import
        extra("pygame", "render", "drawing classic control")


def gym_pictures(env: Any, env_params: PyTree, states: Iterator[PyTree]) -> "Iterator[Image]":
    """Gymnasium's renderer, one environment for all frames."""
    import gymnasium
    import pygame
    from gymnax.visualize import vis_gym
    from PIL import Image

    gym_env: Any = gymnasium.make(env.name, render_mode="rgb_array", disable_env_checker=True).unwrapped
    vis_gym.set_gym_params(gym_env, env.name, env_params)
    # Given a surface to paint on, the renderer doesn't start pygame, which would open the sound card; so nothing needs closing.
    gym_env.screen = pygame.Surface((500, 500) if env.name in ("Acrobot-v1", "Pendulum-v1") else (600, 400))
    for state in states:
        gym_env.state = vis_gym.get_gym_state(state, env.name)
        if env.name == "Pendulum-v1":
            gym_env.last_u = np.asarray(state.last_u, np.float64)  # drawn as the arrow of the torque
        yield Image.fromarray(gym_env.render())


def channel_pictures(env: Any, env_params: PyTree, states: Iterator[PyTree]) -> "Iterator[Image]":
    """MinAtar and Pong observe a board `[rows columns channels]` of 0 and 1: a colour for each channel, the last on top."""
    from matplotlib import colormaps

    num_channels = env.obs_shape[-1]
    palette = colormaps["cubehelix"]([0, *np.linspace(0.3, 0.95, num_channels)], bytes=True)[:, :3]
    observe = jax.jit(lambda state: env.observe(jax.random.key(0), state, None, env_params))
    for state in states:
        channels = np.asarray(observe(state)) * np.arange(1, num_channels + 1)
        yield _board(palette[channels.max(-1).astype(int)])


def catch_pictures(env: Any, env_params: PyTree, states: Iterator[PyTree]) -> "Iterator[Image]":
    """The ball is a disc, the paddle a square."""
    for state in states:
        cells = np.full((env.rows, env.columns, 3), 235, np.uint8)
        cells[state.paddle_y, state.paddle_x] = BLUE
        yield _board(cells, disc=(state.ball_y, state.ball_x))


def maze_pictures(env: Any, env_params: PyTree, states: Iterator[PyTree]) -> "Iterator[Image]":
    """The agent is a disc, the goal a green square, walls are dark."""
    for state in states:
        cells = np.where(np.asarray(env.occupied_map, bool)[..., None], GREY, WHITE).astype(np.uint8)
        cells[tuple(state.goal)] = GREEN
        yield _board(cells, disc=tuple(state.pos))


def point_robot_pictures(env: Any, env_params: PyTree, states: Iterator[PyTree]) -> "Iterator[Image]":
    """The half circle on which goals lie, the goal's disc in blue and the robot in orange."""
    from PIL import Image, ImageDraw

    radius = LONG_SIDE / 2.5  # of the half circle, in pixels
    scale = radius / float(env_params.circle_radius)
    width, height = LONG_SIDE, round(1.5 * radius)
    origin = np.array([width / 2, height - 0.25 * radius])
    background = Image.new("RGB", (width, height), WHITE)
    ImageDraw.Draw(background).arc([*(origin - radius), *(origin + radius)], 180, 360, fill=BLACK, width=2)
    goal, robot = _disc(round(2 * scale * float(env_params.goal_radius))), _disc(round(0.1 * radius))
    for state in states:
        picture = background.copy()
        for disc, colour, position in ((goal, LIGHT_BLUE, state.goal), (robot, ORANGE, state.pos)):
            centre = origin + scale * position * np.array([1, -1])  # a picture's rows count downwards
            picture.paste(colour, tuple(np.round(centre - disc.width / 2).astype(int).tolist()), disc)
        yield picture


def own_pictures(env: Any, env_params: PyTree, states: Iterator[PyTree]) -> "Iterator[Image]":
    """Those of the environment's own method `picture`."""
    for state in states:
        pixels = np.asarray(env.picture(jax.tree.map(jnp.asarray, state), env_params))
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            got = f"{pixels.dtype}{list(pixels.shape)}"
            raise ValueError(f"{env_name(env)}.picture must return uint8 [height width 3], but returned {got}")
        yield _board(pixels)


OWN = Renderer(own_pictures, fps=10)
RENDERERS = {
    name: Renderer(pictures, fps)
    for pictures, fps, names in (
        (gym_pictures, 15, ["Acrobot-v1"]),
        (gym_pictures, 50, ["CartPole-v1"]),
        (gym_pictures, 30, ["Pendulum-v1", "MountainCar-v0", "MountainCarContinuous-v0"]),
        (catch_pictures, 5, ["Catch-bsuite"]),
        (channel_pictures, 10, [f"{name}-MinAtar" for name in ("Asterix", "Breakout", "Freeway", "Seaquest", "SpaceInvaders")]),
        (channel_pictures, 10, ["Pong-misc"]),
        (point_robot_pictures, 10, ["PointRobot-misc"]),
        (maze_pictures, 10, ["MetaMaze-misc", "FourRooms-misc"]),
    )
    for name in names
}


def with_title(picture: "Image", left: str, right: str) -> "Image":
    """The picture under a white band with a title; narrow pictures are centred below it."""
    from PIL import Image, ImageDraw, ImageFont

    picture.thumbnail((MOST, MOST))
    font, margin = ImageFont.load_default(size=18), 10
    width = max(picture.width, 420, round(font.getlength(left)) + 240)  # the same for every frame, however long the numbers get
    framed = Image.new("RGB", (width, picture.height + 36), WHITE)
    framed.paste(picture, ((width - picture.width) // 2, 36))
    draw = ImageDraw.Draw(framed)
    draw.text((margin, 18), left, BLACK, font, anchor="lm")
    draw.text((width - margin, 18), right, BLACK, font, anchor="rm")
    return framed


def _board(cells: UInt8[np.ndarray, "rows columns 3"], disc: tuple | None = None) -> "Image":
    """Coloured squares, and an orange disc on the cell `disc` = (row, column)."""
    from PIL import Image

    side = max(LONG_SIDE // max(cells.shape[:2]), 1)
    picture = Image.fromarray(cells.repeat(side, 0).repeat(side, 1))
    if disc is not None:
        row, column = (int(i) * side + side // 8 for i in disc)
        picture.paste(ORANGE, (column, row), _disc(side - 2 * (side // 8)))
    return picture


def _disc(diameter: int) -> "Image":
    """A mask with smooth edges, which Pillow's ellipses don't have."""
    from PIL import Image, ImageDraw

    mask = Image.new("L", (4 * diameter, 4 * diameter), 0)
    ImageDraw.Draw(mask).ellipse((0, 0, 4 * diameter - 1, 4 * diameter - 1), fill=255)
    return mask.resize((diameter, diameter), Image.Resampling.BOX)
