"""From a run file to a queued run: everything it names is found, checked and copied first."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from coppice.app import build_model, make_app
from coppice.errors import DataError, InvalidPayload, RunFileError, UnreadableData
from coppice.files import write_file
from coppice.method import InitContext, server_half
from coppice.model_file import load_weights
from coppice.tensors import assign
from server.access_records import SERVER, Actor
from server.coordinator import Coordinator
from server.resources import Resources
from server.run_file import MAX_RUN_FILE_BYTES, RunFile, parse_run_file


async def submit(
    resources: Resources,
    coordinator: Coordinator,
    text: str,
    folder: str,
    app: str | None,
    by: Actor = SERVER,
) -> int:
    """Check a run file and queue its run. Returns the run's number.

    Args:
        text: The run file.
        folder: Absolute path on this host; paths in the file are relative to it.
        app: Absolute path of the app module, if it is not where the file says.
        by: Who wants it.

    Raises:
        RunFileError, AppError, DataError: What is wrong, for the person who wrote the file.
    """
    if len(text.encode()) > MAX_RUN_FILE_BYTES:
        raise RunFileError(f"a run file may have {MAX_RUN_FILE_BYTES} bytes at most")
    prepare = partial(_prepare, resources, text, Path(folder), Path(app) if app else None)
    file = await resources.threads.compute(prepare)
    spec = file.spec
    if spec.evaluation.data is not None:
        # Read once now: a mistake shows here, not after the first round.
        app_path = resources.app_path(spec.app.digest) if spec.app else None
        try:
            await resources.evaluator.check(spec.workload, app_path, spec.evaluation.data)
        except DataError as error:
            raise DataError(f"evaluation.data: {error}") from None
    if file.warm_start_path is not None:
        # Last, because a sweep removes blobs that no run names for long.
        data = await resources.threads.transfer(file.warm_start_path.read_bytes)
        warm_start = await resources.threads.transfer(partial(resources.blobs.put, data))
        spec = replace(spec, warm_start=warm_start)
    return await coordinator.submit(spec, by)


def _prepare(resources: Resources, text: str, folder: Path, app: Path | None) -> RunFile:
    """Check a run file, and try the model and what it starts from."""
    file = parse_run_file(text, folder, app)
    if file.app_path is not None and file.spec.app is not None:
        # Later changes of the file do not touch the run.
        copy = resources.app_path(file.spec.app.digest)
        write_file(copy, file.app_path.read_bytes(), remedy="choose another folder with --data")
    spec = file.spec
    trained = make_app(spec.workload, file.app_path)
    warm_start = None
    try:
        if file.warm_start_path is not None:
            warm_start = load_weights(file.warm_start_path)
            assign(build_model(trained, spec.seed), warm_start)
    except (InvalidPayload, UnreadableData) as error:
        raise RunFileError(f"warm_start: {error}") from None
    # What the method has to say about this model, it says now.
    make_model = partial(build_model, trained, seed=spec.seed)
    context = InitContext(spec.seed, make_model, warm_start, spec.cohort)
    server_half(spec.method).init(context)
    return file
