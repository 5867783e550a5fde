"""HTTP downloads that go on where they stopped, and say what is wrong where they cannot.

What has come lies in a part file until it is complete, and beside it the version of what it is a
part of, so that two versions are never joined. Servers without byte ranges send a file from its
start; what is there already is then read past.
"""

from __future__ import annotations

import fcntl
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import requests
from tqdm import tqdm
from urllib3.exceptions import HTTPError, ReadTimeoutError

from cryonb.base.files import check_room

TIMEOUT_S = 30.0  # the longest silence of a server
CONNECT_S = 10.0  # the longest wait for a connection: many firewalls answer nothing at all
TRIES = 3  # in a row, without a byte
WAIT_S = 1.0  # before the second try; longer before the next
CHUNK = 1 << 18
BUSY = (429, 500, 502, 503, 504)
OFFLINE = "without a network, use channel, prestin or a file of your own"


class Remote(NamedTuple):
    """A file on a server: its address, its bytes, and what tells one version from another."""

    url: str
    size: int
    version: str


class Span(NamedTuple):
    """The bytes from `start` up to `stop` of a remote file."""

    remote: Remote
    start: int
    stop: int


class Interrupted(ConnectionError):
    """The server did not answer, or not to the end: worth another try."""


def connect(timeout_s: float = TIMEOUT_S) -> Callable[..., requests.Response]:
    """Return the function ``get(url, headers=...)`` of a session with this longest silence."""
    return partial(
        requests.Session().get, stream=True, timeout=(min(CONNECT_S, timeout_s), timeout_s)
    )


def look(get: Callable, url: str) -> Remote:
    """Ask a server for the size and the version of a file.

    FileNotFoundError if the server has no such file; OSError without a connection, or if it
    refuses; ValueError if a web page comes in place of the file, or the address is none.
    """

    def once() -> Remote:
        with _ask(get, url, 0, 1) as (_, remote, _):
            return remote

    return _insist(once)


def copy(get: Callable, span: Span, write: Callable[[bytes], object]) -> None:
    """Pass the bytes of a span to `write`, in order and each once, over as many tries as it takes.

    Errors as in `look`, and OSError if the file on the server is no longer the same.
    """
    at = span.start

    def go_on() -> None:
        nonlocal at
        with _ask(get, span.remote.url, at, span.stop) as (reply, remote, first):
            if remote.version != span.remote.version:
                raise OSError(
                    f"{remote.url} was changed while it was fetched: run the same command again"
                )
            skip = at - first
            # What is there at once, so that nothing that came is lost if the rest does not.
            while chunk := reply.raw.read1(CHUNK, decode_content=False):
                wanted = chunk[skip : skip + span.stop - at]
                skip = max(0, skip - len(chunk))
                write(wanted)
                at += len(wanted)
                if at == span.stop:
                    return
        raise Interrupted(f"{_host(span.remote.url)} broke off")

    _insist(go_on, lambda: at)


def assemble(
    get: Callable, spans: list[Span], part: Path, version: str, prefix: bytes = b""
) -> None:
    """Write a prefix and spans of remote files to `part`, going on behind what it holds of them.

    Parameters
    ----------
    get : callable
        From `connect`.
    spans : list of Span
        In the order of the file to be made.
    part : Path
        Complete when this returns; kept, for the next time, when it raises. See `used`.
    version : str
        Of the whole; a part of another version is thrown away.
    prefix : bytes
        What comes before the spans.

    Raises
    ------
    OSError, ValueError
        As `copy`; too little space; another process is at work on the same part.
    """
    total = len(prefix) + sum(span.stop - span.start for span in spans)
    with _open_part(part, version) as file:
        done = file.seek(0, os.SEEK_END)
        advice = "name another --cache, or ask for fewer --max-images"
        check_room(part.parent, total - done, advice)
        file.write(prefix[done:])
        skip = max(0, done - len(prefix))
        with tqdm(total=total, initial=done, unit="B", unit_scale=True, desc=part.stem[1:]) as bar:
            bar.update(len(prefix[done:]))
            for span in spans:
                there = min(skip, span.stop - span.start)
                skip -= there
                if span.start + there < span.stop:
                    rest = span._replace(start=span.start + there)
                    copy(get, rest, lambda chunk: bar.update(file.write(chunk)))


def download(get: Callable, url: str, part: Path) -> None:
    """Download a whole file to `part`; see `assemble`."""
    remote = look(get, url)
    assemble(get, [Span(remote, 0, remote.size)], part, remote.version)


@contextmanager
def used(part: Path) -> Iterator[None]:
    """Throw a complete part away once it is used or found bad; keep it where the disk was full."""
    try:
        yield
    except ValueError:
        _discard(part)
        raise
    _discard(part)


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _note(part).unlink(missing_ok=True)


def _note(part: Path) -> Path:
    return part.with_name(f"{part.name}.version")


@contextmanager
def _open_part(part: Path, version: str) -> Iterator:
    """Open a part for writing at its end; it is empty if it was of another version."""
    with open(part, "a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(f"{part} is being fetched by another process: wait for it") from None
        note = _note(part)
        if not note.is_file() or note.read_text() != version:
            file.truncate(0)
            note.write_text(version)
        yield file


def _insist(call: Callable, done: Callable[[], int] = lambda: 0):
    """Return ``call()``; after an interruption again, until TRIES in a row leave `done` as it was.

    So a connection that breaks off again and again, but brings something each time, is put up with.
    """
    tries, before = 0, done()
    while True:
        try:
            return call()
        except Interrupted as error:
            tries, before = tries + 1 if done() == before else 0, done()
            if tries >= TRIES:
                raise OSError(
                    f"{error}, {TRIES} times in a row: check the network and run the same command "
                    f"again, which goes on where this one stopped; {OFFLINE}"
                ) from error
            tqdm.write(f"{error}: trying again", file=sys.stderr)
            time.sleep(WAIT_S * max(1, tries))


@contextmanager
def _ask(get: Callable, url: str, start: int, stop: int) -> Iterator:
    """Ask for some bytes; give the reply, the file it is of, and where in it the reply begins.

    Compression on the way is refused: the bytes of a range would be others.
    """
    headers = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
    try:
        with get(url, headers=headers) as reply:
            _check_reply(reply, url)
            yield reply, *_describe(reply, url)
    except (requests.Timeout, ReadTimeoutError) as error:
        raise Interrupted(f"{_host(url)} was silent for too long") from error
    except requests.ConnectionError as error:
        raise Interrupted(f"{_host(url)}: no connection ({type(error).__name__})") from error
    except HTTPError as error:
        raise Interrupted(f"{_host(url)} broke off") from error


def _host(url: str) -> str:
    return urlsplit(url).netloc


def _check_reply(reply: requests.Response, url: str) -> None:
    says = f"{reply.status_code} {reply.reason}"
    if reply.status_code in (404, 410):
        raise FileNotFoundError(f"there is no {url} ({says}): check the name")
    if reply.status_code in BUSY:
        raise Interrupted(f"{_host(url)} answers {says}")
    if reply.status_code not in (200, 206):
        raise OSError(f"{url} is not given out ({says}): try another --mirror")
    if "text/html" in reply.headers.get("Content-Type", ""):
        raise ValueError(
            f"{url} came as a web page, perhaps the login page of a network or an error page: "
            "open it in a browser, or try another --mirror"
        )


def _describe(reply: requests.Response, url: str) -> tuple[Remote, int]:
    """Return the file that a reply is of, and the place in it where the reply begins."""
    size = f"bytes 0-/{reply.headers.get('Content-Length', '')}"
    if reply.status_code == 206:
        size = reply.headers.get("Content-Range", "")
    found = re.fullmatch(r"bytes (\d+)-\d*/(\d+)", size)
    if not found:
        raise OSError(f"{_host(url)} does not say how long {url} is: try another --mirror")
    # The date first: mirrors of one host may differ in their ETag.
    version = reply.headers.get("Last-Modified") or reply.headers.get("ETag", "")
    return Remote(url, int(found[2]), f"{found[2]} bytes, {version}"), int(found[1])
