"""From a case to shuffled, augmented batches of slices.

`preprocess` is deterministic; `volumes` and `enhance` are its steps on whole volumes. `cache` stores the
resulting slices, `store` draws batches from the cache, and `augment` varies them on the device.
"""
