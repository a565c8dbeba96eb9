from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AuthorityRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class AuthorityReply(_message.Message):
    __slots__ = ("certificate",)
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    certificate: bytes
    def __init__(self, certificate: _Optional[bytes] = ...) -> None: ...

class EnrolRequest(_message.Message):
    __slots__ = ("protocol_version", "signing_request", "secret", "name")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    SIGNING_REQUEST_FIELD_NUMBER: _ClassVar[int]
    SECRET_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    signing_request: bytes
    secret: bytes
    name: str
    def __init__(self, protocol_version: _Optional[int] = ..., signing_request: _Optional[bytes] = ..., secret: _Optional[bytes] = ..., name: _Optional[str] = ...) -> None: ...

class RenewRequest(_message.Message):
    __slots__ = ("signing_request",)
    SIGNING_REQUEST_FIELD_NUMBER: _ClassVar[int]
    signing_request: bytes
    def __init__(self, signing_request: _Optional[bytes] = ...) -> None: ...

class Certificate(_message.Message):
    __slots__ = ("certificate", "name", "valid_seconds")
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALID_SECONDS_FIELD_NUMBER: _ClassVar[int]
    certificate: bytes
    name: str
    valid_seconds: float
    def __init__(self, certificate: _Optional[bytes] = ..., name: _Optional[str] = ..., valid_seconds: _Optional[float] = ...) -> None: ...

class Capability(_message.Message):
    __slots__ = ("memory_bytes", "num_threads", "machine", "memory_bound_by", "cores", "temperature_celsius", "throttled")
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    NUM_THREADS_FIELD_NUMBER: _ClassVar[int]
    MACHINE_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BOUND_BY_FIELD_NUMBER: _ClassVar[int]
    CORES_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_CELSIUS_FIELD_NUMBER: _ClassVar[int]
    THROTTLED_FIELD_NUMBER: _ClassVar[int]
    memory_bytes: int
    num_threads: int
    machine: str
    memory_bound_by: str
    cores: float
    temperature_celsius: float
    throttled: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, memory_bytes: _Optional[int] = ..., num_threads: _Optional[int] = ..., machine: _Optional[str] = ..., memory_bound_by: _Optional[str] = ..., cores: _Optional[float] = ..., temperature_celsius: _Optional[float] = ..., throttled: _Optional[_Iterable[str]] = ...) -> None: ...

class BlobRef(_message.Message):
    __slots__ = ("digest", "size_bytes")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    digest: str
    size_bytes: int
    def __init__(self, digest: _Optional[str] = ..., size_bytes: _Optional[int] = ...) -> None: ...

class JoinRequest(_message.Message):
    __slots__ = ("protocol_version", "device_id", "labels", "capability", "app_digest", "software")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    CAPABILITY_FIELD_NUMBER: _ClassVar[int]
    APP_DIGEST_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    device_id: str
    labels: _containers.ScalarMap[str, str]
    capability: Capability
    app_digest: str
    software: str
    def __init__(self, protocol_version: _Optional[int] = ..., device_id: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ..., capability: _Optional[_Union[Capability, _Mapping]] = ..., app_digest: _Optional[str] = ..., software: _Optional[str] = ...) -> None: ...

class JoinReply(_message.Message):
    __slots__ = ("server_name", "heartbeat_seconds", "receipt_key")
    SERVER_NAME_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_KEY_FIELD_NUMBER: _ClassVar[int]
    server_name: str
    heartbeat_seconds: float
    receipt_key: bytes
    def __init__(self, server_name: _Optional[str] = ..., heartbeat_seconds: _Optional[float] = ..., receipt_key: _Optional[bytes] = ...) -> None: ...

class PollRequest(_message.Message):
    __slots__ = ("run_key", "num_examples", "capability", "choice", "app_digest", "report", "declined_task_id", "refusal_seen")
    RUN_KEY_FIELD_NUMBER: _ClassVar[int]
    NUM_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    CAPABILITY_FIELD_NUMBER: _ClassVar[int]
    CHOICE_FIELD_NUMBER: _ClassVar[int]
    APP_DIGEST_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    DECLINED_TASK_ID_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_SEEN_FIELD_NUMBER: _ClassVar[int]
    run_key: str
    num_examples: int
    capability: Capability
    choice: Choice
    app_digest: str
    report: RoundReport
    declined_task_id: int
    refusal_seen: int
    def __init__(self, run_key: _Optional[str] = ..., num_examples: _Optional[int] = ..., capability: _Optional[_Union[Capability, _Mapping]] = ..., choice: _Optional[_Union[Choice, _Mapping]] = ..., app_digest: _Optional[str] = ..., report: _Optional[_Union[RoundReport, _Mapping]] = ..., declined_task_id: _Optional[int] = ..., refusal_seen: _Optional[int] = ...) -> None: ...

class RoundReport(_message.Message):
    __slots__ = ("round_number", "steps", "density", "download_seconds", "compute_seconds", "upload_seconds", "peak_bytes", "budget_bytes", "bound_by", "forecast")
    ROUND_NUMBER_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    DENSITY_FIELD_NUMBER: _ClassVar[int]
    DOWNLOAD_SECONDS_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    UPLOAD_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PEAK_BYTES_FIELD_NUMBER: _ClassVar[int]
    BUDGET_BYTES_FIELD_NUMBER: _ClassVar[int]
    BOUND_BY_FIELD_NUMBER: _ClassVar[int]
    FORECAST_FIELD_NUMBER: _ClassVar[int]
    round_number: int
    steps: int
    density: float
    download_seconds: float
    compute_seconds: float
    upload_seconds: float
    peak_bytes: int
    budget_bytes: int
    bound_by: str
    forecast: Forecast
    def __init__(self, round_number: _Optional[int] = ..., steps: _Optional[int] = ..., density: _Optional[float] = ..., download_seconds: _Optional[float] = ..., compute_seconds: _Optional[float] = ..., upload_seconds: _Optional[float] = ..., peak_bytes: _Optional[int] = ..., budget_bytes: _Optional[int] = ..., bound_by: _Optional[str] = ..., forecast: _Optional[_Union[Forecast, _Mapping]] = ...) -> None: ...

class Forecast(_message.Message):
    __slots__ = ("download_seconds", "compute_seconds", "upload_seconds", "peak_bytes", "why")
    DOWNLOAD_SECONDS_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    UPLOAD_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PEAK_BYTES_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    download_seconds: float
    compute_seconds: float
    upload_seconds: float
    peak_bytes: int
    why: str
    def __init__(self, download_seconds: _Optional[float] = ..., compute_seconds: _Optional[float] = ..., upload_seconds: _Optional[float] = ..., peak_bytes: _Optional[int] = ..., why: _Optional[str] = ...) -> None: ...

class Choice(_message.Message):
    __slots__ = ("round_number", "values_json")
    ROUND_NUMBER_FIELD_NUMBER: _ClassVar[int]
    VALUES_JSON_FIELD_NUMBER: _ClassVar[int]
    round_number: int
    values_json: str
    def __init__(self, round_number: _Optional[int] = ..., values_json: _Optional[str] = ...) -> None: ...

class PollReply(_message.Message):
    __slots__ = ("run", "terms", "task", "over", "wait", "renew", "refusals")
    RUN_FIELD_NUMBER: _ClassVar[int]
    TERMS_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    OVER_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    RENEW_FIELD_NUMBER: _ClassVar[int]
    REFUSALS_FIELD_NUMBER: _ClassVar[int]
    run: RunOffer
    terms: TermsOffer
    task: TaskOffer
    over: RunOver
    wait: Wait
    renew: bool
    refusals: _containers.RepeatedCompositeFieldContainer[Refusal]
    def __init__(self, run: _Optional[_Union[RunOffer, _Mapping]] = ..., terms: _Optional[_Union[TermsOffer, _Mapping]] = ..., task: _Optional[_Union[TaskOffer, _Mapping]] = ..., over: _Optional[_Union[RunOver, _Mapping]] = ..., wait: _Optional[_Union[Wait, _Mapping]] = ..., renew: _Optional[bool] = ..., refusals: _Optional[_Iterable[_Union[Refusal, _Mapping]]] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("refusal_id", "task_id", "round_number", "reason", "strikes", "strikes_allowed", "left_out")
    REFUSAL_ID_FIELD_NUMBER: _ClassVar[int]
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    ROUND_NUMBER_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    STRIKES_FIELD_NUMBER: _ClassVar[int]
    STRIKES_ALLOWED_FIELD_NUMBER: _ClassVar[int]
    LEFT_OUT_FIELD_NUMBER: _ClassVar[int]
    refusal_id: int
    task_id: int
    round_number: int
    reason: str
    strikes: int
    strikes_allowed: int
    left_out: bool
    def __init__(self, refusal_id: _Optional[int] = ..., task_id: _Optional[int] = ..., round_number: _Optional[int] = ..., reason: _Optional[str] = ..., strikes: _Optional[int] = ..., strikes_allowed: _Optional[int] = ..., left_out: _Optional[bool] = ...) -> None: ...

class RunOffer(_message.Message):
    __slots__ = ("run_id", "run_key", "workload_json")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    RUN_KEY_FIELD_NUMBER: _ClassVar[int]
    WORKLOAD_JSON_FIELD_NUMBER: _ClassVar[int]
    run_id: int
    run_key: str
    workload_json: str
    def __init__(self, run_id: _Optional[int] = ..., run_key: _Optional[str] = ..., workload_json: _Optional[str] = ...) -> None: ...

class TermsOffer(_message.Message):
    __slots__ = ("round_number", "payload")
    ROUND_NUMBER_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    round_number: int
    payload: BlobRef
    def __init__(self, round_number: _Optional[int] = ..., payload: _Optional[_Union[BlobRef, _Mapping]] = ...) -> None: ...

class TaskOffer(_message.Message):
    __slots__ = ("task_id", "run_id", "kind", "round_number", "payload", "settings_json", "deadline_seconds", "masks")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    ROUND_NUMBER_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_JSON_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    MASKS_FIELD_NUMBER: _ClassVar[int]
    task_id: int
    run_id: int
    kind: str
    round_number: int
    payload: BlobRef
    settings_json: str
    deadline_seconds: float
    masks: BlobRef
    def __init__(self, task_id: _Optional[int] = ..., run_id: _Optional[int] = ..., kind: _Optional[str] = ..., round_number: _Optional[int] = ..., payload: _Optional[_Union[BlobRef, _Mapping]] = ..., settings_json: _Optional[str] = ..., deadline_seconds: _Optional[float] = ..., masks: _Optional[_Union[BlobRef, _Mapping]] = ...) -> None: ...

class RunOver(_message.Message):
    __slots__ = ("run_id", "state", "reason", "keep")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    KEEP_FIELD_NUMBER: _ClassVar[int]
    run_id: int
    state: str
    reason: str
    keep: TaskOffer
    def __init__(self, run_id: _Optional[int] = ..., state: _Optional[str] = ..., reason: _Optional[str] = ..., keep: _Optional[_Union[TaskOffer, _Mapping]] = ...) -> None: ...

class Wait(_message.Message):
    __slots__ = ("retry_seconds",)
    RETRY_SECONDS_FIELD_NUMBER: _ClassVar[int]
    retry_seconds: float
    def __init__(self, retry_seconds: _Optional[float] = ...) -> None: ...

class FetchRequest(_message.Message):
    __slots__ = ("digest", "offset", "chunk_bytes")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    CHUNK_BYTES_FIELD_NUMBER: _ClassVar[int]
    digest: str
    offset: int
    chunk_bytes: int
    def __init__(self, digest: _Optional[str] = ..., offset: _Optional[int] = ..., chunk_bytes: _Optional[int] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class PushChunk(_message.Message):
    __slots__ = ("header", "data")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    header: PushHeader
    data: bytes
    def __init__(self, header: _Optional[_Union[PushHeader, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class PushHeader(_message.Message):
    __slots__ = ("task_id", "blob", "offset", "num_examples", "steps", "metrics")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    BLOB_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    NUM_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    task_id: int
    blob: BlobRef
    offset: int
    num_examples: int
    steps: int
    metrics: _containers.ScalarMap[str, float]
    def __init__(self, task_id: _Optional[int] = ..., blob: _Optional[_Union[BlobRef, _Mapping]] = ..., offset: _Optional[int] = ..., num_examples: _Optional[int] = ..., steps: _Optional[int] = ..., metrics: _Optional[_Mapping[str, float]] = ...) -> None: ...

class PushStatusRequest(_message.Message):
    __slots__ = ("task_id", "blob")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    BLOB_FIELD_NUMBER: _ClassVar[int]
    task_id: int
    blob: BlobRef
    def __init__(self, task_id: _Optional[int] = ..., blob: _Optional[_Union[BlobRef, _Mapping]] = ...) -> None: ...

class PushStatusReply(_message.Message):
    __slots__ = ("offset", "receipt")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    offset: int
    receipt: Receipt
    def __init__(self, offset: _Optional[int] = ..., receipt: _Optional[_Union[Receipt, _Mapping]] = ...) -> None: ...

class Receipt(_message.Message):
    __slots__ = ("task_id", "digest", "client", "run_key", "base", "stored_at", "signature")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    RUN_KEY_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    STORED_AT_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    task_id: int
    digest: str
    client: str
    run_key: str
    base: str
    stored_at: int
    signature: bytes
    def __init__(self, task_id: _Optional[int] = ..., digest: _Optional[str] = ..., client: _Optional[str] = ..., run_key: _Optional[str] = ..., base: _Optional[str] = ..., stored_at: _Optional[int] = ..., signature: _Optional[bytes] = ...) -> None: ...

class HeartbeatRequest(_message.Message):
    __slots__ = ("task_id", "steps_done", "resident_bytes", "fetched")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    STEPS_DONE_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    FETCHED_FIELD_NUMBER: _ClassVar[int]
    task_id: int
    steps_done: int
    resident_bytes: int
    fetched: float
    def __init__(self, task_id: _Optional[int] = ..., steps_done: _Optional[int] = ..., resident_bytes: _Optional[int] = ..., fetched: _Optional[float] = ...) -> None: ...

class HeartbeatReply(_message.Message):
    __slots__ = ("wanted",)
    WANTED_FIELD_NUMBER: _ClassVar[int]
    wanted: bool
    def __init__(self, wanted: _Optional[bool] = ...) -> None: ...

class LeaveRequest(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class LeaveReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
