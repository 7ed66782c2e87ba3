"""How long `seqmix inspect` takes, how large its page is, and how soon the page answers in headless Chromium.

    python benchmarks/inspect_page.py [--models transformer,gated_conv,...] [--params 10M] [--layers 6] [--tokens 256]
        [--rounds 3] [--threads 2] [--quick] [--json] [--out FILE]

The command is timed as a whole process, imports included. The page is ready when all of its sections are made, counted
from the beginning of the navigation. A redraw is counted from a slider's input event to the end of the frame that
draws, for every slider of the page. Chromium is Debian's, without a GPU.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from shared import Goal, arguments, finish, progress

from seqmix.bench.timing import environment
from seqmix.errors import SeqmixError

MODELS = "transformer,gated_conv,convsamba,mamba2,mixer:lstm"
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]

REDRAWS = """async (rounds) => {
  const frame = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done, 0)));
  const found = {};
  const count = document.querySelectorAll('input[type="range"]').length;
  for (let place = 0; place < count; place += 1) {
    const times = [];
    for (let round = 0; round < rounds; round += 1) {
      const slider = document.querySelectorAll('input[type="range"]')[place];
      if (!slider || slider.disabled || !slider.offsetParent) break;
      const first = Number(slider.min), last = Number(slider.max), step = Number(slider.step) || 1;
      const half = first + step * Math.floor(((last - first) / step) * ((round % 4) + 1) / 6);
      slider.value = half;
      const began = performance.now();
      slider.dispatchEvent(new Event("input", { bubbles: true }));
      await frame();
      times.push(performance.now() - began);
      await frame();
    }
    if (times.length) {
      const slider = document.querySelectorAll('input[type="range"]')[place];
      found[`${place} ${slider.closest("label, .control")?.textContent?.trim().slice(0, 40) ?? ""}`] = times;
    }
  }
  return found;
}"""


def main() -> None:
    """Measures and prints."""
    parser = arguments((__doc__ or "").splitlines()[0])
    parser.add_argument("--models", default=MODELS)
    parser.add_argument("--params", default="10M")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=256)
    given = parser.parse_args()
    rounds = given.rounds or (1 if given.quick else 3)
    if given.quick:
        given.models, given.params, given.layers, given.tokens = "gated_conv", "50k", 2, 32
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder, progress("inspecting") as bar:
        names = given.models.split(",")
        for number, name in enumerate(names):
            bar.update(number / len(names), label=name)
            page = Path(folder) / f"{number}.html"
            found[name] = {"seconds": [_inspect(name, page, given) for _ in range(rounds)]}
            found[name]["megabytes"] = page.stat().st_size / 1e6
            found[name] |= _browse(page, rounds=5 if given.quick else 12)
    goals = []
    for name, one in found.items():
        goals += [
            _goal(f"{name}: inspect", statistics.median(one["seconds"]), 20, "s"),
            _goal(f"{name}: page", one["megabytes"], 3, "MB"),
            _goal(f"{name}: ready", statistics.median(one["ready_ms"]), 1000, "ms"),
            _goal(f"{name}: redraw, median of the slowest slider", one["slowest_slider_ms"], 50, "ms"),
        ]
    setting = {key: getattr(given, key) for key in ("params", "layers", "tokens")}
    finish(given, goals, {"found": found, "setting": setting, "environment": environment()})


def _goal(what: str, value: float, limit: float, unit: str) -> Goal:
    return Goal(what=what, value=value, at_least=limit, aim=limit / 2, unit=unit, smaller=True)


def _inspect(name: str, page: Path, given: Any) -> float:
    """Seconds of one call of the command."""
    model = f"{name}:num_hidden_layers={given.layers}"
    command = [sys.executable, "-m", "seqmix", "inspect", model, "--params", given.params]
    command += ["--tokens", str(given.tokens), "--out", str(page)]
    if given.threads is not None:
        command += ["--threads", str(given.threads)]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SeqmixError(f"seqmix inspect {model} failed: {done.stderr.strip().splitlines()[-1]}")
    return time.perf_counter() - start


def _browse(page: Path, rounds: int) -> dict[str, Any]:
    """Milliseconds until the page is ready, and of every slider's redraws."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        raise SeqmixError("no Chromium is installed: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        ready = []
        for _ in range(3):
            opened = browser.new_page(viewport={"width": 1280, "height": 800})
            opened.goto(page.as_uri())
            opened.wait_for_selector("html[data-ready]")
            ready.append(float(opened.evaluate("document.documentElement.dataset.readyAt")))
        opened.wait_for_timeout(1000)
        redraws = opened.evaluate(REDRAWS, rounds)
        browser.close()
    medians = {name: statistics.median(times) for name, times in redraws.items()}
    return {
        "ready_ms": ready,
        "redraw_ms": medians,
        "slowest_redraw_ms": max(max(times) for times in redraws.values()),
        "slowest_slider_ms": max(medians.values()),
    }


if __name__ == "__main__":
    main()
