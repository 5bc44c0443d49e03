"""xenstore: rights, quotas, conflicts of transactions, and what programs on its socket may not do."""

from __future__ import annotations

from typing import Final

from tools.mutants.mutant import Area, Mutant

CONNECTION: Final = "firmware/store/connection.py"
NAMESPACE: Final = "firmware/store/namespace.py"
OPERATIONS: Final = "firmware/store/operations.py"
QUOTA: Final = "firmware/store/quota.py"
RING: Final = "firmware/store/ring.py"
SOCKET: Final = "xenpy/store_socket.py"
TRANSACTION: Final = "firmware/store/transaction.py"
VISITOR: Final = "firmware/store/visitor.py"
WATCH: Final = "firmware/store/watch.py"
WIRE: Final = "firmware/store/wire.py"

AREA: Final = Area(
    "xenstore",
    (
        "tests/store/test_requests.py",
        "tests/store/test_ring.py",
        "tests/store/test_transactions.py",
        "tests/store/test_visitors.py",
    ),
    (
        Mutant("a visitor releases no domain", VISITOR,
               'def release(self, domid: int) -> None:\n        raise StoreError("EACCES")',
               "def release(self, domid: int) -> None:\n        self._service.release(domid)"),
        Mutant("a visitor introduces no domain", VISITOR,
               'def attach(self, domid: int, port: int) -> None:\n        raise StoreError("EACCES")',
               "def attach(self, domid: int, port: int) -> None:\n        self._service.attach(domid, port)"),
        Mutant("unread events end a visit", VISITOR, "len(self._queue) >= MOST_EVENTS", "False"),
        Mutant("unread replies stop requests", VISITOR, "and len(self._queue) < MOST_REPLIES ", ""),
        Mutant("a visitor's watches", VISITOR, "len(self.watches) > MOST_WATCHES", "False"),
        Mutant("a visitor's transactions", VISITOR, "len(self.transactions) >= MOST_TRANSACTIONS", "False"),
        Mutant("a socket for its owner", SOCKET, "OWNER_ONLY: Final = 0o177", "OWNER_ONLY: Final = 0o022"),
        Mutant("visitors are counted", SOCKET, "len(self._visitors) >= MOST_VISITORS", "False"),
        Mutant("a guest's unread replies", CONNECTION, "account.outstanding >= quota.outstanding", "False"),
        Mutant("a guest's memory", QUOTA, "and total >= self.quota.memory", "and False"),
        Mutant("privileged requests", OPERATIONS, "row.privileged and not client.privileged", "False"),
        Mutant("a node's size", NAMESPACE, "node.size >= session.client.ledger.quota.node_bytes", "False"),
        Mutant("a guest's nodes", NAMESPACE, "client.account.nodes >= client.ledger.quota.nodes", "False"),
        Mutant("nodes of a transaction", TRANSACTION,
               "account.nodes + change >= ledger.quota.nodes", "False"),
        Mutant("what a transaction touches", TRANSACTION,
               "len(self._touched) >= self._tree.ledger.quota.transaction_nodes", "False"),
        Mutant("conflicts", TRANSACTION, 'raise StoreError("EAGAIN")', "pass"),
        Mutant("a spoilt transaction", TRANSACTION, "if self.failed:", "if False:"),
        Mutant("a guest's watches", WATCH, "and account.watches > quota.watches", "and False"),
        Mutant("the owner of a node", NAMESPACE,
               "not session.client.privileged and permissions[0].domid != node.owner", "False"),
        Mutant("indices of a ring", RING, "if used > _SIZE:", "if False:"),
        Mutant("the length of a message", WIRE, "if length > xs.XENSTORE_PAYLOAD_MAX:", "if False:"),
    ),
)
