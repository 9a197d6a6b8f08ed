"""What lies in the bucket: layouts, label conventions, NIfTI, the manifest, splits and phantoms."""
