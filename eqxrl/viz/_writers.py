"""Pictures to files, by the file's suffix."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eqxrl._extras import extra

if TYPE_CHECKING:
    from PIL.Image import Image


def require_av() -> Any:
    return extra("av", "mp4", "writing an MP4")


def write_gif(path: Path, pictures: "Iterator[Image]", durations: list[float]) -> None:
    from PIL import Image

    # A GIF has 256 colours a frame. Pillow's own choice of them would take most of the time; this one is off by 15 in 255
    # at most, and by more than 4 only at smoothed edges.
    frames = (picture.quantize(method=Image.Quantize.FASTOCTREE) for picture in pictures)
    milliseconds = [round(1000 * seconds) for seconds in durations]
    with path.open("wb") as file:
        next(frames).save(file, format="GIF", save_all=True, append_images=frames, duration=milliseconds, loop=0)


def write_mp4(path: Path, pictures: "Iterator[Image]", durations: list[float]) -> None:
    """H.264 in `yuv420p`, which every browser plays, and which needs even sides. A picture that stays for longer than the first one is
    repeated."""
    av = require_av()
    with av.open(str(path), "w", format="mp4") as file:
        rate = Fraction(1 / durations[0]).limit_denominator(1000)
        stream = file.add_stream("libx264", rate=rate)
        stream.pix_fmt = "yuv420p"
        for picture, seconds in zip(pictures, durations):
            pixels = np.asarray(picture.convert("RGB"))
            even = np.pad(pixels, ((0, picture.height % 2), (0, picture.width % 2), (0, 0)), mode="edge")
            if (stream.height, stream.width) != even.shape[:2]:  # all are of one size
                stream.height, stream.width = even.shape[:2]
            for _ in range(round(seconds * rate)):
                file.mux(stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))
        file.mux(stream.encode())


WRITERS = {".gif": write_gif, ".mp4": write_mp4}
