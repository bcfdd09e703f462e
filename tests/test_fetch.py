"""Fetching from folders and from a server that misbehaves: resumed, checked, never half a file."""

import errno
import hashlib
import http.server
import importlib
import io
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from ballast.data.downloads import Fetcher
from ballast.errors import BallastError
from ballast.params import SourceParams
from ballast.strict import parse

BODY = bytes(range(256)) * 2000  # 512,000 bytes
HASH = hashlib.sha256(BODY).hexdigest()
ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Server:
    """What the server offers and how it fails, and what it was asked for and gave."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=lambda: {"/data.bin": BODY})
    cut_after: list[int] = field(default_factory=list)  # bytes sent before the connection drops, per request
    statuses: list[int] = field(default_factory=list)  # answered before anything else, per request
    honours_range: bool = True
    etag: str = '"one"'
    ranges: list[str | None] = field(default_factory=list)
    sent: int = 0


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            state.ranges.append(asked)
            if state.statuses:
                self.send_error(state.statuses.pop(0))
                return
            body = state.files.get(self.path)
            if body is None:
                self.send_error(404)
                return
            is_same = self.headers.get("If-Range", state.etag) == state.etag
            start = (
                int(asked.removeprefix("bytes=").rstrip("-"))
                if asked and state.honours_range and is_same
                else 0
            )
            if start >= len(body):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(body)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            self.send_header("Content-Length", str(len(body) - start))
            self.send_header("ETag", state.etag)
            self.end_headers()
            part = body[start:][: state.cut_after.pop(0)] if state.cut_after else body[start:]
            self.wfile.write(part)
            state.sent += len(part)
            self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http_server:
        state.url = f"http://127.0.0.1:{http_server.server_port}"
        thread = threading.Thread(target=http_server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state
        http_server.shutdown()
        thread.join()


@dataclass
class Fetch:
    """A fetcher in a temporary folder, with the warnings that it gave."""

    folder: Path
    warnings: list[str] = field(default_factory=list)

    @property
    def raw(self) -> Path:
        return self.folder / "raw"

    def __call__(self, *files: dict[str, Any], attempts: int = 3, **source: Any) -> None:
        folders = [self.folder / "local", self.folder / "mirror"]
        fetcher = Fetcher(
            folders, self.folder / "scratch", self.warnings.append, attempts=attempts, backoff=0.001
        )
        fetcher.fetch(parse(SourceParams, {"files": list(files), **source}, "source"), self.raw, "datasets.d")

    def refused(self, *files: dict[str, Any], **source: Any) -> str:
        with pytest.raises(BallastError) as error:
            self(*files, **source)
        assert "\n" not in str(error.value)
        return str(error.value)

    def parts(self) -> list[int]:
        """Sizes of the unfinished downloads."""
        return [path.stat().st_size for path in self.folder.glob("scratch/*.part")]


@pytest.fixture
def fetch(tmp_path: Path) -> Fetch:
    (tmp_path / "local").mkdir()
    (tmp_path / "mirror").mkdir()
    return Fetch(tmp_path)


def remote(server: Server, **changes: Any) -> dict[str, Any]:
    return {"name": "data.bin", "url": f"{server.url}/data.bin", "sha256": HASH, **changes}


def test_a_download_arrives_whole_and_leaves_nothing_else(server: Server, fetch: Fetch) -> None:
    fetch(remote(server))
    assert (fetch.raw / "data.bin").read_bytes() == BODY
    assert list((fetch.folder / "scratch").iterdir()) == []
    assert fetch.warnings == []


def test_a_dropped_connection_is_resumed_without_fetching_a_byte_twice(server: Server, fetch: Fetch) -> None:
    server.cut_after = [100_000, 150_000]
    fetch(remote(server))
    assert (fetch.raw / "data.bin").read_bytes() == BODY
    assert server.ranges == [None, "bytes=100000-", "bytes=250000-"]
    assert server.sent == len(BODY)


def test_a_run_that_gave_up_is_resumed_by_the_next(server: Server, fetch: Fetch) -> None:
    server.cut_after = [100_000, 0, 0, 0]
    message = fetch.refused(remote(server))
    assert message.startswith(f"{server.url}/data.bin: the download broke 3 times in a row (")
    assert message.endswith("100,000 bytes are kept, run again to resume")
    assert not (fetch.raw / "data.bin").exists()
    assert fetch.parts() == [100_000]
    (fetch.raw).rmdir()
    server.cut_after = []
    fetch(remote(server))
    assert (fetch.raw / "data.bin").read_bytes() == BODY
    assert server.ranges[-1] == "bytes=100000-"
    assert server.sent == len(BODY)


def test_a_killed_run_is_resumed_by_the_next(
    server: Server, fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killed(seconds: float) -> None:
        raise Killed

    server.cut_after = [300_000]
    with monkeypatch.context() as patch:
        patch.setattr("ballast.data.downloads.time.sleep", killed)
        with pytest.raises(Killed):
            fetch(remote(server))
    fetch.raw.rmdir()
    fetch(remote(server))
    assert (fetch.raw / "data.bin").read_bytes() == BODY
    assert server.sent == len(BODY)


def test_a_server_that_ignores_range_starts_anew(server: Server, fetch: Fetch) -> None:
    server.honours_range = False
    server.cut_after = [100_000]
    fetch(remote(server))
    assert (fetch.raw / "data.bin").read_bytes() == BODY
    assert server.sent == len(BODY) + 100_000


def test_a_file_that_changed_on_the_server_starts_anew(server: Server, fetch: Fetch) -> None:
    server.cut_after = [100_000, 0, 0, 0]
    fetch.refused(remote(server))
    fetch.raw.rmdir()
    server.cut_after, server.etag, server.files["/data.bin"] = [], '"two"', BODY[::-1]
    fetch(remote(server, sha256=hashlib.sha256(BODY[::-1]).hexdigest()))
    assert (fetch.raw / "data.bin").read_bytes() == BODY[::-1]


def test_a_part_that_is_whole_already_is_taken(server: Server, fetch: Fetch) -> None:
    server.cut_after = [100_000, 0, 0, 0]
    fetch.refused(remote(server))
    fetch.raw.rmdir()
    next(fetch.folder.glob("scratch/*.part")).write_bytes(BODY)
    fetch(remote(server))
    assert (fetch.raw / "data.bin").read_bytes() == BODY
    assert server.sent == 100_000


def test_a_busy_server_is_asked_again(server: Server, fetch: Fetch) -> None:
    server.statuses = [503, 429]
    fetch(remote(server))
    assert (fetch.raw / "data.bin").read_bytes() == BODY
    assert len(server.ranges) == 3


def test_a_missing_file_on_the_server_is_told_at_once(server: Server, fetch: Fetch) -> None:
    message = fetch.refused(remote(server, url=f"{server.url}/gone"))
    advice = "check the url, or put the file in a local folder"
    assert message == f"{server.url}/gone: the server answered 404 Not Found; {advice}"
    assert len(server.ranges) == 1


def test_no_server_and_no_url_are_told(fetch: Fetch) -> None:
    message = fetch.refused({"name": "a", "url": "http://127.0.0.1:9/a"})
    assert message.startswith("http://127.0.0.1:9/a: the download broke 3 times in a row (")
    fetch.raw.rmdir()
    assert fetch.refused({"name": "a", "url": "nonsense"}).startswith(
        "nonsense: cannot be downloaded: Invalid URL"
    )


def test_wrong_bytes_are_told_with_both_hashes_and_not_kept(server: Server, fetch: Fetch) -> None:
    server.files["/data.bin"] = b"sorry"
    wrong = hashlib.sha256(b"sorry").hexdigest()
    message = fetch.refused(remote(server))
    assert message == (
        f"datasets.d: data.bin from {server.url}/data.bin has sha256 {wrong}, expected {HASH}; "
        "it is damaged or another version"
    )
    fetch.raw.joinpath("data.bin").unlink(missing_ok=True)
    fetch.raw.rmdir()
    server.files["/data.bin"] = BODY
    fetch(remote(server))
    assert (fetch.raw / "data.bin").read_bytes() == BODY


def archive(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, body in members.items():
            file.writestr(f"inner/{name}", body)
    return buffer.getvalue()


def test_members_of_an_archive_that_is_fetched_once(server: Server, fetch: Fetch) -> None:
    server.files["/a.zip"] = archive(one=BODY, two=b"2")
    files = [
        {"name": name, "url": f"{server.url}/a.zip", "member": f"inner/{name}"} for name in ("one", "two")
    ]
    fetch({**files[0], "sha256": HASH}, files[1])
    assert ((fetch.raw / "one").read_bytes(), (fetch.raw / "two").read_bytes()) == (BODY, b"2")
    assert len(server.ranges) == 1
    assert list((fetch.folder / "scratch").iterdir()) == []
    assert len(fetch.warnings) == 1
    assert hashlib.sha256(b"2").hexdigest() in fetch.warnings[0]


def test_an_archive_that_is_none_or_lacks_the_member_is_told(server: Server, fetch: Fetch) -> None:
    server.files["/a.zip"] = archive(one=b"1")
    file = {"name": "two", "url": f"{server.url}/a.zip", "member": "inner/two"}
    assert fetch.refused(file).endswith("/a.zip: the archive has no member 'inner/two'")
    fetch.raw.rmdir()
    server.files["/a.zip"] = b"<html>"
    assert "/a.zip: not a whole zip archive" in fetch.refused(file)


def test_local_folders_come_before_the_network_in_their_order(server: Server, fetch: Fetch) -> None:
    (fetch.folder / "mirror/data.bin").write_bytes(BODY)
    fetch(remote(server))
    assert (fetch.raw / "data.bin").read_bytes() == BODY
    assert server.ranges == []
    (fetch.raw / "data.bin").unlink()
    fetch.raw.rmdir()
    (fetch.folder / "local/data.bin").write_bytes(b"local")
    fetch(remote(server, sha256=hashlib.sha256(b"local").hexdigest()))
    assert (fetch.raw / "data.bin").read_bytes() == b"local"


def test_a_wrong_local_file_is_told_with_both_hashes(server: Server, fetch: Fetch) -> None:
    (fetch.folder / "mirror/data.bin").write_bytes(BODY[:-1])
    message = fetch.refused(remote(server))
    assert f"{fetch.folder}/mirror/data.bin has sha256 {hashlib.sha256(BODY[:-1]).hexdigest()}" in message
    assert f"expected {HASH}" in message


def test_an_alternative_name_is_kept_and_its_hash_is_told(fetch: Fetch) -> None:
    (fetch.folder / "local/data.bin.gz").write_bytes(b"zipped")
    fetch({"name": "data.bin", "alternatives": ["data.bin.gz"], "sha256": HASH})
    assert (fetch.raw / "data.bin.gz").read_bytes() == b"zipped"
    assert len(fetch.warnings) == 1
    assert hashlib.sha256(b"zipped").hexdigest() in fetch.warnings[0]


def test_what_a_person_must_download_is_told(fetch: Fetch) -> None:
    message = fetch.refused({"name": "t.csv"}, manual="Accept the rules,\n then download it.")
    looked = f"{fetch.folder}/local or {fetch.folder}/mirror"
    assert message == f"datasets.d: t.csv not found in {looked}. Accept the rules, then download it."


def test_folders_are_copied_optional_ones_may_lack(fetch: Fetch) -> None:
    (fetch.folder / "mirror/images/01").mkdir(parents=True)
    (fetch.folder / "mirror/images/01/a.jpg").write_bytes(b"a")
    (fetch.folder / "mirror/images/01").chmod(0o555)
    fetch(folders=[{"name": "images"}, {"name": "posters", "is_optional": True}])
    assert (fetch.raw / "images/01/a.jpg").read_bytes() == b"a"
    assert (fetch.raw / "images/01").stat().st_mode & 0o200, "a copy that can be replaced"
    assert len(fetch.warnings) == 1
    assert "posters not found" in fetch.warnings[0]
    (fetch.folder / "mirror/images/01").chmod(0o755)
    other = Fetch(fetch.folder / "other")
    other.folder.mkdir()
    assert "folder posters not found in" in other.refused(folders=[{"name": "posters"}])


def study(folder: Path, source: dict[str, Any], **block: Any) -> None:
    dataset = {
        "label": "D",
        "terms": "none",
        "source": source,
        "reader": {"name": "tabular"},
        "seeds": [0],
        **block,
    }
    mappings = ("features", "methods", "content_methods", "transfer_methods", "transfer", "tuning", "cells")
    empty: dict[str, Any] = {name: {} for name in (*mappings, "evaluation", "robustness", "report")}
    text = {"root": ".", "study": {"name": "s", "title": "S"}, "datasets": {"d": dataset}, **empty}
    (folder / "params.yaml").write_text(yaml.safe_dump({**text, "targets": [], "content_datasets": []}))


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Run a stage in the study at `tmp_path`; returns the line that it ends with, "" if all went well."""
    monkeypatch.syspath_prepend(str(ROOT / "stages"))
    monkeypatch.chdir(tmp_path)

    def run(name: str, dataset: str = "d", mirror: str = "") -> str:
        monkeypatch.setenv("BALLAST_MIRROR", mirror)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", "--dataset", dataset])
        module, study_module = importlib.import_module(name), importlib.import_module("study")
        with pytest.raises(SystemExit) as end:
            study_module.run(module.main)
        return str(end.value.code or "")

    return run


LOG = "user,item,timestamp\n" + "".join(f"u{u},i{(u + 2 * t) % 9},{t}\n" for u in range(9) for t in range(5))
LOG_SOURCE = {
    "collection": "c",
    "files": [{"name": "log.csv", "sha256": hashlib.sha256(LOG.encode()).hexdigest()}],
}
LOG_READER = {"name": "tabular", "interactions": "log.csv", "items": None}


def test_stages_from_a_mirror_to_prepared_tables(tmp_path: Path, stage: Callable[..., str]) -> None:
    (tmp_path / "mirror/c").mkdir(parents=True)
    (tmp_path / "mirror/c/log.csv").write_text(LOG)
    study(tmp_path, LOG_SOURCE, reader=LOG_READER, expected={"users": 9, "items": 9, "interactions": 45})
    for name in ("fetch", "preprocess", "fetch", "preprocess"):  # the second round replaces the first
        assert stage(name, mirror="mirror") == ""
    names = sorted(path.name for path in (tmp_path / "data/prepared/d").iterdir())
    assert names == ["interactions.parquet", "items.parquet", "stats.json", "users.parquet"]
    stats = (tmp_path / "data/prepared/d/stats.json").read_text()
    assert (tmp_path / "reports/cells/preprocess/d.json").read_text() == stats


def test_a_failed_fetch_keeps_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/log.csv").write_text("damaged")
    study(tmp_path, {**LOG_SOURCE, "path": "mine"}, reader=LOG_READER)
    (tmp_path / "data/raw/d").mkdir(parents=True)
    (tmp_path / "data/raw/d/log.csv").write_text(LOG)
    done = subprocess.run(
        [sys.executable, "-W", "error", ROOT / "stages/fetch.py", "--dataset", "d"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "BALLAST_MIRROR": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: params.yaml: datasets.d: log.csv from mine/log.csv has sha256 ")
    assert [path.name for path in (tmp_path / "data/raw").iterdir()] == ["d"]
    assert (tmp_path / "data/raw/d/log.csv").read_text() == LOG


def test_wrong_settings_end_with_one_line(tmp_path: Path, stage: Callable[..., str]) -> None:
    study(tmp_path, {**LOG_SOURCE, "path": "nowhere"})
    expected = "error: params.yaml: datasets.d.source.path: there is no folder 'nowhere'"
    assert stage("fetch") == expected
    assert stage("fetch", dataset="e") == "error: params.yaml: unknown dataset 'e'; known: d"
    study(tmp_path, LOG_SOURCE)
    assert stage("fetch", mirror="nowhere") == "error: $BALLAST_MIRROR: there is no folder 'nowhere'"
    assert stage("fetch") == "error: params.yaml: datasets.d: log.csv has no local folder, and it has no url"
    study(tmp_path, {"simulated": {"seed": 1, "domain": "decor", "userz": 3}})
    expected = "error: params.yaml: datasets.d.source.simulated.userz: unknown key; did you mean 'users'?"
    assert stage("fetch") == expected
    assert not (tmp_path / "data/raw/d").exists()


def test_a_simulated_shop_is_fetched_and_prepared(tmp_path: Path, stage: Callable[..., str]) -> None:
    shop = {"seed": 1, "domain": "decor", "users": 60, "items": 80, "image_size": 16}
    study(tmp_path, {"simulated": shop}, is_simulated=True)
    assert (stage("fetch"), stage("preprocess")) == ("", "")
    stats = yaml.safe_load((tmp_path / "data/prepared/d/stats.json").read_text())
    assert stats["users"] == 60
    assert stats["is_simulated"]
    assert stats["notes"] == {"repeats_dropped": 0, "missing_image_files": 0, "items_without_content": 0}
    assert 0.02 < stats["noise_share"] < 0.3
    assert stats["image_coverage"] > 0.8
    assert stats["text_coverage"] == 1.0


def test_a_full_disk_ends_with_one_line_and_keeps_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server, stage: Callable[..., str]
) -> None:
    def full(source: Any, target: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    study(tmp_path, {"files": [remote(server)]})
    (tmp_path / "data/raw/d").mkdir(parents=True)
    (tmp_path / "data/raw/d/old").write_text("old")
    monkeypatch.setattr("ballast.data.downloads.shutil.copyfile", full)
    message = stage("fetch")
    assert message.startswith("error: ")
    assert "the disk is full" in message
    assert [path.name for path in (tmp_path / "data/raw").rglob("*")] == ["d", "old"]
