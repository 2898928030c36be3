from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ToNode(_message.Message):
    __slots__ = ("welcome", "chunk", "send_from", "done", "beat", "farewell", "data")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    SEND_FROM_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    BEAT_FIELD_NUMBER: _ClassVar[int]
    FAREWELL_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    chunk: Chunk
    send_from: SendFrom
    done: Done
    beat: Beat
    farewell: Farewell
    data: bytes
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., chunk: _Optional[_Union[Chunk, _Mapping]] = ..., send_from: _Optional[_Union[SendFrom, _Mapping]] = ..., done: _Optional[_Union[Done, _Mapping]] = ..., beat: _Optional[_Union[Beat, _Mapping]] = ..., farewell: _Optional[_Union[Farewell, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class FromNode(_message.Message):
    __slots__ = ("hello", "offer", "chunk", "failed", "beat", "nudge", "data")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    OFFER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    BEAT_FIELD_NUMBER: _ClassVar[int]
    NUDGE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    offer: Offer
    chunk: Chunk
    failed: Failed
    beat: Beat
    nudge: Nudge
    data: bytes
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., offer: _Optional[_Union[Offer, _Mapping]] = ..., chunk: _Optional[_Union[Chunk, _Mapping]] = ..., failed: _Optional[_Union[Failed, _Mapping]] = ..., beat: _Optional[_Union[Beat, _Mapping]] = ..., nudge: _Optional[_Union[Nudge, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("clock", "node", "beat")
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    BEAT_FIELD_NUMBER: _ClassVar[int]
    clock: float
    node: int
    beat: float
    def __init__(self, clock: _Optional[float] = ..., node: _Optional[int] = ..., beat: _Optional[float] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("exchange", "offset", "total")
    EXCHANGE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    exchange: bytes
    offset: int
    total: int
    def __init__(self, exchange: _Optional[bytes] = ..., offset: _Optional[int] = ..., total: _Optional[int] = ...) -> None: ...

class SendFrom(_message.Message):
    __slots__ = ("exchange", "offset")
    EXCHANGE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    exchange: bytes
    offset: int
    def __init__(self, exchange: _Optional[bytes] = ..., offset: _Optional[int] = ...) -> None: ...

class Done(_message.Message):
    __slots__ = ("exchange",)
    EXCHANGE_FIELD_NUMBER: _ClassVar[int]
    exchange: bytes
    def __init__(self, exchange: _Optional[bytes] = ...) -> None: ...

class Beat(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Farewell(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("version", "incarnation", "clock", "holdings")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    HOLDINGS_FIELD_NUMBER: _ClassVar[int]
    version: int
    incarnation: bytes
    clock: float
    holdings: _containers.RepeatedCompositeFieldContainer[Holding]
    def __init__(self, version: _Optional[int] = ..., incarnation: _Optional[bytes] = ..., clock: _Optional[float] = ..., holdings: _Optional[_Iterable[_Union[Holding, _Mapping]]] = ...) -> None: ...

class Holding(_message.Message):
    __slots__ = ("exchange", "receiving", "working", "offered", "failed")
    EXCHANGE_FIELD_NUMBER: _ClassVar[int]
    RECEIVING_FIELD_NUMBER: _ClassVar[int]
    WORKING_FIELD_NUMBER: _ClassVar[int]
    OFFERED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    exchange: bytes
    receiving: int
    working: Working
    offered: int
    failed: str
    def __init__(self, exchange: _Optional[bytes] = ..., receiving: _Optional[int] = ..., working: _Optional[_Union[Working, _Mapping]] = ..., offered: _Optional[int] = ..., failed: _Optional[str] = ...) -> None: ...

class Working(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Offer(_message.Message):
    __slots__ = ("exchange", "total", "inlined")
    EXCHANGE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    INLINED_FIELD_NUMBER: _ClassVar[int]
    exchange: bytes
    total: int
    inlined: bool
    def __init__(self, exchange: _Optional[bytes] = ..., total: _Optional[int] = ..., inlined: _Optional[bool] = ...) -> None: ...

class Failed(_message.Message):
    __slots__ = ("exchange", "reason")
    EXCHANGE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    exchange: bytes
    reason: str
    def __init__(self, exchange: _Optional[bytes] = ..., reason: _Optional[str] = ...) -> None: ...

class Nudge(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
