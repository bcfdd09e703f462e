"""What every test gets: one CPU thread, no network, and a toy catalogue with sequences on it."""

import os

# Before torch is imported: tests are small, and many threads on small tensors only wait for one another.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["BALLAST_DEVICE"] = "cpu"
os.environ.pop("BALLAST_MIRROR", None)

import ipaddress
import socket
from pathlib import Path

import pytest
import torch

from ballast.data.sequences import SequenceStore
from ballast.models.method import DatasetInfo

ITEMS = 40


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's folder."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection to anything but this machine fails at once."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        if isinstance(address, tuple) and not _is_local(str(address[0])):
            raise OSError(f"a test tried to reach {address[0]}")
        connect(self, address)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", guarded)


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@pytest.fixture(scope="session")
def toy_info() -> DatasetInfo:
    """A catalogue of ITEMS items with three modalities, some of them missing here and there."""
    rng = torch.Generator().manual_seed(0)
    counts = torch.randint(1, 9, (ITEMS + 1,), generator=rng)
    counts[0] = 0
    features, missing = {}, {}
    for modality, width in {"text": 12, "image": 6, "price": 4}.items():
        is_missing = torch.rand(ITEMS + 1, generator=rng) < 0.1
        is_missing[0] = True
        vectors = torch.randn(ITEMS + 1, width, generator=rng)
        features[modality], missing[modality] = vectors.masked_fill(is_missing[:, None], 0.0), is_missing
    return DatasetInfo(60, ITEMS, counts, features, missing)


@pytest.fixture(autouse=True)
def same_draws() -> None:
    """What a test draws without a generator of its own is the same in every run and order."""
    torch.manual_seed(0)


def make_store(histories: list[list[int]]) -> SequenceStore:
    """A store of these histories, users counted from 1."""
    lengths = torch.tensor([0, *(len(history) for history in histories)])
    items = torch.tensor([item for history in histories for item in history], dtype=torch.int64)
    return SequenceStore(items, lengths.cumsum(0), torch.arange(1, len(histories) + 1))


def walk(users: int, seed: int = 0, shortest: int = 4, longest: int = 12) -> list[list[int]]:
    """Histories without repeats in which an item's successor often is the next one by number."""
    rng = torch.Generator().manual_seed(seed)
    histories = []
    for _ in range(users):
        length = int(torch.randint(shortest, longest + 1, (1,), generator=rng))
        order = (torch.randperm(ITEMS, generator=rng) + 1).tolist()
        history = [order.pop()]
        while len(history) < length:
            following = history[-1] % ITEMS + 1
            is_step = following in order and float(torch.rand(1, generator=rng)) < 0.8
            history.append(order.pop(order.index(following) if is_step else -1))
        histories.append(history)
    return histories
