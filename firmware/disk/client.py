"""Client: one user of a disk, a virtual disk of a domain."""

from __future__ import annotations


class Client:
    """`domain`: whose share of the disk it uses. Counters: requests and bytes done, the disk's time in ns."""

    __slots__ = ("bytes", "domain", "name", "requests", "time")

    def __init__(self, name: str, domain: int = 0) -> None:
        self.name = name
        self.domain = domain
        self.requests = self.bytes = self.time = 0

    def __repr__(self) -> str:
        return f"<Client {self.name}>"
