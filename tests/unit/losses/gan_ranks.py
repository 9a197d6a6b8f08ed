"""Gradients of discriminators and generators, in this process or, as a script, on one of several ranks.

    python gan_ranks.py FOLDER RANK WORLD_SIZE

meets the other ranks over a file in the folder, takes its share of every batch, and leaves gradients averaged over
ranks, as DDP does, as `FOLDER/rank-RANK.pt`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from glioray.losses.adversarial import GAN_LOSSES, build_gan_loss, r1_penalty
from glioray.nets.blocks import all_reduce_sum
from glioray.nets.gan import build_discriminator, build_generator

DISCRIMINATORS = {
    "patch, spectral": ("patch", {"width": 4}),
    "vgg, batch norm": ("vgg", {"width": 4}),
}


def gradients(rank: int = 0, world_size: int = 1) -> dict[str, list[Tensor]]:
    """The gradients of all parameters for a batch of six over all ranks, by loss, discriminator and network."""
    found = {}
    for loss_name in GAN_LOSSES:
        for title, (name, options) in DISCRIMINATORS.items():
            torch.manual_seed(0)
            critic = build_discriminator(name, channels=1, **options)
            generator = build_generator("srresnet", channels=1, width=4, num_blocks=1)
            real, lr = (torch.rand(6, 1, size, size) for size in (32, 8))
            share = slice(rank * 6 // world_size, (rank + 1) * 6 // world_size)
            real, lr = real[share], lr[share]
            loss = build_gan_loss(
                loss_name,
                reduce=all_reduce_sum if world_size > 1 else None,
                label_smoothing=0.0 if loss_name == "hinge" else 0.1,
            )
            sr = generator(lr, (32, 32))
            logits, fake_logits = critic(torch.cat([real, sr.detach()])).chunk(2)
            loss.discriminator(logits, fake_logits).backward()
            found[f"{loss_name}, {title}, discriminator"] = _collect(critic, world_size)
            logits, fake_logits = critic(torch.cat([real, sr])).chunk(2)
            loss.generator(logits, fake_logits).backward()
            found[f"{loss_name}, {title}, generator"] = _collect(generator, world_size)
            if loss_name == "vanilla":
                real.requires_grad_()
                critic.zero_grad()
                logits = critic(real)
                (r1_penalty(real, logits) + 0 * logits.sum()).backward()
                found[f"R1, {title}"] = _collect(critic, world_size)
    return found


def _collect(net: nn.Module, world_size: int) -> list[Tensor]:
    collected = []
    for parameter in net.parameters():
        assert parameter.grad is not None
        gradient = parameter.grad.clone()
        if world_size > 1:
            dist.all_reduce(gradient)
        collected.append(gradient / world_size)
    return collected


if __name__ == "__main__":
    folder, rank, world_size = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world_size)
    torch.save(gradients(rank, world_size), folder / f"rank-{rank}.pt")
    dist.destroy_process_group()
