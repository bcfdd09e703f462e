"""Raw files of a dataset: found in a local folder, else downloaded, and checked against their hashes."""

import hashlib
import re
import shutil
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import requests
import urllib3
from tqdm import tqdm

from ballast.errors import BallastError
from ballast.params import FileParams, FolderParams, SourceParams

_CHUNK = 1 << 16
_TIMEOUT = (10, 60)  # seconds to connect, and between two chunks
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)


@dataclass(frozen=True)
class Fetcher:
    """How raw files are fetched.

    folders: looked through in this order before the network. scratch: where unfinished downloads wait to
    be resumed. attempts: how often a download may break in a row without a byte gained; the pause before
    the next one is `backoff` seconds and doubles each time. warn: takes a line for the person.
    """

    folders: Sequence[Path]
    scratch: Path
    warn: Callable[[str], None]
    attempts: int = 5
    backoff: float = 1.0

    def fetch(self, source: SourceParams, destination: Path, where: str) -> None:
        """All files and folders of `source` into the new folder `destination`.

        Raises BallastError if one is nowhere to be had, has a wrong hash, or cannot be downloaded; `where`
        names the dataset's block in params.yaml.
        """
        destination.mkdir(parents=True)
        archives: dict[str, Path] = {}
        for file in source.files:
            name = self._find([file.name, *file.alternatives], Path.is_file)
            if name is not None:
                self._copy(*name, file, destination, where)
            elif file.url is None:
                raise BallastError(f"{where}: {self._absence(file.name)}{_told(source.manual)}")
            else:
                if file.url not in archives:
                    archives[file.url] = self.download(file.url)
                self._place(archives[file.url], file, destination / file.name, where)
        for folder in source.folders:
            self._copy_folder(folder, destination, where, _told(source.manual))
        for archive in archives.values():
            archive.unlink()

    def _find(self, names: list[str], is_kind: Callable[[Path], bool]) -> tuple[Path, str] | None:
        """The first folder with one of the names, and that name."""
        found = ((folder, name) for folder in self.folders for name in names if is_kind(folder / name))
        return next(found, None)

    def _absence(self, name: str) -> str:
        looked = (
            f"not found in {' or '.join(map(str, self.folders))}" if self.folders else "has no local folder"
        )
        return f"{name} {looked}"

    def _copy(self, folder: Path, name: str, file: FileParams, destination: Path, where: str) -> None:
        copy = destination / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / name, copy)
        if name == file.name:
            self._check(copy, file, str(folder / name), where)
        else:
            # A compressed copy has bytes of its own, whatever it holds: its hash cannot be pinned.
            self._note_hash(copy, where)

    def _copy_folder(self, folder: FolderParams, destination: Path, where: str, manual: str) -> None:
        found = self._find([folder.name], Path.is_dir)
        if found is None and not folder.is_optional:
            raise BallastError(f"{where}: folder {self._absence(folder.name)}{manual}")
        if found is None:
            self.warn(f"{where}: folder {self._absence(folder.name)}; it is optional and left out")
            return
        origin = found[0] / folder.name
        for path in sorted(origin.rglob("*")):
            copy = destination / folder.name / path.relative_to(origin)
            # Contents only: a mirror's read-only permissions would forbid to replace the copy later.
            if path.is_file():
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)

    def _place(self, downloaded: Path, file: FileParams, target: Path, where: str) -> None:
        """Put a downloaded file, or its member, at `target`; a wrong one is not kept for resuming."""
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            if file.member is None:
                shutil.copyfile(downloaded, target)
            else:
                with (
                    zipfile.ZipFile(downloaded) as archive,
                    archive.open(file.member) as member,
                    target.open("wb") as copy,
                ):
                    shutil.copyfileobj(member, copy)
            self._check(target, file, str(file.url), where)
        except zipfile.BadZipFile as error:
            downloaded.unlink()
            raise BallastError(f"{where}: {file.url}: not a whole zip archive ({error}); run again") from None
        except KeyError:
            downloaded.unlink()
            raise BallastError(f"{where}: {file.url}: the archive has no member '{file.member}'") from None
        except BallastError:
            downloaded.unlink()
            raise

    def _check(self, path: Path, file: FileParams, origin: str, where: str) -> None:
        if file.sha256 is None:
            self._note_hash(path, where)
            return
        found = sha256(path)
        if found != file.sha256.lower():
            raise BallastError(
                f"{where}: {file.name} from {origin} has sha256 {found}, expected {file.sha256}; "
                "it is damaged or another version"
            )

    def _note_hash(self, path: Path, where: str) -> None:
        self.warn(
            f"{where}: {path.name} has no sha256 to check; it is {sha256(path)}. "
            "Until that is pinned, the pipeline does not see when the file changes"
        )

    def download(self, url: str) -> Path:
        """The whole file at `url`, in `scratch`; bytes that an earlier, broken download got are kept."""
        self.scratch.mkdir(parents=True, exist_ok=True)
        done = self.scratch / hashlib.sha256(url.encode()).hexdigest()[:24]
        part = done.with_suffix(".part")
        failures = 0
        while not done.exists():
            before = _size(part)
            try:
                _stream(url, part)
                part.replace(done)
                part.with_suffix(".etag").unlink(missing_ok=True)
            except (requests.ConnectionError, requests.Timeout) as error:
                failures = 1 if _size(part) > before else failures + 1
                if failures >= self.attempts:
                    raise BallastError(
                        f"{url}: the download broke {failures} times in a row ({_reason(error)}); "
                        f"{_size(part):,} bytes are kept, run again to resume"
                    ) from None
                time.sleep(self.backoff * 2 ** (failures - 1))
            except requests.RequestException as error:
                raise BallastError(f"{url}: cannot be downloaded: {_reason(error)}") from None
        return done


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _stream(url: str, part: Path) -> None:
    """Append to `part` what it lacks of `url`; ConnectionError where another attempt may help."""
    etag = part.with_suffix(".etag")
    have = _size(part)
    headers = {"Accept-Encoding": "identity"}  # a range of compressed bytes could not be joined
    if have:
        headers["Range"] = f"bytes={have}-"
        if etag.exists():
            headers["If-Range"] = etag.read_text()
    with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as response:
        if response.status_code == 416:  # nothing lies beyond: whole already, or from another version
            if response.headers.get("Content-Range") == f"bytes */{have}":
                return
            part.unlink()
            raise requests.ConnectionError("the file on the server is another one now")
        _refuse_error(url, response)
        start = _start(response)
        if start not in (0, have):
            part.unlink(missing_ok=True)
            raise requests.ConnectionError("the server answered with another range than the one asked for")
        tag = response.headers.get("ETag", "")
        if tag and not tag.startswith("W/"):
            etag.write_text(tag)
        else:
            etag.unlink(missing_ok=True)
        _save(response, part, start)


def _refuse_error(url: str, response: requests.Response) -> None:
    status = f"{response.status_code} {response.reason}"
    if response.status_code in _TRANSIENT:
        raise requests.ConnectionError(f"the server answered {status}")
    if response.status_code not in (200, 206):
        raise BallastError(
            f"{url}: the server answered {status}; check the url, or put the file in a local folder"
        )


def _start(response: requests.Response) -> int:
    """The byte of the file where this response starts: 0 if Range was ignored, -1 if untold."""
    if response.status_code == 200:
        return 0
    match = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(match.group(1)) if match else -1


def _save(response: requests.Response, part: Path, have: int) -> None:
    length = response.headers.get("Content-Length")
    total = have + int(length) if length and length.isdigit() else None
    with (
        part.open("ab" if have else "wb") as file,
        tqdm(desc=Path(str(response.url)).name, total=total, initial=have, unit="B", unit_scale=True) as bar,
    ):
        try:
            # Not iter_content: it loses the bytes of a chunk that the connection does not live to fill.
            while chunk := response.raw.read1(_CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
        except urllib3.exceptions.HTTPError as error:
            raise requests.ConnectionError(str(error)) from None
    if total is not None and _size(part) != total:
        raise requests.ConnectionError(f"got {_size(part):,} of {total:,} bytes")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _reason(error: Exception) -> str:
    """The innermost cause on one short line; requests nests them deeply."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def _told(manual: str) -> str:
    return f". {' '.join(manual.split())}" if manual else ", and it has no url"
