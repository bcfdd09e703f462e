"""Atomic writes, output locks, named generators and the record of the environment."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from ballast import reproducibility
from ballast.errors import BallastError
from ballast.reproducibility import (
    atomic_path,
    config_hash,
    environment,
    generator,
    numpy_generator,
    output_lock,
    seed_dropout,
)

ROOT = Path(__file__).resolve().parents[1]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Atomic writes


def write_half(path: Path, is_folder: bool, error: type[BaseException]) -> None:
    """A write that ends in the middle."""
    with atomic_path(path) as temporary:
        if is_folder:
            temporary.mkdir()
            temporary = temporary / "seed-9"
        temporary.write_text("half")
        raise error


def test_a_file_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "down" / "cell.json"
    with atomic_path(path) as temporary:
        temporary.write_text("half")
        assert not path.exists()
        temporary.write_text("whole")
    assert path.read_text() == "whole"
    assert names(path.parent) == ["cell.json"]


def test_a_file_is_replaced_or_stays(tmp_path: Path) -> None:
    path = tmp_path / "cell.json"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError):
        write_half(path, False, ZeroDivisionError)
    assert path.read_text() == "old"
    with atomic_path(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert names(tmp_path) == ["cell.json"]


def test_a_folder_is_replaced_or_stays(tmp_path: Path) -> None:
    path = tmp_path / "models"
    for number in range(2):
        with atomic_path(path) as temporary:
            temporary.mkdir()
            (temporary / f"seed-{number}").write_text("state")
        assert names(path) == [f"seed-{number}"]  # nothing of the one before
    with pytest.raises(KeyboardInterrupt):
        write_half(path, True, KeyboardInterrupt)
    assert names(path) == ["seed-1"]
    assert names(tmp_path) == ["models"]


@pytest.mark.parametrize("is_folder", [False, True])
def test_what_fails_at_first_leaves_nothing(is_folder: bool, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        write_half(tmp_path / "out" / "models", is_folder, ZeroDivisionError)
    assert names(tmp_path / "out") == []


@pytest.mark.parametrize("is_folder", [False, True])
def test_a_block_that_makes_nothing_keeps_the_old(is_folder: bool, tmp_path: Path) -> None:
    path = tmp_path / "old"
    if is_folder:
        path.mkdir()
    else:
        path.write_text("old")
    with pytest.raises(FileNotFoundError), atomic_path(path):
        pass
    assert path.exists()
    assert names(tmp_path) == ["old"]


# Locks

HOLDER = """
import sys, time
from pathlib import Path
from ballast.reproducibility import output_lock
with output_lock(Path(sys.argv[1]), "train-shop--sasrec"):
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def another_process(scratch: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock until it is ended."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(scratch)], stdout=subprocess.PIPE, text=True, env=environ
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_second_process_is_refused_until_the_first_has_ended(end: signal.Signals, tmp_path: Path) -> None:
    with another_process(tmp_path) as process:
        for _ in range(2):  # being refused must not break the lock of the first
            with pytest.raises(BallastError) as error, output_lock(tmp_path, "train-shop--sasrec"):
                pass
            expected = (
                f"train-shop--sasrec: another run of this stage (process {process.pid}) is at work; "
                "wait for it or end it"
            )
            assert str(error.value) == expected
        with output_lock(tmp_path, "train-shop--item-knn"):  # another cell's
            pass
        process.send_signal(end)
        process.wait()
        with output_lock(tmp_path, "train-shop--sasrec"):
            pass


def test_a_lock_is_freed_by_success_and_by_failure(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), output_lock(tmp_path / "new", "fetch-a.b"):
            raise ZeroDivisionError
    with output_lock(tmp_path / "new", "fetch-a.b"), output_lock(tmp_path / "new", "fetch-a.c"):
        pass


# Generators


def draw(rng: torch.Generator) -> list[int]:
    return torch.randint(1 << 40, (4,), generator=rng).tolist()


def test_streams_are_those_of_their_names_alone() -> None:
    """Numbers are spelled out: a stream that drew others would change every result of every study."""
    torch.manual_seed(1)
    assert draw(generator(0, "batches", 3)) == [114482511596, 167480726068, 1082523809861, 421355980566]
    drawn = numpy_generator(0, "bootstrap").integers(1 << 40, size=3).tolist()
    assert drawn == [631054964542, 433252620485, 399779386652]


def test_streams_of_different_names_differ() -> None:
    streams = [
        generator(seed, *path)
        for seed in range(3)
        for path in [(), ("a",), ("b",), ("a", 0), ("a", 1), ("a", "1"), ("a1",), ("a", "b"), ("ab",)]
    ]
    assert len({tuple(draw(rng)) for rng in streams}) == len(streams)


def test_drawing_for_one_purpose_does_not_shift_another() -> None:
    alone = draw(generator(1, "negatives"))
    noise = generator(1, "noise")
    draw(noise)
    torch.rand(100)
    np.random.default_rng(0).random(10)
    assert draw(generator(1, "negatives")) == alone


def test_streams_are_independent() -> None:
    one, other = (torch.randn(20_000, generator=generator(0, name)) for name in ("batches", "negatives"))
    assert abs(float(torch.corrcoef(torch.stack([one, other]))[0, 1])) < 0.03


def test_dropout_draws_from_the_seed_and_the_epoch() -> None:
    drawn = []
    for epoch in (0, 1, 0):
        seed_dropout(5, "dropout", epoch)
        drawn.append(torch.nn.functional.dropout(torch.ones(64)))
    assert torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[1])


def test_hashes_of_settings_are_stable_and_tell_them_apart() -> None:
    block = {"model": {"dim": 64, "loss": {"name": "bce"}}, "seeds": [0, 1]}
    swapped = {"seeds": [0, 1], "model": {"loss": {"name": "bce"}, "dim": 64}}
    assert config_hash("data", block) == config_hash("data", swapped)
    changed = {**block, "seeds": [1, 0]}
    assert len({config_hash(*parts) for parts in [("data", block), ("data", changed), (block, "data")]}) == 3
    assert config_hash("a", "b") != config_hash("ab")
    assert config_hash().isalnum()  # it names a folder


# The environment


def test_the_environment_is_recorded() -> None:
    record = environment()
    assert set(record) == {"device", "has_bfloat16", "threads", "python", "torch", "ballast"}
    assert record["threads"] == torch.get_num_threads()
    assert record["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert record["python"] == ".".join(map(str, sys.version_info[:3]))
    assert record["device"]
    assert json.loads(json.dumps(record)) == record


def test_the_device_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BALLAST_DEVICE", "meta")
    assert reproducibility.device() == torch.device("meta")
    monkeypatch.setenv("BALLAST_DEVICE", "")
    assert reproducibility.device().type == ("cuda" if torch.cuda.is_available() else "cpu")
