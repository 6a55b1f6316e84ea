"""What private zeroth-order training is compared with. Nothing here carries dpzo's guarantee."""

from dpzo.baselines.nonprivate import train_without_privacy

__all__ = ["train_without_privacy"]
