"""The super-resolution learner: a generator trained by pixels, then adversarially, scored on a fixed panel."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from glioray.engine.checkpoint import Checkpoint
from glioray.engine.collectives import Ranks, gather, reduce_sum
from glioray.engine.optim import MovingAverage, build_optimizer, learning_rate
from glioray.engine.precision import Agree, autocast, choose_precision, to_device
from glioray.errors import DivergenceError
from glioray.losses.adversarial import build_gan_loss, r1_penalty
from glioray.losses.reconstruction import build_pixel_loss
from glioray.nets.blocks import GlobalBatchNorm2d
from glioray.nets.gan import build_discriminator
from glioray.serialization import to_dict
from glioray.slices.store import Batch
from glioray.tasks.superres.collapse import describe_evaluation
from glioray.tasks.superres.config import GanConfig
from glioray.tasks.superres.model import SuperResolver
from glioray.tasks.superres.package import SuperResSpec, stage_weights
from glioray.tasks.superres.pairs import Pairs, draw_pairs
from glioray.tasks.superres.panel_judge import PanelJudge

_log = logging.getLogger(__name__)

_SATURATED = 0.95

Weights = dict[str, Tensor]
Perceptual = Callable[..., Tensor]
"""(sr, hr, generators of random numbers) to a scalar: see `losses.perceptual.PerceptualLoss`."""
UseJudge = Callable[[SuperResolver], dict[str, float]]
"""A frozen segmenter's Dice on a generator's slices, over all ranks: dice_sr, dice_bicubic, dice_hr."""


class GanLearner:
    """Trains the generator of `spec`; the first rank scores it on the panel.

    Args:
        config: of the run.
        spec: of the resulting model.
        judge: scores the panel; None on all ranks but the first.
        ranks: all ranks of the run, and which one this is.
        device: to train on.
        perceptual: the feature loss; None if its weight is 0 or no extractor is available.
        source: generator weights to start from, instead of a pixel stage.
        judge_use: called at the end of the run, on every rank.
    """

    def __init__(
        self,
        config: GanConfig,
        spec: SuperResSpec,
        judge: PanelJudge | None,
        ranks: Ranks,
        device: torch.device,
        *,
        perceptual: Perceptual | None = None,
        source: Weights | None = None,
        judge_use: UseJudge | None = None,
        agree: Agree | None = None,
    ) -> None:
        self.config, self.spec, self.device, self.judge = config, spec, device, judge
        self.is_first, self.node_rank = ranks.is_first, ranks.node_rank
        self.perceptual, self.judge_use, self.agree = perceptual, judge_use, agree
        torch.manual_seed(config.train.seed)
        net = config.discriminator
        self.generator = to_device(spec.build(), device)
        critic = build_discriminator(net.name, channels=config.num_channels, **net.options)
        self.critic = to_device(critic, device)
        if source is not None:
            self.generator.load_state_dict(source)
        # No buffer broadcasts: buffers are equal on all ranks anyway (batch norm is global, spectral norm starts
        # equal), and a broadcast between two forward passes would change what the backward pass needs.
        self.parallel_g, self.parallel_d = (
            _parallel(m, ranks, device) for m in (self.generator, self.critic)
        )
        loss = config.loss
        self.pixel, self.pretrain_pixel = (
            build_pixel_loss(loss.pixel),
            build_pixel_loss(config.pretrain.pixel),
        )
        self.game = build_gan_loss(loss.adversarial, reduce=reduce_sum, label_smoothing=loss.label_smoothing)
        self.optimizers = {
            "pixel": build_optimizer(self.generator, config.optim_g.replace(lr=config.pretrain.rate)),
            "g": build_optimizer(self.generator, config.optim_g),
            "d": build_optimizer(self.critic, config.optim_d),
        }
        self.average = MovingAverage(self.generator, config.optim_g.ema) if config.optim_g.ema else None
        self.psnr: Weights | None = None if source is None else _copied(source)
        self.is_adversarial = False
        self.num_d_steps = 0
        self.certainty: list[float] = []
        self.stopped = ""
        self.objective = 0.0
        self.precisions: dict[str, str] = {}

    @property
    def tags(self) -> dict[str, str]:
        """Tag the extractors of loss and evaluation with their hashes, and the verdict on collapse."""
        extractors = {
            f"glioray.extractor_{name}": self.spec.extractors.get(name, "none") for name in ("loss", "judge")
        }
        precisions = {f"glioray.precision_{work}": name for work, name in self.precisions.items()}
        return {**extractors, "glioray.collapse": self.spec.collapse, **precisions}

    def train_step(self, batch: Batch, epoch: int, progress: float) -> dict[str, float]:
        """Take a step of the pixel stage, or of the discriminator and, every `d_steps`-th time, the generator."""
        share = self.config.pretrain.share
        if not self.is_adversarial and share < 1 and progress >= share:
            self._begin_game()
        pairs = draw_pairs(batch.to(self.device), self.config, epoch, node_rank=self.node_rank)
        if "training" not in self.precisions:
            self.precisions["training"] = self._training_precision(pairs)
        self.generator.train()
        self.critic.train()
        if not self.is_adversarial:
            return self._pixel_step(pairs, progress / share)
        done = (progress - share) / (1 - share)
        figures = self._discriminator_step(pairs, done)
        if self.num_d_steps % self.config.d_steps == 0:
            figures |= self._generator_step(pairs, done)
            figures["grad_ratio"] = figures["grad_g"] / max(figures["grad_d"], 1e-12)
        return figures

    def _training_precision(self, pairs: Pairs) -> str:
        """The precision in which a generator like this one learns faster from such a batch."""
        with torch.random.fork_rng(devices=[]):
            net = to_device(self.spec.build(), self.device).train()

        def step(precision: str) -> None:
            with autocast(self.device, precision):
                sr = net(_channels_last(pairs.lr), pairs.hr.shape[-2:])
            self.pixel(sr.float(), pairs.hr).backward()
            net.zero_grad()

        return choose_precision(
            self.config.train.precision,
            self.device,
            step,
            work="training",
            identity=[to_dict(self.config.generator), list(pairs.lr.shape), list(pairs.hr.shape)],
            shared=True,
            agree=self.agree,
        )

    def _begin_game(self) -> None:
        """Start the adversarial stage from the averaged weights of the pixel stage, kept as the PSNR model."""
        self.is_adversarial = True
        if self.config.pretrain.share > 0:
            self.psnr = _copied(self._weights())
            self.generator.load_state_dict(self.psnr)
        if self.average is not None:
            self.average = MovingAverage(self.generator, self.config.optim_g.ema)
        if self.is_first:
            _log.info("the adversarial stage begins")

    def _pixel_step(self, pairs: Pairs, done: float) -> dict[str, float]:
        stage = self.config.pretrain
        settings = self.config.optim_g.replace(lr=stage.rate, schedule=stage.schedule, warmup=stage.warmup)
        rate = learning_rate(settings, done)
        loss = self.pretrain_pixel(self._super_resolve(pairs), pairs.hr)
        norm = self._update("pixel", self.generator, loss, rate, {"pixel": loss})
        self._average()
        value = float(loss.detach())
        return {"loss": value, "pixel": value, "grad_g": norm, "rate_g": rate}

    def _discriminator_step(self, pairs: Pairs, done: float) -> dict[str, float]:
        loss = self.config.loss
        rate = learning_rate(self.config.optim_d, done)
        with torch.no_grad(), autocast(self.device, self.precisions["training"]):
            sr = self.generator(_channels_last(pairs.lr), pairs.hr.shape[-2:]).float()
        penalised = loss.r1 > 0 and self.num_d_steps % loss.r1_every == 0
        real = self._noisy(pairs.hr, pairs.rngs, done).detach().requires_grad_(penalised)
        fake = self._noisy(sr, pairs.rngs, done)
        # One pass over both: DDP with batch norm cannot do two forward passes before a backward one. In float32 if it
        # is differentiated twice.
        with autocast(self.device, "fp32" if penalised else self.precisions["training"]):
            logits = self.parallel_d(_channels_last(torch.cat([real, fake])))
        real_logits, fake_logits = logits.float().chunk(2)
        game = self.game.discriminator(real_logits, fake_logits)
        terms = {"adversarial": game}
        if penalised:
            # From the same pass, so that every parameter has a gradient in every step.
            terms["r1"] = r1_penalty(real, real_logits)
            total = game + 0.5 * loss.r1 * loss.r1_every * terms["r1"]
        else:
            total = game
        norm = self._update("d", self.critic, total, rate, terms)
        self.num_d_steps += 1
        real_shown, fake_shown = (torch.sigmoid(part.detach()).mean() for part in (real_logits, fake_logits))
        self.certainty.append(float(torch.minimum(real_shown, 1 - fake_shown)))
        figures = {
            "d_loss": float(game.detach()),
            "d_real": float(real_shown),
            "d_fake": float(fake_shown),
            "grad_d": norm,
            "rate_d": rate,
        }
        return figures | ({"r1": float(terms["r1"].detach())} if penalised else {})

    def _generator_step(self, pairs: Pairs, done: float) -> dict[str, float]:
        loss = self.config.loss
        rate = learning_rate(self.config.optim_g, done)
        sr = self._super_resolve(pairs)
        terms: dict[str, Tensor] = {}
        weights = {"pixel": loss.pixel_weight}
        if loss.pixel_weight:
            terms["pixel"] = self.pixel(sr, pairs.hr)
        if self.perceptual is not None:
            weights["perceptual"] = loss.perceptual_weight
            terms["perceptual"] = self.perceptual(sr, pairs.hr, pairs.rngs)
        if loss.adversarial_weight:
            weights["adversarial"] = loss.adversarial_weight
            terms["adversarial"] = self._adversarial(sr, pairs, done)
        total = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
        norm = self._update("g", self.generator, total, rate, terms)
        self._average()
        figures = {name: float(term.detach()) for name, term in terms.items()}
        return {"loss": float(total.detach()), **figures, "grad_g": norm, "rate_g": rate}

    def _adversarial(self, sr: Tensor, pairs: Pairs, done: float) -> Tensor:
        # Through the module itself, so that DDP does not wait for gradients of the discriminator: there are none.
        self.critic.requires_grad_(False)
        fake = self._noisy(sr, pairs.rngs, done)
        compares = self.config.loss.adversarial == "ragan" or _has_batch_norm(self.critic)
        images = torch.cat([self._noisy(pairs.hr, pairs.rngs, done), fake]) if compares else fake
        with autocast(self.device, self.precisions["training"]):
            logits = self.critic(_channels_last(images)).float()
        self.critic.requires_grad_(True)
        real_logits, fake_logits = logits.chunk(2) if compares else (logits, logits)
        return self.game.generator(real_logits.detach(), fake_logits)

    def _super_resolve(self, pairs: Pairs) -> Tensor:
        with autocast(self.device, self.precisions["training"]):
            sr: Tensor = self.parallel_g(_channels_last(pairs.lr), pairs.hr.shape[-2:])
        return sr.float()

    def _noisy(self, images: Tensor, rngs: Sequence[np.random.Generator], done: float) -> Tensor:
        std = self.config.loss.instance_noise * max(0.0, 1 - done)
        if not std:
            return images
        draws = [torch.from_numpy(rng.standard_normal(images.shape[1:], np.float32)) for rng in rngs]
        return images + std * torch.stack(draws).to(images.device)

    def _update(
        self, name: str, net: nn.Module, loss: Tensor, rate: float, terms: Mapping[str, Tensor]
    ) -> float:
        """Take one optimiser step; return the gradient's norm before clipping.

        Raises:
            DivergenceError: the loss or gradient is not finite; names the term and the tensor. DDP has averaged the
                gradient, so that every rank raises, or none.
        """
        optimizer = self.optimizers[name]
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        # Times 1: this carries an infinite loss with a finite gradient into the gradient, and so to every rank.
        (loss * (1 + 0 * loss.detach())).backward()
        limit = (self.config.optim_d if name == "d" else self.config.optim_g).grad_clip or math.inf
        norm = float(nn.utils.clip_grad_norm_(net.parameters(), limit))
        if not math.isfinite(norm):
            raise DivergenceError(self._diagnosis("discriminator" if name == "d" else "generator", terms))
        optimizer.step()
        return norm

    def _diagnosis(self, who: str, terms: Mapping[str, Tensor]) -> str:
        """Describe what diverged, equally on every rank; all ranks must call this."""
        bad = sorted({name for part in gather(_non_finite(terms)) for name in part})
        nets = {"generator": self.generator, "discriminator": self.critic}
        # Report weights first, the generator's before all: bad gradients of the other network follow from them.
        for owner, net in nets.items():
            if weights := _non_finite(dict(net.named_parameters())):
                who, what, where = owner, "weights", weights
                break
        else:
            gradients = {name: p.grad for name, p in nets[who].named_parameters() if p.grad is not None}
            what, where = "gradient", _non_finite(gradients)
        cause = [f"first in '{where[0]}'"] if where else ["its norm is infinite"]
        if bad:
            cause.append(f"its {' and '.join(bad)} loss is not finite")
        optim = "optim_d" if who == "discriminator" else "optim_g"
        rate = f"{optim}.lr" if self.is_adversarial else "pretrain.rate"
        return (
            f"the {who}'s {what} became non-finite ({'; '.join(cause)}): the run diverged; lower {rate} or set "
            f"{optim}.grad_clip"
        )

    def _average(self) -> None:
        if self.average is not None:
            self.average.update(self.generator)

    def validate(self) -> dict[str, float]:
        """Compute the panel's metrics, collapse score and objective, equal on every rank."""
        found: dict[str, Any] = {}
        if "super-resolution" not in self.precisions:
            chosen = self._resolver().choose_precision(shared=True, agree=self.agree)
            self.precisions["super-resolution"] = chosen
        if self.judge is not None:
            found = self.judge(self._resolver(), self.is_adversarial)
        found = gather(found)[0]
        metrics: dict[str, float] = {"stage": float(self.is_adversarial), **found["metrics"]}
        self._warn_of_saturation()
        self.objective = metrics["objective"]
        self.spec = dataclasses.replace(self.spec, collapse=found["verdict"], reason=found["reason"])
        if metrics["is_collapsed"] and self.config.collapse.stop:
            self.stopped = f"{found['verdict']}: {describe_evaluation(metrics)}"
        return metrics

    def _warn_of_saturation(self) -> None:
        """Warn that the discriminator has won; collapse itself is scored on the outputs alone."""
        certainty = float(np.mean(self.certainty)) if self.certainty else 0.0
        self.certainty.clear()
        if self.is_first and certainty > _SATURATED:
            _log.warning(
                "the discriminator is %.0f %% sure of real and generated images alike: it teaches the generator little; "
                "lower optim_d.lr, or raise loss.label_smoothing, loss.r1 or loss.instance_noise", 100 * certainty,
            )  # fmt: skip

    def finish(self) -> dict[str, float]:
        """Compute Dice by use with the frozen segmenter, if one is set, and add it to the objective."""
        if self.judge_use is None:
            return {}
        found = self.judge_use(self._resolver())
        if found and self.objective >= -1:  # a collapsed run ranks below every other, whatever its Dice
            gain = found["dice_sr"] - found["dice_bicubic"]
            found["objective"] = max(-1.0, self.objective + self.config.use.weight * gain)
        return found

    def state(self) -> dict[str, Any]:
        """Return both networks, all optimisers, the weight average and the stage."""
        average = self.average
        return {
            "generator": self.generator.state_dict(),
            "critic": self.critic.state_dict(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "average": None
            if average is None
            else {"weights": average.weights, "num_updates": average.num_updates},
            "psnr": self.psnr,
            "is_adversarial": self.is_adversarial,
            "num_d_steps": self.num_d_steps,
            "stopped": self.stopped,
            "precisions": self.precisions,
            "judge": None if self.judge is None else self.judge.state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Resume from the result of `state`."""
        self.generator.load_state_dict(state["generator"])
        self.critic.load_state_dict(state["critic"])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        if self.average is not None and state["average"] is not None:
            for name, tensor in state["average"]["weights"].items():
                self.average.weights[name].copy_(tensor)
            self.average.num_updates = state["average"]["num_updates"]
        self.psnr = state["psnr"]
        self.is_adversarial, self.num_d_steps = state["is_adversarial"], state["num_d_steps"]
        self.stopped = state["stopped"]
        self.precisions = dict(state.get("precisions", {}))  # older checkpoints have none
        if self.judge is not None and state["judge"] is not None:
            self.judge.load_state(state["judge"])

    def checkpoint(self, step: int, state: dict[str, Any], metrics: dict[str, float]) -> Checkpoint:
        """Pack the model that validation evaluated, with both generators if there are two."""
        generators = self._generators()
        self.spec = dataclasses.replace(self.spec, metrics=metrics, stages=tuple(generators))
        return Checkpoint(step=step, spec=self.spec, weights=stage_weights(generators), state=state)

    def _weights(self) -> Weights:
        return self.generator.state_dict() if self.average is None else self.average.weights

    def _generators(self) -> dict[str, Weights]:
        if not self.is_adversarial:
            return {"psnr": self._weights()}
        return {**({} if self.psnr is None else {"psnr": self.psnr}), "gan": self._weights()}

    def _resolver(self) -> SuperResolver:
        nets = {}
        for stage, weights in self._generators().items():
            nets[stage] = self.spec.build()
            nets[stage].load_state_dict(weights)
        precision = self.precisions.get("super-resolution")
        return SuperResolver(self.spec, nets, str(self.device), precision=precision)


def _parallel(net: nn.Module, ranks: Ranks, device: torch.device) -> nn.Module:
    if ranks.world_size == 1:
        return net
    ids = [device.index] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(net, device_ids=ids, broadcast_buffers=False)


def _non_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of tensors with non-finite values."""
    return [name for name, tensor in tensors.items() if not torch.isfinite(tensor.detach()).all()]


def _has_batch_norm(net: nn.Module) -> bool:
    return any(isinstance(module, GlobalBatchNorm2d | nn.BatchNorm2d) for module in net.modules())


def _channels_last(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)


def _copied(weights: Mapping[str, Tensor]) -> Weights:
    return {name: tensor.detach().clone() for name, tensor in weights.items()}
