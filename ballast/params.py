"""params.yaml as frozen records: an unknown or mistyped key is an error at load."""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field

from ballast.errors import BallastError
from ballast.strict import Strict, parse


@dataclass(frozen=True, kw_only=True)
class StudyParams(Strict):
    """What the study is called, and the question it answers."""

    name: str
    title: str
    question: str = ""
    is_simulated: bool = False


@dataclass(frozen=True, kw_only=True)
class FileParams(Strict):
    """One raw file.

    `url` is where it is downloaded; with `member` the url is a zip archive that holds the file under
    that name. `sha256` is of the file itself. `alternatives` are other names it may have in a mirror or
    a local folder (such as a compressed copy, whose hash is not checked: the reader decompresses it).
    """

    name: str
    sha256: str | None = None
    url: str | None = None
    member: str | None = None
    alternatives: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class FolderParams(Strict):
    """A folder of raw files, such as pictures, that is copied as it is."""

    name: str
    is_optional: bool = False


@dataclass(frozen=True, kw_only=True)
class SourceParams(Strict):
    """Where a dataset's raw files come from.

    Looked up in this order: `path` (a local folder, relative to the study), `$BALLAST_MIRROR/<collection>`,
    each file's url. With `simulated` nothing is read: the shop is generated from these settings.
    `manual` tells a person what to download where no url can.
    """

    files: list[FileParams] = field(default_factory=list)
    folders: list[FolderParams] = field(default_factory=list)
    collection: str | None = None
    path: str | None = None
    manual: str = ""
    simulated: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class FilterParams(Strict):
    """k-core: users and items with fewer interactions go, again and again until none is left.

    `is_iterated` False applies each threshold once, items first.
    """

    min_user_interactions: int = 5
    min_item_interactions: int = 1
    is_iterated: bool = True


@dataclass(frozen=True, kw_only=True)
class SplitParams(Strict):
    """`leave_one_out`: last item test, the one before validation. `global_time`: the last
    `test_share` of the time line is test, the `valid_share` before it validation."""

    kind: Literal["leave_one_out", "global_time"] = "leave_one_out"
    valid_share: float = 0.1
    test_share: float = 0.1


@dataclass(frozen=True, kw_only=True)
class NoiseParams(Strict):
    """Noise put into training: this share of the interactions becomes other items, drawn by `seed`."""

    share: float
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class SampleParams(Strict):
    """Training on less: this share of the users, drawn by `seed`; a larger share has those of a smaller.

    For methods that know a user by the history alone; those that learn users are refused.
    """

    share: Annotated[float, Field(gt=0, le=1)]
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class PoisonParams(Strict):
    """Fake users in training: their number as a share of the real ones, and how many items they push.

    `attack` names a file of ballast/robustness/poisons and its settings. A share of 0 is the control: the
    same items are watched and nobody pushes them.
    """

    attack: dict[str, Any]
    share: Annotated[float, Field(ge=0, le=1)]
    pushed: Annotated[int, Field(ge=1)] = 5
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class DatasetParams(Strict):
    """One dataset: its source, reader, filter, split and seeds, with its terms of use.

    `noise` spoils its training interactions; without it they stay as they are. `sample` trains on some
    users alone, while all keep their histories and are validated and tested on. `poison` adds fake users.
    """

    label: str
    terms: str
    source: SourceParams
    reader: dict[str, Any]
    seeds: list[int]
    filter: FilterParams = field(default_factory=FilterParams)
    split: SplitParams = field(default_factory=SplitParams)
    noise: NoiseParams | None = None
    sample: SampleParams | None = None
    poison: PoisonParams | None = None
    expected: dict[str, int] = field(default_factory=dict)
    is_simulated: bool = False


@dataclass(frozen=True, kw_only=True)
class TrainingParams(Strict):
    """Optimisation of a gradient method; early stopping is on validation NDCG@10, always.

    `learning_rate_decay` is the factor of the rate after each epoch. `precision` is that of the matrix
    products in training: `bfloat16` is several times faster on processors that have instructions for it,
    others stay with float32. A GPU always takes bfloat16. Each cell records which it had.
    """

    batch_size: int = 256
    learning_rate: float = 1e-3
    learning_rate_decay: float = 1.0
    weight_decay: float = 0.0
    max_epochs: int = 200
    patience: int = 10
    precision: Literal["float32", "bfloat16"] = "float32"


@dataclass(frozen=True, kw_only=True)
class TrainedParams(Strict):
    """What is trained: `method` names a file in ballast/models/methods, `model` is its Config."""

    label: str
    method: str
    model: dict[str, Any] = field(default_factory=dict)
    training: TrainingParams = field(default_factory=TrainingParams)


@dataclass(frozen=True, kw_only=True)
class MethodParams(TrainedParams):
    """One row of the study.

    `start` is for transfer methods: the entry of `transfer.pretraining` whose state it starts from.
    """

    start: str | None = None


@dataclass(frozen=True, kw_only=True)
class PretrainingParams(TrainedParams):
    """A state that transfer methods may start from: a method trained on the pooled domains of `pool`."""

    pool: str


@dataclass(frozen=True, kw_only=True)
class PoolParams(Strict):
    """Source domains shuffled together.

    Users of a target domain may be among those of the sources: `without_users_of` names datasets whose users
    are left out. `is_shuffled` puts every user's training items in random order, a control: what a state
    pre-trained on such a pool brings along cannot be what follows what.
    """

    sources: list[str]
    without_users_of: list[str] = field(default_factory=list)
    is_shuffled: bool = False


@dataclass(frozen=True, kw_only=True)
class TransferParams(Strict):
    """Pools of source domains, what is pre-trained on them, and the targets that are adapted to."""

    pools: dict[str, PoolParams] = field(default_factory=dict)
    pretraining: dict[str, PretrainingParams] = field(default_factory=dict)
    targets: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class TuningParams(Strict):
    """The search for settings: the same number of trials for each method named here, on each dataset.

    datasets: name to what holds there for every method (a block as under `cells`). methods and
    content_methods: who is searched for. space: dotted key of a method's block to the values to try;
    `spaces` holds further keys of single methods. `seed` trains the trials and draws them.
    """

    trials: int = 1
    seed: int = 0
    datasets: dict[str, dict[str, Any]] = field(default_factory=dict)
    methods: list[str] = field(default_factory=list)
    content_methods: list[str] = field(default_factory=list)
    space: dict[str, list[Any]] = field(default_factory=dict)
    spaces: dict[str, dict[str, list[Any]]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SampledParams(Strict):
    """The target among `negatives` items, drawn by their training count to the `power`; 0 is uniform."""

    negatives: int = 63
    power: float = 0.75

    @property
    def name(self) -> str:
        """As the protocol is called in records, such as "63@0.75"."""
        return f"{self.negatives}@{self.power:g}"


@dataclass(frozen=True, kw_only=True)
class EvaluationParams(Strict):
    """Full ranking: list length kept, and users scored at a time. `sampled`: protocols to add to it."""

    topk: int = 20
    batch_size: int = 512
    sampled: list[SampledParams] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class AttackParams(Strict):
    """One attack: its settings but for the surface, the surfaces it is tried on (all that a method has, if
    none is named), and its budgets in units of the mean norm of the surface's rows."""

    attack: dict[str, Any]
    budgets: Annotated[list[Annotated[float, Field(gt=0, allow_inf_nan=False)]], Field(min_length=1)]
    surfaces: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class RobustnessParams(Strict):
    """What trained methods are put to at test time, on fixed samples of users, the same for every method.

    `users` get their histories corrupted (`kinds` at `budgets`) and items that lose a modality (`missing`:
    shares of the items); the first `attack_users` of them are who the `attacks` are aimed at, or `pushed`
    items are promoted to.
    """

    users: int = 2000
    seed: int = 0
    kinds: list[str] = field(default_factory=lambda: ["insert", "replace", "delete", "shuffle"])
    budgets: list[float] = field(default_factory=lambda: [0.0, 0.1, 0.2, 0.3, 0.5])
    missing: list[Annotated[float, Field(ge=0, le=1)]] = field(default_factory=list)
    attack_users: int = 500
    pushed: int = 2
    attacks: dict[str, AttackParams] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ClaimParams(Strict):
    """A claim, tested on every dataset: it holds where the first of each pair is better than the second."""

    text: str
    pairs: Annotated[list[tuple[str, str]], Field(min_length=1)]


@dataclass(frozen=True, kw_only=True)
class ReportParams(Strict):
    """Resampling for intervals and tests, and the published numbers to compare with."""

    bootstrap_draws: int = 2000
    seed: int = 0
    baseline: str = "sasrec"
    versus: list[tuple[str, str]] = field(default_factory=list)
    """Pairs of methods whose accuracy, and whose losses under attack and noise, are tested: declared, not
    picked."""
    scratch: dict[str, str] = field(default_factory=dict)
    """Adapted methods, each with the same method without pre-training: their difference is the transfer."""
    claims: list[ClaimParams] = field(default_factory=list)
    calibration: list[dict[str, Any]] = field(default_factory=list)

    def declared_pairs(self) -> list[tuple[str, str]]:
        """All pairs that are named before anything was measured: under versus, in claims and in scratch."""
        claimed = [pair for claim in self.claims for pair in claim.pairs]
        return list(dict.fromkeys([*self.versus, *claimed, *self.scratch.items()]))


@dataclass(frozen=True, kw_only=True)
class Params(Strict):
    """Everything in a study's params.yaml. `cells` holds what differs for one dataset and method."""

    root: str
    study: StudyParams
    datasets: dict[str, DatasetParams]
    targets: list[str]
    content_datasets: list[str]
    features: dict[str, dict[str, Any]]
    methods: dict[str, MethodParams]
    content_methods: dict[str, MethodParams]
    transfer_methods: dict[str, MethodParams]
    transfer: TransferParams
    tuning: TuningParams
    cells: dict[str, dict[str, dict[str, Any]]]
    evaluation: EvaluationParams
    robustness: RobustnessParams
    report: ReportParams

    def grid(self) -> list[tuple[str, str]]:
        """(dataset, method) of every cell that the report must have."""
        cells = [(d, m) for d in self.targets for m in (*self.methods, *self.content_methods)]
        return cells + [(d, m) for d in self.transfer.targets for m in self.transfer_methods]

    def tuned(self) -> list[tuple[str, str]]:
        """(dataset, method) of every search for settings."""
        tuning = self.tuning
        return [(d, m) for d in tuning.datasets for m in (*tuning.methods, *tuning.content_methods)]

    def all_methods(self) -> dict[str, MethodParams]:
        """Method id to its block, without what single cells change."""
        return {**self.methods, **self.content_methods, **self.transfer_methods}

    def cell(self, dataset: str, method: str) -> MethodParams:
        """The method's block as it holds on this dataset: `cells.<dataset>.<method>` merged in."""
        base = self.all_methods().get(method)
        if base is None:
            raise BallastError(
                f"params.yaml: unknown method '{method}'; known: {', '.join(self.all_methods())}"
            )
        change = self.cells.get(dataset, {}).get(method)
        if change is None:
            raise BallastError(
                f"params.yaml: cells.{dataset}.{method} is missing: "
                f"write `{method}: {{}}` under cells.{dataset}"
            )
        return changed(base, change, f"params.yaml: cells.{dataset}.{method}")


def changed(base: MethodParams, change: Mapping[str, Any], where: str) -> MethodParams:
    """A method's block with `change` laid over it; raises BallastError naming a mistyped key."""
    block = {
        "label": base.label,
        "method": base.method,
        "model": base.model,
        "training": vars(base.training),
        "start": base.start,
    }
    return parse(MethodParams, _merged(block, change), where)


def load(path: Path) -> Params:
    """Read and check a params.yaml; raises BallastError naming the key of the first problem."""
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)
    except FileNotFoundError:
        raise BallastError(
            f"{path}: not found; run from a study's folder (the one with params.yaml)"
        ) from None
    except yaml.YAMLError as error:
        raise BallastError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    params = parse(Params, data, str(path))
    _check(params)
    return params


class _UniqueKeyLoader(yaml.SafeLoader):
    """SafeLoader that reads 1e-3 as a number, as YAML 1.2 and DVC do, and refuses a repeated key."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key '{key}' is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_UniqueKeyLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(?:\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _merged(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `change` laid over it, mappings merged key by key."""
    result = dict(base)
    for key, value in change.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        # A component named anew (another loss, another backbone) does not keep the old one's settings.
        renamed = both and "name" in value and value["name"] != result[key].get("name")
        result[key] = _merged(result[key], value) if both and not renamed else value
    return result


_ONE_OR_MORE: tuple[str, Callable[[float], bool]] = ("is less than 1", lambda number: number >= 1)
_ZERO_OR_MORE: tuple[str, Callable[[float], bool]] = ("is not 0 or more", lambda number: number >= 0)

# What is wrong with a number under one of these keys, wherever it stands, and when it is right. That is told
# here and not by the records' types, which results depend on (`provenance`): a stricter check reruns nothing.
_RANGES: dict[str, tuple[str, Callable[[float], bool]]] = {
    **dict.fromkeys(("batch_size", "max_epochs", "patience"), _ONE_OR_MORE),
    **dict.fromkeys(("dim", "max_len", "heads", "layers", "window", "negatives"), _ONE_OR_MORE),
    **dict.fromkeys(("topk", "users", "attack_users", "pushed", "bootstrap_draws", "trials"), _ONE_OR_MORE),
    **dict.fromkeys(("min_user_interactions", "min_item_interactions", "weight_decay"), _ZERO_OR_MORE),
    **dict.fromkeys(("seed", "seeds", "reverse_weight", "popularity_power"), _ZERO_OR_MORE),
    **dict.fromkeys(
        ("share", "history_decay", "pair_decay"),
        ("is not a share between 0 and 1", lambda number: 0 <= number <= 1),
    ),
    "learning_rate": ("is not above 0", lambda number: number > 0),
    "learning_rate_decay": ("is not above 0 and at most 1", lambda number: 0 < number <= 1),
    "dropout": ("is not 0 or more and below 1", lambda number: 0 <= number < 1),
}


_SURFACES = ("items", "text", "image", "price")  # a method has some; a block may name those it has not


def _check_ranges(params: Params) -> None:
    for key, number in _numbers(params, ()):
        # A list's numbers stand under the list's key, and a search names a key of a block by its whole path.
        name = next(part for part in reversed(".".join(key).split(".")) if not part.isdigit())
        if name in _RANGES:
            problem, is_right = _RANGES[name]
            if not (math.isfinite(number) and is_right(number)):
                raise BallastError(f"params.yaml: {'.'.join(key)}: {number} {problem}")


def _numbers(block: object, where: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], float]]:
    """(keys that lead to it, number) of all numbers in a record, a mapping or a list."""
    if isinstance(block, int | float) and not isinstance(block, bool):
        yield where, block
    elif isinstance(block, list | tuple):
        for place, value in enumerate(block):
            yield from _numbers(value, (*where, str(place)))
    elif isinstance(block, Mapping | Strict):
        for key, value in (block if isinstance(block, Mapping) else vars(block)).items():
            yield from _numbers(value, (*where, str(key)))


def _check(params: Params) -> None:
    known = set(params.datasets)
    for key, names in [
        ("targets", params.targets),
        ("content_datasets", params.content_datasets),
        *((f"transfer.pools.{name}.sources", pool.sources) for name, pool in params.transfer.pools.items()),
        *(
            (f"transfer.pools.{name}.without_users_of", pool.without_users_of)
            for name, pool in params.transfer.pools.items()
        ),
        ("transfer.targets", params.transfer.targets),
        ("tuning.datasets", params.tuning.datasets),
    ]:
        for name in names:
            if name not in known:
                raise BallastError(
                    f"params.yaml: {key}: unknown dataset '{name}'; known: {', '.join(sorted(known))}"
                )
    for name, dataset in params.datasets.items():
        if not dataset.seeds or len(set(dataset.seeds)) != len(dataset.seeds):
            raise BallastError(
                f"params.yaml: datasets.{name}.seeds: give one or more different whole numbers"
            )
        if "name" not in dataset.reader:
            raise BallastError(f"params.yaml: datasets.{name}.reader: say which, such as `name: tabular`")
    section_of: dict[str, str] = {}
    for section in ("methods", "content_methods", "transfer_methods"):
        for name in getattr(params, section):
            if section_of.setdefault(name, section) != section:
                raise BallastError(
                    f"params.yaml: {section}.{name}: the id is taken by {section_of[name]}.{name}"
                )
    for place, methods in params.cells.items():
        if place not in known:
            raise BallastError(
                f"params.yaml: cells.{place}: unknown dataset; known: {', '.join(sorted(known))}"
            )
        for method in methods:
            if method not in params.all_methods():
                known_methods = ", ".join(params.all_methods())
                raise BallastError(
                    f"params.yaml: cells.{place}.{method}: unknown method; known: {known_methods}"
                )
    for place, method in params.grid():
        params.cell(place, method)
    _check_transfer(params)
    is_chosen = params.report.baseline != ReportParams().baseline  # a study may do without the usual one
    named: dict[str, Iterable[tuple[str, ...]]] = {
        "baseline": [(params.report.baseline,)] if is_chosen else [],
        "versus": params.report.versus,
        "scratch": params.report.scratch.items(),
        "claims": [pair for claim in params.report.claims for pair in claim.pairs],
    }
    for key, pairs in named.items():
        for method in (name for pair in pairs for name in pair):
            if method not in params.all_methods():
                known_methods = ", ".join(params.all_methods())
                raise BallastError(
                    f"params.yaml: report.{key}: unknown method '{method}'; known: {known_methods}"
                )
    for pair in params.report.versus:
        if pair[0] == pair[1] or params.report.versus.count(pair) > 1:
            raise BallastError(
                f"params.yaml: report.versus: {list(pair)}: name two methods, and each pair once"
            )
    _check_tuning(params)
    _check_ranges(params)
    for name, attack in params.robustness.attacks.items():
        for surface in attack.surfaces:
            if surface not in _SURFACES:
                raise BallastError(
                    f"params.yaml: robustness.attacks.{name}.surfaces: unknown surface '{surface}'; "
                    f"known: {', '.join(_SURFACES)}"
                )
    for budget in params.robustness.budgets:
        if not (math.isfinite(budget) and 0 <= budget <= 1):
            raise BallastError(f"params.yaml: robustness.budgets: {budget} is not a share between 0 and 1")


def _check_transfer(params: Params) -> None:
    transfer = params.transfer
    for name, pool in transfer.pools.items():
        if not pool.sources:
            raise BallastError(f"params.yaml: transfer.pools.{name}.sources: name at least one dataset")
    for name, pretraining in transfer.pretraining.items():
        if pretraining.pool not in transfer.pools:
            raise BallastError(
                f"params.yaml: transfer.pretraining.{name}.pool: unknown pool '{pretraining.pool}'; "
                f"known: {', '.join(transfer.pools)}"
            )
    for name, method in params.transfer_methods.items():
        if method.start not in transfer.pretraining:
            raise BallastError(
                f"params.yaml: transfer_methods.{name}.start: unknown pre-training {method.start!r}; "
                f"known: {', '.join(transfer.pretraining)}"
            )


def _check_tuning(params: Params) -> None:
    tuning = params.tuning
    for section in ("methods", "content_methods"):
        for name in getattr(tuning, section):
            if name not in getattr(params, section):
                raise BallastError(f"params.yaml: tuning.{section}: '{name}' is not under {section}")
    for name in tuning.spaces:
        if name not in (*tuning.methods, *tuning.content_methods):
            raise BallastError(f"params.yaml: tuning.spaces.{name}: not a method that is tuned")
