"""Pre-train one transfer method on its pooled source domains: data/pretrained/<m>/ and a pretrain cell."""

from dataclasses import asdict
from pathlib import Path

import inputs
import study
import typer

from ballast.models import registry
from ballast.models.training import Validation, fit
from ballast.reproducibility import atomic_path, config_hash, environment, output_lock, prepare_process

SEED = 0  # one pre-trained state serves every seed of the target


def main(method: str = typer.Option()) -> None:
    prepare_process()
    params = study.params()
    block = study.block(params.transfer_methods, method, "transfer_methods")
    assert block.pool is not None
    chosen = inputs.config(block, f"params.yaml: transfer_methods.{method}")
    with output_lock(study.SCRATCH, f"pretrain-{method}"):
        folder = study.pooled(block.pool)
        modalities = registry.needed_modalities(chosen)
        pooled = inputs.load(folder, {name: folder / "features" / f"{name}.parquet" for name in modalities})
        users, targets = pooled.held_out("valid")
        validation = Validation(pooled.store(["train"], users), targets)
        model = inputs.fresh(block, chosen, pooled.info, SEED)
        resume = study.SCRATCH / "pretrain" / method / f"{config_hash(asdict(block), pooled.digest)}.ckpt"
        result = fit(
            model,
            pooled.store(["train"]),
            validation,
            block.training,
            SEED,
            resume,
            label=f"pretrain {method}",
        )
        with atomic_path(study.pretrained(method)) as output:
            output.mkdir()
            registry.save(model, output / "state.safetensors")
        resume.unlink(missing_ok=True)
        record = {"method": method, "config": asdict(block), "seeds": {str(SEED): result.summary()},
                  "environment": environment()}  # fmt: skip
        study.write_json(Path("reports/cells/pretrain") / f"{method}.json", record)


if __name__ == "__main__":
    study.run(main)
