"""The guest's end of a store ring, and a page of memory to hold it."""

from __future__ import annotations

from firmware.abi import io_xs_wire as xs
from firmware.store.connection import Connection
from firmware.store.ring import SharedRing
from firmware.store.store import Store
from firmware.store.wire import Framer, Message, encode, strings

PAGE = 4096
OFFSET = xs.xenstore_domain_interface.w64.offset


class PageMemory:
    """Two frames of machine memory; the ring lies in the second one."""

    def __init__(self) -> None:
        self.raw = bytearray(2 * PAGE)
        self.b = memoryview(self.raw).toreadonly()
        self.d = memoryview(self.raw).cast("I").toreadonly()

    def write(self, paddr: int, data: bytes | memoryview) -> None:
        assert paddr >= PAGE
        assert paddr + len(data) <= 2 * PAGE
        self.raw[paddr : paddr + len(data)] = data

    def store32(self, paddr: int, value: int) -> None:
        assert paddr % 4 == 0
        self.write(paddr, value.to_bytes(4, "little"))


class Guest:
    """A guest that talks to the store as a kernel's xenbus driver does."""

    def __init__(self, store: Store, domid: int = 1) -> None:
        self.store = store
        self.memory = PageMemory()
        self.notified = 0
        self.messages: list[Message] = []
        self.framer = Framer()
        self.serial = 0
        store.add_domain(domid)
        self.connection: Connection = store.introduce(domid, SharedRing(self.memory, PAGE), self.notify)

    def notify(self) -> None:
        self.notified += 1

    def get(self, name: str) -> int:
        return self.memory.d[(PAGE + OFFSET[name]) // 4]

    def set(self, name: str, value: int) -> None:
        self.memory.store32(PAGE + OFFSET[name], value & 0xFFFF_FFFF)

    def push(self, data: bytes) -> int:
        """Put as much of `data` as fits into the request ring; how much that was."""
        producer = self.get("req_prod")
        room = xs.XENSTORE_RING_SIZE - ((producer - self.get("req_cons")) & 0xFFFF_FFFF)
        for position, byte in enumerate(data[:room]):
            at = PAGE + OFFSET["req"] + (producer + position) % xs.XENSTORE_RING_SIZE
            self.memory.write(at, bytes([byte]))
        self.set("req_prod", producer + min(room, len(data)))
        return min(room, len(data))

    def pull(self) -> bytes:
        """Take all bytes the response ring holds."""
        consumer, producer = self.get("rsp_cons"), self.get("rsp_prod")
        count = (producer - consumer) & 0xFFFF_FFFF
        assert count <= xs.XENSTORE_RING_SIZE
        base = PAGE + OFFSET["rsp"]
        data = bytes(self.memory.raw[base + (consumer + i) % xs.XENSTORE_RING_SIZE] for i in range(count))
        self.set("rsp_cons", producer)
        return data

    def collect(self) -> None:
        """Read everything the store has for this guest into `messages`."""
        while data := self.pull():
            while data:
                piece, data = data[: self.framer.wanted], data[self.framer.wanted :]
                message = self.framer.feed(piece)
                if message is not None:
                    self.messages.append(message)
            self.serve()

    def serve(self) -> None:
        self.connection.service()
        self.store.settle()

    def send(self, kind: int, payload: bytes, transaction: int = 0) -> int:
        """Send one request, in as many pieces as the ring needs; its number."""
        self.serial += 1
        data = Message(kind, self.serial, transaction, payload).pack()
        for _ in range(100):
            data = data[self.push(data) :]
            self.serve()
            self.collect()
            if not data:
                return self.serial
        raise AssertionError("the store does not take the request")

    def ask(self, kind: int, payload: bytes, transaction: int = 0) -> bytes | str:
        """One request's answer: the payload, or the name of the error."""
        number = self.send(kind, payload, transaction)
        replies = [message for message in self.messages
                   if message.request == number and message.kind != xs.XS_WATCH_EVENT]
        assert len(replies) == 1, replies
        reply = replies[0]
        self.messages.remove(reply)
        assert reply.transaction == transaction
        if reply.kind == xs.XS_ERROR:
            name, = strings(reply.payload)
            assert name in xs.XSD_ERRORS
            return name
        assert reply.kind == kind
        return reply.payload

    def events(self) -> list[tuple[str, ...]]:
        """The watch events received since the last call."""
        self.collect()
        found = [message for message in self.messages if message.kind == xs.XS_WATCH_EVENT]
        assert all(message.request == message.transaction == 0 for message in found)
        self.messages = [message for message in self.messages if message.kind != xs.XS_WATCH_EVENT]
        return [tuple(strings(message.payload)) for message in found]

    def read(self, path: str, transaction: int = 0) -> bytes | str:
        return self.ask(xs.XS_READ, encode(path), transaction)

    def write(self, path: str, value: bytes, transaction: int = 0) -> bytes | str:
        return self.ask(xs.XS_WRITE, encode(path) + value, transaction)

    def remove(self, path: str, transaction: int = 0) -> bytes | str:
        return self.ask(xs.XS_RM, encode(path), transaction)

    def directory(self, path: str, transaction: int = 0) -> list[str] | str:
        answer = self.ask(xs.XS_DIRECTORY, encode(path), transaction)
        return answer if isinstance(answer, str) else strings(answer)

    def watch(self, path: str, token: str) -> bytes | str:
        return self.ask(xs.XS_WATCH, encode(path, token))

    def start(self) -> int:
        answer = self.ask(xs.XS_TRANSACTION_START, b"\0")
        assert isinstance(answer, bytes), answer
        return int(answer[:-1])

    def end(self, transaction: int, *, commit: bool = True) -> bytes | str:
        return self.ask(xs.XS_TRANSACTION_END, b"T\0" if commit else b"F\0", transaction)
