"""The mathematics of Foldin: fit, fold in, score, rank, explain.

Arrays in, arrays out. Nothing in this package does I/O, reads a clock or touches global random state, so that
one function gives the same answer in the fit, in the service and in a notebook.
"""

from factors.errors import FactorsError, FitDiverged, FitRefused, ModelUnreadable
from factors.explaining import explain
from factors.fit import fit
from factors.foldin import fold_in_items, fold_in_users, keeps_time, prior_item, prior_user
from factors.metrics import held_out_metrics
from factors.model_bytes import from_bytes, to_bytes
from factors.priors import prior_model
from factors.ranking import Ranker
from factors.scoring import Scorer, distribution, item_statistics, score
from factors.search import Index, build_index, index_from_bytes, index_to_bytes
from factors.settings import FitSettings
from factors.storedrows import all_finite_items, read_items, store_items
from factors.tables import (
    BASIS,
    Explanation,
    Fitted,
    Histories,
    ItemRow,
    ItemStatistics,
    Link,
    Model,
    Ranked,
    Ratings,
    Scale,
    Scores,
    UserRow,
)

__all__ = [
    "BASIS",
    "Explanation",
    "FactorsError",
    "FitDiverged",
    "FitRefused",
    "FitSettings",
    "Fitted",
    "Histories",
    "Index",
    "ItemRow",
    "ItemStatistics",
    "Link",
    "Model",
    "ModelUnreadable",
    "Ranked",
    "Ranker",
    "Ratings",
    "Scale",
    "Scorer",
    "Scores",
    "UserRow",
    "all_finite_items",
    "build_index",
    "distribution",
    "explain",
    "fit",
    "fold_in_items",
    "fold_in_users",
    "from_bytes",
    "held_out_metrics",
    "index_from_bytes",
    "index_to_bytes",
    "item_statistics",
    "keeps_time",
    "prior_item",
    "prior_model",
    "prior_user",
    "read_items",
    "score",
    "store_items",
    "to_bytes",
]
