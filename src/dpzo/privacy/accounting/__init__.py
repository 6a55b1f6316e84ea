"""Privacy accounting: from an event (what was done to the data) to its privacy loss (ε at δ).

Built on it, and not needed for a plan's ε: `calibrate` (from ε to noise), `curves` (δ at an ε), `second_opinion` (Rényi
bounds) and `support_page`.
"""

from dpzo.privacy.accounting.headline import accountant, epsilon

__all__ = ["accountant", "epsilon"]
