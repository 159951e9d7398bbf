"""Pictures of MuJoCo's bodies: each pixel is a ray, which meets spheres, boxes and the like. MuJoCo's own renderer needs OpenGL."""

import functools
import math
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8

from eqxrl._extras import extra

HEIGHT, WIDTH = 360, 480
PLANE, SPHERE, CAPSULE, ELLIPSOID, CYLINDER, BOX = 0, 2, 3, 4, 5, 6
"""MuJoCo's types of shapes that are drawn; height fields and meshes aren't."""
FOLLOWING = (1, 2)
"""MuJoCo's modes of cameras that keep their distance from a body."""
ELEVATION = np.radians(30)
"""From which the others look down."""
SKY, LIGHT_SQUARE, DARK_SQUARE = (np.array(x, np.float32) for x in ((225, 235, 245), (205, 212, 220), (160, 170, 182)))
Rays = Float[np.ndarray, "rows columns 3"]
Depths = Float[np.ndarray, "rows columns"]


def draw(model: Any, qpos: Any, mocap_pos: Any = None, mocap_quat: Any = None) -> UInt8[np.ndarray, "height width 3"]:
    """The bodies of an `MjModel` where `qpos` puts them, seen by its first camera if that is fixed or follows a body, else by one that
    looks at the middle. The floor is a chessboard, so that one sees what moves."""
    mujoco: Any = extra("mujoco", "playground", "a picture of bodies")
    data = mujoco.MjData(model)
    data.qpos[:] = qpos
    if model.nmocap:
        data.mocap_pos[:], data.mocap_quat[:] = mocap_pos, mocap_quat
    mujoco.mj_kinematics(model, data)
    mujoco.mj_comPos(model, data)
    mujoco.mj_camlight(model, data)
    eye, axes, slope = _camera(mujoco, model, data)
    rays = _pixels(slope) @ axes.T.astype(np.float32)
    light = axes[:, 2] + [0, 0, 0.8]
    light /= np.linalg.norm(light)
    depth, pixels = np.full((HEIGHT, WIDTH), np.inf, np.float32), np.tile(SKY, (HEIGHT, WIDTH, 1))
    for kind, size, position, turn, colour in _shapes(model, data):
        window = _window(kind, size, axes.T @ (position - eye), slope)
        origin, local = ((eye - position) @ turn).astype(np.float32), rays[window] @ turn.astype(np.float32)
        t, normal = _meet(kind, size.astype(np.float32), origin, local)
        nearer = (t > 0) & (t < depth[window])
        t, normal, local = t[nearer], normal[nearer], local[nearer]
        if kind == PLANE:
            cell = 2 ** np.round(np.log2(model.stat.extent / 4))
            dark = np.floor((origin + t[:, None] * local)[:, :2] / cell).sum(-1) % 2
            haze = np.exp(-t / (8 * model.stat.extent))[:, None]
            shown = SKY + haze * (np.where(dark[:, None], DARK_SQUARE, LIGHT_SQUARE) - SKY)
        else:
            normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
            shown = 255 * colour * (0.4 + 0.6 * np.clip(normal @ (turn.T @ light), 0, 1))[:, None]
        depth[window][nearer], pixels[window][nearer] = t, shown
    return np.round(pixels.clip(0, 255)).astype(np.uint8)


def _camera(mujoco: Any, model: Any, data: Any) -> tuple[np.ndarray, np.ndarray, float]:
    """Where it is, its axes (right, up, backwards) as columns, and the slope of the picture's upper edge."""
    if model.ncam and (model.cam_mode[0] in FOLLOWING or model.cam_bodyid[0] == 0):
        return data.cam_xpos[0], data.cam_xmat[0].reshape(3, 3), math.tan(math.radians(model.cam_fovy[0]) / 2)
    first = mujoco.MjData(model)  # in which nothing has moved, so that the camera doesn't move either
    mujoco.mj_kinematics(model, first)
    shapes = [shape for shape in _shapes(model, first) if shape[0] != PLANE]
    ends = np.stack([at + sign * size.max() * abs(turn[:, 2]) for _, size, at, turn, _ in shapes for sign in (-1, 1)])
    low, high = ends.min(0), ends.max(0)
    backwards = np.array([0, -np.cos(ELEVATION), np.sin(ELEVATION)])
    axes = np.stack([[1, 0, 0], np.cross(backwards, [1, 0, 0]), backwards], axis=1)
    return (low + high) / 2 + 1.3 * (high - low).max() * backwards, axes, math.tan(math.radians(45) / 2)


@functools.cache
def _pixels(slope: float) -> Rays:
    """The ray of each pixel, in the camera's axes and of depth 1."""
    up = slope * (1 - (2 * np.arange(HEIGHT) + 1) / HEIGHT)
    right = slope * ((2 * np.arange(WIDTH) + 1) - WIDTH) / HEIGHT
    return np.stack([*np.meshgrid(right, up), np.full((HEIGHT, WIDTH), -1.0)], axis=-1).astype(np.float32)


def _shapes(model: Any, data: Any) -> list[tuple]:
    """Type, size, position, axes and colour of what MuJoCo shows by default: geoms and sites."""
    shapes = []
    for name in ("geom", "site"):
        of: Any = {key: getattr(model, f"{name}_{key}") for key in ("type", "size", "group", "matid", "rgba")}
        for i, kind in enumerate(of["type"]):
            rgba, material = of["rgba"][i], of["matid"][i]
            if material >= 0 and (rgba == [0.5, 0.5, 0.5, 1]).all():  # MuJoCo's default, over which the material goes
                rgba = model.mat_rgba[material]
            if of["group"][i] <= 2 and rgba[3] > 0 and kind in (PLANE, SPHERE, CAPSULE, ELLIPSOID, CYLINDER, BOX):
                position, turn = getattr(data, f"{name}_xpos")[i], getattr(data, f"{name}_xmat")[i].reshape(3, 3)
                shapes.append((int(kind), of["size"][i], position, turn, rgba[:3]))
    return shapes


def _window(kind: int, size: np.ndarray, centre: np.ndarray, slope: float) -> tuple[slice, slice]:
    """The rows and columns within which a shape is seen, whose centre is there in the camera's axes."""
    radius, depth = size.sum(), -centre[2]
    if kind == PLANE or depth <= 1.01 * radius:
        return slice(None), slice(None)
    right, up = centre[:2] / depth
    reach = radius * (1 + max(abs(right), abs(up))) / (depth - radius)
    column, row = WIDTH / 2 + HEIGHT / 2 * right / slope, HEIGHT / 2 * (1 - up / slope)
    reach = HEIGHT / 2 * reach / slope + 1
    return tuple(slice(max(int(x - reach), 0), max(int(x + reach) + 1, 0)) for x in (row, column))  # pyright: ignore[reportReturnType]


def _meet(kind: int, size: np.ndarray, origin: np.ndarray, rays: Rays) -> tuple[Depths, Rays]:
    """The depth at which each ray meets a shape, infinite where it doesn't, and the normal there, of any length. All in its axes."""
    at = lambda t: origin + t[..., None] * rays  # noqa: E731
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        if kind == PLANE:
            t = -origin[2] / rays[..., 2]
            edge = np.where(size[:2] > 0, size[:2], np.inf)
            return _only(t, (np.abs(at(t)[..., :2]) <= edge).all(-1)), np.broadcast_to(np.array([0, 0, 1], np.float32), rays.shape)
        if kind in (SPHERE, ELLIPSOID):
            radii = size if kind == ELLIPSOID else np.repeat(size[:1], 3)
            t = _quadric(1 / radii, origin, rays)
            return t, at(t) / radii**2
        if kind == BOX:
            one, other = (-size - origin) / rays, (size - origin) / rays
            enters, leaves = np.minimum(one, other), np.maximum(one, other).min(-1)
            t = enters.max(-1)
            return _only(t, t <= leaves), np.eye(3, dtype=np.float32)[enters.argmax(-1)] * -np.sign(rays)
        radius, half = size[:2]
        t = _quadric(np.array([1 / radius, 1 / radius, 0], np.float32), origin, rays)
        t, normal = _only(t, np.abs(at(t)[..., 2]) <= half), at(t) * np.array([1, 1, 0], np.float32)
        for end in (np.array([0, 0, -half], np.float32), np.array([0, 0, half], np.float32)):
            if kind == CAPSULE:
                met = _quadric(np.repeat(1 / radius, 3), origin - end, rays)
                outwards = at(met) - end
            else:
                met = (end[2] - origin[2]) / rays[..., 2]
                met, outwards = _only(met, np.linalg.norm(at(met)[..., :2], axis=-1) <= radius), np.broadcast_to(end, rays.shape)
            first = met < t
            t, normal = np.where(first, met, t), np.where(first[..., None], outwards, normal)
        return t, normal


def _quadric(weights: np.ndarray, origin: np.ndarray, rays: Rays) -> Depths:
    """Where each ray first meets `sum((weights * x)**2) == 1`."""
    origin, rays = weights * origin, weights * rays
    a, b, c = (rays**2).sum(-1), rays @ origin, origin @ origin - 1
    inside = b**2 - a * c
    return _only((-b - np.sqrt(inside)) / a, inside >= 0)


def _only(t: Depths, where: Bool[np.ndarray, "rows columns"]) -> Depths:
    return np.where(where, t, np.float32(np.inf))
