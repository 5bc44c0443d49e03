"""A store as plain as can be: one dictionary, no transactions, no quotas. What each request answers there."""

from __future__ import annotations

from firmware.store.wire import encode

OK = b"OK\0"


class PlainStore:
    """Nodes below a root that everybody may change, by their paths: value, children, owner."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._nodes: dict[str, tuple[bytes, list[str], int]] = {root: (b"", [], 0)}

    def run(self, name: str, path: str, value: bytes, domid: int) -> object:
        """One request of a domain, and its answer."""
        node = self._nodes.get(path)
        match name:
            case "read":
                return node[0] if node else "ENOENT"
            case "directory":
                return list(node[1]) if node else "ENOENT"
            case "permissions":
                return encode(f"b{node[2]}") if node else "ENOENT"
            case "write":
                self._make(path, domid)
                self._nodes[path] = (value, *self._nodes[path][1:])
                return OK
            case "mkdir":
                self._make(path, domid)
                return OK
        above, _, leaf = path.rpartition("/")
        if node is None:
            return OK if above in self._nodes else "ENOENT"
        for gone in [other for other in self._nodes if other == path or other.startswith(f"{path}/")]:
            del self._nodes[gone]
        self._nodes[above][1].remove(leaf)
        return OK

    def nodes(self) -> dict[str, tuple[bytes, tuple[str, ...]]]:
        """Everything there is."""
        return {path: (value, tuple(children)) for path, (value, children, _) in self._nodes.items()}

    def owned(self, domid: int) -> int:
        """How many nodes a domain has made."""
        return sum(owner == domid for _, _, owner in self._nodes.values())

    def _make(self, path: str, domid: int) -> None:
        if path not in self._nodes:
            above, _, leaf = path.rpartition("/")
            self._make(above, domid)
            self._nodes[above][1].append(leaf)
            self._nodes[path] = (b"", [], domid)
