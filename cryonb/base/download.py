"""HTTP downloads that go on where they stopped, and files that are kept and checked.

What has come lies in a part file until it is complete, and beside it the version of what it is a
part of, so that two versions are never joined. Servers without byte ranges send a file from its
start; what is there already is then read past.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import requests
from pooch import file_hash
from requests.adapters import HTTPAdapter
from tqdm import tqdm
from urllib3.exceptions import HTTPError, ReadTimeoutError
from urllib3.util import Retry

from cryonb.base.files import check_room, sole
from cryonb.base.options import TIMEOUT_S

CONNECT_S = 10.0  # the longest wait for a connection: many firewalls answer nothing at all
LEAST_RATE = 1000  # bytes a second; what comes slower for as long as the timeout is broken off
TRIES = 3  # in a row that bring less than that
WAIT_S = 1.0  # before the second try; longer before the next
CHUNK = 1 << 18
BUSY = (429, 500, 502, 503, 504)
OFFLINE = "without a network, use channel, prestin or a file of your own"
RETRY = "run the same command again, or try another --mirror"
REVISED = "if its archive has revised it, run the same command again after deleting"


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
    """The server did not answer to the end: worth another try."""


def shown(url: str) -> str:
    """Address to be printed and recorded: without the user name and password in it."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


class Client:
    """Bytes of remote files, over as many tries as it takes; `timeout_s` is the longest silence."""

    def __init__(self, timeout_s: float = TIMEOUT_S):
        if not 0 < timeout_s <= 3600:
            raise ValueError(f"a timeout of {timeout_s} s: give seconds above 0, up to 3600")
        self.timeout_s = timeout_s
        self.session = requests.Session()
        retries = Retry(
            TRIES - 1,
            backoff_factor=WAIT_S,
            status_forcelist=BUSY,
            raise_on_status=False,
            respect_retry_after_header=False,
        )
        for scheme in ("http://", "https://"):
            self.session.mount(scheme, HTTPAdapter(max_retries=retries))

    def look(self, url: str) -> Remote:
        """Ask a server for the size and the version of a file.

        FileNotFoundError if the server has no such file; OSError without a connection, or if it
        refuses; ValueError if a web page comes in place of the file.
        """
        with self._ask(url, 0, 1) as (_, remote, _):
            return remote

    def read(self, span: Span) -> Iterator[bytes]:
        """Yield the bytes of a span, in order and each once.

        Errors as in `look`, and OSError if the file on the server is no longer the same, or if it
        comes slower than `LEAST_RATE`.
        """
        at, tries = span.start, 0
        while at < span.stop:
            before = at
            try:
                for chunk in self._read_once(span._replace(start=at)):
                    at += len(chunk)
                    yield chunk
            except Interrupted as error:
                tries = tries + 1 if at - before < LEAST_RATE * self.timeout_s else 0
                if tries >= TRIES:
                    raise OSError(
                        f"{error}, {TRIES} times in a row: check the network and run the same "
                        f"command again, which goes on where this one stopped; {OFFLINE}"
                    ) from error
                tqdm.write(f"{error}: trying again", file=sys.stderr)
                time.sleep(WAIT_S * max(1, tries))

    def _read_once(self, span: Span) -> Iterator[bytes]:
        """Yield bytes of a span until its end, or `Interrupted`."""
        at, host = span.start, urlsplit(shown(span.remote.url)).netloc
        with self._ask(span.remote.url, at, span.stop) as (reply, remote, first):
            if remote.version != span.remote.version:
                raise OSError(f"{shown(remote.url)} was changed while it was fetched: {RETRY}")
            skip, since, came = at - first, time.monotonic(), 0
            # What is there at once, so that nothing that came is lost if the rest does not.
            while at < span.stop and (chunk := reply.raw.read1(CHUNK, decode_content=False)):
                came += len(chunk)
                wanted = chunk[skip : skip + span.stop - at]
                skip, at = max(0, skip - len(chunk)), at + len(wanted)
                yield wanted
                if time.monotonic() - since > self.timeout_s:
                    if came < LEAST_RATE * self.timeout_s:
                        raise Interrupted(f"{host} sends less than {LEAST_RATE} bytes a second")
                    since, came = time.monotonic(), 0
        if at < span.stop:
            raise Interrupted(f"{host} broke off")

    @contextmanager
    def _ask(self, url: str, start: int, stop: int) -> Iterator:
        """Ask for some bytes; give the reply, the file it is of, and where in it it begins.

        Compression on the way is refused: the bytes of a range would be others.
        """
        headers = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        timeout, host = min(CONNECT_S, self.timeout_s), urlsplit(shown(url)).netloc
        try:
            with self.session.get(
                url, headers=headers, stream=True, timeout=(timeout, self.timeout_s)
            ) as reply:
                yield reply, *_describe(reply, url)
        except requests.RequestException as error:  # its text may hold a password
            raise OSError(f"{host}: no connection ({type(error).__name__}): {OFFLINE}") from None
        except ReadTimeoutError as error:
            raise Interrupted(f"{host} was silent for too long") from error
        except HTTPError as error:
            raise Interrupted(f"{host} broke off") from error


def _describe(reply: requests.Response, url: str) -> tuple[Remote, int]:
    """Return the file that a reply is of, and the place in it where the reply begins."""
    says, address = f"{reply.status_code} {reply.reason}", shown(url)
    if reply.status_code in (404, 410):
        raise FileNotFoundError(f"there is no {address} ({says}): check the name")
    if reply.status_code not in (200, 206):
        raise OSError(f"{address} is not given out ({says}): {RETRY}")
    if "text/html" in reply.headers.get("Content-Type", ""):
        raise ValueError(
            f"{address} came as a web page, perhaps the login page of a network or an error page: "
            "open it in a browser, or try another --mirror"
        )
    size = f"bytes 0-/{reply.headers.get('Content-Length', '')}"
    if reply.status_code == 206:
        size = reply.headers.get("Content-Range", "")
    found = re.fullmatch(r"bytes (\d+)-\d*/(\d+)", size)
    if not found:
        raise OSError(f"the server does not say how long {address} is: try another --mirror")
    # The date first: mirrors of one host may differ in their ETag.
    version = reply.headers.get("Last-Modified") or reply.headers.get("ETag", "")
    return Remote(url, int(found[2]), f"{found[2]} bytes, {version}"), int(found[1])


def download(client: Client, url: str, part: Path) -> None:
    """Download a whole file to `part`; see `assemble`."""
    remote = client.look(url)
    assemble(client, [Span(remote, 0, remote.size)], part, remote.version)


def assemble(
    client: Client, spans: list[Span], part: Path, version: str, prefix: bytes = b""
) -> None:
    """Write a prefix and spans of remote files to `part`, going on behind what it holds of them.

    What it holds of another `version` is thrown away. When this raises, OSError or ValueError as
    `Client.read`, the part stays for the next time.
    """
    total = len(prefix) + sum(span.stop - span.start for span in spans)
    with open(part, "ab") as file:
        if not _version(part).is_file() or _version(part).read_text() != version:
            file.truncate(0)
            _version(part).write_text(version)
        done = file.seek(0, os.SEEK_END)
        check_room(part.parent, total - done, "name another --cache, or ask for fewer --max-images")
        with tqdm(total=total, initial=done, unit="B", unit_scale=True, desc=part.stem[1:]) as bar:
            bar.update(file.write(prefix[done:]))
            skip = max(0, done - len(prefix))
            for span in spans:
                there = min(skip, span.stop - span.start)
                skip -= there
                for chunk in client.read(span._replace(start=span.start + there)):
                    bar.update(file.write(chunk))


def discard(part: Path) -> None:
    """Throw away what `assemble` wrote."""
    part.unlink(missing_ok=True)
    _version(part).unlink(missing_ok=True)


def _version(part: Path) -> Path:
    return part.with_name(f"{part.name}.version")


def keep(path: Path, fill: Callable[[Path], None], sha256: str | None = None) -> Path:
    """Return `path`; unless it is there and whole, fill a part beside it, check and rename it.

    It is whole if it has the known sha256, or else the one that was recorded beside it, in the
    form of the program sha256sum, when it came. A part that `fill` finds bad by a ValueError, or
    whose sha256 is another, is thrown away; after an OSError it stays, for `fill` to go on with.
    """
    record = path.with_name(f"{path.name}.sha256")
    known = sha256 or (record.read_text()[:64] if record.is_file() else "") or None
    if path.is_file():
        found = file_hash(path)
        if known is None:  # put there by hand, perhaps by a teacher, in a folder to read only
            with contextlib.suppress(OSError):
                record.write_text(f"{found}  {path.name}\n")
        if known in (None, found):
            return path
        print(f"{path} is damaged (sha256 {found[:12]}…): getting it again", file=sys.stderr)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"the cache {path.parent} cannot be written to ({error.strerror}): "
            "name another folder, --cache or CRYONB_CACHE"
        ) from error
    part = path.with_name(f".{path.name}.part")
    with sole(path):
        try:
            fill(part)
            found = check_sha256(part, known, RETRY if sha256 else f"{REVISED} {record}")
        except ValueError:
            discard(part)
            raise
        record.write_text(f"{found}  {path.name}\n")
        os.replace(part, path)
        discard(part)
    return path


def check_sha256(path: Path, known: str | None, advice: str = RETRY) -> str:
    """Return the sha256 of a file; ValueError if it is not the known one, where one is known."""
    found = file_hash(path)
    if known not in (None, found):
        raise ValueError(
            f"{path.stem[1:]} came with sha256 {found[:12]}… and not the known {known[:12]}…, and "
            f"is not kept: {advice}"
        )
    return found
