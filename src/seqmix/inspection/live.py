"""A page that is served, so that further texts can be typed on it: `seqmix inspect --live`.

The server listens on 127.0.0.1 alone, and only its own page gets an answer. Another site that a browser has open could
send requests here too, so each request must name this host (a foreign name that was made to point here does not), and
a text must come as JSON with the token that stands in the page; nothing allows other origins to read an answer.
"""

from __future__ import annotations

import hmac
import json
import secrets
import threading
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from seqmix.errors import InputError, SeqmixError
from seqmix.inspection.costs import longest_document
from seqmix.inspection.page import HEADS, Payload, Show, make_page, text_payload
from seqmix.inspection.subject import DEFAULT_TOKENS, Subject
from seqmix.inspection.texts import encode_text

LARGEST = 64 << 10
"""Bytes of a request's body, at most."""

HOST = "127.0.0.1"
PATIENCE = 60.0
"""Seconds that a text waits for the one before it, and that a connection may be silent."""

_UNREAD = 1 << 20
"""Bytes of a refused body that are read all the same, so that the sender gets to the answer."""

_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline' data:; style-src 'unsafe-inline'; "
    "img-src data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

Answer = Callable[[str], dict[str, Any]]
"""From a text to the document that the page adds; an InputError says what is wrong with the text."""


class Refusal(Exception):
    """A request that is not answered: its status and a sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class LiveServer(ThreadingHTTPServer):
    """Serves one page, and answers the texts that it sends, one at a time.

    Args:
        page: from the token to the page's HTML.
        answer: called with each text, never twice at once.
        port: 0 takes a free one.

    Raises:
        InputError: the port cannot be had.
    """

    daemon_threads = True

    def __init__(self, page: Callable[[str], str], answer: Answer, port: int = 0) -> None:
        if not 0 <= port < 1 << 16:
            raise InputError(f"port is {port}: give one from 1 to 65535, or 0 for any that is free")
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            raise InputError(
                f"port {port} cannot be listened on ({error.strerror}): give another --port, or 0 for any that is free"
            ) from error
        self.token = secrets.token_urlsafe(32)
        self.answer, self.one_at_a_time = answer, threading.Lock()
        try:
            self.page = page(self.token).encode("utf-8")
        except BaseException:
            self.server_close()
            raise

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{HOST}:{self.port}/"

    @property
    def hosts(self) -> set[str]:
        """What a request may call this machine."""
        return {f"{name}:{self.port}" for name in (HOST, "localhost")}

    def run(self) -> None:
        """Serves until Ctrl-C; a text that is being read is finished first."""
        try:
            self.serve_forever()
        except KeyboardInterrupt:
            pass
        finally:
            self.server_close()
            # A thread that computes while the interpreter ends would take the process down.
            self.one_at_a_time.acquire(timeout=PATIENCE)


class _Handler(BaseHTTPRequestHandler):
    server: LiveServer
    unread = 0
    server_version, sys_version = "seqmix", ""
    timeout = PATIENCE
    error_content_type, error_message_format = "text/plain; charset=utf-8", "%(message)s\n"

    def do_GET(self) -> None:
        """The page."""
        try:
            self._check_host()
            if self.path not in ("/", "/index.html"):
                raise Refusal(404, f"There is nothing at {self.path}: the page is at /.")
        except Refusal as refusal:
            self._refuse(refusal)
            return
        self._send(200, "text/html; charset=utf-8", self.server.page)

    def do_POST(self) -> None:
        """A text, as {"text": ...}: its entry and its matrices."""
        try:
            document = self._answer()
        except Refusal as refusal:
            self._refuse(refusal)
        except SeqmixError as error:
            sentence = str(error)
            self._refuse(Refusal(400, f"{sentence[0].upper()}{sentence[1:]}."))
        except Exception:
            self._refuse(Refusal(500, "The model could not read this text: the terminal shows why."))
            raise
        else:
            self._send(200, "application/json", json.dumps(document, allow_nan=False).encode("utf-8"))

    def _answer(self) -> dict[str, Any]:
        """Checks first what says least about this server, and reads the body last."""
        length = self.headers.get("Content-Length")
        self.unread = int(length) if length is not None and length.isascii() and length.isdecimal() else 0
        self._check_host()
        if self.path != "/text":
            raise Refusal(404, f"There is nothing at {self.path}: texts go to /text.")
        origin = self.headers.get("Origin")
        if origin is not None and origin not in {f"http://{host}" for host in self.server.hosts}:
            raise Refusal(403, "This page comes from elsewhere: open the address that the terminal shows.")
        if not hmac.compare_digest(self.headers.get("X-Seqmix-Token", "").encode(), self.server.token.encode()):
            raise Refusal(403, "This page was made by a server that has ended: open the page again.")
        if self.headers.get_content_type() != "application/json":
            raise Refusal(415, "The text must come as application/json.")
        text = text_of(self._body(length))
        if not self.server.one_at_a_time.acquire(timeout=PATIENCE):
            raise Refusal(503, "Another text is still being read: try again in a while.")
        try:
            return self.server.answer(text)
        finally:
            self.server.one_at_a_time.release()

    def _check_host(self) -> None:
        names = self.headers.get_all("Host") or []
        if len(names) != 1 or names[0].lower() not in self.server.hosts:
            raise Refusal(403, f"This server is {self.server.url} and answers to no other name.")

    def _body(self, length: str | None) -> bytes:
        if length is None:
            raise Refusal(411, "The request does not say how long it is: send a Content-Length.")
        if not (length.isascii() and length.isdecimal()):
            raise Refusal(400, f"Content-Length is {length!r}: it must be a number of bytes.")
        if int(length) > LARGEST:
            raise Refusal(413, f"The text takes {int(length):,} bytes: send at most {LARGEST:,}.")
        body = self.rfile.read(int(length))
        self.unread -= len(body)
        return body

    def _refuse(self, refusal: Refusal) -> None:
        left = min(self.unread, _UNREAD)
        while left > 0 and (piece := self.rfile.read(min(left, 1 << 16))):
            left -= len(piece)
        self._send(refusal.status, "application/json", json.dumps({"error": str(refusal)}).encode("utf-8"))

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        for name, value in {**_HEADERS, "Content-Type": kind, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Says nothing of a request: the terminal is for what its user has to know."""


def text_of(body: bytes) -> str:
    """The text of a request's body, {"text": ...} in UTF-8; a Refusal says what else it is."""
    try:
        document = json.loads(body.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise Refusal(400, f"The request is not UTF-8: byte {error.start} belongs to no character.") from error
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"The request is not JSON that can be read ({error}).") from error
    if not isinstance(document, dict) or set(document) != {"text"} or not isinstance(document["text"], str):
        raise Refusal(400, 'The request must be {"text": ...} with a string.')
    text: str = document["text"]
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise Refusal(
            400, f"Character {error.start} of the text is half of a pair and has no meaning alone."
        ) from error
    return text


def live_server(
    subjects: Sequence[Subject],
    *,
    port: int = 0,
    tokens: int = DEFAULT_TOKENS,
    heads: int = HEADS,
    show: Show | None = None,
) -> LiveServer:
    """A server of the page of one or two subjects, which is made here; call its `run`.

    Args:
        port: to listen on; 0 takes a free one.
        tokens: of a typed text that are shown; a longer one is cut, and the page says so.
        heads: of a mixer that are shown at most.
        show: is told how far the making of the page is.
    """
    bounds = [bound for subject in subjects if (bound := longest_document(subject.model)) is not None]
    longest = min([tokens, *bounds])
    models: list[dict[str, Any]] = []
    typed = 0

    def page(token: str) -> str:
        made = make_page(subjects, heads=heads, token=token, show=show)
        models.extend(made.data["models"])
        return made.html

    def answer(words: str) -> dict[str, Any]:
        nonlocal typed
        text = encode_text(subjects[0].tokenizer, words, f"typed text {typed + 1}", longest)
        payload = text_payload(subjects, text, typed, models)
        typed += 1
        return document_of(payload)

    return LiveServer(page, answer, port)


def document_of(payload: Payload) -> dict[str, Any]:
    """What goes to the page: the data of `text_payload`, and the packed matrices by id."""
    return {**payload.data, "packed": payload.blocks}
