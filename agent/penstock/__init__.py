"""penstock: a host-level egress firewall agent for AI inference servers."""

__version__ = "0.1.0"
