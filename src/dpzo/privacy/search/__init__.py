"""The search for the best noise: families and a free form at (ε, δ), and a certificate for the table that is drawn."""

from dpzo.privacy.search.direct import certified_epsilon
from dpzo.privacy.search.result import NO_GAIN, Found, SearchResult
from dpzo.privacy.search.searching import search

__all__ = ["NO_GAIN", "Found", "SearchResult", "certified_epsilon", "search"]
