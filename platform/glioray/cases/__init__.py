"""Data sets and their cases: layouts, label conventions, NIfTI, the manifest, splits and phantoms."""
