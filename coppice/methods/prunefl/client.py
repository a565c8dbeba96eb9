"""PruneFL on the device: training on a mask, and what the weights are worth when it is due."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import chain, repeat

import torch
from torch import Tensor, nn

from coppice.domain import derive_seed
from coppice.kernels.stepping import Watch
from coppice.masks import prunable_names
from coppice.method import Choice, Local, Task, Update
from coppice.methods.prunefl.choice import Choice as DeviceChoice
from coppice.methods.prunefl.choice import choose, held, obstacle
from coppice.methods.prunefl.report import choose_with_report
from coppice.methods.prunefl.sample import Sample, reported_shape
from coppice.methods.prunefl.settings import Settings
from coppice.methods.prunefl.terms import (
    DECLINED,
    cost_to_tensors,
    no_cost,
    terms_from_payload,
)
from coppice.model_client import ModelClient
from coppice.sparse import Item, Mask, SparseTensor
from coppice.tensors import Payload, masks_of, weight_group
from coppice.training import evaluate

#: Longer than any round.
_NO_PACE = 1e9


@dataclass(frozen=True)
class Buffer:
    """Squared gradients of pruned weights since the last reconfiguration; stays on the device."""

    #: On the complements of the masks: sums over the rounds of n · (Σ gradients)².
    squares: Mapping[str, SparseTensor]
    #: Sum of n over these rounds.
    mass: float


@dataclass(frozen=True)
class Chosen:
    """What the device did last; stays on it."""

    steps: int
    kept: Mapping[str, int]
    #: Version of the terms that it was chosen from.
    terms: int

    def as_choice(self) -> DeviceChoice:
        """To stay with, where it is as good; nothing else is known of it any more."""
        return DeviceChoice(
            steps=self.steps, kept=self.kept, gain=0.0, seconds=0.0, peak_bytes=0.0, why="pace"
        )


class Client(ModelClient):
    """Jiang et al. 2022; which gradients are squared when follows the released code."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._settings = settings

    @property
    def goes_by_cost(self) -> bool:
        """Where each device has a mask of its own."""
        return self._settings.mask_scope == "device"

    def prunable(self, model: nn.Module) -> list[str]:
        """All but what the run keeps dense."""
        return prunable_names(model, self._settings.keep_dense)

    def choose(self, terms: Payload, local: Local) -> Choice:
        """Steps and counts by what this device has measured of itself; the least before it has."""
        offered = terms_from_payload(terms)
        profile, cost = offered.profile, local.cost
        least = profile.least
        if cost is None or cost.time.layers.keys() != least.keys():
            return {"steps": 1, "kept": least, "report_every": 0}
        parts = cost.fewest_parts(least)
        cost = cost.in_parts(parts)
        pace = offered.pace_seconds or _NO_PACE
        last = local.private.read(Chosen)
        previous = None if last is None else last.as_choice()
        chosen = choose(profile, cost, pace, offered.max_steps, previous)
        # Who could do no more than the least for a while need not stay with it.
        is_least = last is not None and last.kept == least and chosen is not None
        if last is not None and last.terms == offered.version and not is_least:
            stay = held(cost, pace, offered.max_steps, last.as_choice())
            if stay is not None:
                chosen = replace(stay, why=chosen.why if chosen is not None else "pace")
        if chosen is None:
            limit = obstacle(profile, cost, pace)
            if limit == "pace" and self._settings.include == "all":
                # Slower than when the pace was found: as little as can be, until the next one.
                return {"steps": 1, "kept": least, "report_every": 0, "why": limit}
            if limit == "memory":
                lack = {"needed_bytes": cost.peak_bytes(least), "budget_bytes": cost.limit_bytes}
                return {DECLINED: limit, "parts": parts, **lack}
            return {DECLINED: limit}
        every = 0
        if offered.report_due:
            chosen, every = choose_with_report(offered, cost, pace, chosen, parts)
        return {
            "steps": chosen.steps,
            "kept": dict(chosen.kept),
            "report_every": every,
            "why": chosen.why,
        }

    def run(self, task: Task, local: Local) -> Update:
        """Train; report importance when the task asks for it."""
        masks = masks_of(weight_group(task.payload, "parameters"))
        if "passes" in task.settings:
            return self._prune_initially(task, local, masks)
        if "steps" in task.settings:
            return self._train_own_part(task, local, masks)
        if self._settings.importance == "every_round":
            return self._train_and_sum(task, local, masks)
        if task.settings["report"]:
            return self._train_and_square_last(task, local, masks, Sample(every=1, first=0))
        return super().run(task, local)

    def _train_own_part(self, task: Task, local: Local, masks: Mapping[str, Mask]) -> Update:
        """Train what this device chose, and say what rounds cost it."""
        known = no_cost(list(masks))
        if local.cost is not None and local.cost.time.layers.keys() == masks.keys():
            known = cost_to_tensors(local.cost.in_parts(local.parts))
        more: dict[str, Mapping[str, Item]] = {"cost": known}
        if task.settings["report"]:
            sample = Sample.draw(int(task.settings["report_every"]), local.generator)
            update = self._train_and_square_last(task, local, masks, sample)
            more["sample"] = sample.to_tensors()
        else:
            update = super().run(task, local)
            # What had to make room for a report is nothing to stay with.
            kept = {name: mask.count for name, mask in masks.items()}
            steps, terms = int(task.settings["steps"]), int(task.settings["terms"])
            local.private.stage(Chosen(steps, kept, terms))
        return replace(update, payload={**update.payload, **more})

    def _prune_initially(self, task: Task, local: Local, masks: Mapping[str, Mask]) -> Update:
        """Passes over a few fixed batches, squaring every step's gradients of kept weights."""
        batches = self._fixed_batches(local)
        sums = {name: torch.zeros(mask.count) for name, mask in masks.items()}
        base = torch.zeros((), dtype=torch.float64)

        def see(name: str, gradient: Tensor | SparseTensor) -> None:
            if isinstance(gradient, SparseTensor):
                sums[name].addcmul_(gradient.values, gradient.values)
            else:
                base.add_(_square_sum(gradient))

        passes = chain.from_iterable(repeat(batches, int(task.settings["passes"])))
        model, trained = self.train(task, local, batches=passes, watch=Watch(see))
        squares = {name: SparseTensor(mask, sums[name]) for name, mask in masks.items()}
        more = _report(squares, importance=base)
        size = self.examples_at_once(local)
        accuracy = _accuracy(model, local, torch.cat(batches), size) if batches else {}
        return self.answer(task, local, trained, more, accuracy)

    def _fixed_batches(self, local: Local) -> list[Tensor]:
        # The same ones in each task of the chain.
        generator = torch.Generator()
        generator.manual_seed(derive_seed(local.seed, local.client_id, "initial pruning"))
        settings = self._settings
        order = torch.randperm(len(local.train), generator=generator)
        chosen = order[: settings.initial_batches * settings.batch_size]
        return list(chosen.split(settings.batch_size)) if len(chosen) else []

    def _train_and_square_last(
        self, task: Task, local: Local, masks: Mapping[str, Mask], sample: Sample
    ) -> Update:
        """The last step's gradients, squared at once, of kept and pruned weights alike."""
        weight = float(len(local.train))
        seen: dict[str, Tensor] = {}
        base = torch.zeros((), dtype=torch.float64)

        def see(name: str, gradient: Tensor | SparseTensor) -> None:
            assert isinstance(gradient, Tensor)
            if name in masks:
                seen[name] = sample.of(gradient).square().mul_(weight)
            else:
                base.add_(_square_sum(gradient), alpha=weight)

        watch = Watch(see, pruned_too=True, last_only=True)
        _, trained = self.train(task, local, watch=watch)
        # Weights that the model does not use have no gradient.
        squares = {
            name: seen[name]
            if name in seen
            else torch.zeros(reported_shape(mask.shape, sample.every))
            for name, mask in masks.items()
        }
        more = _report(squares, importance=base)
        return self.answer(task, local, trained, more)

    def _train_and_sum(self, task: Task, local: Local, masks: Mapping[str, Mask]) -> Update:
        """The sum of the gradients over the steps; kept weights' the server reads off the delta."""
        sums: dict[str, Tensor] = {}

        def see(name: str, gradient: Tensor | SparseTensor) -> None:
            assert isinstance(gradient, Tensor)
            if name in masks:
                sums[name] = sums[name].add_(gradient) if name in sums else gradient.clone()

        _, trained = self.train(task, local, watch=Watch(see, pruned_too=True))
        buffer = self._grown(local, masks, sums)
        if not task.settings["report"]:
            local.private.stage(buffer)
            return self.answer(task, local, trained)
        local.private.stage(Buffer({}, 0.0))
        mass = torch.tensor(buffer.mass, dtype=torch.float64)
        more = _report(buffer.squares, mass=mass)
        return self.answer(task, local, trained, more)

    def _grown(self, local: Local, masks: Mapping[str, Mask], sums: Mapping[str, Tensor]) -> Buffer:
        """The buffer with this round's gradients; it begins anew when the masks have changed."""
        weight = float(len(local.train))
        pruned = {name: mask.complement() for name, mask in masks.items()}
        buffer = local.private.read(Buffer)
        if buffer is None or masks_of(buffer.squares) != pruned:
            zeros = {name: torch.zeros(mask.count) for name, mask in pruned.items()}
            buffer = Buffer({name: SparseTensor(pruned[name], zeros[name]) for name in pruned}, 0.0)
        for name, gradient in sums.items():
            new = SparseTensor.take(gradient, pruned[name]).values
            buffer.squares[name].values.addcmul_(new, new, value=weight)
        return Buffer(buffer.squares, buffer.mass + weight)


def _report(squares: Mapping[str, Item], **base: Tensor) -> dict[str, Mapping[str, Item]]:
    return {"importance": squares, "base": base}


def _square_sum(gradient: Tensor) -> Tensor:
    return gradient.to(torch.float64).square().sum()


@torch.no_grad()
def _accuracy(
    model: nn.Module, local: Local, indices: Tensor, batch_size: int
) -> Mapping[str, float]:
    metrics = evaluate(model, local.app, local.train.subset(indices), batch_size)
    return {"accuracy": metrics["accuracy"]} if "accuracy" in metrics else {}
