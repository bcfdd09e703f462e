"""The contract of every method, whichever files there are in ballast/models/methods.

A new method joins by an example in EXAMPLES, a new backbone or loss by an entry in BACKBONES or LOSSES, which
makes one of each pair; without one, a test fails.
"""

import dataclasses
import itertools
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import inputs
import pytest
import torch
from conftest import ITEMS, make_store, walk
from torch import Tensor, nn

from ballast import strict
from ballast.data.sequences import Batch, SequenceStore
from ballast.errors import BallastError
from ballast.evaluation.ranking import rank_targets
from ballast.models import backbones, losses, registry
from ballast.models.method import DatasetInfo, Method
from ballast.models.methods.cddrec import Cddrec
from ballast.models.pairwise import PairwiseMethod
from ballast.models.sequential import SequentialMethod
from ballast.models.training import Progress, Validation, fit
from ballast.params import MethodParams, TrainingParams
from ballast.robustness.surface import located


@dataclass(frozen=True)
class Example:
    """A method with settings that differ from its defaults, small enough to train in a second."""

    method: str
    model: dict[str, Any] = field(default_factory=dict)


def sequential(
    loss: dict[str, Any], backbone: dict[str, Any] | None = None, method: str = "next_item", **more: Any
) -> Example:
    backbone = backbone or {"name": "sasrec", "layers": 2, "heads": 2}
    return Example(
        method, {"backbone": backbone, "loss": loss, "dim": 16, "max_len": 10, "dropout": 0.2, **more}
    )


def pairwise(method: str, **more: Any) -> Example:
    """A method over users, with every penalty that it has."""
    penalties = {"user_penalty": 1e-3, "item_penalty": 1e-3, "bias_penalty": 1e-4}
    if method != "bpr_mf":
        penalties["projection_penalty"] = 1e-4
    return Example(method, {"dim": 16, "max_len": 100, "init_scale": 0.1, **penalties, **more})


CE = {"name": "cross_entropy"}
LOSSES: dict[str, dict[str, Any]] = {
    "ce": CE,
    "ss": {"name": "sampled_softmax", "negatives": 16},
    "bce": {"name": "bce", "negatives": 2},
    "gbce": {"name": "gbce", "negatives": 8, "t": 0.5},
    "in-batch": {"name": "in_batch"},
}
BACKBONES: dict[str, dict[str, Any]] = {
    "sasrec": {"name": "sasrec", "layers": 2, "heads": 2},
    "gru4rec": {"name": "gru4rec", "layers": 2, "hidden": 12},
    "narm": {"name": "narm", "hidden": 12},
    "caser": {"name": "caser", "window": 4, "horizontal_filters": 6, "vertical_filters": 3},
    "fmlp-rec": {"name": "fmlp_rec", "layers": 2},
    "bert4rec": {"name": "bert4rec", "layers": 1, "mask_rate": 0.4, "last_rate": 0.3},
    "cl4srec": {"name": "cl4srec", "layers": 1, "contrast": 0.05, "temperature": 2.0},
    "din": {"name": "din", "attention": 12, "hidden": 10},
}
# A backbone that reads the candidate has no states, and no loss over the whole catalogue.
IMPOSSIBLE = {("din", "cross_entropy")}
# Made from the tables above: what is dear is tested on one pair for each backbone and each loss.
PAIRS = {
    f"{backbone}-{loss}": sequential(LOSSES[loss], BACKBONES[backbone])
    for backbone in BACKBONES
    for loss in LOSSES
    if (BACKBONES[backbone]["name"], LOSSES[loss]["name"]) not in IMPOSSIBLE
}
DIFFUSION = {
    "backbone": {"name": "sasrec", "layers": 1, "heads": 2},
    "dim": 16,
    "max_len": 10,
    "heads": 2,
    "steps": 3,
    "dropout": 0.1,
}
EXAMPLES = {
    "popularity": Example("popularity"),
    "item-knn": Example("item_knn", {"window": 3, "max_len": 10, "history_decay": 0.6, "pair_decay": 0.7}),
    "item-knn-tuned": Example("item_knn", {"max_len": 10, "tune": {"pair_decay": [0.3, 0.9]}}),
    "feature-knn": Example("feature_knn", {"modalities": ["text", "image"], "decay": 0.6, "max_len": 10}),
    "feature-knn-weighted": Example(
        "feature_knn", {"modalities": ["image", "price"], "weights": {"price": 0.5}, "max_len": 10}
    ),
    "sasrec-blocks": sequential({"name": "cross_entropy", "block": 100}),
    "sasrec-pre-norm": sequential(
        CE, {"name": "sasrec", "norm": "pre", "activation": "relu", "ffn_ratio": 1, "layers": 1, "heads": 4}
    ),
    "sasrec-ss-position": sequential(
        {"name": "sampled_softmax", "negatives": 16, "sharing": "position", "is_corrected": False}
    ),
    "sasrec-ss-batch": sequential({"name": "sampled_softmax", "negatives": 16, "sampling": "batch"}),
    "gru4rec-of-the-items-width": sequential(CE, {"name": "gru4rec"}),
    "narm-softmax": sequential(CE, {"name": "narm", "attention": "softmax"}),
    "caser-of-one": sequential(CE, {"name": "caser", "window": 1}),
    "sasrec-features": sequential(CE, method="sasrec_features", modalities=["text", "image", "price"]),
    "sasrec-features-only": sequential(CE, method="sasrec_features", modalities=["text"], has_ids=False),
    "atsrec-sasrec": sequential(CE, method="atsrec", steps=3, step_size=0.2, radius=0.5, weight=0.5),
    "atsrec-row": sequential(LOSSES["bce"], method="atsrec", norm="row", perturb="input", radius=0.2),
    "atsrec-free": sequential(LOSSES["ss"], method="atsrec", attack="free", perturb="output"),
    "atsrec-fgsm": sequential(LOSSES["gbce"], method="atsrec", attack="fgsm", radius=0.005),
    "atsrec-random": sequential(CE, method="atsrec", adversary="random"),
    "atsrec-gru4rec": sequential(LOSSES["bce"], BACKBONES["gru4rec"], "atsrec", attack="fgm", radius=0.3),
    "atsrec-bert4rec": sequential(CE, BACKBONES["bert4rec"], "atsrec", steps=2),
    "atsrec-din": sequential(LOSSES["gbce"], BACKBONES["din"], "atsrec", steps=2),
    "atsrec-cl4srec": sequential(CE, BACKBONES["cl4srec"], "atsrec", steps=2),
    "atjt-sasrec": sequential(CE, method="atjt", kappa=10.0, noise_dim=4, replaced=2),
    "atjt-din": sequential(LOSSES["bce"], BACKBONES["din"], "atjt", kappa=10.0, noise_dim=4),
    "atjt-popular": sequential(LOSSES["bce"], method="atjt", replacement="popularity", is_crossed=False),
    "atjt-detached": sequential(CE, BACKBONES["gru4rec"], "atjt", weighting="detached", noise_rate=0.1),
    "atjt-random": sequential(CE, method="atjt", weighting="random"),
    "atjt-truncated": sequential(LOSSES["ss"], method="atjt", weighting="truncated", drop=0.05),
    "atjt-reweighted": sequential(LOSSES["gbce"], method="atjt", weighting="reweighted", beta=0.5),
    "cddrec": Example("cddrec", {**DIFFUSION, "beta_last": 0.002}),
    "cddrec-full": Example(
        "cddrec",
        {
            **DIFFUSION,
            "conditioning": "full",
            "beta_last": 0.6,
            "step_weights": "equal",
            "reverse_steps": 2,
            "draws": 2,
        },
    ),
    "cddrec-noise-at-inference": Example("cddrec", {**DIFFUSION, "inference_noise": True, "draw_seed": 3}),
    "cddrec-random-features": Example("cddrec", {**DIFFUSION, "contrast": "random_features", "features": 64}),
    "cddrec-t1": Example("cddrec", {**DIFFUSION, "steps": 1, "noise": False}),
    "diffurec": sequential(CE, method="diffurec", steps=4, delta=0.01, reverse_steps=2, draws=2, draw_seed=1),
    "sasrec-features-bce": sequential({"name": "bce"}, method="sasrec_features", modalities=["image"]),
    "fdsa": sequential(CE, method="fdsa", modalities=["text", "image", "price"]),
    "fdsa-text": sequential(LOSSES["bce"], BACKBONES["gru4rec"], "fdsa", modalities=["text"]),
    "s3rec": sequential(CE, method="s3rec", modalities=["text", "price"], attributes=4, mask_rate=0.3),
    "ant": sequential(CE, method="ant", experts=3, temperature=0.2, initialisation="default"),
    "ant-pretraining": sequential(
        LOSSES["in-batch"], method="ant", experts=2, alignment=0.1, product=0.5, temperature=0.2
    ),
    "ant-relearned": sequential(CE, method="ant", modalities=["image"], is_encoder_frozen=True),
    "ant-scaled": sequential(CE, method="ant", is_scaled=True, carries_items=True, temperature=0.2),
    "ant-transductive": sequential(
        CE, method="ant", modalities=["text", "image"], has_ids=True, carries_items=True, temperature=0.2
    ),
    "unisrec": sequential(CE, method="unisrec", temperature=0.2),
    "unisrec-pretraining": sequential(LOSSES["in-batch"], method="unisrec", contrast=0.1, drop=0.4),
    "vqrec": sequential(CE, method="vqrec", groups=4, codes=8, is_realigned=True, temperature=0.2),
    "vqrec-pretraining": sequential(
        LOSSES["in-batch"], method="vqrec", modalities=["image", "price"], groups=2, codes=50, synthetic=0.5
    ),
    "bpr-mf": pairwise("bpr_mf", has_bias=False),
    "vbpr": pairwise("vbpr", content_dim=4, modalities=["image", "price"]),
    "duif": pairwise("duif", modalities=["text", "image", "price"], is_whitened=True),
    "amr": pairwise("amr", radius=0.2, weight=0.5, item_rate=10.0, projection_rate=5.0, accumulator=0.01),
    "amr-modalities": pairwise(
        "amr", modalities=["image", "text"], has_bias=True, optimizer="adam", item_rate=0.5, warm_steps=2
    ),
    "amr-random": pairwise("amr", adversary="random", optimizer="adam", item_rate=1.0, has_base_phase=True),
} | PAIRS


def method_of(name: str) -> type[Method]:
    return registry.method_class(EXAMPLES[name].method)


EVERY = sorted(EXAMPLES)
STEPPED = [name for name in EVERY if method_of(name).is_trained_by_steps]
COUNTED = [name for name in EVERY if not method_of(name).is_trained_by_steps]
# Over users: the history that is given with a user is only masked.
PAIRWISE = [name for name in EVERY if issubclass(method_of(name), PairwiseMethod)]
SEQUENTIAL = [name for name in EVERY if issubclass(method_of(name), SequentialMethod)]
# Trained by filling in what is hidden, and so bidirectional: test_backbones.py holds that nothing leaks.
# One that reads the candidate has no states; test_din.py holds that its loss sees no later item.
CAUSAL = [name for name in SEQUENTIAL if EXAMPLES[name].model["backbone"]["name"] not in ("bert4rec", "din")]
DISTINCT = [
    name
    for name in STEPPED
    if name not in PAIRS or name.startswith("sasrec-") or name.endswith("-ce") or name == "din-bce"
]


def configured(name: str, **changes: Any) -> Any:
    example = EXAMPLES[name]
    config = registry.configure(example.method, example.model, f"params.yaml: methods.{name}.model")
    return dataclasses.replace(config, **changes) if changes else config


def built(name: str, info: DatasetInfo, seed: int = 0, config: Any = None) -> Method:
    cell = MethodParams(label=name, method=EXAMPLES[name].method, model=EXAMPLES[name].model)
    return inputs.fresh(cell, config or configured(name), info, seed)


def trained(name: str, info: DatasetInfo, seed: int = 0, epochs: int = 2) -> Method:
    """The example after a few epochs on random walks, or counted on them, in evaluation mode."""
    method = built(name, info, seed)
    store = make_store(walk(60))
    if method.is_trained_by_steps:
        params = TrainingParams(batch_size=16, learning_rate=3e-3, max_epochs=epochs)
        for phase in method.phases:
            method.enter(phase)
            fit(method, store, Validation(*held_out()), params, seed)
    else:
        method.fit_sequences(store.items, store.offsets)
    return method.eval()


def held_out() -> tuple[SequenceStore, Tensor]:
    """Other walks without their last item, and that item."""
    histories = walk(30, seed=1)
    return make_store([history[:-1] for history in histories]), torch.tensor([h[-1] for h in histories])


def batch_of(histories: list[list[int]], length: int = 10) -> Batch:
    """The last `length` items of each history, left-padded; every example reads 10."""
    rows = [[0] * (length - len(history)) + history[-length:] for history in histories]
    return Batch(torch.arange(1, len(rows) + 1), torch.tensor(rows))


@pytest.fixture(scope="module")
def models(toy_info: DatasetInfo) -> dict[str, Method]:
    """Every example, trained a little: weights at their start hide many mistakes."""
    return {name: trained(name, toy_info) for name in EVERY}


# What there is an example of


def test_every_method_backbone_and_loss_has_an_example(models: dict[str, Method]) -> None:
    assert {example.method for example in EXAMPLES.values()} == set(registry.known_methods())
    parts = [model for model in models.values() if isinstance(model, SequentialMethod)]
    used = {(file_of(model.backbone), file_of(model.loss)) for model in parts}
    assert used == set(itertools.product(backbones.known(), losses.known())) - IMPOSSIBLE


def file_of(part: nn.Module) -> str:
    return type(part).__module__.rpartition(".")[2]


# Scores


@pytest.mark.parametrize("name", EVERY)
@torch.inference_mode()
def test_scores_are_finite_one_an_item(name: str, models: dict[str, Method]) -> None:
    scores = models[name].score(batch_of(walk(7, seed=2)))
    assert scores.shape == (7, ITEMS + 1)
    assert scores.dtype == torch.float32
    assert torch.isfinite(scores).all()
    assert len(scores.unique()) > 1


@pytest.mark.parametrize("name", EVERY)
@torch.inference_mode()
def test_a_row_alone_equals_the_row_in_a_batch(name: str, models: dict[str, Method]) -> None:
    histories = [history[:10] for history in walk(9, seed=2)]
    together = models[name].score(batch_of(histories))
    alone = torch.cat(
        [
            models[name].score(batch_of([history], len(history)).replaced(user_id=torch.tensor([user])))
            for user, history in enumerate(histories, start=1)
        ]
    )
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", EVERY)
@torch.inference_mode()
def test_evaluation_is_repeatable_bit_for_bit(name: str, models: dict[str, Method]) -> None:
    batch = batch_of(walk(9, seed=2))
    first = models[name].score(batch)
    torch.manual_seed(123)  # draws elsewhere must not matter
    assert torch.equal(models[name].score(batch), first)


@pytest.mark.parametrize("name", EVERY)
@torch.inference_mode()
def test_more_left_padding_changes_nothing(name: str, models: dict[str, Method]) -> None:
    histories = [history[:4] for history in walk(9, seed=2)]
    narrow = models[name].score(batch_of(histories, length=4))
    wide = models[name].score(batch_of(histories))
    torch.testing.assert_close(wide, narrow, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("name", CAUSAL)
@torch.inference_mode()
def test_no_state_sees_a_later_item(name: str, models: dict[str, Method]) -> None:
    model = models[name]
    assert isinstance(model, SequentialMethod)
    table = model.item_table()
    history = batch_of([history[:8] for history in walk(9, seed=2, shortest=8)]).history
    states = model.encode(history, table)
    for place in range(3, 10):
        changed = history.clone()
        changed[:, place] = changed[:, place] % ITEMS + 1
        other = model.encode(changed, table)
        assert torch.equal(other[:, :place], states[:, :place])
        assert not torch.isclose(other[:, place], states[:, place]).all(dim=1).any()


@pytest.mark.parametrize("name", EVERY)
@torch.inference_mode()
def test_targets_and_user_never_reach_a_score(name: str, models: dict[str, Method]) -> None:
    batch = batch_of(walk(9, seed=2))
    scores = models[name].score(batch)
    told = Batch(batch.user_id, batch.history, targets=batch.history.flip(1))
    assert torch.equal(models[name].score(told), scores)


@pytest.mark.parametrize("name", [name for name in EVERY if name not in ("popularity", *PAIRWISE)])
def test_the_newest_item_matters(name: str, models: dict[str, Method]) -> None:
    """Guards the tests above: a score that ignored its history would pass them."""
    histories = walk(9, seed=2)
    other = [[*history[:-1], history[-1] % ITEMS + 1] for history in histories]
    with torch.inference_mode():
        difference = models[name].score(batch_of(histories)) - models[name].score(batch_of(other))
    assert (difference.abs().amax(dim=1) > 2e-5).all()  # ten times what padding may change


@pytest.mark.parametrize("name", PAIRWISE)
@torch.inference_mode()
def test_the_user_matters_and_the_history_does_not(name: str, models: dict[str, Method]) -> None:
    batch = batch_of(walk(9, seed=2))
    scores = models[name].score(batch)
    assert torch.equal(models[name].score(Batch(batch.user_id, batch.history.flip(0))), scores)
    other = models[name].score(Batch(batch.user_id + 9, batch.history))
    assert ((other - scores).abs().amax(dim=1) > 2e-5).all()


# Settings


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> set[tuple[type, str]]:
    """Collects (Config class, field) of every setting that the project's own code reads."""
    seen: set[tuple[type, str]] = set()
    here = str(Path(backbones.__file__).parents[1])

    def watched(config: Any) -> Any:
        kind = type(config)

        def read(self: Any, name: str) -> Any:
            # dataclasses.replace reads every field, and means none of them.
            if sys._getframe(1).f_code.co_filename.startswith(here):
                seen.add((kind, name))
            return object.__getattribute__(self, name)

        watching = type(kind.__name__, (kind,), {"__getattribute__": read})
        object.__setattr__(config, "__class__", watching)
        return config

    for module in (registry, strict):
        parse = module.parse
        monkeypatch.setattr(module, "parse", lambda *given, parse=parse: watched(parse(*given)))
    return seen


def test_every_setting_is_read(reads: set[tuple[type, str]], toy_info: DatasetInfo) -> None:
    kinds = set()
    for name in EVERY:
        config = configured(name)
        kinds.add(type(config).__mro__[1])
        if hasattr(config, "candidates"):
            config.candidates()
        model = trained(name, toy_info, epochs=1)
        store, targets = held_out()
        rank_targets(model, store, targets)
        if isinstance(model, SequentialMethod):
            kinds |= {type(part.config).__mro__[1] for part in (model.backbone, model.loss)}
    for kind in kinds:
        own = {setting.name for setting in dataclasses.fields(kind)}
        if issubclass(kind, backbones.Backbone.Config | losses.Loss.Config):
            own.remove("name")  # what chose the class
        assert own <= {name for owner, name in reads if owner is kind}, kind.__qualname__


@pytest.mark.parametrize("name", EVERY)
def test_a_mistyped_setting_is_an_error_that_names_it(name: str, toy_info: DatasetInfo) -> None:
    method = EXAMPLES[name].method
    where = f"params.yaml: methods.{name}.model"
    known = [setting.name for setting in dataclasses.fields(method_of(name).Config)]
    for key in known or ["dimension"]:
        wrong = {**EXAMPLES[name].model, f"{key}s": 1}
        with pytest.raises(BallastError) as error:
            registry.configure(method, wrong, where)
        assert str(error.value).startswith(f"{where}.{key}s: unknown key; ")
        assert f"did you mean '{key}'?" in str(error.value) or not known


@pytest.mark.parametrize("name", SEQUENTIAL)
@pytest.mark.parametrize("part", ["backbone", "loss"])
def test_a_mistyped_setting_of_a_part_is_an_error_that_names_it(
    name: str, part: str, toy_info: DatasetInfo
) -> None:
    block = EXAMPLES[name].model[part]
    for wrong, message in [
        ({**block, "nme": "x"}, rf"model\.{part}\b.*\bnme: unknown key; did you mean 'name'\?$"),
        ({**block, "name": "sasrek"}, rf"model\.{part}\b.*unknown {part} 'sasrek'; known: "),
    ]:
        with pytest.raises(BallastError, match=message):
            built(name, toy_info, config=configured(name, **{part: wrong}))


def test_an_unknown_method_is_an_error_that_names_the_known() -> None:
    with pytest.raises(BallastError, match=r"unknown method 'next_itm'; known: .*next_item"):
        registry.configure("next_itm", {}, "params.yaml: methods.sasrec.model")


@pytest.mark.parametrize("name", [name for name in EVERY if "modalities" in EXAMPLES[name].model])
def test_features_that_are_not_there_are_told_before_training(name: str, toy_info: DatasetInfo) -> None:
    bare = dataclasses.replace(toy_info, features={}, missing={})
    with pytest.raises(BallastError, match=r"needs (text|image) features"):
        built(name, bare)


# Training


# Weights that the recommender moves may give a sequence up, as they are meant to: it is not overfitted then.
# With so few users a learned weight may set one aside for good.
@pytest.mark.parametrize("name", [name for name in DISTINCT if name not in ("atjt-sasrec", "atjt-din")])
def test_overfits_eight_users(name: str, toy_info: DatasetInfo) -> None:
    rng = torch.Generator().manual_seed(3)
    histories = [(torch.randperm(ITEMS, generator=rng)[:7] + 1).tolist() for _ in range(8)]
    last = torch.tensor([history[-1] for history in histories])
    validation = Validation(make_store([history[:-1] for history in histories]), last)
    vectors = {key: torch.randn(ITEMS + 1, 12, generator=rng) for key in toy_info.features}
    present = dict.fromkeys(vectors, torch.arange(ITEMS + 1) == 0)  # no item is unknown to a content method
    info = dataclasses.replace(toy_info, features=vectors, missing=present)
    still = {"dropout": 0.0} if hasattr(configured(name), "dropout") else {}
    model = built(name, info, config=configured(name, **still))
    params = TrainingParams(batch_size=8, learning_rate=1e-2, max_epochs=600, patience=600)

    def fallen(now: Progress) -> bool:
        """The recommender's own loss, where the whole has parts that stay (an adversary's, say)."""
        part = next((key for key in ("clean", "next_item") if key in now.history[0]), "loss")
        return now.history[-1][part] < 0.3 * now.history[0][part]

    def is_learned(now: Progress) -> bool:
        return fallen(now) and now.best_ndcg == 1.0

    progress = fit(model, make_store(histories), validation, params, seed=0, on_epoch=is_learned)
    assert fallen(progress)
    assert rank_targets(model, validation.store, last).rank.tolist() == [1] * 8


@pytest.mark.parametrize("name", EVERY)
def test_the_seed_decides_the_weights(name: str, models: dict[str, Method], toy_info: DatasetInfo) -> None:
    torch.manual_seed(99)  # what was drawn before must not matter
    state, again, other = (
        model.state_dict() for model in (models[name], trained(name, toy_info), trained(name, toy_info, 1))
    )
    assert all(torch.equal(state[key], again[key]) for key in state)
    is_same = all(torch.equal(state[key], other[key]) for key in state)
    assert is_same == (name in COUNTED)  # counting draws nothing, and is run with one seed


@pytest.mark.parametrize("name", EVERY)
def test_a_saved_state_gives_the_same_ranks(
    name: str, models: dict[str, Method], toy_info: DatasetInfo, tmp_path: Path
) -> None:
    path = tmp_path / "state.safetensors"
    registry.save(models[name], path)
    restored = registry.restore(built(name, toy_info, seed=5), path, torch.device("cpu"))
    assert not restored.training
    store, targets = held_out()
    ours, theirs = (rank_targets(model, store, targets, topk=5) for model in (models[name], restored))
    assert torch.equal(ours.rank, theirs.rank)
    assert torch.equal(ours.topk, theirs.topk)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", EVERY)
def test_declared_surfaces_exist(name: str, models: dict[str, Method]) -> None:
    for place in models[name].surfaces.values():
        _, whole, columns = located(models[name], place)
        assert whole.is_floating_point(), place
        assert whole[:, columns].shape[1] > 0, place


@pytest.mark.parametrize("name", STEPPED)
def test_what_is_carried_over_exists(name: str, models: dict[str, Method]) -> None:
    model = models[name]
    for prefix in getattr(model, "transferable", ()):
        if prefix == "scale_" and not model.config.is_scaled:
            continue  # features are read as they are: there is nothing to carry
        assert any(key.startswith(prefix) for key in model.state_dict()), prefix


@pytest.mark.parametrize("name", STEPPED)
def test_the_padding_row_stays_zero(name: str, models: dict[str, Method]) -> None:
    model = models[name]
    assert isinstance(model, SequentialMethod | PairwiseMethod | Cddrec)
    assert not model.item_table()[0].any()


@pytest.mark.parametrize("name", STEPPED)
def test_one_step_gives_every_parameter_a_gradient(name: str, toy_info: DatasetInfo) -> None:
    model = built(name, toy_info).train()
    histories = [history[:6] for history in walk(9, seed=2, shortest=6)]
    batch = batch_of(histories, length=6)
    targets = torch.tensor([[*history[1:], history[0]] for history in histories])
    parts = model.training_step(batch.replaced(targets=targets), torch.Generator().manual_seed(0))
    parts["loss"].backward()
    assert all(part.numel() == 1 for part in parts.values())
    for key, parameter in model.named_parameters():
        if not parameter.requires_grad:  # frozen, or trained in another phase
            assert parameter.grad is None, key
            continue
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key
        assert parameter.grad.any(), key


def test_features_that_are_all_the_same_are_no_error(toy_info: DatasetInfo) -> None:
    """A catalogue whose texts say nothing: whitened, they are all zero, and items are told by their ids."""
    constant = torch.ones_like(toy_info.features["text"])
    data = dataclasses.replace(toy_info, features={**toy_info.features, "text": constant})
    settings = registry.configure("sasrec_features", {"modalities": ["text"], "dim": 8, "max_len": 8}, "m")
    model = registry.build("sasrec_features", settings, data)
    assert bool(model.item_table().isfinite().all())
