"""Entrants of a comparison of super-resolution GANs: recipes on the data and budget of one common config."""

from __future__ import annotations

from glioray.config import with_settings
from glioray.engine.entrants import parse_entrant
from glioray.errors import UsageError
from glioray.serialization import to_dict
from glioray.tasks.superres.config import GanConfig
from glioray.tasks.superres.recipes import build_gan_recipe

_OWN_PARTS = ("generator", "discriminator", "loss", "pretrain", "optim_g", "optim_d", "d_steps")
"""The parts of its config that an entrant brings."""

GOAT_STUDY = ("srgan_goat", "esrgan_goat", "esrgan_goat_rmsprop")
"""The rows of the study of BraTS 2024 (GoAT), of a comparison around one of them."""


def gan_entrant_config(common: GanConfig, entrant: str) -> GanConfig:
    """Build an entrant's config: its own networks, losses and optimisers; all else as in the common config.

    Slices, degradation, sampling, batches, duration and the collapse judge are the same for all entrants, except that
    the rows of `GOAT_STUDY` keep their own batches among themselves.

    Args:
        common: what all entrants share.
        entrant: RECIPE or RECIPE:KEY=VALUE,KEY=VALUE, such as `esrgan_small:optim_g.lr=0.001`.

    Raises:
        UsageError: no such recipe, an invalid setting, a setting that all entrants share, or a text of another form.
    """
    name, settings = parse_entrant(entrant)
    recipe = to_dict(build_gan_recipe(name))
    if shared := [path for path in settings if path.partition(".")[0] not in _OWN_PARTS]:
        raise UsageError(
            f"entrant '{entrant}' sets {shared[0]}, which all entrants share; set it by --set, or one of "
            f"{', '.join(_OWN_PARTS)}"
        )
    own = {part: recipe[part] for part in _OWN_PARTS}
    if {name, common.recipe} <= set(GOAT_STUDY):
        own["train.batch_size"] = recipe["train"]["batch_size"]
    try:
        return with_settings(common, {"recipe": name, **own, **settings})
    except UsageError as error:
        raise UsageError(f"entrant '{entrant}': {error}") from error
