"""Seeds, named generators, atomic writes, output locks, and the record of the environment."""

import contextlib
import ctypes
import hashlib
import json
import os
import platform
import shutil
import sys
import tempfile
import zlib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout

from ballast.errors import BallastError


def generator(seed: int, *names: str | int, device: str | torch.device = "cpu") -> torch.Generator:
    """A torch generator of its own for one purpose, such as `generator(seed, "batches", epoch)`.

    Streams with different names are independent, so that drawing more for one purpose never shifts
    another: test noise cannot depend on how long a model was trained.
    """
    return torch.Generator(device=device).manual_seed(_stream(seed, names))


def numpy_generator(seed: int, *names: str | int) -> np.random.Generator:
    """The same as `generator`, for numpy."""
    return np.random.default_rng(_stream(seed, names))


def _stream(seed: int, names: tuple[str | int, ...]) -> int:
    digest = hashlib.sha256(repr((seed, *names)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1  # torch takes a non-negative 63-bit seed


def seed_dropout(seed: int, *names: str | int) -> None:
    """Seed torch's global generators, which dropout draws from. Called anew at every epoch, so that a
    resumed run draws what an undisturbed one would."""
    torch.manual_seed(_stream(seed, names))


def device() -> torch.device:
    """`$BALLAST_DEVICE` if set, else a GPU if there is one. Never from params: moving to a GPU must
    not invalidate results."""
    name = os.environ.get("BALLAST_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def prepare_process() -> None:
    """Process-wide settings of a stage: deterministic kernels, and an allocator that keeps its pages.

    glibc returns each large block to the kernel when it is freed and pays page faults for the next one;
    a training step frees and takes the same large blocks over and over.
    """
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Filling every new tensor guards against reading what was never written, at 8 % of a step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Batches differ in shape, and a kernel kept for each of a thousand shapes costs some 400 MB.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
        libc.mallopt(mmap_threshold, 1 << 30)
        libc.mallopt(trim_threshold, 2**31 - 1)


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies in bfloat16 by instructions of its own; a processor without is 70 times
    slower in it than in float32."""
    if device.type == "cuda":
        return True
    ask = getattr(torch.cpu, "get_capabilities", dict)  # older releases cannot tell
    capabilities: dict[str, Any] = ask()
    return any(is_there for name, is_there in capabilities.items() if "bf16" in name)


def environment() -> dict[str, Any]:
    """Device, threads and versions, recorded in every cell."""
    chosen = device()
    return {
        "device": torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else _processor(),
        "has_bfloat16": has_bfloat16(chosen),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": metadata.version("torch"),
        "ballast": metadata.version("ballast") if _is_installed("ballast") else "source",
    }


def _is_installed(name: str) -> bool:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return bool(metadata.version(name))
    return False


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, moved over it with `os.replace` if the block succeeds.

    Works for a file or, where the block makes a folder, for a folder; whatever the block leaves is
    removed if it fails, so that nothing half written is ever found under `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    holder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    temporary = holder / path.name
    try:
        yield temporary
        if path.is_dir() and temporary.exists():  # a folder that is not empty cannot be replaced in one move
            os.replace(path, holder / "replaced")
        os.replace(temporary, path)
    finally:
        shutil.rmtree(holder, ignore_errors=True)


@contextlib.contextmanager
def output_lock(scratch: Path, name: str) -> Iterator[None]:
    """Hold the lock of one cell's outputs; a second copy of the same stage is refused, not queued.

    The child of a killed `dvc repro` lives on and still writes: without the lock, the next run would
    write beside it. The operating system frees the lock when its holder ends, however it ends.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    path = scratch / f"{name}.lock"
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        pid = path.with_suffix(".pid")
        holder = pid.read_text().strip() if pid.exists() else "unknown"
        raise BallastError(
            f"{name}: another run of this stage (process {holder}) is at work; wait for it or end it"
        ) from None
    try:
        path.with_suffix(".pid").write_text(f"{os.getpid()}\n")
        yield
    finally:
        lock.release()


def config_hash(*parts: Any) -> str:
    """A short stable hash of JSON-able parts, the name of a scratch folder for resuming."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return f"{zlib.crc32(text.encode()):08x}{hashlib.sha256(text.encode()).hexdigest()[:16]}"
