"""What a federated method is: a half for the server, a half for the device, and what they exchange.

A folder in `coppice/methods/` is a method. Its `settings.py` holds `Settings`, a frozen dataclass;
`server.py` holds `Server`, a `ServerHalf`; `client.py` holds `Client`, a `ClientHalf`. A process
imports only the half that it needs (`settings_type`, `server_half`, `client_half`).
"""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import nn

from coppice.app import App
from coppice.cohort import CohortSpec
from coppice.data import Examples
from coppice.device_cost import DeviceCost
from coppice.domain import (
    Capability,
    ClientId,
    MethodSpec,
    Metrics,
    Participant,
    TaskKind,
    WireSpec,
    Workload,
)
from coppice.errors import RunFileError
from coppice.layer_fit import LayerFit
from coppice.section import Section
from coppice.tensors import Payload, PayloadSpec, Weights
from coppice.tree import from_plain

State = TypeVar("State")

#: A device's answer to terms: plain values by name.
Choice = Mapping[str, Any]


class MethodSettings(Section):
    """Base of every method's `Settings`."""

    def check_wire(self, wire: WireSpec) -> None:
        """ValueError when the method cannot work with what the wire makes of its values."""


@dataclass(frozen=True)
class Task:
    """What one client is asked to do in one round."""

    kind: TaskKind
    round_number: int
    payload: Payload
    #: Plain values that change from task to task; what is fixed for the run is in the settings.
    settings: Mapping[str, Any] = field(default_factory=dict)
    #: What the update's payload must be. The server checks an update against this and nothing
    #: else; it stays on the server. Empty: the answer consists of metrics only.
    expects: PayloadSpec = field(default_factory=dict)


@dataclass(frozen=True)
class Update:
    """What one client answers to a task."""

    client_id: ClientId
    payload: Payload
    #: Examples that the metrics and the weight in the aggregate stand for.
    num_examples: int
    #: Local steps done.
    steps: int = 0
    metrics: Metrics = field(default_factory=dict)
    #: From the offer of the task to the stored answer, as the server saw it; None in a simulation.
    seconds: float | None = None
    #: From the last answer of the round before to the offer of this one's tasks: what the server
    #: and polls took; None where that is not known.
    pause_seconds: float | None = None


class Private(Protocol):
    """What a client keeps from round to round and never sends, versioned by task.

    There is one value of each type. `stage` holds its next version beside the unsent update. It
    becomes the committed one when the server's receipt is there, and is dropped when the update is
    refused or the task is run again.
    """

    def read(self, kind: type[State]) -> State | None:
        """The last committed version, or None; `kind` is the type that was staged."""

    def stage(self, value: object) -> None:
        """Hold the next version: a tree that `coppice.tree` can save."""


class Meter(Protocol):
    """Watches the work on a task from inside."""

    def step_done(self) -> None:
        """Count one local step; raises TaskAbandoned when the task is no longer wanted."""


@dataclass(frozen=True)
class Local:
    """What a device brings to a task."""

    client_id: ClientId
    app: App
    #: The run's: the model built from it is the one that the server began with.
    seed: int
    #: The examples that are trained on.
    train: Examples
    #: The examples that never are; may be empty.
    held_out: Examples
    capability: Capability
    private: Private
    meter: Meter
    #: Seeds from (run seed, client, round); the only source of chance in a task.
    generator: torch.Generator
    #: Whether sparse layers may train by kernels of their own (coppice.kernels), whose results
    #: differ by rounding; else pruned weights are trained as zeros.
    kernels: bool = False
    #: What rounds of the run cost the device, as far as it has measured.
    cost: DeviceCost | None = None
    #: Parts of each batch of a task (`coppice.training.Sgd`): more take less memory.
    parts: int = 1


@dataclass(frozen=True)
class InitContext:
    """What the first state of a run is made from."""

    seed: int
    #: A fresh model, drawn with the run's seed or the one that is given as `seed`; the same seed
    #: gives the same one.
    make_model: Callable[..., nn.Module]
    #: Parameters and buffers to start from instead of the model's own.
    warm_start: Weights | None = None
    #: Who takes part in a round of the run; by default one client.
    cohort: CohortSpec = field(default_factory=lambda: CohortSpec(size=1))


class ServerHalf(ABC, Generic[State]):
    """Functions of a state, which is a tree of frozen dataclasses, mappings, tensors and scalars.

    `coppice.tree` saves any such tree. Nothing else is remembered between two calls.
    """

    #: The type of the state, by which it is loaded again.
    state_type: type[State]

    @abstractmethod
    def init(self, context: InitContext) -> State:
        """The state before round 1."""

    def terms(self, state: State, round_number: int) -> Payload | None:
        """What clients choose from before they are planned; None when there is no choice."""
        return None

    @abstractmethod
    def plan(
        self, state: State, cohort: Sequence[Participant], round_number: int
    ) -> Mapping[ClientId, Task]:
        """The tasks of a round, in plan order; who is left out is not waited for.

        Tasks that share one payload object and follow each other share one encoding of it.
        """

    @abstractmethod
    def aggregate(
        self, state: State, updates: Iterable[Update], round_number: int
    ) -> tuple[State, Metrics]:
        """The next state. `updates` come in plan order and are decoded one at a time.

        Without a single update the state stays as it is.
        """

    def most_steps(self, task: Task, num_examples: int) -> int | None:
        """Local steps that a task to train takes on so many examples, at most; None: any number.

        An update that claims more is refused.
        """
        return None

    def unit(self, state: State, update: Update, round_number: int) -> float:
        """What `aggregate` divides an update's "delta" by before it averages: 1 unless it says so.

        Robust rules (`coppice.robust`) compare updates after that.
        """
        return 1.0

    def reserved_for(self, state: State, round_number: int) -> ClientId | None:
        """The one client that the round is for and waits for; None for a round of a cohort."""
        return None

    @abstractmethod
    def models(self, state: State) -> Mapping[str, Weights]:
        """The models in a state by name, "global" for the one; empty where there is none.

        Others are what single devices use of it: a handful at most, named by letters, digits, '.'
        and '-'. They are evaluated and saved beside it, and decide nothing.
        """


class ClientHalf(ABC):
    """The device's side of a method."""

    @property
    def goes_by_cost(self) -> bool:
        """Whether it chooses by what rounds cost the device (`Local.cost`), which takes a probe."""
        return False

    def choose(self, terms: Payload, local: Local) -> Choice:
        """Answer the round's terms. Only called for methods that have terms."""
        raise NotImplementedError(f"{type(self).__module__} offers terms but cannot choose")

    @abstractmethod
    def run(self, task: Task, local: Local) -> Update:
        """Do a task of kind TRAIN."""

    @abstractmethod
    def evaluate(self, task: Task, local: Local) -> Metrics:
        """Evaluate what a task brings on `local.held_out`."""

    def rehearse(self, local: Local, density: float, steps: int) -> Update | None:
        """Train for so many steps as in a round, on random masks of this density.

        None where the method has no such rounds.
        """
        return None

    def examples_per_step(self, local: Local) -> int:
        """Examples of a rehearsed round's batch, which may be trained on in parts."""
        return 1

    def layer_costs(
        self, local: Local, clock: Callable[[], float]
    ) -> Iterator[tuple[str, LayerFit]]:
        """What a local step costs in each layer that can be pruned, as it is found."""
        return iter(())

    @abstractmethod
    def model(self, task: Task, local: Local) -> Weights | None:
        """The parameters and buffers that this device would use on its own; None without any."""


def method_names() -> list[str]:
    """The methods there are."""
    package = importlib.import_module("coppice.methods")
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__) if module.ispkg)


def settings_type(name: str) -> type[Any]:
    """The settings class of a method; RunFileError when there is no such method."""
    if name not in method_names():
        raise RunFileError(
            f"method.name is {name!r}; allowed are {', '.join(map(repr, method_names()))}"
        )
    settings: type[Any] = importlib.import_module(f"coppice.methods.{name}.settings").Settings
    return settings


def check_wire(workload: Workload) -> None:
    """RunFileError when the method cannot work with what the run's wire makes of its values."""
    settings = from_plain(settings_type(workload.method.name), dict(workload.method.settings))
    try:
        settings.check_wire(workload.wire)
    except ValueError as error:
        raise RunFileError(f"method: {error}") from None


def server_half(spec: MethodSpec) -> ServerHalf[Any]:
    """The server's half of a method with its settings."""
    settings = from_plain(settings_type(spec.name), dict(spec.settings))
    half: ServerHalf[Any] = importlib.import_module(f"coppice.methods.{spec.name}.server").Server(
        settings
    )
    return half


def client_half(spec: MethodSpec) -> ClientHalf:
    """The device's half of a method with its settings."""
    settings = from_plain(settings_type(spec.name), dict(spec.settings))
    half: ClientHalf = importlib.import_module(f"coppice.methods.{spec.name}.client").Client(
        settings
    )
    return half
