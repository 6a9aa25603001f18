"""What both workers know: the layout of the payload, and the requests, which name a picture and the part to look at."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image

from examples.encode_scheduler.vision import TOKEN_DIM, Encoder, load_picture
from gpu_backend.config import LayoutConfig, ObserveConfig

LAYOUT = LayoutConfig(dim=TOKEN_DIM, block_tokens=16, deepstack_levels=1)
"""Both sides must have the same one: it is compared when they meet."""

TOKENS_MAX = 28 * 28
"""The longest request that there can be: the encoder makes no picture larger than 784 x 784 pixels."""

PICTURES = Path(__file__).parent / "pictures"
NAMES = tuple(sorted(path.stem for path in PICTURES.glob("*.jpg")))
"""The pictures, in the order of the encoder's book."""

VIEWS = {
    "whole": (0.0, 0.0, 1.0, 1.0),
    "left half": (0.0, 0.0, 0.5, 1.0),
    "middle": (0.25, 0.25, 0.75, 0.75),
    "right half": (0.5, 0.0, 1.0, 1.0),
}
"""Left, top, right and bottom, as parts of the picture."""


class Job(NamedTuple):
    """What is to be encoded."""

    picture: str
    view: str

    def load(self) -> Image.Image:
        """The pixels to look at."""
        picture = load_picture(PICTURES / f"{self.picture}.jpg")
        left, top, right, bottom = VIEWS[self.view]
        wide, high = picture.size
        return picture.crop((int(left * wide), int(top * high), int(right * wide), int(bottom * high)))


JOBS_MAX = len(NAMES) * len(VIEWS)


def jobs(count: int) -> list[Job]:
    """So many different requests, pictures in turn."""
    names = list(VIEWS)
    return [Job(NAMES[number % len(NAMES)], names[number // len(NAMES)]) for number in range(count)]


def observing(traces: Path | None, name: str) -> ObserveConfig:
    """What is watched of a worker. Checks are cheap here, and a defect would be told. Of a process that may be killed,
    each event has to be handed to the system at once, or the last ones go with it."""
    trace = str(traces / f"{name}.jsonl") if traces is not None else ""
    return ObserveConfig(checks=True, trace=trace, trace_flush="event")


def load_encoder(weights: Path) -> Encoder:
    """The encoder as it was saved."""
    encoder = Encoder(len(NAMES))
    encoder.load_state_dict(torch.load(weights, weights_only=True))
    return encoder.eval()
