"""`python -m stage2_distill sweep`: train several configs with several seeds, compare them."""

from .command import sweep

__all__ = ["sweep"]
