"""Fingerprints of code: what changes them and what does not, on small packages and on this one."""

import ast
import json
import shutil
from pathlib import Path
from typing import Any

import fingerprint as stage
import pytest

from ballast.provenance import definitions_used, fingerprint

ROOT = Path(__file__).resolve().parents[1]

# A package in which `entry.py` uses some of what the others define.
PACKAGE = {
    "pkg/__init__.py": "",
    "pkg/entry.py": """
        import math
        import pkg.whole
        from pkg import reexported
        from pkg.base import Base
        from pkg.constants import LIMIT, OTHER as RENAMED
        from pkg.decorators import twice
        from pkg.facade import public
        from pkg import module as mod

        class Entry(Base):
            '''A class.'''
            limit = LIMIT

            @twice
            def run(self, value: int = RENAMED) -> int:
                '''Run.'''
                # A comment.
                from pkg.late import late
                return late(public(value)) + mod.used() + pkg.whole.anything()
    """,
    "pkg/base.py": """
        from pkg.grandbase import Grand

        class Base(Grand):
            def step(self):
                return helper()

        def helper():
            return 1

        def unrelated():
            return 1
    """,
    "pkg/grandbase.py": "class Grand:\n    size = 1\n\nclass Unrelated:\n    size = 1\n",
    "pkg/constants.py": "LIMIT = SMALL = 3\nOTHER: int = 4\nUNRELATED = 5\nLIMIT += 0\n",
    "pkg/decorators.py": "def twice(f):\n    return f\n\ndef unrelated(f):\n    return f\n",
    "pkg/facade.py": "from pkg.hidden import public, unrelated\n",
    "pkg/hidden.py": """
        def public(x):
            return inner(x)

        def inner(x):
            return x

        def unrelated():
            return 1
    """,
    "pkg/late.py": "def late(x):\n    return x\n\ndef unrelated():\n    return 1\n",
    "pkg/module.py": "def used():\n    return 1\n\ndef beside():\n    return 1\n",
    "pkg/whole.py": "def anything():\n    return 1\n",
    "pkg/reexported.py": "VALUE = 1\nregister(VALUE)\n",
    "pkg/stranger.py": "VALUE = 1\n",
}  # fmt: skip


@pytest.fixture
def package(tmp_path: Path) -> Path:
    for name, text in PACKAGE.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        lines = text.strip("\n").splitlines()
        margin = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
        path.write_text("\n".join(line[margin:] for line in lines).rstrip() + "\n")
    return tmp_path


def edited(folder: Path, name: str, old: str, new: str) -> None:
    path = folder / name
    text = path.read_text(encoding="utf-8")
    assert old in text, f"{name} has no {old!r}"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def of(folder: Path) -> str:
    return fingerprint(folder, ["pkg.entry"])


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("pkg/entry.py", "# A comment.", "# Another, # longer."),
        ("pkg/entry.py", "'''Run.'''", '"""Run\n\n        far."""'),
        ("pkg/entry.py", "'''A class.'''", ""),
        ("pkg/entry.py", "import math", '"""A module."""\n\n\nimport math'),
        ("pkg/entry.py", "limit = LIMIT", "limit  =  (\n        LIMIT\n    )"),
        ("pkg/hidden.py", "return inner(x)", "return (inner(x))  # as it is"),
        ("pkg/constants.py", "OTHER: int = 4", "OTHER: int = 0x4"),
        ("pkg/base.py", "def unrelated():\n    return 1", "def unrelated():\n    return 2"),
        ("pkg/base.py", "def unrelated():", "def another():\n    pass\n\n\ndef unrelated():"),
        ("pkg/grandbase.py", "class Unrelated:\n    size = 1", "class Unrelated:\n    size = 2"),
        ("pkg/constants.py", "UNRELATED = 5", "UNRELATED = 6"),
        ("pkg/decorators.py", "def unrelated(f):\n    return f", "def unrelated(f):\n    return 2"),
        ("pkg/facade.py", ", unrelated", ""),
        ("pkg/hidden.py", "def unrelated():\n    return 1", "def unrelated():\n    return 2"),
        ("pkg/late.py", "def unrelated():\n    return 1", "def unrelated():\n    return 2"),
        ("pkg/stranger.py", "VALUE = 1", "VALUE = 2"),
    ],
)
def test_what_runs_the_same_has_the_same_fingerprint(name: str, old: str, new: str, package: Path) -> None:
    before = of(package)
    edited(package, name, old, new)
    assert of(package) == before


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("pkg/entry.py", "late(public(value))", "late(public(-value))"),
        ("pkg/entry.py", "def run(", "def walk("),
        ("pkg/entry.py", "@twice", "@staticmethod"),
        ("pkg/entry.py", "value: int = RENAMED", "value: int = 1"),
        ("pkg/entry.py", "class Entry", "print('imported')\n\nclass Entry"),
        ("pkg/base.py", "return helper()", "return -helper()"),
        ("pkg/base.py", "def helper():\n    return 1", "def helper():\n    return 2"),
        ("pkg/base.py", "class Base(Grand)", "class Base"),
        ("pkg/base.py", "def unrelated", "helper = min\n\ndef unrelated"),
        ("pkg/grandbase.py", "size = 1", "size = 2"),
        ("pkg/constants.py", "SMALL = 3", "SMALL = 4"),
        ("pkg/constants.py", "OTHER: int = 4", "OTHER: int = 5"),
        ("pkg/constants.py", "LIMIT += 0", "LIMIT += 1"),
        ("pkg/constants.py", "LIMIT += 0", "for i in range(3):\n    LIMIT += i"),
        ("pkg/decorators.py", "def twice(f):\n    return f", "def twice(f):\n    return lambda x: f(f(x))"),
        ("pkg/facade.py", "import public, unrelated", "import unrelated as public"),
        ("pkg/hidden.py", "return inner(x)", "return inner(inner(x))"),
        ("pkg/hidden.py", "def inner(x):\n    return x", "def inner(x):\n    return x + 1"),
        ("pkg/late.py", "return x", "return x + 1"),
        ("pkg/module.py", "def used():\n    return 1", "def used():\n    return 2"),
        # Any attribute of an imported module may be read.
        ("pkg/module.py", "def beside():\n    return 1", "def beside():\n    return 2"),
        ("pkg/whole.py", "return 1", "return 2"),
        ("pkg/reexported.py", "VALUE = 1", "VALUE = 2"),
        ("pkg/reexported.py", "register(VALUE)", "register(VALUE, 2)"),
    ],
)  # fmt: skip
def test_what_runs_otherwise_has_another(name: str, old: str, new: str, package: Path) -> None:
    before = of(package)
    edited(package, name, old, new)
    assert of(package) != before


def test_another_function_of_another_library_is_a_change(package: Path) -> None:
    edited(
        package,
        "pkg/late.py",
        "def late(x):\n    return x",
        "from math import log as f\n\n\ndef late(x):\n    return f(x)",
    )
    before = of(package)
    edited(package, "pkg/late.py", "log as f", "log2 as f")
    assert of(package) != before


def test_modules_that_import_one_another(package: Path) -> None:
    edited(package, "pkg/whole.py", "def anything", "import pkg.module\n\n\ndef anything")
    edited(package, "pkg/module.py", "def used", "import pkg.whole\n\n\ndef used")
    before = of(package)
    edited(package, "pkg/module.py", "def beside():\n    return 1", "def beside():\n    return 2")
    assert of(package) != before


def test_the_place_of_the_project_does_not_matter(package: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copytree(package / "pkg", copy / "pkg")
    assert of(copy) == of(package)


def test_a_whole_package_is_taken_by_a_star(package: Path) -> None:
    found = {module for module, _ in definitions_used(package, ["pkg.*"])}
    expected = {name.removesuffix(".py").replace("/", ".") for name in PACKAGE} - {
        "pkg.__init__",
        "pkg.facade",
    }
    assert found == expected
    before = fingerprint(package, ["pkg.*"])
    (package / "pkg/new.py").write_text("VALUE = 1\n")
    assert fingerprint(package, ["pkg.*"]) != before


def test_order_and_repeats_of_the_entry_points_do_not_matter(package: Path) -> None:
    names = ["pkg.entry", "pkg.stranger"]
    assert fingerprint(package, names) == fingerprint(package, [*names[::-1], "pkg.entry"])
    assert fingerprint(package, names) != of(package)


def test_somebody_elses_modules_are_passed_over(package: Path) -> None:
    assert fingerprint(package, ["pkg.entry", "numpy.linalg"]) == of(package)


# This project


@pytest.fixture(scope="module")
def entries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Stage (and method) to the modules that the fingerprint stage starts from, as it asks for them."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "params.yaml").write_text(PARAMS)
    asked: dict[str, list[str]] = {}

    def note(root: Path, modules: list[str]) -> str:
        key = str(len(asked))
        asked[key] = list(modules)
        return key

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(stage, "fingerprint", note)
        stage.main()
    code = json.loads((folder / "reports/code.json").read_text())
    return {
        name: asked[key] if isinstance(key, str) else {method: asked[one] for method, one in key.items()}
        for name, key in code.items()
    }


PARAMS = """
root: .
study: {name: toy, title: A toy study}
datasets:
  shop: &shop {label: S, terms: none, source: {}, reader: {name: tabular}, seeds: [0]}
  spoilt: {<<: *shop, poison: {attack: {name: injection}, share: 0.1}}
  turned: {<<: *shop, poison: {attack: {name: gradient}, share: 0.1}}
targets: [shop]
content_datasets: [shop]
features: {text: {name: tfidf_svd}}
methods:
  popularity: {label: P, method: popularity}
  renamed: {label: S, method: next_item, model: {backbone: {name: sasrec}, loss: {name: bce}}}
content_methods: {}
transfer_methods:
  transfer: {label: T, method: sasrec_features, start: shared}  # its backbone is the default one
transfer:
  pools: {all: {sources: [shop]}}
  pretraining:
    shared: {label: S, method: sasrec_features, pool: all}
  targets: [shop]
tuning: {}
cells:
  shop: {popularity: {}, renamed: {model: {backbone: {name: gru4rec}}}, transfer: {}}
evaluation: {}
robustness: {}
report: {}
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this project's code."""
    folder = tmp_path_factory.mktemp("tree")
    for name in ("ballast", "stages"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="module")
def before(tree: Path, entries: dict[str, Any]) -> dict[str, str]:
    return fingerprints(tree, entries)


CELL_STAGES = ("tune", "train", "evaluate", "robustness")
ON_DATASET = ("train", "evaluate", "robustness")
EVERY_METHOD = ("popularity", "renamed", "transfer")


def fingerprints(tree: Path, entries: dict[str, Any]) -> dict[str, str]:
    """What code.json would hold, keys dotted, such as `train.named`."""
    found = {}
    for name, modules in entries.items():
        for key, one in [("", modules)] if isinstance(modules, list) else modules.items():
            found[f"{name}.{key}".rstrip(".")] = fingerprint(tree, one)
    return found


PRETRAINED = {"pretrain.shared"}
POISONED = {"preprocess.spoilt", "preprocess.turned"}


def cells(*methods: str, stages: tuple[str, ...] = CELL_STAGES) -> set[str]:
    return {f"{name}.{method}" for name in stages for method in methods}


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        # One method's own file, one column.
        (("ballast/models/methods/popularity.py", ".expand(", ".clone().expand("), cells("popularity")),
        # Files that are found by name: a default, and one that a cell puts in place of the method's own.
        (("ballast/models/backbones/sasrec.py", "std=0.02", "std=0.03"),
         cells("transfer") | PRETRAINED | {"preprocess.turned"}),
        (("ballast/models/backbones/gru4rec.py", "config.hidden or dim", "config.hidden or 2 * dim"),
         cells("renamed", stages=ON_DATASET)),
        (("ballast/models/losses/bce.py", "softplus(-positive)", "softplus(1 - positive)"),
         cells("renamed")),
        (("ballast/models/losses/cross_entropy.py", "losses.sum() / count", "losses.sum()"),
         cells("transfer") | PRETRAINED | {"preprocess.turned"}),
        (("ballast/data/readers/tabular.py", "before - len(interactions)", "0"),
         {"preprocess.shop", *POISONED}),
        # Fake users are made by a file that the dataset's block names.
        (("ballast/robustness/poisons/injection.py", "rng.permutation(", "0 * rng.permutation("),
         POISONED),
        (("ballast/data/simulated/domains/decor.py", "Hallowell", "Halliwell"), {"fetch"}),
        (("ballast/content/text.py", "random_state=config.seed", "random_state=1"), {"features", "fitted"}),
        # What a block means: a default, and how a cell changes it; a new section of params does not.
        (("ballast/params.py", "batch_size: int = 256", "batch_size: int = 255"),
         cells(*EVERY_METHOD) | PRETRAINED | {"report", "preprocess.turned"}),
        (("ballast/params.py", "topk: int = 20", "topk: int = 21"), {"report"}),
        # What the stages share.
        (("stages/inputs.py", "every[:1]", "every[:2]"), cells(*EVERY_METHOD) | PRETRAINED),
        (("ballast/models/training.py", "progress.epoch += 1", "progress.epoch += 2"),
         cells(*EVERY_METHOD, stages=("tune", "train")) | PRETRAINED),
        (("stages/evaluate.py", "topk[:, :10]", "topk[:, :9]"), cells(*EVERY_METHOD, stages=("evaluate",))),
        # The report's page is a template, which is code too.
        (("ballast/reporting/templates/page.html.j2", "<html", "<html class='x'"), {"report"}),
        # Paths change no result.
        (("stages/study.py", "reports/metrics.json", "reports/metrics2.json"), set()),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)  # fmt: skip
def test_an_edit_reruns_what_it_touches(
    edit: tuple[str, str, str],
    expected: set[str],
    tree: Path,
    entries: dict[str, Any],
    before: dict[str, str],
    tmp_path: Path,
) -> None:
    copy = tmp_path / "tree"
    shutil.copytree(tree, copy)
    edited(copy, *edit)
    after = fingerprints(copy, entries)
    changed = {name for name in before if before[name] != after[name]}
    if "backbones" in edit[0]:  # the one put aside may count too
        changed -= cells("renamed") - expected
    assert changed == expected


def test_words_rerun_nothing(
    tree: Path, entries: dict[str, Any], before: dict[str, str], tmp_path: Path
) -> None:
    copy = tmp_path / "tree"
    shutil.copytree(tree, copy)
    for path in copy.rglob("*.py"):
        path.write_text(f"# A licence.\n{path.read_text(encoding='utf-8')}\n\n# The end.\n", encoding="utf-8")
    assert fingerprints(copy, entries) == before


def test_nothing_is_imported_in_ways_that_a_fingerprint_does_not_see() -> None:
    """Relative imports are not followed; modules found by a name of run time are listed by the stage."""
    by_name = set()
    for path in [*(ROOT / "ballast").rglob("*.py"), *(ROOT / "stages").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path}: line {node.lineno}"
            if isinstance(node, ast.Name | ast.Attribute):
                name = node.id if isinstance(node, ast.Name) else node.attr
                if name in ("import_module", "__import__", "exec", "eval", "run_path", "run_module"):
                    by_name.add((path.relative_to(ROOT).as_posix(), name))
    by_name = {(path, name) for path, name in by_name if name != "eval"}  # Module.eval is torch's
    assert by_name == {
        ("ballast/content/hub.py", "import_module"),  # optional packages of others
        ("ballast/data/readers/__init__.py", "import_module"),
        ("ballast/models/backbones/__init__.py", "import_module"),
        ("ballast/models/losses/__init__.py", "import_module"),
        ("ballast/models/registry.py", "import_module"),
        ("ballast/robustness/attacks/__init__.py", "import_module"),
        ("ballast/robustness/poisons/__init__.py", "import_module"),
    }
