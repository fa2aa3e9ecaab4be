"""The other tools that load rules on a host: how each is set up, started, and made to load its rules again.

Docker is not among them: its engine does not run on these hosts.  What it loads is what podman's netavark loads
on Debian 12: chains of iptables-nft with a DNAT of published ports, and a packet mark for those to be masqueraded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hosts.host import Host
from hosts.installed import CLOSED, OPEN, TCP

REFUSED, PUBLIC = 7001, 7002
"""Ports of an ungoverned service of the host: one that the tool closes to the client, one that it opens."""
PUBLISHED = 9000
"""Of the container."""
CLIENT = ("198.18.1.20", "fd00:1::20")
OPENED = (PUBLIC, OPEN, CLOSED)
"""What the tool opens: the last one is a port that penstock keeps closed."""

ECHO = """\
import os, signal, socket, sys, threading
signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0))  # else the first process of a container stays
def serve(port):
    listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
    while True:
        peer, _ = listener.accept()
        with peer:
            peer.recv(100)
            peer.sendall(b"hello")
for word in sys.argv[1:]:
    threading.Thread(target=serve, args=(int(word),), daemon=True).start()
while True:
    signal.pause()
"""
ECHO_UNIT = f"""\
[Service]
ExecStart=/usr/bin/python3 /opt/echo.py {REFUSED} {PUBLIC}
[Install]
WantedBy=multi-user.target
"""

NFTABLES = f"""\
#!/usr/sbin/nft -f
flush ruleset
table inet filter {{
	set strangers {{
		type ipv4_addr
		flags interval
		elements = {{ 192.0.2.128/25, 198.18.1.{CLIENT[0].rpartition(".")[2]} }}
	}}
	counter opened {{
	}}
	chain input {{
		type filter hook input priority filter; policy drop;
		ct state established,related accept
		iif lo accept
		meta l4proto {{ icmp, ipv6-icmp }} accept
		ip saddr @strangers tcp dport {REFUSED} drop
		ip6 saddr {CLIENT[1]} tcp dport {REFUSED} drop
		tcp dport {{ {", ".join(map(str, OPENED))} }} counter name opened accept
		udp dport {{ {OPEN}, {CLOSED} }} accept
	}}
	chain output {{
		type filter hook output priority filter; policy accept;
		tcp dport {{ 443, {TCP} }} ct mark set 0x77 accept
	}}
}}
table ip nat {{
	chain postrouting {{
		type nat hook postrouting priority srcnat; policy accept;
		oifname "tun*" masquerade
	}}
}}
"""
_RICH = " ".join(
    f"--add-rich-rule='rule family=ipv{family} source address={address} port port={REFUSED} protocol=tcp reject'"
    for family, address in ((4, CLIENT[0]), (6, CLIENT[1]))
)
FIREWALLD = f"""
firewall-offline-cmd --zone=public --add-port={REFUSED}/tcp --add-port={OPEN}/udp --add-port={CLOSED}/udp \
  {" ".join(f"--add-port={port}/tcp" for port in OPENED)} >/dev/null
firewall-offline-cmd --zone=public {_RICH} >/dev/null
"""
UFW = f"""
for address in {" ".join(CLIENT)}; do ufw deny proto tcp from $address to any port {REFUSED}; done
ufw allow {",".join(map(str, (*OPENED, REFUSED)))}/tcp
ufw allow {OPEN},{CLOSED}/udp
ufw allow out 443,{TCP}/tcp
"""
PODMAN = f"""
for name in proc sys dev tmp run etc var opt; do mkdir -p /opt/root/$name; done
for name in usr bin sbin lib lib64; do
  if [ -L /$name ]; then cp -a /$name /opt/root/; else mkdir -p /opt/root/$name; fi
done
cp /opt/echo.py /opt/root/opt/
podman network create --ipv6 --subnet 10.77.0.0/24 --subnet fd00:77::/64 both
podman create --name web --network both --ip 10.77.0.9 --ip6 fd00:77::9 -p {PUBLISHED}:{PUBLISHED} \
  -v /usr:/usr:ro --rootfs /opt/root /usr/bin/python3 /opt/echo.py {PUBLISHED}
"""


@dataclass(frozen=True, slots=True)
class Tool:
    """One of them, in words of a shell."""

    unit: str
    set_up: str
    start: str
    """Also at each boot from then on, if it can."""
    stop: str
    again: tuple[str, ...]
    """Make it load its rules again, which is none of our table's business.  The last one counts most."""
    flush: tuple[str, ...] = ()
    """Make it load its rules again, and that takes our table away."""
    boot: str = ""
    """After a boot, what does not start by itself."""
    files: Mapping[str, str] = field(default_factory=dict)


TOOLS: Mapping[str, Tool] = {
    "nftables": Tool(
        unit="nftables.service",
        set_up="",
        start="systemctl enable --now nftables",
        stop="systemctl stop nftables",
        again=(),
        flush=(
            "systemctl restart nftables",
            "systemctl reload nftables",
            "systemctl stop nftables && systemctl start nftables",
        ),
        files={"/etc/nftables.conf": NFTABLES},
    ),
    "firewalld": Tool(
        unit="firewalld.service",
        set_up=FIREWALLD,
        start="systemctl enable --now firewalld; until firewall-cmd --state; do sleep 0.1; done",
        stop="systemctl stop firewalld",
        again=(
            "firewall-cmd --reload",
            "firewall-cmd --complete-reload",
            "systemctl reload firewalld",
            "systemctl restart firewalld",
        ),
    ),
    "ufw": Tool(
        unit="ufw.service",
        set_up=UFW,
        start="ufw --force enable && systemctl enable --now ufw",
        stop="ufw disable && systemctl stop ufw",
        again=("ufw reload", "ufw disable && ufw --force enable", "systemctl restart ufw"),
    ),
    "podman": Tool(
        unit="",
        set_up=PODMAN,
        start="podman start web",
        stop="podman stop -t 0 web",
        again=("podman restart -t 0 web", "podman network reload --all"),
        boot="podman start web",
    ),
}

OTHERS = r"""
nft list tables | grep -v '^table inet penstock$' | while read -r _ family name; do
  nft -s list table "$family" "$name" || echo "$name went meanwhile"
done
for save in iptables-save ip6tables-save; do $save | sed -e '/^#/d' -e 's/ \[[0-9]*:[0-9]*\]$//'; done
"""


def rules_of_others(host: Host) -> list[str]:
    """Every table but ours as nft lists it, without what counts, and what iptables says of its own."""
    return host.sh(OTHERS).splitlines()


def put(host: Host, tool: Tool) -> None:
    """Set it up on a host, beside an ungoverned service with two ports; it does not run yet."""
    host.write("/opt/echo.py", ECHO)
    host.write("/etc/systemd/system/bystander.service", ECHO_UNIT)
    for path, text in tool.files.items():
        host.write(path, text)
    host.sh(f"systemctl daemon-reload; systemctl enable --now bystander; {tool.set_up}")
