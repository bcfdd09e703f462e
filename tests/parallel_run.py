"""A short training run whose weights are written to a file: started alone, and by `torchrun` in tests."""

import json
import sys
from pathlib import Path

import torch
from conftest import ITEMS, make_store, walk

from ballast import parallel
from ballast.models import registry
from ballast.models.method import DatasetInfo
from ballast.models.training import Validation, fit
from ballast.params import TrainingParams
from ballast.reproducibility import prepare_process, seed_dropout


def main(loss: str, item_gradient: str, output: Path, is_frozen: bool) -> None:
    prepare_process()
    with parallel.processes():
        model = {
            "backbone": {"name": "sasrec"},
            "loss": {"name": loss, **({} if loss == "cross_entropy" else {"sharing": "batch"})},
            "dim": 16,
            "max_len": 10,
            "dropout": 0.0,
            "item_gradient": item_gradient,
        }
        seed_dropout(0, "initial weights")
        info = DatasetInfo(60, ITEMS, torch.ones(ITEMS + 1, dtype=torch.int64))
        method = registry.build("next_item", registry.configure("next_item", model, "test"), info)
        if is_frozen:
            method.backbone.requires_grad_(False)
        histories = walk(31, seed=1)
        validation = Validation(
            make_store([history[:-1] for history in histories]), torch.tensor([h[-1] for h in histories])
        )
        # With weight decay, a gradient of zero is not the same as none.
        decay = 0.1 if is_frozen else 0.0
        params = TrainingParams(batch_size=7, learning_rate=3e-3, max_epochs=3, weight_decay=decay)
        progress = fit(method, make_store(walk(60)), validation, params, seed=0)
        if parallel.is_first():
            registry.save(method, output)
            history = [{**epoch, "seconds": 0} for epoch in progress.history]
            output.with_suffix(".json").write_text(json.dumps([progress.targets, history]))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), is_frozen="frozen" in sys.argv[4:])
