"""Domain objects ↔ messages; what comes from outside is validated before it is believed."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from coppice.domain import BlobRef, Metrics, TaskKind, Workload
from coppice.errors import InvalidMessage, InvalidPayload
from coppice.method import Task
from coppice.tensors import Payload
from coppice.tree import from_plain, to_plain
from coppice.wire import coordination_pb2 as pb
from coppice.wire.bounds import MAX_LABEL_LENGTH, is_text, valid_count

MAX_LABELS = 32
MAX_METRICS = 64
MAX_JSON_BYTES = 64 * 2**10

_DIGEST = re.compile(r"[0-9a-f]{64}")
_RUN_KEY = re.compile(r"[0-9]{1,15}-[0-9a-f]{16}")
_NAME = re.compile(r"[\w ./:-]{1,63}")


def labels_from_message(labels: Mapping[str, str]) -> dict[str, str]:
    """A client's labels."""
    if len(labels) > MAX_LABELS:
        raise InvalidMessage(f"a client may have {MAX_LABELS} labels at most")
    for key, value in labels.items():
        if not _NAME.fullmatch(key) or not is_text(value):
            raise InvalidMessage(
                f"label {key[:MAX_LABEL_LENGTH]!r} is not valid: keys and values have at most "
                f"{MAX_LABEL_LENGTH} printable characters, keys only letters, digits, spaces and "
                "./:_-"
            )
    return dict(labels)


def blob_to_message(ref: BlobRef) -> pb.BlobRef:
    """A blob's name, to send."""
    return pb.BlobRef(digest=ref.digest, size_bytes=ref.size_bytes)


def blob_from_message(message: pb.BlobRef) -> BlobRef:
    """A blob's name; InvalidMessage when it cannot be one."""
    return BlobRef(valid_digest(message.digest), valid_count("size_bytes", message.size_bytes))


def valid_digest(text: str) -> str:
    """The text itself when it is a SHA-256 in lower-case hexadecimal; else InvalidMessage."""
    if not _DIGEST.fullmatch(text):
        raise InvalidMessage("a digest has 64 lower-case hexadecimal digits")
    return text


def valid_run_key(text: str) -> str:
    """The text itself when it can name a run; else InvalidMessage."""
    if not _RUN_KEY.fullmatch(text):
        raise InvalidMessage("a run's key is its number, '-' and 16 hexadecimal digits")
    return text


def metrics_from_message(metrics: Mapping[str, float]) -> Metrics:
    """Finite numbers by name."""
    if len(metrics) > MAX_METRICS:
        raise InvalidMessage(f"an update may have {MAX_METRICS} metrics at most")
    for name, value in metrics.items():
        if not _NAME.fullmatch(name):
            raise InvalidMessage(f"metric {name[:MAX_LABEL_LENGTH]!r} is not a valid name")
        if not math.isfinite(value):
            raise InvalidMessage(f"metric {name!r} is {value}; it must be finite")
    return dict(metrics)


def check_push_header(header: pb.PushHeader) -> None:
    """InvalidMessage when a field is outside its limits."""
    blob_from_message(header.blob)
    metrics_from_message(header.metrics)
    valid_count("num_examples", header.num_examples)
    valid_count("steps", header.steps)


def workload_to_json(workload: Workload) -> str:
    """What a device must know of a run, to send."""
    return json.dumps(to_plain(workload), separators=(",", ":"))


def workload_from_json(text: str) -> Workload:
    """What a device must know of a run; InvalidMessage when it makes no sense."""
    try:
        return from_plain(Workload, plain_from_json(text))
    except InvalidPayload as error:
        raise InvalidMessage(str(error)) from None


def plain_from_json(text: str) -> dict[str, Any]:
    """A JSON object; InvalidMessage when it is anything else."""
    try:
        plain = json.loads(text, parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError) as error:
        raise InvalidMessage(f"not JSON: {error}") from None
    if not isinstance(plain, dict):
        raise InvalidMessage("not a JSON object")
    return plain


def choice_from_message(message: pb.Choice) -> dict[str, Any]:
    """A device's answer to terms."""
    if len(message.values_json.encode()) > MAX_JSON_BYTES:
        raise InvalidMessage(f"a choice may have {MAX_JSON_BYTES} bytes at most")
    return plain_from_json(message.values_json)


def task_from_offer(offer: pb.TaskOffer, payload: Payload) -> Task:
    """The task as the device does it."""
    try:
        kind = TaskKind(offer.kind)
    except ValueError:
        raise InvalidMessage(f"tasks of kind {offer.kind!r} are unknown to this version") from None
    return Task(kind, offer.round_number, payload, plain_from_json(offer.settings_json))


def _finite(text: str) -> float:
    # JSON has no NaN and no Infinity; Python reads both, and reads 1e999 as the latter.
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not allowed")
    return value
