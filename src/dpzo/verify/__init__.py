"""Verifying a finished run independently: from its folder and the base model alone, without private data."""

from dpzo.verify.report import Check, Report
from dpzo.verify.signature import sign
from dpzo.verify.verifying import verify

__all__ = ["Check", "Report", "sign", "verify"]
