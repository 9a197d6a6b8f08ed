"""What a network sees: from a case to shuffled, augmented batches of slices.

`preprocess` is the deterministic part, with `volumes` and `enhance` for what is done to whole volumes;
`cache` keeps what it made, `store` draws batches from the cache, `augment` varies them on the device;
`pipeline` lets Ray Data spread the deterministic part.
"""
