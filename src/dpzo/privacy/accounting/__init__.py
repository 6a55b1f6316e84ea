"""Accounting: from what was done (an event) to what it leaked (ε, δ), and back to the noise that a budget asks for."""

from dpzo.privacy.accounting import calibrate, closed_form
from dpzo.privacy.accounting.headline import AccountantDisagreement, accountant_name, delta, delta_curve, epsilon
from dpzo.privacy.accounting.matrix import Support, SupportRow, support, support_matrix

__all__ = [
    "AccountantDisagreement",
    "Support",
    "SupportRow",
    "accountant_name",
    "calibrate",
    "closed_form",
    "delta",
    "delta_curve",
    "epsilon",
    "support",
    "support_matrix",
]
