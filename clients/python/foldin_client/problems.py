# Made by `make clients` of the service's description: change that, not this.
"""An exception for each `code` of the service, and which it is."""

from foldin_client.errors import (
    BusyError,
    ConflictError,
    FaultError,
    KeyRefusedError,
    MissingError,
    ProblemError,
    RefusedError,
)


class AttributeInUseError(ConflictError):
    """This attribute is in use, or being deleted."""


class BodyTooLargeError(RefusedError):
    """The body is too large."""


class CrossSiteError(KeyRefusedError):
    """The call comes from a page of another site."""


class DataDamagedError(BusyError):
    """Stored data cannot be read."""


class DiskFullError(BusyError):
    """A disk has no room left."""


class ExperimentExistsError(ConflictError):
    """An experiment has this name, or is about the same calls."""


class ForbiddenError(KeyRefusedError):
    """The key does not allow this call."""


class InternalError(FaultError):
    """The service made a mistake."""


class InvalidBodyError(RefusedError):
    """The body has a value that is not allowed."""


class InvalidContextError(RefusedError):
    """A context has a value that is not allowed."""


class InvalidParameterError(RefusedError):
    """A parameter has a value that is not allowed."""


class InvalidRuleError(RefusedError):
    """A rule has a value that is not allowed."""


class InvalidTypeError(RefusedError):
    """An event type is not known, or not possible."""


class KeyExistsError(ConflictError):
    """A key has this name."""


class LastOperateKeyError(ConflictError):
    """Keys would be left of which none may operate."""


class MalformedJsonError(RefusedError):
    """The body is not valid JSON."""


class MalformedRequestError(RefusedError):
    """The request is not valid HTTP."""


class MethodNotAllowedError(RefusedError):
    """This address does not answer to this method."""


class MissingParameterError(RefusedError):
    """A required parameter is missing."""


class NoGenerationError(BusyError):
    """No model is live yet."""


class NotFoundError(MissingError):
    """There is nothing at this address."""


class OverloadedError(BusyError):
    """This worker has more of this kind to do than it takes."""


class QuotaExceededError(BusyError):
    """The caller has used up its quota."""


class RatingsWouldBeLostError(ConflictError):
    """Ratings that came in by other ways would be thrown away."""


class RequestTimeoutError(BusyError):
    """The request did not arrive in time."""


class ScaleDecidedError(ConflictError):
    """The scale of the ratings is decided."""


class StoreFullError(BusyError):
    """The feature store has no memory left."""


class StoreUnavailableError(BusyError):
    """The feature store does not answer."""


class StreamFullError(BusyError):
    """Ratings arrive faster than they are archived."""


class TooManyExperimentsError(RefusedError):
    """There are as many experiments as there may be."""


class TooManyItemsError(RefusedError):
    """The catalogue is full."""


class TooManyRatingsError(RefusedError):
    """The user has as many ratings as one may have."""


class TooManyRowsError(RefusedError):
    """The body has more rows than one call takes."""


class TooManyScenariosError(RefusedError):
    """There are as many scenarios as there may be."""


class TrainInProgressError(ConflictError):
    """A training is under way."""


class TrainingFailedError(BusyError):
    """The training failed."""


class TrainingRefusedError(RefusedError):
    """These ratings cannot be learned."""


class TrainingTimeoutError(BusyError):
    """The training did not end in time."""


class UnauthorizedError(KeyRefusedError):
    """The call needs a key that is known."""


class UnknownContextFieldError(RefusedError):
    """A context has a field that was not named."""


class UnknownEventError(MissingError):
    """There is no such event."""


class UnknownEventTypeError(RefusedError):
    """There is no event type of this name."""


class UnknownExperimentError(MissingError):
    """There is no experiment of this name."""


class UnknownGenerationError(MissingError):
    """This generation is not kept."""


class UnknownItemError(MissingError):
    """This item is not known."""


class UnknownKeyError(MissingError):
    """There is no key of this name."""


class UnknownParameterError(RefusedError):
    """There is no parameter of this name."""


class UnknownRatingError(MissingError):
    """There is no such rating."""


class UnknownReceiptError(MissingError):
    """There is no such receipt."""


class UnknownScenarioError(MissingError):
    """There is no scenario of this name."""


class UnknownUserError(MissingError):
    """No rating of this user is known."""


class UnsupportedMediaTypeError(RefusedError):
    """The body has a content type that is not understood."""


class WorkerFullError(BusyError):
    """This replica has no memory left."""


BY_CODE: dict[str, type[ProblemError]] = {
    "attribute_in_use": AttributeInUseError,
    "body_too_large": BodyTooLargeError,
    "cross_site": CrossSiteError,
    "data_damaged": DataDamagedError,
    "disk_full": DiskFullError,
    "experiment_exists": ExperimentExistsError,
    "forbidden": ForbiddenError,
    "internal_error": InternalError,
    "invalid_body": InvalidBodyError,
    "invalid_context": InvalidContextError,
    "invalid_parameter": InvalidParameterError,
    "invalid_rule": InvalidRuleError,
    "invalid_type": InvalidTypeError,
    "key_exists": KeyExistsError,
    "last_operate_key": LastOperateKeyError,
    "malformed_json": MalformedJsonError,
    "malformed_request": MalformedRequestError,
    "method_not_allowed": MethodNotAllowedError,
    "missing_parameter": MissingParameterError,
    "no_generation": NoGenerationError,
    "not_found": NotFoundError,
    "overloaded": OverloadedError,
    "quota_exceeded": QuotaExceededError,
    "ratings_would_be_lost": RatingsWouldBeLostError,
    "request_timeout": RequestTimeoutError,
    "scale_decided": ScaleDecidedError,
    "store_full": StoreFullError,
    "store_unavailable": StoreUnavailableError,
    "stream_full": StreamFullError,
    "too_many_experiments": TooManyExperimentsError,
    "too_many_items": TooManyItemsError,
    "too_many_ratings": TooManyRatingsError,
    "too_many_rows": TooManyRowsError,
    "too_many_scenarios": TooManyScenariosError,
    "train_in_progress": TrainInProgressError,
    "training_failed": TrainingFailedError,
    "training_refused": TrainingRefusedError,
    "training_timeout": TrainingTimeoutError,
    "unauthorized": UnauthorizedError,
    "unknown_context_field": UnknownContextFieldError,
    "unknown_event": UnknownEventError,
    "unknown_event_type": UnknownEventTypeError,
    "unknown_experiment": UnknownExperimentError,
    "unknown_generation": UnknownGenerationError,
    "unknown_item": UnknownItemError,
    "unknown_key": UnknownKeyError,
    "unknown_parameter": UnknownParameterError,
    "unknown_rating": UnknownRatingError,
    "unknown_receipt": UnknownReceiptError,
    "unknown_scenario": UnknownScenarioError,
    "unknown_user": UnknownUserError,
    "unsupported_media_type": UnsupportedMediaTypeError,
    "worker_full": WorkerFullError,
}
