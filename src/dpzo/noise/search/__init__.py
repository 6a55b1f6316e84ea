"""The search for the best noise: families and a free form at (ε, δ), and a certificate for the sampled table."""

from dpzo.noise.search.direct import certified_epsilon
from dpzo.noise.search.result import NO_GAIN, Found, SearchResult
from dpzo.noise.search.searching import search

__all__ = ["NO_GAIN", "Found", "SearchResult", "certified_epsilon", "search"]
