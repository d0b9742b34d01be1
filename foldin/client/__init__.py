"""The client of the API, as the distribution `foldin-client` has it by itself."""

from foldin_client import *  # noqa: F403  # what it is made of
from foldin_client import __all__ as __all__
