"""Third-party clients: Debian's xenstore-ls and its friends, inside a guest and on the host's socket."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli import kernels
from tests.support.guests import require_guest
from xenpy.guest import Guest
from xenpy.store import StoreKeyError
from xenpy.system import System

pytestmark = pytest.mark.guest


def command(guest: Guest, line: str, status: int = 0) -> str:
    """What a shell command says."""
    guest.console.send(f"echo begin$((1 + 1)); {line}; echo status=$?.\n")
    said = guest.console.expect(r"(?s)^begin2$(.*?)^status=(\d+)\.", within=60)
    assert int(said[2]) == status, said[0]
    return str(said[1]).strip("\n")


def test_the_tools_inside_a_debian_guest() -> None:
    with System() as system:
        guest = system.add_domain(require_guest("vmlinuz"), memory=192, cmdline="console=hvc0 quiet",
                                  ramdisk=require_guest("store.cpio"))
        other = system.add_domain(kernels.sleep_forever(), memory=8)
        home, store = f"/local/domain/{guest.id}", system.store
        guest.console.expect("busybox shell", within=60)
        command(guest, "ls -l /dev/xen/xenbus")

        # What the guest sees is what there is, whichever way it asks for it.
        assert command(guest, f"xenstore-ls {home}").splitlines() == store.ls(home).splitlines()
        assert command(guest, f"xenstore-ls -f -p {home}") == store.ls(
            home, full=True, permissions=True).rstrip("\n")
        assert command(guest, "xenstore-list device") == "\n".join(store.children(f"{home}/device"))
        assert command(guest, "xenstore-read domid name") == f"{guest.id}\n{guest.name}"
        assert command(guest, "xenstore-read -p domid") == f"domid: {guest.id}"

        command(guest, "xenstore-write data/a one data/b/c 'two\\tthree' data/empty ''")
        assert store.read(f"{home}/data/a") == b"one"
        assert store.read(f"{home}/data/b/c") == b"two\tthree"
        assert store.read(f"{home}/data/empty") == b""
        assert command(guest, "xenstore-read data/b/c") == "two\\tthree"
        store.write(f"{home}/data/a", b"from outside\x01")
        assert command(guest, "xenstore-read data/a") == "from outside\\001"
        command(guest, "xenstore-exists data/a data/b")
        command(guest, "xenstore-exists data/z", 1)

        command(guest, f"xenstore-chmod data/a b{guest.id} r{other.id}")
        assert store.permissions(f"{home}/data/a") == [f"b{guest.id}", f"r{other.id}"]
        command(guest, f"xenstore-chmod -r data/b n{guest.id} w{other.id}")
        assert store.permissions(f"{home}/data/b/c") == [f"n{guest.id}", f"w{other.id}"]

        # What is not its own it cannot change, and what is secret it cannot see.
        assert "couldn't read path" in command(guest, "xenstore-read /vm/secret", 1)
        assert "could not write path" in command(guest, f"xenstore-write {home}/domid 0", 1)
        assert "could not write" in command(guest, f"xenstore-write /local/domain/{other.id}/data/x 1", 1)
        assert "could not remove path" in command(guest, f"xenstore-rm /local/domain/{other.id}/name", 1)
        assert "Error occurred setting permissions" in command(guest, f"xenstore-chmod name b{guest.id}", 1)
        assert store.read(f"{home}/domid") == str(guest.id).encode()
        assert store.exists(f"/local/domain/{other.id}/name")

        # Watches, set in the guest, fired from outside and from inside.
        command(guest, "xenstore-watch -n 4 data/w > /tmp/seen & sleep 1")
        store.write(f"{home}/data/w", b"1")
        command(guest, "xenstore-write data/w/below 2; xenstore-rm data/w; sleep 1")
        assert command(guest, "cat /tmp/seen").split() == ["data/w", "data/w", "data/w/below", "data/w"]

        command(guest, "xenstore-rm -t data/b/c")
        assert not store.exists(f"{home}/data/b")
        command(guest, "xenstore-rm data/a data/empty")
        assert store.children(f"{home}/data") == []

        # As many nodes as a domain may have, and not one more.
        loop = ("n=0; while [ $n -lt 60 ]; do set --; m=0; while [ $m -lt 20 ]; do set -- $@ data/$n/$m v; "
                "m=$((m+1)); done; xenstore-write $@ 2>/tmp/why || break; n=$((n+1)); done; cat /tmp/why")
        assert "could" in command(guest, loop)
        client = system.hypervisor.store.clients[guest.id]
        assert 970 < client.account.nodes <= client.ledger.quota.nodes
        assert command(guest, "xenstore-read data/0/19") == "v"
        guest.console.send("poweroff\n")
        system.run(within=30, until=lambda: guest.ended)
        assert guest.ended


@pytest.fixture
def tool(tmp_path: Path) -> list[str]:
    """How Debian's xenstore-* are started on the host without installing them."""
    place = tmp_path / "tools"
    place.mkdir()
    for name, soname in (("libxenstore.so", "libxenstore.so.4"), ("libxentoolcore.so", "libxentoolcore.so.1"),
                         ("libc.so", "libc.so.6")):
        (place / soname).symlink_to(require_guest(name))
    loader, program = place / "ld.so", place / "xenstore"
    for path, name in ((loader, "ld.so"), (program, "xenstore")):
        path.write_bytes(require_guest(name).read_bytes())
        path.chmod(0o755)
    return [str(loader), "--library-path", str(place), str(program)]


def test_our_command_and_debians_say_the_same_of_a_running_machine(tool: list[str], tmp_path: Path) -> None:
    path = tmp_path / "socket"
    kernel = tmp_path / "kernel"
    kernel.write_bytes(kernels.sleep_forever())
    run = [sys.executable, "-m", "xenpy"]
    with subprocess.Popen(
        [*run, "boot", str(kernel), "--store-socket", str(path), "--wall", "120"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    ) as machine:
        assert machine.stdout is not None
        assert machine.stdout.readline() == b"sleeping\n"
        environment = os.environ | {"XENSTORED_PATH": str(path)}

        def said(words: list[str], arguments: list[str]) -> tuple[int, bytes]:
            done = subprocess.run([*words, *arguments], env=environment, stdin=subprocess.DEVNULL,
                                  capture_output=True, timeout=60, check=False)
            return done.returncode, done.stdout

        def theirs(name: str, *arguments: str) -> tuple[int, bytes]:
            return said(tool, [name, "-s", *arguments])

        def ours(name: str, *arguments: str) -> tuple[int, bytes]:
            return said([*run, "store"], [name, *arguments])

        try:
            long = "very long: " + "x" * 100
            assert ours("write", "/data/x", "a\\tb\\x7fc\\001\\\\", "/data/long", long,
                        "/data/deep/er", "ü") == (0, b"")
            assert theirs("write", "/data/y", "b\\nc") == (0, b"")
            assert theirs("chmod", "/data/y", "r0", "w1") == (0, b"")
            for options in ([], ["-f"], ["-p"], ["-f", "-p"]):
                assert ours("ls", *options) == theirs("ls", *options)
            for command in (["read", "/data/x"], ["read", "-p", "/data/y", "/data/x"],
                            ["read", "-R", "/data/y"],
                            ["list", "/data"], ["list", "-p", "/local", "/"], ["exists", "/data"],
                            ["exists", "/nothing"]):
                assert ours(*command) == theirs(*command), command
            assert ours("chmod", "-u", "/data/deep/er", "n0", "r1") == (0, b"")
            assert ours("ls", "-p", "/data") == theirs("ls", "-p", "/data")
            assert b"er" in theirs("list", "/data/deep")[1]
            assert ours("rm", "-t", "/data/deep/er") == (0, b"")
            assert theirs("exists", "/data/deep")[0] == 1
        finally:
            machine.terminate()
            machine.communicate()
        assert machine.returncode == 143
    assert not path.exists()


def test_errors_have_their_names() -> None:
    with System() as system:
        for path, name in (("/nothing", "ENOENT"), ("/a//b", "EINVAL"), ("", "EINVAL")):
            with pytest.raises(StoreKeyError) as caught:
                system.store.read(path)
            assert caught.value.name == name
