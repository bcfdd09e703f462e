"""Pre-train a state on a pool of domains: data/pretrained/<name>/ and reports/cells/pretrain/<name>.json."""

from dataclasses import asdict

import inputs
import study
import typer

from ballast import parallel
from ballast.models import registry
from ballast.models.training import Validation, fit, footprint
from ballast.reproducibility import atomic_path, config_hash, environment, output_lock, prepare_process

SEED = 0  # one pre-trained state serves every seed of the targets


def main(name: str = typer.Option()) -> None:
    prepare_process()
    params = study.params()
    block = study.block(params.transfer.pretraining, name, "transfer.pretraining")
    chosen = inputs.config(block, f"params.yaml: transfer.pretraining.{name}")
    folder = study.pooled(block.pool)
    modalities = registry.needed_modalities(chosen)
    with parallel.processes():
        pooled = inputs.load(folder, {key: folder / "features" / f"{key}.parquet" for key in modalities})
        users, targets = pooled.held_out("valid")
        train = pooled.store(["train"])
        validation = Validation(pooled.store(["train"], users), targets)
        model = inputs.fresh(block, chosen, pooled.info, SEED)
        key = config_hash(asdict(block), pooled.digest, inputs.code("pretrain", name))
        resume = study.SCRATCH / "pretrain" / name / f"{key}.ckpt"
        model.enter("pretraining")
        label = f"pretrain {name}"
        if not parallel.is_first():  # the first process writes; the others lend it a hand
            fit(model, train, validation, block.training, SEED, resume, label=label)
            return
        with output_lock(study.SCRATCH, f"pretrain-{name}"):
            result = fit(model, train, validation, block.training, SEED, resume, label=label)
            with atomic_path(study.pretrained(name)) as output:
                output.mkdir()
                registry.save(model, output / "state.safetensors")
            resume.unlink(missing_ok=True)
            account = result.summary() | footprint(model)
            record = {"name": name, "config": asdict(block), "seeds": {str(SEED): account},
                      "environment": environment()}  # fmt: skip
            study.write_json(study.pretraining_cell(name), record)


if __name__ == "__main__":
    study.run(main)
