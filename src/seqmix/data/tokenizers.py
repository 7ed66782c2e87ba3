"""Text to token ids: bytes, a BPE trained on the training part, a tokenizer.json that exists, or a task's words.

All but the last are byte-level tokenizers of the tokenizers library, so that a run folder opens with AutoTokenizer. A
document's text is always encoded as text: a literal "<|end|>" in it never becomes the special token.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from seqmix.data.readers import reason_of
from seqmix.errors import InputError

END = "<|end|>"
PAD = "<|pad|>"
BYTES = "bytes"
NUM_BYTES = 256
_SPECIAL = (END, PAD)
_SMALLEST_BPE = NUM_BYTES + len(_SPECIAL)
_SETTINGS_FILES = ("special_tokens_map.json", "tokenizer_config.json")
_SETTINGS = (
    "bos_token",
    "eos_token",
    "pad_token",
    "unk_token",
    "chat_template",
    "clean_up_tokenization_spaces",
    "model_max_length",
    "padding_side",
    "truncation_side",
)
_USUAL_ENDS = (END, "<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[SEP]")


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Ids 0 to 255 are the bytes themselves, 256 is <|end|> (also bos and eos), 257 is <|pad|>."""
    model = models.BPE(vocab={letter: byte for byte, letter in enumerate(byte_letters())}, merges=[])
    backend = Tokenizer(model)
    # Without the word pattern a text is one run of letters, which is then looked up letter by letter.
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in _SPECIAL])
    return _finished(backend)


def train_bpe(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of at most `vocab_size` tokens, <|end|>, <|pad|> and the 256 bytes among them."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=list(_SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return _finished(backend)


def word_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """Words between white space, by id; the first is the begin, the end and the padding of a text."""
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token=words[0]))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=words[0],
        eos_token=words[0],
        pad_token=words[0],
        clean_up_tokenization_spaces=False,
    )


def load_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """A tokenizer.json, or a folder with one; its own end token is kept, <|end|> is added where it has none.

    Raises InputError for anything else. Nothing is unpickled and no code of the folder runs.
    """
    file = tokenizer_file(path)
    try:
        options = {"clean_up_tokenization_spaces": False}
        for name in _SETTINGS_FILES:
            if (file.parent / name).is_file():
                options |= _settings(file.parent / name)
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(file), **options)
    except Exception as error:  # the Rust parser raises a bare Exception
        raise InputError(
            f"{file} is not a readable tokenizer ({reason_of(error)}): give a tokenizer.json of Hugging Face"
        ) from error
    if tokenizer.eos_token is None:
        known = tokenizer.get_vocab()
        tokenizer.add_special_tokens({"eos_token": next((token for token in _USUAL_ENDS if token in known), END)})
    if tokenizer.bos_token is None:
        tokenizer.add_special_tokens({"bos_token": tokenizer.eos_token})
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": tokenizer.eos_token})
    return tokenizer


def _settings(file: Path) -> dict[str, Any]:
    """What a settings file beside a tokenizer.json says of the tokens and the sides, and nothing else of it.

    Opening the folder with transformers would also look at a model's config.json there.
    """
    known = json.loads(file.read_text(encoding="utf-8"))
    values = {key: known[key] for key in _SETTINGS if known.get(key) is not None}
    return {key: value["content"] if isinstance(value, dict) else value for key, value in values.items()}


def tokenizer_file(path: Path) -> Path:
    """The tokenizer.json that a path stands for; InputError when there is none."""
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"there is no tokenizer at {path}: write bytes, bpe:SIZE, or the path of a tokenizer.json")
    return file


def bpe_size(spec: str) -> int | None:
    """N of "bpe:N", None for another tokenizer; InputError for a size that is none or too small."""
    if spec != "bpe" and not spec.startswith("bpe:"):
        return None
    size = spec.removeprefix("bpe:")
    if not size.isascii() or not size.isdigit() or int(size) < _SMALLEST_BPE:
        raise InputError(f"the tokenizer {spec!r} has no usable size: write bpe:N with N at least {_SMALLEST_BPE}")
    return int(size)


def tokenizer_key(spec: str) -> str:
    """What identifies a tokenizer before it is trained or loaded, for the cache."""
    if spec == BYTES:
        return BYTES
    size = bpe_size(spec)
    if size is not None:
        return f"bpe:{size} by tokenizers {tokenizers.__version__}"
    file = tokenizer_file(Path(spec).expanduser())
    digest = hashlib.sha256()
    for part in (file, *(file.parent / name for name in _SETTINGS_FILES)):
        try:
            digest.update(part.read_bytes() if part.is_file() else b"")
        except OSError as error:
            raise InputError(f"{part} cannot be read: {error.strerror or error}") from error
    return digest.hexdigest()


def is_byte_tokenizer(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether ids below 256 are the bytes themselves, as in `byte_tokenizer`."""
    vocabulary = tokenizer.get_vocab()
    if len(vocabulary) != _SMALLEST_BPE or tokenizer.backend_tokenizer.normalizer is not None:
        return False
    return all(vocabulary.get(letter) == byte for byte, letter in enumerate(byte_letters()))


class TextEncoder:
    """Pieces of text to ids with a tokenizer's own rules, without special tokens, cuts or padding."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._backend.encode_special_tokens = True
        self._backend.no_truncation()
        self._backend.no_padding()
        self.dtype = np.dtype(np.uint16 if len(tokenizer) < 1 << 16 else np.uint32)

    @property
    def reads_pieces(self) -> bool:
        """Whether a text may be encoded piece by piece: byte-level rules that treat a start like the rest."""
        rules = json.loads(self._backend.to_str())
        steps = rules["pre_tokenizer"] or {}
        byte_level = [step for step in steps.get("pretokenizers", [steps]) if step.get("type") == "ByteLevel"]
        return rules["normalizer"] is None and bool(byte_level) and not byte_level[0].get("add_prefix_space", True)

    def encode(self, texts: Sequence[str]) -> list[NDArray[Any]]:
        """The ids of each text."""
        encoded = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.asarray(one.ids, dtype=self.dtype) for one in encoded]

    def is_lossless(self, text: str) -> bool:
        """Whether decoding gives the text back."""
        ids = self._backend.encode(text, add_special_tokens=False).ids
        return bool(self._backend.decode(ids, skip_special_tokens=False) == text)


def decode_text(content: bytes, name: str, offset: int) -> str:
    """UTF-8 text of the bytes from `offset` on of a document; InputError that names the first byte that is none."""
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{name} is not UTF-8 text at byte {offset + error.start}: convert it, or train on its bytes with "
            "--tokenizer bytes"
        ) from error


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json; OSError when they cannot be written."""
    try:
        tokenizer.save_pretrained(folder)
    except OSError:
        raise
    except Exception as error:  # the Rust writer raises a bare Exception
        raise OSError(str(error)) from error


def _finished(backend: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=END,
        eos_token=END,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
    )


def byte_letters() -> list[str]:
    """The letter of each byte in byte-level tokenizers: itself when it is visible in Latin-1, else one from 256 on."""
    visible = re.compile(r"[!-~¡-¬®-ÿ]")
    letters = []
    hidden = 0
    for byte in range(NUM_BYTES):
        if visible.match(chr(byte)):
            letters.append(chr(byte))
        else:
            letters.append(chr(NUM_BYTES + hidden))
            hidden += 1
    return letters
