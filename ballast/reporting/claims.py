"""Claims as data: what the study was expected to show, and whether its tests bear it out."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Literal

import pandas as pd

from ballast.evaluation.metrics import HEADLINE
from ballast.params import ClaimParams, Params
from ballast.reporting.differences import as_tests
from ballast.reporting.pairs import find
from ballast.reporting.results import Results

Verdict = Literal["holds", "fails", "undecided"]
REFERENCES = ("popularity", "item-knn")
CONTENT = "feature-knn"


@dataclass(frozen=True)
class Claim:
    """`method_a` is better than `method_b` on `metric`; `evidence` quotes the tests it rests on.

    fails means that the opposite was shown; undecided, that neither was.
    """

    text: str
    dataset: str
    method_a: str
    method_b: str
    metric: str
    verdict: Verdict
    evidence: str


def default_claims(results: Results, params: Params) -> list[Claim]:
    """Each method against popularity, item-knn and the baseline; order and cold items where they apply.

    And what params.yaml declares under `report.claims`: these rest on the tests of the pairs declared under
    `report.versus` where they are among those, since neither was picked by score.
    """
    claims = []
    versus, family = as_tests(results.differences), [set(pair) for pair in params.report.versus]
    labels = {name: block.label for name, block in params.all_methods().items()}
    for dataset, group in results.accuracy.groupby("dataset", sort=False):
        methods = list(group["method"])
        place = params.datasets[str(dataset)].label
        for reference in dict.fromkeys([*REFERENCES, params.report.baseline]):
            for method in methods if reference in methods else []:
                if method != reference and not (method in REFERENCES and reference == params.report.baseline):
                    text = f"{labels[method]} ranks better than {labels[reference]} on {place}"
                    claims.append(_claim(text, [find(results.pairs, str(dataset), method, reference)]))
        if params.datasets[str(dataset)].is_simulated:
            claims += _order(
                results.pairs, str(dataset), place, [params.report.baseline, *REFERENCES[::-1]], methods
            )
        claims += _cold(results.pairs, str(dataset), place, labels)
        for declared in params.report.claims:
            pairs = [pair for pair in declared.pairs if set(pair) <= set(methods)]
            tests = [
                find(versus if set(pair) in family else results.pairs, str(dataset), *pair) for pair in pairs
            ]
            claims += [_claim(declared_text(declared, place), tests)] if tests else []
    return claims


def declared_text(declared: ClaimParams, place: str) -> str:
    """How a claim of params.yaml reads for one dataset."""
    return f"{declared.text} on {place}"


def _order(
    pairs: pd.DataFrame, dataset: str, place: str, chain: list[str], methods: list[str]
) -> list[Claim]:
    if not set(chain) <= set(methods):
        return []
    tests = [find(pairs, dataset, a, b) for a, b in pairwise(chain)]
    return [_claim(f"Sequence beats co-occurrence beats popularity on {place}", tests)]


def _cold(pairs: pd.DataFrame, dataset: str, place: str, labels: dict[str, str]) -> list[Claim]:
    rows = pairs[(pairs["dataset"] == dataset) & (pairs["users_with"] == "cold targets")]
    if rows.empty:
        return []
    text = f"{labels[CONTENT]} ranks cold items (0-2 training interactions) best on {place}"
    return [_claim(text, [row for _, row in rows.iterrows()])]


def _claim(text: str, tests: list[pd.Series]) -> Claim:
    verdicts = [test["verdict"] for test in tests]
    if all(verdict == "better" for verdict in verdicts):
        verdict: Verdict = "holds"
    else:
        verdict = "fails" if "worse" in verdicts else "undecided"
    first, others = tests[0], list(dict.fromkeys(test["method_b"] for test in tests))
    evidence = "; ".join(quote(test) for test in tests)
    return Claim(text, first["dataset"], first["method_a"], " ".join(others), HEADLINE, verdict, evidence)


def quote(test: pd.Series) -> str:
    """One test in a line."""
    return (
        f"{test['method_a']} {test['mean_a']:.4f} against {test['method_b']} {test['mean_b']:.4f}, "
        f"difference {test['difference']:+.4f} [{test['low']:+.4f}, {test['high']:+.4f}], "
        f"adjusted p {_p(test['p_holm'])}, n {test['users']:,}, seeds {test['seeds'] or 'none needed'}: "
        f"{test['verdict']}"
    )


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def as_frame(claims: Iterable[Claim]) -> pd.DataFrame:
    """A row a claim."""
    return pd.DataFrame([asdict(claim) for claim in claims], columns=list(Claim.__dataclass_fields__))
