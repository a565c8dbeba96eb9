"""What is around every gRPC handler: parsing, the caller, and the translation of errors.

Messages are parsed here rather than by gRPC, so that one that cannot be parsed is refused, counted
and logged with its sender like any other bad message.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, ClassVar, NoReturn

import grpc
from google.protobuf.message import DecodeError, Message

from coppice.errors import CoppiceError, InvalidMessage
from coppice.wire import coordination_pb2 as pb
from coppice.wire.chunks import MAX_MESSAGE_BYTES
from coppice.wire.status import status_of
from server.limits import Limits
from server.progress import CALL_SECONDS, in_time, pieces, sent

Context = grpc.aio.ServicerContext[Any, Any]


class Service(ABC):
    """A service of the .proto file: one method a call, which gets the request and its caller."""

    #: As in the .proto file.
    name: ClassVar[str]
    #: Larger messages are refused by name.
    longest_message_bytes: ClassVar[int] = MAX_MESSAGE_BYTES
    #: How long calls may take, those that may take longer than others.
    patience: ClassVar[Mapping[str, float]] = {}
    #: How long a transfer may make no progress.
    stall_seconds: float = Limits.stall_seconds

    @abstractmethod
    def called(self, context: Context) -> AbstractContextManager[Any]:
        """A call goes on meanwhile; gives its caller, or raises when it may not be made."""

    @abstractmethod
    async def refused(self, error: CoppiceError, context: Context) -> CoppiceError:
        """Take note of a refusal; returns what the caller is told."""

    def handlers(self) -> grpc.GenericRpcHandler[Any, Any]:
        """All methods."""
        service = pb.DESCRIPTOR.services_by_name[self.name]
        methods = {}
        for method in service.methods:
            kind: type[Message] = getattr(pb, method.input_type.name)
            behaviour = getattr(self, method.name)
            if method.server_streaming:
                make, wrapped = grpc.unary_stream_rpc_method_handler, self._stream(behaviour, kind)
            elif method.client_streaming:
                make, wrapped = grpc.stream_unary_rpc_method_handler, self._push(behaviour, kind)
            else:
                make = grpc.unary_unary_rpc_method_handler
                seconds = self.patience.get(method.name, CALL_SECONDS)
                wrapped = self._unary(behaviour, kind, seconds)
            methods[method.name] = make(wrapped, response_serializer=_serialize)
        return grpc.method_handlers_generic_handler(service.full_name, methods)

    def _unary(
        self, behaviour: Callable[..., Awaitable[Message]], kind: type[Message], seconds: float
    ) -> Any:
        async def handle(request: bytes, context: Context) -> Message:
            try:
                with self.called(context) as caller:
                    return await in_time(behaviour(self._parse(kind, request), caller), seconds)
            except CoppiceError as error:
                await self._refuse(error, context)

        return handle

    def _push(self, behaviour: Callable[..., Awaitable[Message]], kind: type[Message]) -> Any:
        async def parsed(requests: AsyncIterator[bytes]) -> AsyncIterator[Message]:
            async for request in pieces(requests, self.stall_seconds):
                yield self._parse(kind, request)

        async def handle(requests: AsyncIterator[bytes], context: Context) -> Message:
            try:
                with self.called(context) as caller:
                    return await behaviour(parsed(requests), caller)
            except CoppiceError as error:
                await self._refuse(error, context)

        return handle

    def _stream(
        self, behaviour: Callable[..., AsyncGenerator[Message, None]], kind: type[Message]
    ) -> Any:
        async def handle(request: bytes, context: Context) -> None:
            try:
                with self.called(context) as caller:
                    try:
                        messages = behaviour(self._parse(kind, request), caller)
                        await sent(messages, context.write, self.stall_seconds)
                    except CoppiceError as error:
                        # Who does not read learns of it when it does: until then its call goes on.
                        await self._refuse(error, context)
            except CoppiceError as error:
                await self._refuse(error, context)

        return handle

    async def _refuse(self, error: CoppiceError, context: Context) -> NoReturn:
        code, details, metadata = status_of(await self.refused(error, context))
        await context.abort(code, details, metadata)

    def _parse(self, kind: type[Message], data: bytes) -> Any:
        if len(data) > self.longest_message_bytes:
            raise InvalidMessage(
                f"a message has {len(data)} bytes; allowed are {self.longest_message_bytes} at most"
            )
        try:
            return kind.FromString(data)
        except DecodeError:
            raise InvalidMessage(f"the bytes are not a {kind.DESCRIPTOR.name}") from None


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()
