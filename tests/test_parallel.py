"""Several processes take the steps of one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

RUN = Path(__file__).with_name("parallel_run.py")
ALONE = [sys.executable]
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


def weights(
    command: list[str], loss: str, item_gradient: str, output: Path, *flags: str
) -> dict[str, torch.Tensor]:
    path = os.pathsep.join([str(RUN.parents[1]), str(RUN.parent)])
    subprocess.run(
        [*command, str(RUN), loss, item_gradient, str(output), *flags],
        check=True,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        timeout=120,
    )
    return load_file(output)


@pytest.mark.parametrize(
    ("loss", "item_gradient"),
    [
        ("cross_entropy", "dense"),
        ("sampled_softmax", "dense"),
        ("sampled_softmax", "sparse"),
        ("gbce", "dense"),
    ],
)
def test_two_processes_take_the_steps_of_one(loss: str, item_gradient: str, tmp_path: Path) -> None:
    one = weights(ALONE, loss, item_gradient, tmp_path / "one.safetensors")
    two = weights(TWO, loss, item_gradient, tmp_path / "two.safetensors")
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], atol=2e-4, rtol=2e-4)
    (targets, history), (their_targets, their_history) = (
        json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two")
    )
    assert their_targets == targets
    for ours, theirs in zip(history, their_history, strict=True):
        assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-4)
        assert theirs["valid_ndcg@10"] == pytest.approx(ours["valid_ndcg@10"], rel=1e-2)


def test_what_is_frozen_stays_in_both(tmp_path: Path) -> None:
    one = weights(ALONE, "cross_entropy", "dense", tmp_path / "one.safetensors", "frozen")
    two = weights(TWO, "cross_entropy", "dense", tmp_path / "two.safetensors", "frozen")
    for name in one:
        if name.startswith("backbone."):
            assert torch.equal(two[name], one[name]), name
