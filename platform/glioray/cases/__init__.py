"""Data sets and cases: layouts, labels, NIfTI, the manifest, splits and phantoms."""
