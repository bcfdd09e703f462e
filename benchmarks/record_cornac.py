"""Records what cornac's AMR makes of a few triples, for tests/test_amr.py to replay.

  .venv-cornac/bin/python benchmarks/record_cornac.py tests/fixtures/cornac_amr.json

(`amr_triplets.py` makes that environment.) Simulated data; the file holds numbers only: settings, features,
first parameters, the triples of each batch as cornac drew them, and the parameters that they led to.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cornac
import numpy as np
from cornac.data import Dataset, ImageModality
from cornac.models import AMR

USERS, ITEMS, FEATURES, DIM, A_USER = 8, 10, 5, 3, 3
SETTINGS = {"n_epochs": 4, "batch_size": 7, "learning_rate": 0.02, "lambda_w": 0.03, "lambda_e": 0.01}


def main(out: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [
        (str(user), str(item), 1.0)
        for user in range(USERS)
        for item in rng.choice(ITEMS, size=A_USER, replace=False)
    ]
    features = rng.normal(size=(ITEMS, FEATURES)).astype(np.float32)
    features /= np.abs(features).max()
    images = ImageModality(features=features, ids=[str(item) for item in range(ITEMS)], normalized=True)
    dataset = Dataset.from_uir(rows, seed=0)
    images.build(id_map=dataset.iid_map)
    dataset.add_modalities(item_image=images)
    start = {
        name: rng.normal(scale=0.5, size=shape).astype(np.float32)
        for name, shape in {"Gu": (USERS, DIM), "Gi": (ITEMS, DIM), "E": (FEATURES, DIM)}.items()
    }
    batches: list[list[list[int]]] = []
    draw = dataset.uij_iter

    def recorded(*given: Any, **named: Any) -> Iterator[Any]:
        for batch in draw(*given, **named):
            batches.append([np.asarray(part).tolist() for part in batch])
            yield batch

    dataset.uij_iter = recorded
    init = {name: value.copy() for name, value in start.items()}
    model = AMR(k=DIM, k2=DIM, lambda_adv=0.7, init_params=init, verbose=False, seed=0, **SETTINGS)
    model.fit(dataset)
    record = {
        "version": cornac.__version__,
        "settings": {**SETTINGS, "lambda_adv": 0.7},
        "features": dataset.item_image.features[: dataset.num_items].tolist(),
        "start": {name: value.tolist() for name, value in start.items()},
        "batches": batches,
        "end": {
            "Gu": model.gamma_user.tolist(),
            "Gi": model.gamma_item.tolist(),
            "E": model.emb_matrix.tolist(),
        },
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
