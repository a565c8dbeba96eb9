"""Hostile bytes for everything that reads bytes: payloads, files, tokens, certificates.

`python -m benchmarks.fuzzing_readers --cases N --seed S` is the process that does it, so that one
that dies is seen to die; it prints what came of it as one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

import psutil
import torch
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding

from benchmarks.fuzzing_bytes import TEXTS, changed_bytes
from benchmarks.fuzzing_payloads import FAR, NEAR, payload_maker, try_payload
from benchmarks.fuzzing_tally import Tally, Watch, told
from coppice.domain import DataSpec, MethodSpec, ModelSpec, Workload
from coppice.errors import (
    AppError,
    DataError,
    InvalidMessage,
    InvalidPayload,
    RunFileError,
    TokenRefused,
    UnreadableData,
)
from coppice.files import write_file
from coppice.join_token import JoinToken, new_secret, parse_token
from coppice.model_file import ModelInfo, load_weights, read_info, save_model
from coppice.sparse import Mask, SparseTensor
from coppice.tensors import Weights
from coppice.tree import load, save
from coppice.wire.codec import plain_from_json, workload_from_json, workload_to_json
from server.authority import read_signing_request
from server.run_file import parse_run_file

#: Nothing that is this small may take so long to read.
HANG_SECONDS = 10
_SAMPLE_EVERY = 200

Try = Callable[[bytes], object]
Make = Callable[[random.Random], bytes]


class Hang(BaseException):
    """A reader did not come back."""


@dataclass(frozen=True)
class Surface:
    """Something that reads what strangers write."""

    name: str
    #: Of all cases in this process.
    share: float
    make: Make
    attempt: Try
    #: How it may say no.
    allowed: tuple[type[Exception], ...]


# ---- files, tokens, certificates ---------------------------------------------------------------


@dataclass(frozen=True)
class _State:
    weights: Mapping[str, torch.Tensor | SparseTensor]
    masks: Sequence[Mask]
    rounds: int
    share: float
    note: str | None = None


_WORKLOAD = Workload(
    name="fuzz",
    seed=1,
    model=ModelSpec(name="mlp", hidden=(4,)),
    data=DataSpec(classes=("a", "b"), input_shape=(2,)),
    method=MethodSpec(name="fedavg", settings={"local_steps": 1}),
)

_RUN = """\
name = "digits"
seed = 3
model = { name = "mlp", hidden = [8] }
method = { name = "prunefl", local_steps = 1, learning_rate = 0.05, keep_dense = ["fc1.weight"] }
cohort = { size = 2, quorum = 1, deadline_seconds = 60.5, labels = { room = "kitchen" } }
stop = { rounds = 20, target = 0.5 }
evaluation = { on_clients = true, every = 2 }
protection = { aggregate = "trimmed", trim = 0.2 }
[data]
classes = ["0", "1"]
input_shape = [1, 2, 2]
scale = 255
"""


def _near(seeds: Sequence[bytes]) -> Make:
    """Mostly changes of these, some as they are, some at random."""

    def make(chance: random.Random) -> bytes:
        if chance.random() < 0.02:
            return chance.choice(seeds)
        if chance.random() < 0.1:
            return chance.randbytes(chance.choice((0, 1, 8, 50, 2000)))
        return changed_bytes(chance, chance.choice(seeds), chance.choice(seeds))

    return make


def _texts(seeds: Sequence[str]) -> Make:
    """The same for what is a text, with odd words in it."""
    near = _near([seed.encode() for seed in seeds])

    def make(chance: random.Random) -> bytes:
        if chance.random() < 0.6:
            return near(chance)
        text = chance.choice(seeds)
        words = text.split()
        place = chance.randrange(len(words))
        odd = chance.choice((*TEXTS, str(2**63), "-1", "nan", "inf", "1e999", "9" * 5000, '"'))
        quoted = chance.choice((odd, json.dumps(odd)))
        return text.replace(words[place], quoted, 1).encode()

    return make


def _model_seeds(folder: Path) -> list[bytes]:
    path, seeds = folder / "seed.safetensors", []
    models: tuple[Weights, ...] = (
        {"a": torch.ones(3, 2), "n": torch.tensor(4)},
        {"a": SparseTensor(NEAR, torch.arange(15.0)), "b": torch.zeros(0)},
    )
    for weights in models:
        info = ModelInfo(workload=_WORKLOAD, round_number=3, metrics={"x": 0.5}, written_by="t")
        save_model(path, weights, info)
        seeds.append(path.read_bytes())
    return seeds


def _try_model(path: Path) -> Try:
    def attempt(data: bytes) -> None:
        write_file(path, data, remedy="", durable=False)
        read_info(path)
        load_weights(path)

    return attempt


def signing_requests() -> list[bytes]:
    """Signing requests, of keys that are taken and of others, and a certificate."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "pi-1")])
    csr = x509.CertificateSigningRequestBuilder().subject_name(name)
    seeds = [
        csr.sign(ec.generate_private_key(curve), hashes.SHA256()).public_bytes(Encoding.DER)
        for curve in (ec.SECP256R1(), ec.SECP256R1(), ec.SECP384R1())
    ]
    seeds.append(csr.sign(ed25519.Ed25519PrivateKey.generate(), None).public_bytes(Encoding.DER))
    return seeds


def _try_text(read: Callable[[str], object]) -> Try:
    # What no decoder lets through never gets so far.
    return lambda data: read(data.decode(errors="surrogateescape"))


def surfaces(folder: Path) -> list[Surface]:
    """All of them; the shares make 1."""
    state = _State(
        weights={"a": torch.ones(2, 2), "s": SparseTensor(NEAR, torch.arange(15.0))},
        masks=[FAR, NEAR],
        rounds=7,
        share=0.25,
    )
    tokens = [str(JoinToken(new_secret(), bytes(16), port)) for port in (1, 7434, 65535)]
    choice = '{ "steps" : 3 , "density" : { "a" : 0.5 } , "why" : "memory" , "x" : [ 1.5 , null ] }'
    run_file = _try_text(lambda text: parse_run_file(text, folder))
    asked = (InvalidMessage,)
    return [
        Surface("payload decoder", 0.66, payload_maker(), try_payload, (InvalidPayload,)),
        Surface(
            "model files", 0.07, _near(_model_seeds(folder)), _try_model(folder / "m.safetensors"),
            (UnreadableData,),
        ),
        Surface(
            "states and private state", 0.07, _near([save(state)]), lambda data: load(_State, data),
            (InvalidPayload,),
        ),
        Surface(
            "run files", 0.04, _texts([_RUN]), run_file, (RunFileError, AppError, DataError)
        ),
        Surface("choices", 0.03, _texts([choice]), _try_text(plain_from_json), asked),
        Surface(
            "workloads", 0.03, _texts([workload_to_json(_WORKLOAD)]),
            _try_text(workload_from_json), asked,
        ),
        Surface("join tokens", 0.05, _texts(tokens), _try_text(parse_token), (TokenRefused,)),
        Surface("signing requests", 0.05, _near(signing_requests()), read_signing_request, asked),
    ]  # fmt: skip


# ---- the process -------------------------------------------------------------------------------


def fuzz(cases: int, seed: int, watch: Watch) -> list[Tally]:
    """So many cases over all surfaces, in turns."""
    with tempfile.TemporaryDirectory() as text, _alarmed():
        chosen = surfaces(Path(text))
        chance = random.Random(seed)
        tallies = [Tally(surface.name) for surface in chosen]
        wanted = [math.ceil(surface.share * cases) for surface in chosen]
        for number in range(max(wanted)):
            for surface, tally, most in zip(chosen, tallies, wanted, strict=True):
                # The same share of each is done at any time.
                if number * most // max(wanted) < (number + 1) * most // max(wanted):
                    _case(surface, tally, surface.make(chance))
            if number % _SAMPLE_EVERY == 0:
                watch.sample()
        watch.sample()
    return tallies


def _case(surface: Surface, tally: Tally, data: bytes) -> None:
    signal.setitimer(signal.ITIMER_REAL, HANG_SECONDS)
    try:
        surface.attempt(data)
    except surface.allowed as error:
        tally.refuse(type(error).__name__)
    except Hang:
        tally.hang(data.hex(), f"took more than {HANG_SECONDS} s")
    # Whatever is raised here, a stranger could make a server or a device raise.
    except Exception as error:
        tally.crash(data.hex(), f"{type(error).__name__}: {error}")
    else:
        tally.accept()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


@contextmanager
def _alarmed() -> Iterator[None]:
    def ring(number: int, frame: FrameType | None) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, before)


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    watch = Watch(psutil.Process())
    tallies = fuzz(arguments.cases, arguments.seed, watch)
    result = {
        "tallies": [asdict(tally) for tally in tallies],
        "held": told(watch.samples, sum(tally.cases for tally in tallies)),
    }
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
