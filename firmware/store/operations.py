"""Requests: one function for each message type, in one table (docs/misc/xenstore.txt).

A function gets the service, the session and the payload and answers with the reply's payload, or raises
StoreError. What it queues (`after`) comes behind the reply.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

from firmware.abi import io_xs_wire as xs
from firmware.store import path as paths
from firmware.store import permissions as perms
from firmware.store import watch as watches
from firmware.store.client import Client
from firmware.store.errors import ErrorName, StoreError
from firmware.store.namespace import Namespace, Session
from firmware.store.permissions import READ
from firmware.store.watch import Announcer
from firmware.store.wire import Message, encode, number, strings

_OK: Final = b"OK\0"


class Service(Protocol):
    """What requests need of the store."""

    @property
    def namespace(self) -> Namespace:
        """The nodes."""

    @property
    def announcer(self) -> Announcer:
        """The watches."""

    @property
    def clients(self) -> dict[int, Client]:
        """Everybody served, by domain id."""

    def attach(self, domid: int, port: int) -> None:
        """Begin to serve a domain; StoreError when that cannot be."""

    def release(self, domid: int) -> None:
        """Stop serving a domain; StoreError ENOENT when it is not served."""

    def exists(self, domid: int) -> bool:
        """True for a domain the store knows."""


class Request(NamedTuple):
    """One request on its way through the table."""

    service: Service
    session: Session
    payload: bytes

    @property
    def client(self) -> Client:
        """Who asks."""
        return self.session.client

    def argument(self) -> str:
        """The one string of the payload; StoreError EINVAL when it is not exactly one."""
        if self.payload.find(b"\0") != len(self.payload) - 1 or not self.payload:
            raise StoreError("EINVAL")
        return self.payload[:-1].decode("latin-1")

    def path(self) -> str:
        """The one string, as a node's path."""
        return self.client.resolve(self.argument())

    def texts(self, count: int) -> list[str]:
        """The strings of the payload; StoreError EINVAL when there are fewer than `count`."""
        found = strings(self.payload)
        if len(found) < count:
            raise StoreError("EINVAL")
        return found


def _directory(request: Request) -> bytes:
    return encode(*request.service.namespace.find(request.session, request.path(), READ).children)


def _directory_part(request: Request) -> bytes:
    texts = request.texts(2)
    if len(texts) != 2:
        raise StoreError("EINVAL")
    node = request.service.namespace.find(request.session, request.client.resolve(texts[0]), READ)
    offset = number(texts[1])
    generation = encode(str(node.generation))
    names = encode(*node.children)
    if offset >= len(names):
        return generation + b"\0"
    room = xs.XENSTORE_PAYLOAD_MAX - len(generation) - 1
    part = names[offset:]
    if len(part) > room:
        return generation + part[: part.rfind(b"\0", 0, room) + 1]
    return generation + part + b"\0"


def _read(request: Request) -> bytes:
    return request.service.namespace.find(request.session, request.path(), READ).data


def _get_permissions(request: Request) -> bytes:
    node = request.service.namespace.find(request.session, request.path(), READ)
    return encode(*map(str, node.permissions))


def _write(request: Request) -> bytes:
    end = request.payload.find(b"\0")
    if end < 0:
        raise StoreError("EINVAL")
    path = request.client.resolve(request.payload[:end].decode("latin-1"))
    request.service.namespace.write(request.session, path, request.payload[end + 1 :])
    return _OK


def _make(request: Request) -> bytes:
    request.service.namespace.make(request.session, request.path())
    return _OK


def _remove(request: Request) -> bytes:
    request.service.namespace.remove(request.session, request.path())
    return _OK


def _set_permissions(request: Request) -> bytes:
    path, *entries = request.texts(2)
    client = request.client
    if not client.privileged and len(entries) > client.ledger.quota.permissions:
        raise StoreError("ENOSPC")
    permissions = perms.resolve(perms.parse(entries), request.service.exists)
    if path.startswith(paths.SPECIAL):
        special = request.service.announcer.special
        if path not in special:
            raise StoreError("EINVAL")
        need = perms.WRITE | perms.OWNER
        if client.rights(special[path]) & need != need:
            raise StoreError("EACCES")
        special[path] = permissions
    else:
        request.service.namespace.set_permissions(request.session, client.resolve(path), permissions)
    return _OK


def _watch(request: Request) -> bytes:
    texts = request.texts(2)
    if len(texts) != 2:
        raise StoreError("EINVAL")
    watches.add(request.client, *texts)
    return _OK


def _first_event(request: Request) -> None:
    watch = request.client.watches[-1]
    request.client.event(watch.shown(watch.path), watch.token)


def _unwatch(request: Request) -> bytes:
    texts = request.texts(2)
    if len(texts) != 2:
        raise StoreError("EINVAL")
    watches.remove(request.client, *texts)
    return _OK


def _reset_watches(request: Request) -> bytes:
    request.client.reset()
    return _OK


def _transaction_start(request: Request) -> bytes:
    if request.session.transaction is not None:
        raise StoreError("EBUSY")
    return encode(str(request.client.start_transaction()))


def _transaction_end(request: Request) -> bytes:
    answer = request.argument()
    if answer not in ("T", "F"):
        raise StoreError("EINVAL")
    client, transaction = request.session
    if transaction is None:
        raise StoreError("ENOENT")
    for key, running in client.transactions.items():
        if running is transaction:
            del client.transactions[key]
            break
    if answer == "F":
        transaction.discard()
        return _OK
    for change in transaction.commit():
        request.service.announcer.changed(change.path, None, exact=change.exact, before=change.permissions)
    return _OK


def _domain_path(request: Request) -> bytes:
    return encode(paths.home(number(request.argument())))


def _introduce(request: Request) -> bytes:
    domid, _frame, port = map(number, request.texts(3)[:3])
    if not 0 < port < 1 << 31:
        raise StoreError("EINVAL")
    request.service.attach(domid, port)
    return _OK


def _served(request: Request, text: str) -> Client:
    client = request.service.clients.get(number(text))
    if client is None:
        raise StoreError("ENOENT")
    return client


def _one_domain(request: Request) -> Client:
    text = request.argument()
    if not number(text):
        raise StoreError("EINVAL")
    return _served(request, text)


def _release(request: Request) -> bytes:
    request.service.release(_one_domain(request).domid)
    return _OK


def _resume(request: Request) -> bytes:
    _one_domain(request)
    return _OK


def _is_introduced(request: Request) -> bytes:
    domid = number(request.argument())
    return b"T\0" if domid == _DOMID_SELF or domid in request.service.clients else b"F\0"


def _set_target(request: Request) -> bytes:
    texts = request.texts(2)
    client = _served(request, texts[0])
    client.set_target(_served(request, texts[1]).domid)
    return _OK


def _control(request: Request) -> bytes:
    command, *arguments = request.texts(1)
    run = _CONTROLS.get(command)
    if run is None:
        raise StoreError("EINVAL")
    return run(request, arguments)


def _control_check(request: Request, arguments: list[str]) -> bytes:
    if arguments:
        raise StoreError("EINVAL")
    request.service.namespace.check()
    return _OK


def _control_help(request: Request, arguments: list[str]) -> bytes:
    return encode("".join(f"{name}\n" for name in _CONTROLS))


def _control_quota(request: Request, arguments: list[str]) -> bytes:
    account = request.client.ledger.accounts.get(number(arguments[0])) if arguments else None
    if account is None:
        raise StoreError("ENOENT")
    served = request.service.clients.get(account.domid)
    lines = {"nodes": account.nodes, "watches": account.watches,
             "transactions": len(served.transactions) if served else 0,
             "outstanding": account.outstanding, "memory": account.memory}
    text = "".join(f"{name:<16}: {value:8}\n" for name, value in lines.items())
    return encode(f"Domain {account.domid}:\n{text}")


_DOMID_SELF: Final = 0x7FF0
_CONTROLS: Final[dict[str, Callable[[Request, list[str]], bytes]]] = {
    "check": _control_check,
    "help": _control_help,
    "quota": _control_quota,
}


class Operation(NamedTuple):
    """A row: what runs, who may ask, whether the transaction number counts, what follows the reply."""

    run: Callable[[Request], bytes]
    privileged: bool = False
    in_transaction: bool = True
    after: Callable[[Request], None] | None = None


OPERATIONS: Final[dict[int, Operation]] = {
    xs.XS_CONTROL: Operation(_control, privileged=True),
    xs.XS_DIRECTORY: Operation(_directory),
    xs.XS_READ: Operation(_read),
    xs.XS_GET_PERMS: Operation(_get_permissions),
    xs.XS_WATCH: Operation(_watch, in_transaction=False, after=_first_event),
    xs.XS_UNWATCH: Operation(_unwatch, in_transaction=False),
    xs.XS_TRANSACTION_START: Operation(_transaction_start),
    xs.XS_TRANSACTION_END: Operation(_transaction_end),
    xs.XS_INTRODUCE: Operation(_introduce, privileged=True),
    xs.XS_RELEASE: Operation(_release, privileged=True),
    xs.XS_GET_DOMAIN_PATH: Operation(_domain_path),
    xs.XS_WRITE: Operation(_write),
    xs.XS_MKDIR: Operation(_make),
    xs.XS_RM: Operation(_remove),
    xs.XS_SET_PERMS: Operation(_set_permissions),
    xs.XS_IS_DOMAIN_INTRODUCED: Operation(_is_introduced, privileged=True),
    xs.XS_RESUME: Operation(_resume, privileged=True),
    xs.XS_SET_TARGET: Operation(_set_target, privileged=True),
    xs.XS_RESET_WATCHES: Operation(_reset_watches),
    xs.XS_DIRECTORY_PART: Operation(_directory_part),
}


def perform(service: Service, client: Client, message: Message, reply: Callable[[Message], None]) -> None:
    """Run one request; exactly one reply, an XS_ERROR if it fails, then what must follow it."""
    try:
        row = _row(client, message)
        transaction = client.transaction(message.transaction) if row.in_transaction else None
        request = Request(service, Session(client, transaction), message.payload)
        payload = row.run(request)
    except StoreError as error:
        reply(_error(message, error.name))
        return
    if len(payload) > xs.XENSTORE_PAYLOAD_MAX:
        reply(_error(message, "E2BIG"))
        return
    reply(message._replace(payload=payload))
    if row.after is not None:
        row.after(request)


def _row(client: Client, message: Message) -> Operation:
    row = OPERATIONS.get(message.kind)
    if row is None:
        raise StoreError("ENOSYS")
    if row.privileged and not client.privileged:
        raise StoreError("EACCES")
    return row


def _error(message: Message, name: ErrorName) -> Message:
    return message._replace(kind=xs.XS_ERROR, payload=encode(name))
