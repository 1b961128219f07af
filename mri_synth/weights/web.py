"""Addresses opened with pip's settings: index, mirrors, folders, certificate, proxy and logins are the user's own."""

from __future__ import annotations

import ast
import base64
import http.client
import importlib.util
import os
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

PYPI = "https://pypi.org/simple"
TIMEOUT_S = 30
_CHUNK = 1 << 18


class NoGoodError(Exception):
    """A source does not have the file; the next may.

    Args:
        why: in words.
        code: of the server's answer; 0 without one.
    """

    def __init__(self, why: str, code: int = 0) -> None:
        super().__init__(why)
        self.code = code


@dataclass
class Settings:
    """Where pip would look.

    Attributes:
        indexes: addresses of simple indexes, in order.
        find_links: folders, or pages with links.
        certificate: bundle of trusted certificates; "" for the system's.
        proxy: for http and https; "" for the environment's.
        logins: value of the Authorization header by host; an address never shows it.
    """

    indexes: list[str] = field(default_factory=list)
    find_links: list[str] = field(default_factory=list)
    certificate: str = ""
    proxy: str = ""
    logins: dict[str, str] = field(default_factory=dict)


def pip_settings() -> Settings:
    """Index, mirrors, folders, certificate and proxy as pip has them in its files and environment; PyPI without pip."""
    shown = ""
    if importlib.util.find_spec("pip"):
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "config", "list"]
        shown = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    values: dict[str, str] = {}
    layers = [line.partition("=") for line in shown.splitlines() if "=" in line]
    for section in ("global.", "install.", "download.", ":env:."):  # the later overrules
        for key, _, value in layers:
            if key.startswith(section):
                with suppress(ValueError, SyntaxError):
                    values[key.removeprefix(section)] = str(ast.literal_eval(value))
    values |= {
        name.removeprefix("PIP_").lower().replace("_", "-"): value
        for name, value in os.environ.items()
        if name.startswith("PIP_") and value
    }
    settings = Settings(
        certificate=values.get("cert") or os.environ.get("REQUESTS_CA_BUNDLE", ""),
        proxy=values.get("proxy", ""),
    )
    settings.find_links = [_without_login(link, settings) for link in values.get("find-links", "").split()]
    if values.get("no-index", "").lower() not in ("1", "true", "yes", "on"):
        for url in [values.get("index-url", PYPI), *values.get("extra-index-url", "").split()]:
            folder = "" if ":" in url else Path(url).expanduser().absolute().as_uri()
            settings.indexes.append(folder or _without_login(url, settings))
    return settings


def _without_login(url: str, settings: Settings) -> str:
    if not url.startswith(("http:", "https:")):
        return url
    parts = urlsplit(url)
    login, at, host = parts.netloc.rpartition("@")
    if at:
        settings.logins[host] = "Basic " + base64.b64encode(unquote(login).encode()).decode()
    return urlunsplit(parts._replace(netloc=host))


def local(url: str) -> str:
    return urllib.request.url2pathname(urlsplit(url).path) if url.startswith("file:") else url


def opened(url: str, settings: Settings, headers: Mapping[str, str] | None = None) -> Any:
    """The answer of an address, which may be a file's.

    Args:
        url: http, https or file.
        settings: certificate, proxy, logins.
        headers: further ones of the request.

    Returns:
        To be read and closed.

    Raises:
        NoGoodError: there is none.
    """
    if url.startswith("file:") and Path(local(url)).is_dir():
        url = f"{url.rstrip('/')}/index.html"
    sent = {"User-Agent": "mri-synth", "Accept": "text/html, */*", **(headers or {})}
    request = urllib.request.Request(url, headers=sent)
    if login := settings.logins.get(urlsplit(url).netloc):
        request.add_unredirected_header("Authorization", login)
    try:
        handlers: list[Any] = [urllib.request.HTTPSHandler(context=_tls(settings))]
        if settings.proxy:
            handlers.append(urllib.request.ProxyHandler({"http": settings.proxy, "https": settings.proxy}))
        return urllib.request.build_opener(*handlers).open(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        why = {401: "login needed", 403: "refused", 404: "no such page or file"}.get(error.code, error.reason)
        raise NoGoodError(f"{error.code}, {why}", error.code) from None
    except (OSError, http.client.HTTPException, ValueError) as error:  # URLError is an OSError
        reason = getattr(error, "reason", None) or error
        raise NoGoodError(f"cannot be reached: {getattr(reason, 'strerror', None) or reason}") from None


def _tls(settings: Settings) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=settings.certificate or None)
    except OSError as error:
        raise NoGoodError(f"the certificates {settings.certificate} cannot be read: {error}") from None


def read(answer: Any, n: int) -> bytes:
    try:
        return bytes(answer.read(n))
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise NoGoodError(f"broke off: {error or type(error).__name__}") from None


def chunks(answer: Any, name: str, total: int | None, progress: bool, start: int = 0) -> Iterator[bytes]:
    """What an answer holds, piece by piece, with a bar.

    Args:
        answer: of `opened`.
        name: beside the bar.
        total: bytes of the whole file; None where it is not known.
        progress: show the bar.
        start: bytes that are there already.

    Yields:
        Pieces, none empty.

    Raises:
        NoGoodError: it breaks off.
    """
    from tqdm import tqdm

    with tqdm(total=total, initial=start, desc=name, unit="B", unit_scale=True, disable=not progress,
              mininterval=0.5) as bar:  # fmt: skip
        while chunk := read(answer, _CHUNK):
            yield chunk
            bar.update(len(chunk))
