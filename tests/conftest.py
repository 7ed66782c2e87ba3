"""What all tests share: one thread, seeded random numbers, a cache of their own, a small corpus."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from browser import BROWSER, FLAGS

from seqmix.kernels.library import INSTRUCTION_SETS, function, instruction_set, library, why_missing

# A busy machine is no failure, and the same commit gives the same examples.
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(scope="session", autouse=True)
def _one_thread_and_own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Child processes take over both through the environment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEQMIX_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("HF_HUB_OFFLINE", "1")
        torch.set_num_threads(1)
        yield


@pytest.fixture(autouse=True)
def _seeded() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def corpus_folder(tmp_path: Path) -> Path:
    """A folder with 12 text files of a small grammar, about 24 kB in all: enough to train on, quick to read."""
    draw = random.Random(7)
    folder = tmp_path / "corpus"
    folder.mkdir()
    subjects, verbs, objects = ("a cat", "the dog", "one bird"), ("sees", "hears", "follows"), ("it", "her", "them")
    for number in range(12):
        lines = [f"{draw.choice(subjects)} {draw.choice(verbs)} {draw.choice(objects)}." for _ in range(100)]
        (folder / f"part{number:02d}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless Chromium; tests that take it carry `needs_browser`."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture(params=INSTRUCTION_SETS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Each build of the compiled kernels that this processor can run, in turn."""
    loaded = library()
    if loaded is None:
        pytest.skip(str(why_missing()))
    widest = loaded.seqmix_instruction_set().decode()
    if INSTRUCTION_SETS.index(request.param) > INSTRUCTION_SETS.index(widest):
        pytest.skip(f"this processor has no {request.param}")
    monkeypatch.setenv("SEQMIX_ISA", request.param)
    instruction_set.cache_clear(), function.cache_clear()
    yield request.param
    monkeypatch.undo()
    instruction_set.cache_clear(), function.cache_clear()
