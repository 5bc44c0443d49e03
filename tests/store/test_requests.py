"""Every request, as an unprivileged guest gets it answered."""

from __future__ import annotations

import pytest

from firmware.abi import io_xs_wire as xs
from firmware.store import boot
from firmware.store.errors import StoreError
from firmware.store.permissions import NONE, READ, WRITE, Permission
from firmware.store.store import Store
from firmware.store.wire import encode, strings
from tests.store.guest import Guest

OK = b"OK\0"
HOME = "/local/domain/1"
BOOT = boot.Boot(domid=1, name="one", vcpus=2, memory_kib=65536, maximum_kib=131072, store_frame=77,
                 store_port=1, console_frame=78, console_port=2)


@pytest.fixture
def store() -> Store:
    store = Store()
    boot.populate(store, BOOT)
    return store


@pytest.fixture
def guest(store: Store) -> Guest:
    return Guest(store)


def test_a_guest_finds_what_it_boots_with(guest: Guest) -> None:
    assert guest.read("domid") == b"1"
    assert guest.read("name") == b"one"
    assert guest.read(f"{HOME}/memory/target") == b"65536"
    assert guest.read("memory/static-max") == b"131072"
    assert guest.read("cpu/1/availability") == b"online"
    assert guest.read("cpu/2/availability") == "ENOENT"
    assert guest.read("console/ring-ref") == b"78"
    assert guest.read("console/port") == b"2"
    assert guest.read("store/ring-ref") == b"77"
    assert guest.read("control/platform-feature-xs_reset_watches") == b"1"
    assert guest.directory("device") == ["suspend"]
    vm = guest.read("vm")
    assert isinstance(vm, bytes)
    assert guest.read(vm.decode() + "/name") == b"one"
    assert guest.ask(xs.XS_GET_PERMS, encode(HOME)) == encode("n0", "r1")
    assert guest.ask(xs.XS_GET_PERMS, encode("control/shutdown")) == encode("n1")


def test_a_guest_writes_only_what_it_may(guest: Guest) -> None:
    assert guest.write("data/mine", b"x\0y") == OK
    assert guest.read("data/mine") == b"x\0y"
    assert guest.write("control/shutdown", b"") == OK
    for path in ("name", "memory/target", "new", "device/vbd/1", "/other", "/tool/x", "/local/domain/0/x",
                 "/"):
        assert guest.write(path, b"1") == "EACCES", path
        assert guest.remove(path) == "EACCES", path
        assert guest.ask(xs.XS_MKDIR, encode(path)) == "EACCES", path
    assert guest.read("/libxl/1/type") == "EACCES"
    assert guest.read("/libxl/none") == "EACCES"
    assert guest.directory("/local/domain") == "EACCES"
    assert guest.read("missing") == "ENOENT"


@pytest.mark.parametrize("path", ["", "/a/", "//a", "/a b", "a//b", "/a\x7f", "@releaseDomain", "/é", "/a.b",
                                  "/" + "a" * 3072, "a" * 2100])
def test_bad_paths(guest: Guest, path: str) -> None:
    assert guest.read(path) == "EINVAL"
    assert guest.write(path, b"") == "EINVAL"


def test_paths_may_be_long_below_the_domain_s_home(guest: Guest) -> None:
    longest = "data/" + "a" * 1900
    assert guest.write(longest, b"1") == OK
    assert guest.read(f"{HOME}/{longest}") == b"1"


@pytest.mark.parametrize("payload", [b"", b"data", b"data\0x\0", b"data\0x"])
def test_one_argument_means_exactly_one(guest: Guest, payload: bytes) -> None:
    for kind in (xs.XS_READ, xs.XS_DIRECTORY, xs.XS_MKDIR, xs.XS_RM, xs.XS_GET_PERMS, xs.XS_GET_DOMAIN_PATH):
        assert guest.ask(kind, payload) == "EINVAL"


def test_parents_are_made_and_belong_to_their_maker(guest: Guest) -> None:
    assert guest.write("data/a/b/c", b"deep") == OK
    assert guest.read("data/a/b") == b""
    assert guest.directory("data/a") == ["b"]
    assert guest.ask(xs.XS_GET_PERMS, encode("data/a")) == encode("n1")
    assert guest.ask(xs.XS_MKDIR, encode("data/z")) == OK
    assert guest.ask(xs.XS_MKDIR, encode("data/a/b/c")) == OK
    assert guest.read("data/a/b/c") == b"deep"
    assert guest.directory("data") == ["a", "z"]


def test_inherited_permissions_change_their_owner(store: Store, guest: Guest) -> None:
    store.mkdir("/shared")
    store.set_permissions("/shared", (Permission(0, NONE), Permission(1, READ | WRITE)))
    store.write("/shared/host", b"")
    assert guest.write("/shared/guest", b"") == OK
    assert guest.ask(xs.XS_GET_PERMS, encode("/shared/host")) == encode("n0", "b1")
    assert guest.ask(xs.XS_GET_PERMS, encode("/shared/guest")) == encode("n1", "b1")


def test_removal(guest: Guest) -> None:
    guest.write("data/a/b", b"1")
    assert guest.remove("data/a") == OK
    assert guest.read("data/a/b") == "ENOENT"
    assert guest.directory("data") == []
    assert guest.remove("data/a") == OK
    assert guest.remove("data/a/b") == "ENOENT"


def test_permissions(store: Store, guest: Guest) -> None:
    other = Guest(store, 2)
    guest.write("data/a", b"1")
    assert other.read(f"{HOME}/data/a") == "EACCES"
    assert guest.ask(xs.XS_SET_PERMS, encode("data/a", "n1", "r2")) == OK
    assert other.read(f"{HOME}/data/a") == b"1"
    assert other.write(f"{HOME}/data/a", b"2") == "EACCES"
    assert guest.ask(xs.XS_SET_PERMS, encode("data/a", "n1", "b2")) == OK
    assert other.write(f"{HOME}/data/a", b"2") == OK
    assert other.ask(xs.XS_SET_PERMS, encode(f"{HOME}/data/a", "n2")) == "EACCES"
    assert guest.ask(xs.XS_SET_PERMS, encode("data/a", "w1")) == OK
    assert other.write(f"{HOME}/data/a", b"3") == OK
    assert other.read(f"{HOME}/data/a") == "EACCES"
    assert guest.read("data/a") == b"3"


def test_permissions_refused(guest: Guest) -> None:
    def set_permissions(*texts: str) -> bytes | str:
        return guest.ask(xs.XS_SET_PERMS, encode(*texts))

    assert set_permissions("data") == "EINVAL"
    assert set_permissions("data", "x1") == "EINVAL"
    assert set_permissions("data", "r") == "EINVAL"
    assert set_permissions("data", "r1x") == "EINVAL"
    assert set_permissions("data", "n0") == "EPERM"
    assert set_permissions("data", "n9") == "ENOENT"
    assert set_permissions("data", "n1", *["r0"] * 5) == "ENOSPC"
    assert set_permissions("data", "n1", *["r0"] * 4) == OK
    assert set_permissions("name", "n1") == "EACCES"
    assert set_permissions("@releaseDomain", "n1") == "EACCES"
    assert set_permissions("@nothing", "n1") == "EINVAL"
    assert guest.ask(xs.XS_SET_PERMS, b"data\0n1") == "EINVAL"


def test_permissions_of_domains_that_come_later_do_not_count(store: Store, guest: Guest) -> None:
    guest.write("data/a", b"1")
    assert guest.ask(xs.XS_SET_PERMS, encode("data/a", "n1", "r5")) == OK
    late = Guest(store, 5)
    assert late.read(f"{HOME}/data/a") == "EACCES"


def test_unknown_and_privileged_requests(guest: Guest) -> None:
    for kind in (20, 23, 99, 0xFFFF, 0xFFFF_FFFF, xs.XS_WATCH_EVENT, xs.XS_ERROR):
        assert guest.ask(kind, b"\0") == "ENOSYS"
    for kind in (xs.XS_CONTROL, xs.XS_INTRODUCE, xs.XS_RELEASE, xs.XS_IS_DOMAIN_INTRODUCED, xs.XS_RESUME,
                 xs.XS_SET_TARGET):
        assert guest.ask(kind, b"1\0") == "EACCES"


def test_domain_path(guest: Guest) -> None:
    assert guest.ask(xs.XS_GET_DOMAIN_PATH, b"007\0") == b"/local/domain/7\0"
    assert guest.ask(xs.XS_GET_DOMAIN_PATH, b"x\0") == b"/local/domain/0\0"


def test_directory_part(store: Store, guest: Guest) -> None:
    names = [f"{index:04}-{'n' * 20}" for index in range(300)]
    for name in names:
        store.write(f"/many/{name}", b"")
    store.set_permissions("/many", (Permission(0, READ),))
    assert guest.directory("/many") == "E2BIG"
    found: list[str] = []
    offset, generations = 0, set()
    while True:
        answer = guest.ask(xs.XS_DIRECTORY_PART, encode("/many", str(offset)))
        assert isinstance(answer, bytes)
        assert len(answer) <= xs.XENSTORE_PAYLOAD_MAX
        generation, *part = strings(answer)
        generations.add(generation)
        if part[-1] == "":
            found += part[:-1]
            break
        found += part
        offset += sum(len(name) + 1 for name in part)
    assert found == names
    assert len(generations) == 1
    assert guest.ask(xs.XS_DIRECTORY_PART, encode("/many", "99999999")) == encode(*generations, "")
    assert guest.ask(xs.XS_DIRECTORY_PART, encode("/many")) == "EINVAL"


def test_node_quotas(store: Store, guest: Guest) -> None:
    assert guest.write("data/big", b"x" * 2015) == OK
    assert guest.write("data/big", b"x" * 2016) == "ENOSPC"
    assert guest.write("data/bigger", b"x" * 2016) == "ENOSPC"
    assert guest.read("data/bigger") == "ENOENT"
    made = guest.connection.account.nodes
    for index in range(1000 - made):
        group = f"data/d{index // 50}"
        assert guest.write(f"{group}/{index}" if index % 50 else group, b"") == OK
    assert guest.write("data/more", b"") == "ENOSPC"
    assert guest.write("data/d0/more/and/more", b"") == "ENOSPC"
    assert guest.connection.account.nodes == 1000
    assert guest.write("data/d0", b"still") == OK
    assert guest.remove("data/d0") == OK
    assert guest.write("data/more", b"") == OK
    store.namespace.check()


def test_names_count_towards_the_size_of_their_parent(guest: Guest) -> None:
    answers = [guest.write(f"data/a/{index:0100}", b"") for index in range(25)]
    assert "ENOSPC" in answers
    assert answers[0] == OK
    listing = guest.directory("data/a")
    assert len(listing) == answers.count(OK)


def test_watches(store: Store, guest: Guest) -> None:
    assert guest.watch("control/shutdown", "tok") == OK
    assert guest.events() == [("control/shutdown", "tok")]
    assert guest.watch("control/shutdown", "tok") == "EEXIST"
    assert guest.watch(f"{HOME}/control/shutdown", "tok") == "EEXIST"
    assert guest.watch(f"{HOME}/control", "abs") == OK
    assert guest.events() == [(f"{HOME}/control", "abs")]
    before = guest.notified
    store.write(f"{HOME}/control/shutdown", "poweroff")
    assert guest.notified > before
    assert guest.events() == [("control/shutdown", "tok"), (f"{HOME}/control/shutdown", "abs")]
    store.write(f"{HOME}/control-other", "no child of it")
    assert guest.events() == []
    assert guest.ask(xs.XS_UNWATCH, encode("control/shutdown", "other")) == "ENOENT"
    assert guest.ask(xs.XS_UNWATCH, encode("control/shutdown", "tok")) == OK
    store.rm(f"{HOME}/control")
    assert guest.events() == [(f"{HOME}/control", "abs")]
    assert guest.ask(xs.XS_RESET_WATCHES, b"\0") == OK
    store.write(f"{HOME}/control", "")
    assert guest.events() == []


@pytest.mark.parametrize("payload", [b"", b"a\0", b"a\0b", b"a\0b\0c\0"])
def test_watches_need_two_strings(guest: Guest, payload: bytes) -> None:
    assert guest.ask(xs.XS_WATCH, payload) == "EINVAL"
    assert guest.ask(xs.XS_UNWATCH, payload) == "EINVAL"


def test_watches_of_parts_hear_of_the_removal_of_the_whole(guest: Guest) -> None:
    guest.write("data/a/b/c", b"")
    guest.watch("data/a/b", "part")
    guest.watch("data", "whole")
    guest.events()
    guest.remove("data/a")
    assert guest.events() == [("data/a/b", "part"), ("data/a", "whole")]


def test_events_come_before_the_reply_of_their_cause(guest: Guest) -> None:
    guest.watch("data", "t")
    guest.events()
    guest.send(xs.XS_WRITE, encode("data/x"))
    guest.collect()
    assert [message.kind for message in guest.messages] == [xs.XS_WATCH_EVENT, xs.XS_WRITE]
    guest.messages.clear()
    guest.send(xs.XS_WATCH, encode("data", "u"))
    assert [message.kind for message in guest.messages] == [xs.XS_WATCH, xs.XS_WATCH_EVENT]


def test_watches_keep_secrets(store: Store, guest: Guest) -> None:
    other = Guest(store, 2)
    assert other.watch(HOME, "spy") == OK
    other.events()
    guest.write("data/secret", b"1")
    assert other.events() == []
    guest.ask(xs.XS_SET_PERMS, encode("data/secret", "r1"))
    assert other.events() == [(f"{HOME}/data/secret", "spy")]
    guest.ask(xs.XS_SET_PERMS, encode("data/secret", "n1"))
    assert other.events() == [(f"{HOME}/data/secret", "spy")]
    guest.write("data/secret", b"2")
    assert other.events() == []


def test_special_watches(store: Store, guest: Guest) -> None:
    other = Guest(store, 2)
    for name in ("@releaseDomain", "@introduceDomain", "@anything"):
        assert guest.watch(name, "t") == OK
    assert guest.watch("@" + "x" * 2048, "t") == "EINVAL"
    assert guest.events() == [("@releaseDomain", "t"), ("@introduceDomain", "t"), ("@anything", "t")]
    store.set_permissions("/tool", (Permission(0, NONE),))
    assert guest.ask(xs.XS_UNWATCH, encode("@anything", "t")) == OK
    heard: list[str] = []
    store.watch("@releaseDomain", heard.append)
    store.watch("@introduceDomain", heard.append)
    store.domain_stopped(other.connection.domid)
    store.remove_domain(other.connection.domid)
    Guest(store, 3)
    gone, came = "@releaseDomain", "@introduceDomain"
    assert heard == [gone, came, gone, gone, came]
    assert guest.events() == []


def test_watch_quota(guest: Guest) -> None:
    answers = [guest.watch("data", str(index)) for index in range(131)]
    assert answers == [OK] * 129 + ["E2BIG"] * 2
    guest.ask(xs.XS_RESET_WATCHES, b"\0")
    assert guest.connection.account.watches == 0
    assert guest.watch("data", "again") == OK


def test_the_same_event_waits_only_once(store: Store, guest: Guest) -> None:
    guest.watch("data", "t")
    guest.events()
    guest.set("rsp_cons", guest.get("rsp_prod") - xs.XENSTORE_RING_SIZE)
    for value in range(50):
        store.write(f"{HOME}/data", str(value))
    guest.set("rsp_cons", guest.get("rsp_prod"))
    guest.serve()
    assert guest.events() == [("data", "t")]


def test_a_gone_domain_leaves_nothing(store: Store, guest: Guest) -> None:
    other = Guest(store, 2)
    guest.write("data/for-two", b"")
    guest.ask(xs.XS_SET_PERMS, encode("data/for-two", "n1", "b2"))
    other_view = f"{HOME}/data/for-two"
    assert other.write(f"{other_view}/below", b"") == OK
    store.remove_domain(2)
    assert guest.directory("data/for-two") == []
    assert guest.ask(xs.XS_GET_PERMS, encode("data/for-two")) == encode("n1")
    again = Guest(store, 2)
    assert again.read(other_view) == "EACCES"
    store.namespace.check()
    store.remove_domain(1)
    with pytest.raises(StoreError, match="ENOENT"):
        store.read(f"{HOME}/data")


def test_uuids_follow_domain_and_seed() -> None:
    uuids = {boot.domain_uuid(domid, seed) for domid in range(5) for seed in range(5)}
    assert len(uuids) == 25
    assert boot.domain_uuid(1, 0) == boot.domain_uuid(1, 0)


def test_populate_clears_what_an_earlier_domain_left(store: Store, guest: Guest) -> None:
    guest.write("data/old", b"")
    store.remove_domain(1)
    boot.populate(store, BOOT)
    assert "old" not in store.directory(f"{HOME}/data")
