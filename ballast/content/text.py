"""Item texts -> vectors: TF-IDF with SVD, or any sentence-transformers model."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from ballast.content import hub
from ballast.content.features import Features, scattered
from ballast.strict import Strict

Fields = Annotated[list[Literal["title", "category", "description"]], Field(min_length=1)]


def _all_fields() -> Fields:
    return ["title", "category", "description"]


@dataclass(frozen=True, kw_only=True)
class TfidfSvd(Strict):
    """Latent semantic analysis of words and word pairs; needs no network and no pre-trained weights.

    `fit_on` names the datasets whose items give vocabulary and axes; empty means its own. Vectors of
    different datasets share one space only where `fit_on` is the same list.
    """

    name: Literal["tfidf_svd"] = "tfidf_svd"
    fields: Fields = field(default_factory=_all_fields)
    dim: Annotated[int, Field(ge=1)] = 128
    max_ngram: Annotated[int, Field(ge=1)] = 2
    min_items: Annotated[int, Field(ge=1)] = 2
    """Fewest items that a term must occur in."""
    seed: int = 0
    fit_on: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class SentenceTransformers(Strict):
    """A sentence-transformers model: `encoder` is its hub name or a local folder."""

    name: Literal["sentence_transformers"] = "sentence_transformers"
    encoder: str
    revision: str | None = None
    fields: Fields = field(default_factory=_all_fields)
    batch_size: Annotated[int, Field(ge=1)] = 64


Config = TfidfSvd | SentenceTransformers
CONFIGS: dict[str, type[Strict]] = {"tfidf_svd": TfidfSvd, "sentence_transformers": SentenceTransformers}


def documents(items: pd.DataFrame, fields: Sequence[str]) -> list[str]:
    """One text an item: its `fields` that are not null, joined; "" where there is none."""
    parts = [items[name].fillna("").astype(str).str.strip() for name in fields]
    return ["\n".join(part for part in row if part) for row in zip(*parts, strict=True)]


def embed_tfidf(config: TfidfSvd, texts: Sequence[str], fit_texts: Sequence[str]) -> Features:
    """TF-IDF and truncated SVD, fitted on `fit_texts`, of N `texts`.

    The result has `dim` dimensions, or as many as the fitted matrix has rows or columns. An item whose
    text holds no known term is missing, as one without any text is; `record` counts them.
    """
    fit_texts = [text for text in fit_texts if text]
    vectorizer = TfidfVectorizer(
        ngram_range=(1, config.max_ngram),
        min_df=min(config.min_items, max(len(fit_texts), 1)),
        sublinear_tf=True,
        strip_accents="unicode",
    )
    try:
        fitted = vectorizer.fit_transform(fit_texts)  # (N', V)
    except ValueError:  # no text, or no term in min_items of them
        return Features(np.zeros((len(texts), config.dim), np.float32), np.ones(len(texts), bool))
    svd = TruncatedSVD(min(config.dim, *fitted.shape), random_state=config.seed)
    svd.fit(fitted)
    terms = vectorizer.transform(texts)  # (N, V)
    rows = np.flatnonzero(np.diff(terms.indptr))
    features = scattered(svd.transform(terms[rows]).astype(np.float32), rows, len(texts))
    explained = float(svd.explained_variance_ratio_.sum())
    record = {
        "terms": len(vectorizer.vocabulary_),
        # Texts that all say the same have no variance to explain.
        "explained_variance": round(explained, 4) if np.isfinite(explained) else None,
        "texts_without_known_terms": sum(map(bool, texts)) - len(rows),
    }
    return Features(features.vectors, features.missing, record=record)


def embed_sentences(config: SentenceTransformers, texts: Sequence[str], device: str) -> Features:
    """The model's own pooled sentence vectors of N `texts`; an empty text is missing."""
    where = "features.text"
    module = hub.package("sentence_transformers", where)
    model = hub.pretrained(module.SentenceTransformer, config.encoder, config.revision, where, device=device)
    rows: NDArray[np.int64] = np.flatnonzero([bool(text) for text in texts])
    filled = [texts[row] for row in rows] or [""]  # one text at least, to learn the width
    vectors: Any = model.encode(filled, batch_size=config.batch_size)[: len(rows)]  # (P, F)
    return scattered(np.asarray(vectors, dtype=np.float32), rows, len(texts))
