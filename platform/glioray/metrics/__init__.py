"""Figures of merit: counts first, ratios later."""
