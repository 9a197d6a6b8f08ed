"""One scan has one digest in whatever file it lies, and no other scan has it."""

import itertools

import numpy as np

from glioray.cases.content import content_digests

SHAPE = (18, 16, 14)


def scan(seed: int = 0) -> np.ndarray:
    """(X, Y, Z) whole numbers, as a scanner gives them, in a box of zeros."""
    array = np.zeros(SHAPE, np.int16)
    box = array[3:-2, 2:-4, 4:-1]
    box[:] = np.random.default_rng(seed).integers(1, 900, box.shape)
    return array


def digest(image: np.ndarray) -> str:
    return content_digests(image[None], ["t1"])["t1"]


def test_files_of_one_scan_have_one_digest() -> None:
    image = scan()
    z_scored = (image - image[image > 0].mean()) / image[image > 0].std()
    variants = {
        "float32": image.astype(np.float32),
        "float64": image.astype(np.float64),
        "uint16": image.astype(np.uint16),
        "memory order": np.asfortranarray(image),
        "-0.0": np.where(image == 0, np.float32(-0.0), image),
        "a scaling in the header": image * np.float32(0.37) + np.float32(5),
        "z-scored": z_scored.astype(np.float32),
        "z-scored, background 0": np.where(image > 0, z_scored, 0).astype(np.float32),
        "cropped": image[3:-2, 2:-4, 4:-1],
        "cropped less": image[2:, 1:-1, :],
        "padded": np.pad(image, ((1, 5), (0, 3), (2, 2))),
    }
    for axes in itertools.permutations(range(3)):
        for flips in itertools.product((1, -1), repeat=3):
            turned = image.transpose(axes)[tuple(slice(None, None, step) for step in flips)]
            variants[f"axes {axes}, directions {flips}"] = turned
    expected = digest(image)
    assert [name for name, variant in variants.items() if digest(variant) != expected] == []


def test_another_scan_has_another_digest() -> None:
    image = scan()
    changed, swapped, moved = image.copy(), image.copy(), image.copy()
    changed[9, 9, 9] += 1000
    swapped[9, 8:10, 9] = swapped[9, 8:10, 9][::-1]
    moved[9] = np.roll(moved[9], 1, axis=0)
    found = {digest(array) for array in (image, changed, swapped, moved, scan(1), image.repeat(2, axis=0))}
    assert len(found) == 6


def test_a_head_without_a_background_has_one_too() -> None:
    head = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    assert digest(head) == digest(head.transpose(2, 0, 1)[:, ::-1] * 3) != digest(head[1:])


def test_masks_are_compared_on_the_axes_of_the_image() -> None:
    image, mask = scan()[None], np.zeros(SHAPE, np.uint8)
    mask[5:9, 6:8, 7:11] = 2
    mask[6, 6, 8] = 4

    def mask_digest(images: np.ndarray, labels: np.ndarray) -> str:
        return content_digests(images, ["t1"], labels)["mask"]

    expected = mask_digest(image, mask)
    assert mask_digest(image, np.where(mask == 4, 3, mask)) == expected  # another convention
    assert mask_digest(image[:, ::-1, :, ::-1], mask[::-1, :, ::-1]) == expected
    mirrored, corrected = mask[::-1], mask.copy()
    corrected[8, 7, 10] = 0
    others = (mirrored, corrected, np.zeros_like(mask), np.minimum(mask, 2))
    assert len({expected, *(mask_digest(image, other) for other in others)}) == 5
