"""Small pictures of who listens to whom: |M| of a trained model's mixers on held-out text."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from torch import Tensor

from seqmix.compare.results import MatrixImage
from seqmix.inspection.layers import mixer_places
from seqmix.inspection.matrices import layer_matrix
from seqmix.models.contenders import LanguageModel
from seqmix.models.language_model import SeqmixForCausalLM

SIDE = 96
HEADS = 4

# White for nothing, then blues to near black: readable in print and on both light and dark pages.
_STOPS = ((255, 255, 255), (198, 219, 239), (107, 174, 214), (33, 113, 181), (8, 48, 107), (3, 19, 43))


def matrix_images(model: LanguageModel, input_ids: Tensor) -> list[MatrixImage]:
    """Pictures of the first and the last layer of each kind of mixer, up to four heads each; none of Hugging Face's.

    Args:
        input_ids: (1, time) of one document; the first `SIDE` positions are shown.
    """
    if not isinstance(model, SeqmixForCausalLM):
        return []
    places = mixer_places(model, input_ids[:, :SIDE])
    images: list[MatrixImage] = []
    for layer, name in _layers_to_show(model):
        heads = layer_matrix(next(place for place in places if (place.layer, place.slot) == (layer, "mixer"))).matrix
        images += [
            {"layer": layer, "head": head, "mixer": name, "png": picture(heads[head])}
            for head in _spread(len(heads), HEADS)
        ]
    return images


def _layers_to_show(model: SeqmixForCausalLM) -> Iterator[tuple[int, str]]:
    names = [model.config.mixer_of_layer(layer)["name"] for layer in range(model.config.num_hidden_layers)]
    for name in dict.fromkeys(names):
        places = [layer for layer, other in enumerate(names) if other == name]
        for layer in dict.fromkeys((places[0], places[-1])):
            yield layer, name


def _spread(total: int, count: int) -> list[int]:
    """Up to `count` of `total` indices, from the first to the last at equal steps."""
    if total <= count:
        return list(range(total))
    return [round(index * (total - 1) / (count - 1)) for index in range(count)]


def picture(matrix: np.ndarray) -> str:
    """A PNG in base64 of |matrix|: the square root of the share of its maximum, from white to dark blue."""
    size = np.abs(np.nan_to_num(matrix))
    shares = np.sqrt(size / max(float(size.max(initial=0.0)), 1e-30))
    pixels = np.round(shares * 255).astype(np.uint8)
    height, width = pixels.shape
    # Every row of a PNG begins with the number of its filter, 0 for none.
    rows = np.hstack([np.zeros((height, 1), np.uint8), pixels]).tobytes()
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"PLTE", _palette()), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b""))
    body = b"".join(struct.pack(">I", len(data)) + kind + data + _checksum(kind + data) for kind, data in chunks)
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + body).decode("ascii")


def _checksum(data: bytes) -> bytes:
    return struct.pack(">I", zlib.crc32(data))


def _palette() -> bytes:
    """256 colours, three bytes each, interpolated between the stops."""
    places = np.linspace(0, 255, len(_STOPS))
    channels = [np.interp(np.arange(256), places, [stop[channel] for stop in _STOPS]) for channel in range(3)]
    return np.round(np.stack(channels, axis=1)).astype(np.uint8).tobytes()
