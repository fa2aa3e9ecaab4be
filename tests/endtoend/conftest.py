"""The daemon of one test, in the lab of its module."""

from daemon.conftest import running

__all__ = ["running"]
