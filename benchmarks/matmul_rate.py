"""The machine's measured matrix-multiply rate; float32's is the yardstick for `matmul_share`.

`python matmul_rate.py TASK.json RESULT.json`: GFLOP/s of a 2048 x 2048 x 2048 product in float32 and in
bfloat16, and in float32 of the three products of the softmax over Beauty's 12,101 items and the padding,
each the best of at least 5 repeats and 1 second.
"""

import json
import sys
import time
from pathlib import Path

import torch

ITEMS = 12_102


def rate(rows: int, inner: int, columns: int, dtype: torch.dtype = torch.float32) -> float:
    """GFLOP/s of (rows, inner) @ (inner, columns)."""
    left, right = torch.randn(rows, inner).to(dtype), torch.randn(inner, columns).to(dtype)
    result = torch.empty(rows, columns, dtype=dtype)
    best, repeats, begun = float("inf"), 0, time.perf_counter()
    while repeats < 5 or time.perf_counter() - begun < 1:
        start = time.perf_counter()
        torch.mm(left, right, out=result)
        best = min(best, time.perf_counter() - start)
        repeats += 1
    return 2 * rows * inner * columns / best / 1e9


def main(task: Path, result: Path) -> None:
    settings = json.loads(task.read_text(encoding="utf-8"))
    torch.set_num_threads(settings["threads"])
    step, size = settings["targets_per_step"], settings["hidden_size"]
    rates = {
        "square_2048": rate(2048, 2048, 2048),
        "square_2048_bfloat16": rate(2048, 2048, 2048, torch.bfloat16),
        "softmax_logits": rate(step, size, ITEMS),
        "softmax_state_gradient": rate(step, ITEMS, size),
        "softmax_item_gradient": rate(ITEMS, step, size),
    }
    result.write_text(json.dumps(rates, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
