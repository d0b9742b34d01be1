"""What this package refuses, split by what the caller should do: refuse the input, or keep the generation it
has.
"""


class FactorsError(ValueError):
    """Anything that `factors` refuses."""


class FitRefused(FactorsError):  # noqa: N818 - says what happened, as `except FitRefused` reads
    """The input or the settings cannot be fitted; the message names the reason. A retry with the same input
    fails.
    """


class FitDiverged(FactorsError):  # noqa: N818 - says what happened
    """The fit gave something that is not finite. Keep the generation that is live; another seed may help."""


class ModelUnreadable(FactorsError):  # noqa: N818 - says what happened
    """The bytes are not a model of this version."""
