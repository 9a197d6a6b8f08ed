"""Metrics of segmentations and images. Counts are summed before ratios are formed."""
