"""A page that is served: what it answers to a typed text, and what it refuses."""

from __future__ import annotations

import base64
import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from browser import PHONE, needs_browser
from hypothesis import given
from hypothesis import strategies as st

from seqmix.cli.main import main
from seqmix.errors import InputError
from seqmix.inspection import Subject, mixing_matrices, open_subject
from seqmix.inspection.live import LARGEST, LiveServer, Refusal, live_server, text_of
from seqmix.inspection.texts import encode_text


@contextmanager
def running(server: LiveServer) -> Iterator[LiveServer]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def echo() -> Iterator[LiveServer]:
    """A server that gives a text's length back, and refuses an empty one; its page is its token."""

    def answer(text: str) -> dict[str, Any]:
        if not text:
            raise InputError("the text is empty: give at least one character")
        return {"length": len(text), "text": text}

    with running(LiveServer(lambda token: f"<p>{token}</p>", answer)) as server:
        yield server


@dataclass
class Answered:
    status: int
    headers: Any
    content: Any


def post(server: LiveServer, body: bytes, path: str = "/text", **headers: str | None) -> Answered:
    """Sends a body with the right headers; those given in their place (underscores for dashes), None leaves one out."""
    given = {"Content-Type": "application/json", "X-Seqmix-Token": server.token}
    given |= {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(
        server.url.rstrip("/") + path, body, {name: value for name, value in given.items() if value is not None}
    )
    return opened(request)


def opened(request: urllib.request.Request | str) -> Answered:
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return Answered(response.status, response.headers, read(response))
    except urllib.error.HTTPError as error:
        with error:
            return Answered(error.code, error.headers, read(error))


def read(response: Any) -> Any:
    content = response.read().decode("utf-8")
    return json.loads(content) if response.headers.get_content_type() == "application/json" else content


def as_json(text: str) -> bytes:
    return json.dumps({"text": text}).encode()


def test_a_text_is_answered(echo: LiveServer) -> None:
    answered = post(echo, as_json("über ∞"))
    assert (answered.status, answered.content) == (200, {"length": 6, "text": "über ∞"})


def test_the_page_holds_the_token_and_no_other_site_may_read_or_frame_it(echo: LiveServer) -> None:
    answered = opened(echo.url)
    assert answered.content == f"<p>{echo.token}</p>"
    for one in (answered, post(echo, as_json("a")), post(echo, b"")):
        assert not [name for name in one.headers if name.lower().startswith("access-control")]
        assert "frame-ancestors 'none'" in one.headers["Content-Security-Policy"]
        assert one.headers["Cache-Control"] == "no-store"


def test_it_listens_on_this_machine_alone(echo: LiveServer) -> None:
    assert echo.socket.getsockname()[0] == "127.0.0.1"


BAD = {
    "too large": (as_json("a" * LARGEST), {}, 413, r"The text takes 65,548 bytes: send at most 65,536\."),
    "wrong host": (as_json("a"), {"Host": "evil.example:80"}, 403, "answers to no other name"),
    "host without its port": (as_json("a"), {"Host": "127.0.0.1"}, 403, "answers to no other name"),
    "wrong token": (as_json("a"), {"X_Seqmix_Token": "guess"}, 403, "open the page again"),
    "a token that is no ASCII": (as_json("a"), {"X_Seqmix_Token": "\xe9"}, 403, "open the page again"),
    "no token": (as_json("a"), {"X_Seqmix_Token": None}, 403, "open the page again"),
    "another origin": (as_json("a"), {"Origin": "http://evil.example"}, 403, "comes from elsewhere"),
    "a form": (as_json("a"), {"Content_Type": "text/plain"}, 415, "must come as application/json"),
    "broken JSON": (b'{"text": "a', {}, 400, r"not JSON that can be read \("),
    "JSON without end": (b"[" * 60000, {}, 400, "not JSON that can be read"),
    "a number too long": (b"1" * 60000, {}, 400, "not JSON that can be read|must be"),
    "invalid UTF-8": (b'{"text": "\xff"}', {}, 400, "not UTF-8: byte 10 belongs to no character"),
    "half a pair": (b'{"text": "a\\ud800"}', {}, 400, "Character 1 of the text is half of a pair"),
    "no object": (b'"a"', {}, 400, 'must be {"text": ...}'),
    "no string": (b'{"text": 3}', {}, 400, 'must be {"text": ...}'),
    "more than a text": (b'{"text": "a", "port": 1}', {}, 400, 'must be {"text": ...}'),
    "an empty text": (as_json(""), {}, 400, r"^The text is empty: give at least one character\.$"),
    "a length that is none": (as_json("a"), {"Content_Length": "-1"}, 400, "Content-Length is '-1'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_in_a_sentence(echo: LiveServer, case: str) -> None:
    body, headers, status, sentence = BAD[case]
    answered = post(echo, body, **headers)
    assert answered.status == status
    assert re.search(sentence, answered.content["error"])
    assert answered.content["error"].endswith(".")
    # And the server lives.
    assert post(echo, as_json("ab")).content["length"] == 2


@given(st.binary(max_size=40) | st.text(max_size=20).map(as_json) | st.text(max_size=40).map(str.encode))
def test_any_body_is_a_text_or_a_refusal(body: bytes) -> None:
    try:
        found: str | Refusal = text_of(body)
    except Refusal as refusal:
        found = refusal
    if isinstance(found, str):
        assert json.loads(body) == {"text": found}
        found.encode()
    else:
        assert found.status == 400
        assert str(found).endswith(".")


@given(st.text(max_size=30))
def test_every_text_arrives_as_it_was_sent(text: str) -> None:
    assert text_of(as_json(text)) == text


def test_a_text_of_the_largest_size_is_taken(echo: LiveServer) -> None:
    body = as_json("a" * (LARGEST - len(as_json(""))))
    assert len(body) == LARGEST
    assert post(echo, body).status == 200


def test_a_body_of_many_megabytes_gets_its_answer_too(echo: LiveServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", echo.port, timeout=30)
    try:
        connection.putrequest("POST", "/text")
        for name, value in (("X-Seqmix-Token", echo.token), ("Content-Type", "application/json")):
            connection.putheader(name, value)
        connection.putheader("Content-Length", str(1 << 30))
        connection.endheaders()
        connection.send(b"a" * (1 << 20))
        assert connection.getresponse().status == 413
    finally:
        connection.close()


def test_a_body_without_a_length_is_refused(echo: LiveServer) -> None:
    with socket.create_connection(("127.0.0.1", echo.port), timeout=30) as connection:
        lines = [
            "POST /text HTTP/1.1",
            f"Host: 127.0.0.1:{echo.port}",
            f"X-Seqmix-Token: {echo.token}",
            "Content-Type: application/json",
        ]
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        assert b" 411 " in connection.makefile("rb").readline()


@pytest.mark.parametrize("names", [[], ["127.0.0.1:{port}", "evil.example"]])
def test_a_request_names_this_host_once(echo: LiveServer, names: list[str]) -> None:
    with socket.create_connection(("127.0.0.1", echo.port), timeout=30) as connection:
        hosts = [f"Host: {name.format(port=echo.port)}" for name in names]
        connection.sendall("\r\n".join(["GET / HTTP/1.1", *hosts, "", ""]).encode())
        answer = connection.makefile("rb").read()
    assert b" 403 " in answer.splitlines()[0]
    assert echo.token.encode() not in answer


def test_the_page_is_given_to_no_other_host(echo: LiveServer) -> None:
    answered = opened(urllib.request.Request(echo.url, headers={"Host": f"evil.example:{echo.port}"}))
    assert answered.status == 403
    assert echo.token not in json.dumps(answered.content)
    assert opened(f"http://localhost:{echo.port}/").content == f"<p>{echo.token}</p>"


@pytest.mark.parametrize("path", ["/etc/passwd", "/../live.py", "/text"])
def test_there_is_nothing_else(echo: LiveServer, path: str) -> None:
    assert opened(echo.url.rstrip("/") + path).status == 404
    assert post(echo, as_json("a"), path="/").status == 404


def test_other_methods_are_refused(echo: LiveServer) -> None:
    for method in ("OPTIONS", "PUT", "DELETE"):
        answered = opened(urllib.request.Request(echo.url, method=method))
        assert answered.status == 501
        assert not [name for name in answered.headers if name.lower().startswith("access-control")]


def test_one_text_is_read_at_a_time() -> None:
    inside, most = 0, 0

    def slow(text: str) -> dict[str, Any]:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.05)
        inside -= 1
        return {}

    with running(LiveServer(lambda token: "", slow)) as server:
        statuses: list[int] = []
        threads = [
            threading.Thread(target=lambda: statuses.append(post(server, as_json("a")).status)) for _ in range(5)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert statuses == [200] * 5
    assert most == 1


def test_a_failure_of_the_model_is_a_sentence_and_the_server_lives(capsys: pytest.CaptureFixture[str]) -> None:
    def fails(text: str) -> dict[str, Any]:
        if text == "bad":
            raise RuntimeError("broken inside")
        return {}

    with running(LiveServer(lambda token: "", fails)) as server:
        answered = post(server, as_json("bad"))
        assert (answered.status, answered.content) == (
            500,
            {"error": "The model could not read this text: the terminal shows why."},
        )
        assert post(server, as_json("good")).status == 200
    assert "broken inside" in capsys.readouterr().err


def test_a_port_that_cannot_be_had_is_named(echo: LiveServer) -> None:
    with pytest.raises(InputError, match=f"port {echo.port} cannot be listened on .* give another --port"):
        LiveServer(lambda token: "", dict, echo.port)
    with pytest.raises(InputError, match="port is 70000: give one from 1 to 65535"):
        LiveServer(lambda token: "", dict, 70000)


@pytest.fixture(scope="module")
def subjects() -> list[Subject]:
    first = open_subject("transformer", texts=["to be or not"], params="20k", tokens=24)
    return [first, open_subject("gated_conv", params="20k", tokens=24, like=first)]


@pytest.fixture(scope="module")
def live(subjects: list[Subject]) -> Iterator[LiveServer]:
    with running(live_server(subjects, tokens=24)) as server:
        yield server


def exact_rows(meta: dict[str, Any], text: str) -> np.ndarray[Any, Any]:
    """A block of causal rows, as its description says: scales, then the low and the high bytes of the codes."""
    content = zlib.decompress(base64.b64decode(text))
    heads, time_, largest = meta["heads"], meta["time"], 2 ** (meta["bits"] - 1) - 1
    assert (meta["form"], meta["lags"], meta["causal"]) == ("rows", None, True)
    scales = np.frombuffer(content[: 4 * heads * time_], "<f4").reshape(heads, time_)
    planes = np.frombuffer(content[4 * heads * time_ :], np.uint8).reshape(2, -1).astype(np.uint16)
    codes = (planes[0] | planes[1] << 8).view(np.int16).reshape(heads, -1)
    matrix = np.zeros((heads, time_, time_))
    rows, columns = np.tril_indices(time_)
    matrix[:, rows, columns] = codes
    return matrix / largest * scales[:, :, None]


def test_a_typed_text_comes_back_with_the_models_own_matrices(live: LiveServer, subjects: list[Subject]) -> None:
    words = "who listens?"
    answered = post(live, as_json(words))
    assert answered.status == 200
    content = answered.content
    text = encode_text(subjects[0].tokenizer, words, "typed", 24)
    assert content["text"]["tokens"] == text.tokens
    assert content["text"]["cut_from"] is None
    assert [len(model["mixers"]) for model in content["models"]] == [
        subject.model.config.num_hidden_layers for subject in subjects
    ]
    for entry, found in zip(
        content["models"][0]["mixers"], mixing_matrices(subjects[0].model, text.input_ids), strict=True
    ):
        (name,) = entry["blocks"]
        drawn = exact_rows(content["blocks"][name], content["packed"][name])
        # Half a step of a row's largest weight, and the rounding of scales and weights to float32.
        step = found.matrix.max(axis=-1, keepdims=True) / (2**15 - 1) / 2
        assert (abs(drawn - found.matrix) <= step * (1 + 1e-5)).all()
        assert len(entry["structure"][0]) == len(entry["sentences"][0]) == len(found.matrix)
        assert entry["structure"][0][0]["least_row_sum"] == pytest.approx(1, abs=1e-5)


def test_every_text_has_blocks_of_its_own_and_the_heads_that_the_page_shows(live: LiveServer) -> None:
    page = opened(live.url).content
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])  # type: ignore[index]
    assert data["live"] is True
    assert data["token"] == live.token
    answers = [post(live, as_json(words)).content for words in ("one text", "another text")]
    names = [*data["blocks"], *answers[0]["blocks"], *answers[1]["blocks"]]
    assert len(set(names)) == len(names)
    assert answers[0]["text"]["name"] != answers[1]["text"]["name"]
    for answer in answers:
        for shown, sent in zip(data["models"], answer["models"], strict=True):
            for known, entry in zip(shown["mixers"], sent["mixers"], strict=True):
                assert entry["shown"] == known["shown"]
                assert answer["blocks"][entry["blocks"][0]]["heads"] == len(known["shown"] or range(known["heads"]))


def test_a_typed_text_is_cut_where_the_page_cuts(live: LiveServer) -> None:
    content = post(live, as_json("a" * 1000)).content
    assert len(content["text"]["tokens"]) == 24
    assert content["text"]["cut_from"] == 1001
    empty = post(live, as_json(""))
    assert empty.status == 400
    assert empty.content["error"].endswith("is empty: give at least one character.")


def test_learned_positions_cut_a_typed_text() -> None:
    subject = open_subject("transformer:position=learned", texts=["to be"], params="20k", tokens=10)
    with running(live_server([subject], tokens=256)) as server:
        assert len(post(server, as_json("a" * 100)).content["text"]["tokens"]) == 10


def test_ctrl_c_ends_the_serving_after_the_text_that_is_read() -> None:
    done: list[str] = []

    def slow(text: str) -> dict[str, Any]:
        time.sleep(0.3)
        done.append(text)
        return {}

    server = LiveServer(lambda token: "", slow)
    own = threading.main_thread().ident
    assert own is not None

    def interrupt() -> None:
        asking = threading.Thread(target=post, args=(server, as_json("last")))
        asking.start()
        while not server.one_at_a_time.locked():
            time.sleep(0.01)
        signal.pthread_kill(own, signal.SIGINT)
        asking.join()

    other = threading.Thread(target=interrupt)
    other.start()
    server.run()
    assert done == ["last"]
    other.join()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", server.port), timeout=5)


def test_the_command_names_the_address_and_says_that_it_stopped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pages: list[str] = []

    def serve(server: LiveServer, poll_interval: float = 0.5) -> None:
        pages.append(server.page.decode())
        pages.append(server.url)
        raise KeyboardInterrupt

    monkeypatch.setattr(LiveServer, "serve_forever", serve)
    assert main(["inspect", "gated_conv", "--live", "--params", "20k", "--text", "to be", "--tokens", "16"]) == 0
    errors = capsys.readouterr().err
    assert pages[1] in errors
    assert "stopped" in errors
    assert "<h1>gated_conv</h1>" in pages[0]


def test_a_taken_port_is_named_before_the_page_is_made(echo: LiveServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "gated_conv", "--live", "--port", str(echo.port), "--params", "20k"]) == 2
    assert f"port {echo.port} cannot be listened on" in capsys.readouterr().err


@contextmanager
def served(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command itself, and the address that it names."""
    command = [sys.executable, "-m", "seqmix", "inspect", "gated_conv", "--live", "--params", "20k", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        seen = []
        for line in process.stderr:
            seen.append(line)
            if found := re.search(r"http://127\.0\.0\.1:\d+/", line):
                break
        else:
            raise AssertionError("".join(seen))
        yield process, found[0]
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_the_command_serves_until_it_is_interrupted() -> None:
    with served("--text", "to be or not to be", "--tokens", "16") as (process, url):
        assert "<h1>gated_conv</h1>" in opened(url).content
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0
        assert "stopped" in errors
        assert "Traceback" not in errors


@needs_browser[1]
@needs_browser[0]
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_text_typed_in_a_browser_is_drawn(browser: Any, live: LiveServer, scheme: str) -> None:
    complaints: list[str] = []
    page = browser.new_page(viewport=dict(zip(("width", "height"), PHONE, strict=True)), color_scheme=scheme)
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(live.url)
    page.wait_for_selector("html[data-ready]")
    texts = page.locator("#matrix").get_by_label("Reads")
    before = texts.locator("option").count()
    page.get_by_label("Type another text").fill("hello <b>you</b>")
    page.get_by_role("button", name="Read it").press("Enter")
    texts.locator("option").nth(before).wait_for(state="attached")
    chosen = texts.evaluate("(box) => box.options[box.selectedIndex].label")
    assert chosen.startswith("typed text")
    assert page.get_by_role("status").filter(has_text=f"{chosen} is shown.").count() == 1
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert complaints == []
    page.get_by_label("Type another text").fill("x" * LARGEST)
    page.get_by_role("button", name="Read it").click()
    page.get_by_text("send at most 65,536.").wait_for()
    page.close()
