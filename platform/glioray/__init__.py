"""glioray: brain-tumour MRI from NIfTI in a bucket to a served model, on Ray."""

__version__ = "0.1.0"
