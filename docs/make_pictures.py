"""The pictures of the documentation, and the numbers beside them: docs/pictures/*.png and *.json.

    .venv/bin/python docs/make_pictures.py                # all of them
    .venv/bin/python docs/make_pictures.py --only retnet  # one mixer or one story
    .venv/bin/python docs/make_pictures.py --check        # writes nothing; exit 1 when one is out of date

Everything is drawn from seeded weights, so that the same machine gives the same bytes.
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import to_rgb
from pictures_of_mixers import mixer_picture
from pictures_of_stories import STORIES
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from seqmix import list_mixers
from seqmix.errors import unknown_name
from seqmix.inspection.figures import color_scale, rendered
from seqmix.inspection.figures.style import INK, LINE, SERIES

FOLDER = Path(__file__).parent / "pictures"
DPI = 140
# Another processor rounds differently: a step of 8 of 255 in the colour of a few pixels is no change of a picture.
PIXEL_STEP, PIXEL_SHARE, NUMBER_STEP = 8, 0.001, 1e-3

Made = tuple[bytes, dict[str, Any]]


def main() -> int:
    arguments = parse_arguments()
    console = Console(stderr=True)
    makers = all_makers()
    names = list(makers)
    if arguments.only is not None:
        if arguments.only not in makers:
            console.print(f"error: {unknown_name('picture', arguments.only, names)}", markup=False)
            return 2
        names = [arguments.only]
    made = make(names, makers, console)
    if not arguments.check:
        write(made, is_whole=arguments.only is None)
        return 0
    stale = [problem for name, one in made.items() for problem in differences(name, one)]
    stale += [] if arguments.only else [f"{path.name} belongs to no mixer or story" for path in strays(names)]
    for problem in stale:
        console.print(f"{problem}: run .venv/bin/python docs/make_pictures.py", markup=False, soft_wrap=True)
    return 1 if stale else 0


def parse_arguments() -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", metavar="NAME", help="the picture of one mixer or one story")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a picture is out of date")
    return parser.parse_args()


def all_makers() -> dict[str, Callable[[], Made]]:
    """What draws each picture, by the picture's name."""

    def of_mixer(name: str) -> Callable[[], Made]:
        return lambda: as_png(*mixer_picture(name))

    def of_story(name: str) -> Callable[[], Made]:
        return lambda: as_png(*STORIES[name]())

    return {name: of_mixer(name) for name in list_mixers()} | {name: of_story(name) for name in STORIES}


def as_png(figure: Any, facts: dict[str, Any]) -> Made:
    """A figure as a PNG with the palette of all pictures, which takes a third of the space of true colours."""
    picture = Image.open(io.BytesIO(rendered(figure, ".png", dpi=DPI))).convert("RGB")
    palette = our_colors()
    colors, where = np.unique(np.asarray(picture).reshape(-1, 3), axis=0, return_inverse=True)
    distance = ((colors[:, None].astype(np.int32) - palette[None]) ** 2).sum(-1)
    indices = distance.argmin(1)[where].reshape(picture.height, picture.width).astype(np.uint8)
    small = Image.fromarray(indices, "P")
    small.putpalette(palette.astype(np.uint8).tobytes())
    stream = io.BytesIO()
    small.save(stream, "png", optimize=True)
    return stream.getvalue(), rounded(facts | {"width": picture.width, "height": picture.height})


def rounded(value: Any) -> Any:
    """JSON with its numbers to six digits."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    return value


@functools.cache
def our_colors() -> np.ndarray:
    """(colours, 3), 0 to 255: the shades of both scales of weights, and what lies between a line and its ground."""
    scales = [color_scale([np.array([[low, 1.0]])])["cmap"] for low in (0.0, -1.0)]
    shades = [np.asarray(scale(np.linspace(0, 1, 97)))[:, :3] for scale in scales]
    for ground, line, steps in (
        ("white", INK, 12),
        ("white", LINE, 5),
        ("white", SERIES[0], 8),
        (LINE, SERIES[0], 4),
        ("white", SERIES[1], 8),
    ):
        shades.append(np.linspace(to_rgb(ground), to_rgb(line), steps))
    return np.unique(np.round(255 * np.concatenate(shades)).astype(np.int32), axis=0)


def make(names: list[str], makers: dict[str, Callable[[], Made]], console: Console) -> dict[str, Made]:
    columns = (TextColumn("{task.description:<28}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    made = {}
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=len(names))
        for name in names:
            progress.update(task, description=name)
            made[name] = makers[name]()
            progress.advance(task)
    return made


def facts_file(name: str) -> Path:
    return FOLDER / ("stories.json" if name in STORIES else "mixers.json")


def read_facts(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def write(made: dict[str, Made], *, is_whole: bool) -> None:
    FOLDER.mkdir(exist_ok=True)
    for path in (FOLDER / "mixers.json", FOLDER / "stories.json"):
        facts = {name: facts for name, (_, facts) in made.items() if facts_file(name) == path}
        if facts:
            facts = facts if is_whole else read_facts(path) | facts
            replace(path, (json.dumps(dict(sorted(facts.items())), indent=1) + "\n").encode())
    for name, (picture, _) in made.items():
        replace(FOLDER / f"{name}.png", picture)
    for path in strays(list(made)) if is_whole else ():
        path.unlink()


def replace(path: Path, content: bytes) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(content)
    temporary.replace(path)


def strays(names: list[str]) -> list[Path]:
    """Pictures that nothing draws any more."""
    return [path for path in sorted(FOLDER.glob("*.png")) if path.stem not in names]


def differences(name: str, made: Made) -> list[str]:
    """What is out of date about one picture, in words; empty where it agrees with what would be drawn now."""
    picture, facts = made
    path = FOLDER / f"{name}.png"
    if not path.exists():
        return [f"{path.name} is missing"]
    found = []
    if path.read_bytes() != picture and not looks_alike(path.read_bytes(), picture):
        found.append(f"{path.name} is out of date")
    if not agrees(read_facts(facts_file(name)).get(name), facts):
        found.append(f"{facts_file(name).name} is out of date about {name}")
    return found


def looks_alike(one: bytes, other: bytes) -> bool:
    pixels = [np.asarray(Image.open(io.BytesIO(content)).convert("RGB"), dtype=np.int16) for content in (one, other)]
    if pixels[0].shape != pixels[1].shape:
        return False
    moved = np.abs(pixels[0] - pixels[1]).max(axis=-1) > PIXEL_STEP
    return bool(moved.mean() <= PIXEL_SHARE)


def agrees(one: Any, other: Any) -> bool:
    """Whether two JSON values are equal up to rounding."""
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) <= NUMBER_STEP * max(1.0, abs(one))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(agrees(one[key], other[key]) for key in one)
    return bool(one == other)


if __name__ == "__main__":
    sys.exit(main())
