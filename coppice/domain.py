"""The words of Coppice that need no tensors: who trains, on what, and for how long."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any, Literal, NewType

from annotated_types import Ge, Gt, Le, Len, Lt

from coppice.cohort import CohortSpec
from coppice.protection import ProtectionSpec
from coppice.section import Section

#: Version of the protocol between server and device; the first call of a device carries it.
PROTOCOL_VERSION = 3

#: The name in every server's certificate. A certificate authority has one server, so a device need
#: not know what the server's address is called, or whether it has another one today.
SERVER_TLS_NAME = "coppice-server"

#: A client's name, unique on one server; see `valid_name`.
ClientId = NewType("ClientId", str)

#: What is measured: name → value.
Metrics = Mapping[str, float]

#: Metric in which a device says how long it was at work on a task to train.
WORK_SECONDS = "work_seconds"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


def valid_name(text: str) -> bool:
    """Whether `text` may name a client or a run: 1 to 63 letters, digits, '.', '_' and '-'."""
    return _NAME.fullmatch(text) is not None


class TaskKind(StrEnum):
    """What a device is asked to do with a payload."""

    TRAIN = "train"
    EVALUATE = "evaluate"
    #: Keep the payload's model: the run is over.
    KEEP = "keep"


@dataclass(frozen=True)
class BlobRef:
    """Bytes named by what they are."""

    #: SHA-256 of the bytes, 64 lower-case hexadecimal digits.
    digest: str
    size_bytes: int


@dataclass(frozen=True)
class Capability:
    """What a device measured about itself."""

    #: Memory that the device's process may hold in a round, already net of the operating system and
    #: other programs.
    memory_bytes: int
    #: Threads that training uses.
    num_threads: int
    #: Machine architecture, as `platform.machine()` names it.
    machine: str
    #: Which limit on its memory is the smallest, for people; empty where the device did not say.
    memory_bound_by: str = ""
    #: Cores' worth of time that it may use; 0 where it did not say.
    cores: float = 0.0
    #: Of its processor; None where its kernel does not tell.
    temperature_celsius: float | None = None
    #: Why its processor is slower than it can be, for people; empty also where nothing tells.
    throttled: tuple[str, ...] = ()


#: What keeps a device from more steps or denser layers: its memory, the pace of the round, or
#: nothing but the most that its method allows; empty where nothing chose.
Why = Literal["", "memory", "pace", "capped"]

#: The same for people.
WHY_TEXT: Mapping[str, str] = {
    "": "",
    "memory": "memory-bound",
    "pace": "pace-bound",
    "capped": "capped",
}


@dataclass(frozen=True)
class Forecast:
    """What a device expected of a round before it began."""

    download_seconds: float
    compute_seconds: float
    upload_seconds: float
    #: Resident memory of its process, at most.
    peak_bytes: int
    #: What it chose its steps and densities by.
    why: Why = ""

    @property
    def seconds(self) -> float:
        """The whole round."""
        return self.download_seconds + self.compute_seconds + self.upload_seconds


@dataclass(frozen=True)
class RoundReport:
    """What a round took on a device, as measured there."""

    round_number: int
    #: Local steps.
    steps: int
    #: Share of the weights that can be pruned that the device trained; 1 where nothing is pruned.
    density: float
    #: Until the task's payload was there, from then until the update was, and until its receipt.
    download_seconds: float
    compute_seconds: float
    upload_seconds: float
    #: Resident memory of its process, at most.
    peak_bytes: int
    #: What that could have been when the round began, and the limit that says so, for people.
    budget_bytes: int
    bound_by: str = ""
    #: None where the method predicts nothing.
    forecast: Forecast | None = None

    @property
    def seconds(self) -> float:
        """The whole round."""
        return self.download_seconds + self.compute_seconds + self.upload_seconds

    @property
    def prune_ratio(self) -> float:
        """Share of the weights that is gone: the word for users."""
        return 1 - self.density

    @property
    def why(self) -> Why:
        """What the device chose its steps and densities by."""
        return self.forecast.why if self.forecast is not None else ""


@dataclass(frozen=True)
class Participant:
    """One client of a cohort, as the server's half of a method sees it."""

    client_id: ClientId
    capability: Capability
    #: Size of the client's training part; the held-out part is not counted.
    num_examples: int
    #: The client's answer to the round's terms; None where the method has no terms.
    choice: Mapping[str, Any] | None = None
    labels: Mapping[str, str] = field(default_factory=dict)


# ---- what a device must know of a run ----------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ModelSpec(Section):
    """A model of the registry (`coppice.models`)."""

    name: str
    norm: Literal["none", "batch", "group"] = "none"
    #: Widths of the hidden layers, for models that have such a choice (`mlp`).
    hidden: tuple[Annotated[int, Ge(1), Le(65536)], ...] | None = None


@dataclass(frozen=True, kw_only=True)
class DataSpec(Section):
    """What the numbers and labels in a device's data mean: the run's decision, not the device's.

    An example enters the model as `(x / scale - mean) / std`.
    """

    #: Class names in the order of the model's outputs.
    classes: Annotated[tuple[str, ...], Len(2, 100_000)]
    #: Shape of one example, channels first.
    input_shape: Annotated[tuple[Annotated[int, Ge(1)], ...], Len(1, 4)]
    scale: Annotated[float, Gt(0)] = 1.0
    #: One value, or one for each channel (first dimension of `input_shape`).
    mean: tuple[float, ...] = (0.0,)
    std: tuple[Annotated[float, Gt(0)], ...] = (1.0,)
    #: The integer that stands for the first class in files whose labels are integers without names.
    first_label: int = 0
    #: Name of the label column in tables (CSV, Parquet).
    label_column: str = "label"
    #: Columns of tables that are inputs, in the model's order; others are left out. Empty stands
    #: for all but the label in the file's order, which is only right where all files are alike.
    columns: tuple[str, ...] = ()
    #: Share of a device's examples that is never trained on and serves to evaluate there.
    held_out: Annotated[float, Ge(0), Lt(1)] = 0.1

    def __post_init__(self) -> None:
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("data.classes names a class twice")
        if len({*self.columns, self.label_column}) <= len(self.columns):
            raise ValueError("data.columns names a column twice, or the label column")
        for key, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, self.input_shape[0]):
                raise ValueError(
                    f"data.{key} has {len(values)} values; allowed are 1, or one for each of the "
                    f"{self.input_shape[0]} channels of data.input_shape"
                )


@dataclass(frozen=True, kw_only=True)
class AppSpec:
    """A user's own module, which both sides have; only its digest travels."""

    #: File name, for messages to people.
    name: str
    #: SHA-256 of the file, hexadecimal.
    digest: str
    #: Share of a device's examples that is never trained on and serves to evaluate there.
    held_out: Annotated[float, Ge(0), Lt(1)] = 0.1


@dataclass(frozen=True, kw_only=True)
class MethodSpec:
    """A method and its settings, as plain values; `coppice.method` gives them their type."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)


#: How the values of a float32 tensor travel: as they are, rounded to 16 bits, or as 8-bit integers
#: with a scale for each block, rounded at random.
ValueType = Literal["float32", "float16", "bfloat16", "int8"]


@dataclass(frozen=True, kw_only=True)
class WireSpec(Section):
    """How parameters travel to devices and their updates back (proto/README.md, "Payloads")."""

    #: Of the parameters that devices receive.
    down: ValueType = "float32"
    #: Of the updates that they send. What another type than float32 loses of an update, the device
    #: adds to its next one.
    up: ValueType = "float32"
    #: Whether a payload is compressed with zstd when that makes it smaller.
    compress: bool = False


@dataclass(frozen=True, kw_only=True)
class Workload(Section):
    """The part of a run that travels to devices: what to train, on which reading of their data.

    Either `model` and `data` are set (classification with a model of the registry), or `app`.
    """

    name: str
    seed: Annotated[int, Ge(0), Lt(2**63)] = 0
    model: ModelSpec | None = None
    data: DataSpec | None = None
    app: AppSpec | None = None
    method: MethodSpec
    wire: WireSpec = field(default_factory=WireSpec)

    def __post_init__(self) -> None:
        if not valid_name(self.name):
            raise ValueError(
                f"name is {self.name!r}; allowed are 1 to 63 letters, digits, '.', '_' and '-', "
                "the first a letter or digit"
            )
        if self.app is None and (self.model is None or self.data is None):
            raise ValueError("a run needs [model] and [data], or an app")
        if self.app is not None and (self.model is not None or self.data is not None):
            raise ValueError("a run with an app takes no [model] and no [data]: the app has both")


# ---- what only the server must know of a run ---------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class EvaluationSpec(Section):
    """When and on what the global model is evaluated, and which number decides."""

    #: Rounds from one evaluation to the next; the last round is always evaluated.
    every: Annotated[int, Ge(1)] = 1
    #: A held-out set on the server: path of a file or folder in one of the data formats.
    data: str | None = None
    #: Whether clients evaluate on their held-out parts.
    on_clients: bool = False
    #: The metric by which the best round and the target are judged.
    metric: str = "accuracy"
    goal: Literal["max", "min"] = "max"

    def better(self, value: float, than: float | None) -> bool:
        """Whether `value` beats the best so far; NaN never does."""
        if than is None:
            return not math.isnan(value)
        return value > than if self.goal == "max" else value < than

    def reaches(self, value: float, target: float) -> bool:
        """Whether `value` is as good as `target` or better."""
        return value >= target if self.goal == "max" else value <= target


@dataclass(frozen=True, kw_only=True)
class StopSpec(Section):
    """What ends a run."""

    rounds: Annotated[int, Ge(1), Le(10_000_000)]
    #: The run also ends as soon as the evaluation's metric is this good.
    target: float | None = None


@dataclass(frozen=True, kw_only=True)
class RunSpec(Workload):
    """One training from start to end: a run file, checked."""

    cohort: CohortSpec
    stop: StopSpec
    evaluation: EvaluationSpec = field(default_factory=EvaluationSpec)
    protection: ProtectionSpec = field(default_factory=ProtectionSpec)
    #: Model to start from, in the store's blobs; None starts from the seed.
    warm_start: BlobRef | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        fewest = self.protection.fewest_updates
        if self.cohort.needed < fewest:
            raise ValueError(
                f"protection.hostile is {self.protection.hostile}: Krum needs {fewest} updates for "
                f"that, and a round closes with {self.cohort.needed}; raise cohort.quorum"
            )

    @property
    def workload(self) -> Workload:
        """The part that travels to devices."""
        return Workload(
            name=self.name,
            seed=self.seed,
            model=self.model,
            data=self.data,
            app=self.app,
            method=self.method,
            wire=self.wire,
        )

    def evaluation_due(self, round_number: int) -> bool:
        """Whether the model after this round is to be evaluated."""
        return round_number % self.evaluation.every == 0 or round_number == self.stop.rounds


# ---- seeds -------------------------------------------------------------------------------------


def derive_seed(run_seed: int, *parts: str | int) -> int:
    """A seed of 63 bits for one purpose, from the run's seed and what names the purpose."""
    text = "\x1f".join([str(run_seed), *map(str, parts)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def rank_clients(run_seed: int, round_number: int, clients: Iterable[ClientId]) -> list[ClientId]:
    """The clients in the order in which this round would take them: seeded, by name."""
    return sorted(clients, key=lambda name: derive_seed(run_seed, "rank", round_number, name))
