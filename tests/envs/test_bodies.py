"""Pictures of bodies beside MuJoCo's own rays: they need mujoco, which brax and MuJoCo Playground bring."""

import importlib.util

import numpy as np
import pytest

from eqxrl.envs.suites import _bodies

pytestmark = pytest.mark.skipif(importlib.util.find_spec("mujoco") is None, reason="mujoco isn't installed")
SCENE = """
<mujoco>
  <worldbody>
    <camera pos="0 -3 2" xyaxes="1 0 0 0 .5 .866" fovy="50"/>
    <geom type="plane" size="2 0 .1" pos="0 0 -.2" rgba="1 1 1 1"/>
    <body pos="-.9 0 .4"><joint type="ball"/><geom type="capsule" size=".15 .4" rgba="1 0 0 1"/></body>
    <body pos="-.1 .4 .5"><joint type="ball"/><geom type="cylinder" size=".3 .2" rgba="0 1 0 1"/></body>
    <body pos=".7 -.1 .5"><joint type="ball"/><geom type="box" size=".1 .3 .4" rgba="0 0 1 1"/></body>
    <body pos=".2 -.8 .3"><joint type="ball"/><geom type="ellipsoid" size=".1 .2 .35" rgba="1 1 0 1"/></body>
    <body pos="-.6 -.7 .3"><joint type="ball"/><geom type="sphere" size=".25" rgba="1 0 1 1"/></body>
    <geom type="sphere" size=".5" group="3" rgba="0 1 1 1"/>
    <geom type="sphere" size=".5" rgba="0 1 1 0"/>
  </worldbody>
</mujoco>
"""


@pytest.mark.parametrize("seed", range(3))
def test_each_pixel_shows_what_mujoco_says_is_there(seed):
    import mujoco

    model = mujoco.MjModel.from_xml_string(SCENE)
    data = mujoco.MjData(model)
    qpos = np.random.default_rng(seed).normal(size=(5, 4))
    qpos /= np.linalg.norm(qpos, axis=-1, keepdims=True)
    data.qpos[:] = qpos.ravel()
    mujoco.mj_forward(model, data)
    picture = _bodies.draw(model, qpos.ravel())
    height, width = picture.shape[:2]
    seen, agree, count = set(), 0, 0
    for row in range(4, height, 9):
        for column in range(4, width, 9):
            up, right = 1 - (2 * row + 1) / height, ((2 * column + 1) - width) / height
            ray = data.cam_xmat[0].reshape(3, 3) @ [*(np.tan(np.radians(25)) * np.array([right, up])), -1]
            found = np.zeros(1, np.int32)
            distance = mujoco.mj_ray(model, data, data.cam_xpos[0], ray, np.uint8([1, 1, 1, 0, 0, 0]), 1, -1, found, None)
            pixel = picture[row, column]
            if distance < 0:
                assert found[0] == -1
                agree += (pixel == _bodies.SKY).all()
            else:
                agree += ((pixel > 0) == model.geom_rgba[found[0], :3]).all()
            seen.add(int(found[0]))
            count += 1
    assert seen == {-1, 0, 3, 4, 5, 6, 7} and agree >= 0.998 * count  # roundings decide at edges


def test_the_side_that_faces_the_light_is_brighter():
    import mujoco

    picture = _bodies.draw(mujoco.MjModel.from_xml_string("""
        <mujoco><worldbody>
        <camera pos="0 -3 0" xyaxes="1 0 0 0 0 1"/><geom type="sphere" size=".8" rgba="1 1 1 1"/>
        </worldbody></mujoco>"""), [])
    column = picture[:, picture.shape[1] // 2, 0].astype(int)
    rows = np.flatnonzero((picture[:, picture.shape[1] // 2] != _bodies.SKY).any(-1))
    assert column[rows[:20]].mean() > column[rows[-20:]].mean() + 50


@pytest.mark.parametrize("camera", ['<camera mode="track" pos="0 -3 1" xyaxes="1 0 0 0 .316 .949"/>', ""])
def test_a_camera_that_follows_keeps_the_body_where_it_is_and_the_floor_moves(camera):
    """Without one, the body moves over a floor that stands still."""
    import mujoco

    model = mujoco.MjModel.from_xml_string(f"""
        <mujoco><worldbody><geom type="plane" size="0 0 1"/>
        <body>{camera}<joint type="slide" axis="1 0 0"/><geom type="sphere" size=".2" pos="0 0 .3" rgba="1 0 0 1"/></body>
        </worldbody></mujoco>""")
    red = lambda picture: np.argwhere(picture[..., 1] == 0).mean(0)  # noqa: E731
    before, after = _bodies.draw(model, [0.0]), _bodies.draw(model, [0.1])
    floor_moves = (before != after)[-20:, :40].any()
    moves = red(after) - red(before)
    assert abs(moves[0]) < 1
    assert (abs(moves[1]) < 1 and floor_moves) if camera else (moves[1] > 10 and not floor_moves)
