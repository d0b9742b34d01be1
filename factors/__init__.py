"""The mathematics of Foldin: fit, fold in, score, rank, explain.

Arrays in, arrays out. Nothing in this package does I/O, reads a clock or touches global random state, so that
one function gives the same answer in the fit, in the service and in a notebook.
"""

from factors.errors import FactorsError, FitDiverged, FitRefused, ModelUnreadable
from factors.inference.backend import MANY_RATINGS, HalfStepBackend, NumpyBackend
from factors.inference.compiled.backend import choose_backend
from factors.inference.histories import RECENT, SAMPLED, sample_order
from factors.inference.ordering import order_by_pair, taken
from factors.model.attributes import Attribute, Encoding, Labels, Numbers, learn_encoding
from factors.model.columns import Columns
from factors.model.layout import MAX_RANK, Layout, stored_width
from factors.model.parameters import SideName
from factors.model.quantized_rows import all_finite_items
from factors.model.scale import scale_levels
from factors.model.serialization import from_bytes, to_bytes
from factors.model.types import (
    BASIS,
    Bools,
    Choices,
    ContextKind,
    Explanation,
    Feedback,
    Float32s,
    Float64s,
    Histories,
    Int32s,
    Int64s,
    ItemStatistics,
    Link,
    Model,
    Ranked,
    Ratings,
    Scale,
    Scores,
    UInt8s,
)
from factors.posterior.fitted import Fitted, posterior_of
from factors.posterior.posterior_model import PosteriorModel
from factors.ranking.fit import Factorize, fit_ranking
from factors.ranking.head import RankingHead, popular_factors
from factors.ranking.neighbours import Neighbours
from factors.ranking.parameters import RankingChoices, RankingParameters
from factors.ranking.serialization import head_from_bytes, head_to_bytes
from factors.ranking.side_attributes import (
    SideAttributes,
    mark_described,
    relevance_basis,
    side_attributes_from_bytes,
    side_attributes_to_bytes,
)
from factors.ranking.training import RankingFit
from factors.ranking.type_weights import (
    TYPE_CODES,
    Meaning,
    TypeWeight,
    event_sums,
    event_worth,
    typed_items,
    wanted_times,
)
from factors.serving.bias_baseline import BiasBaseline, fit_biases
from factors.serving.blended import Blended, BlendedRanker
from factors.serving.explain import contributions, explain
from factors.serving.ivf_index import (
    INDEXED_ITEMS,
    Index,
    build_index,
    index_from_bytes,
    index_of,
    index_to_bytes,
    read_index,
)
from factors.serving.likeness import HeadLikeness
from factors.serving.metrics import held_out_metrics, log_density, step_log_likelihood
from factors.serving.ranking import Ranker
from factors.serving.scoring import Scorer, item_statistics
from factors.serving.tastes import HeadTastes, Tastes
from factors.training.fit import FitOptions, TrialFit, fit
from factors.training.priors import prior_model
from factors.training.settings import FitSettings

__all__ = [
    "BASIS",
    "INDEXED_ITEMS",
    "MANY_RATINGS",
    "MAX_RANK",
    "RECENT",
    "SAMPLED",
    "TYPE_CODES",
    "Attribute",
    "BiasBaseline",
    "Blended",
    "BlendedRanker",
    "Bools",
    "Choices",
    "Columns",
    "ContextKind",
    "Encoding",
    "Explanation",
    "Factorize",
    "FactorsError",
    "Feedback",
    "FitDiverged",
    "FitOptions",
    "FitRefused",
    "FitSettings",
    "Fitted",
    "Float32s",
    "Float64s",
    "HalfStepBackend",
    "HeadLikeness",
    "HeadTastes",
    "Histories",
    "Index",
    "Int32s",
    "Int64s",
    "ItemStatistics",
    "Labels",
    "Layout",
    "Link",
    "Meaning",
    "Model",
    "ModelUnreadable",
    "Neighbours",
    "Numbers",
    "NumpyBackend",
    "PosteriorModel",
    "Ranked",
    "Ranker",
    "RankingChoices",
    "RankingFit",
    "RankingHead",
    "RankingParameters",
    "Ratings",
    "Scale",
    "Scorer",
    "Scores",
    "SideAttributes",
    "SideName",
    "Tastes",
    "TrialFit",
    "TypeWeight",
    "UInt8s",
    "all_finite_items",
    "build_index",
    "choose_backend",
    "contributions",
    "event_sums",
    "event_worth",
    "explain",
    "fit",
    "fit_biases",
    "fit_ranking",
    "from_bytes",
    "head_from_bytes",
    "head_to_bytes",
    "held_out_metrics",
    "index_from_bytes",
    "index_of",
    "index_to_bytes",
    "item_statistics",
    "learn_encoding",
    "log_density",
    "mark_described",
    "order_by_pair",
    "popular_factors",
    "posterior_of",
    "prior_model",
    "read_index",
    "relevance_basis",
    "sample_order",
    "scale_levels",
    "side_attributes_from_bytes",
    "side_attributes_to_bytes",
    "step_log_likelihood",
    "stored_width",
    "taken",
    "to_bytes",
    "typed_items",
    "wanted_times",
]
