"""What feature encoders are fitted on beside a dataset's own items: reports/fitted.json, a digest a modality.

An encoder whose `fit_on` names datasets reads their items and pictures. dvc.yaml cannot name these for one
modality, but features can depend on their entry here, which changes when those items do.
"""

import hashlib
from pathlib import Path
from typing import Any

import study

from ballast.content.settings import parse_settings
from ballast.data import schemas
from ballast.data.preparation import dataset_params

OUTPUT = Path("reports/fitted.json")


def main() -> None:
    params = study.params()
    digests = {}
    for modality, block in params.features.items():
        config = parse_settings(modality, block, f"params.yaml: features.{modality}")
        names = getattr(config, "fit_on", [])
        for name in names:
            dataset_params(params, name)
        digests[modality] = _digest(modality, names)
    study.write_json(OUTPUT, digests)


def _digest(modality: str, names: list[str]) -> str:
    """Of the items of these datasets and, for images, of their pictures; "" if there are none."""
    if not names:
        return ""
    digest = hashlib.sha256()
    for name in names:
        path = study.prepared(name) / "items.parquet"
        digest.update(path.read_bytes())
        if modality == "image":
            for picture in _pictures(name, path):
                digest.update(picture.read_bytes() if picture.is_file() else b"")
    return digest.hexdigest()


def _pictures(name: str, path: Path) -> list[Any]:
    images = schemas.read("items", path)["image"]
    return [study.raw(name) / image for image in images if isinstance(image, str)]


if __name__ == "__main__":
    study.run(main)
