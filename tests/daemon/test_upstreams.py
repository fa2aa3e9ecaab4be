"""Whom the host asks: systemd-resolved's own servers behind its stub, and whatever the file may be."""

from __future__ import annotations

import os
from ipaddress import ip_address
from pathlib import Path

import pytest

from penstock.core.policy import Upstream
from penstock.core.resolv_conf import ResolvConf
from penstock.daemon import upstreams


class Host:
    """The two files of a host."""

    def __init__(self, home: Path) -> None:
        self.conf, self.resolved = home / "resolv.conf", home / "resolved.conf"

    def read(self) -> ResolvConf:
        return upstreams.read(self.conf, self.resolved)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def servers(*addresses: str) -> tuple[Upstream, ...]:
    return tuple(Upstream(ip_address(one)) for one in addresses)


def test_without_a_file_there_are_none(host: Host) -> None:
    assert host.read() == ResolvConf()


def test_a_file_of_its_own_counts(host: Host) -> None:
    host.conf.write_text("nameserver 192.0.2.53\nsearch a.example\n")
    host.resolved.write_text("nameserver 198.51.100.1\n")
    assert host.read() == ResolvConf(servers("192.0.2.53"), ("a.example",))


@pytest.mark.parametrize("stub", ["127.0.0.53", "127.0.0.54", "127.0.0.53\nnameserver 127.0.0.54"])
def test_behind_the_stub_are_the_real_ones(host: Host, stub: str) -> None:
    host.conf.write_text(f"nameserver {stub}\nsearch a.example\n")
    host.resolved.write_text("nameserver 192.0.2.53\nnameserver 2001:db8::53\nsearch b.example\n")
    assert host.read() == ResolvConf(servers("192.0.2.53", "2001:db8::53"), ("a.example",))
    host.conf.write_text(f"nameserver {stub}\n")
    assert host.read().search == ("b.example",)


def test_the_stub_is_asked_while_nothing_is_known_behind_it(host: Host) -> None:
    host.conf.write_text("nameserver 127.0.0.53\n")
    assert host.read().servers == servers("127.0.0.53")
    host.resolved.write_text("# none yet\n")
    assert host.read().servers == servers("127.0.0.53")


def test_another_server_beside_the_stub_was_chosen_by_somebody(host: Host) -> None:
    host.conf.write_text("nameserver 127.0.0.53\nnameserver 192.0.2.53\n")
    host.resolved.write_text("nameserver 198.51.100.1\n")
    assert host.read().servers == servers("127.0.0.53", "192.0.2.53")


def test_a_change_is_seen_and_no_change_is_none(host: Host) -> None:
    host.conf.write_text("nameserver 192.0.2.53\n")
    before = host.read()
    os.utime(host.conf)
    assert host.read() == before
    host.conf.write_text("nameserver 192.0.2.54\n")
    assert host.read() != before


def test_what_is_no_file_keeps_nobody_waiting(host: Host) -> None:
    os.mkfifo(host.conf)
    assert host.read() == ResolvConf()
    host.conf.unlink()
    host.conf.mkdir()
    assert host.read() == ResolvConf()
    host.conf.rmdir()
    host.conf.symlink_to("/dev/zero")
    assert host.read() == ResolvConf()
    host.conf.unlink()
    host.conf.symlink_to(host.conf)
    assert host.read() == ResolvConf()


def test_of_a_huge_file_the_beginning_is_read(host: Host) -> None:
    host.conf.write_bytes(b"nameserver 192.0.2.53\n" + b"#\xff" * upstreams.MOST + b"\nnameserver 192.0.2.54\n")
    assert host.read().servers == servers("192.0.2.53")
