"""This sidecar's addresses: the one that others are told, the ones that applications use, and the ones that loop."""

from __future__ import annotations

import ipaddress
import socket

from fastside.config import Config, Listener, host_port
from fastside.registry import Address
from fastside.takeover.errors import TakeoverError

# Documentation addresses (RFC 5737, RFC 3849): only the route to them is looked up, nothing is sent.
_FAR_AWAY = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}


def published_address(config: Config, service: str, protocol: str) -> Address:
    """What others find in the registry for a service of this sidecar: the inbound listener that serves it.

    Raises TakeoverError if no listener does.
    """
    listener = find_listener(config, "inbound", service, protocol)
    ip, port = host_port(listener.bind)
    if config.advertise != "auto":
        ip = config.advertise
    elif ipaddress.ip_address(ip).is_unspecified:
        ip = default_route_address(socket.AF_INET6 if ":" in ip else socket.AF_INET)
    return Address(ip, port)


def calling_address(config: Config, service: str, protocol: str) -> Address:
    """Where the application calls a service that it subscribed to: the outbound listener for it.

    Raises TakeoverError if there is none.
    """
    ip, port = host_port(find_listener(config, "outbound", service, protocol).bind)
    if ipaddress.ip_address(ip).is_unspecified:
        ip = "::1" if ":" in ip else "127.0.0.1"
    return Address(ip, port)


def find_listener(config: Config, direction: str, service: str, protocol: str) -> Listener:
    """The listener that takes a service's connections: the first for its protocol alone, else the first for all.

    Raises TakeoverError with the lines that would add one.
    """
    there = [one for one in config.listeners if one.direction == direction]
    if protocol == "tcp":
        there = [one for one in there if one.service == service]
    for accepted in (protocol, "auto"):
        for listener in there:
            if listener.protocol == accepted:
                return listener
    what = f"{direction} {protocol} listener"
    names = f"name: {service}-{direction}, direction: {direction}, protocol: {protocol}"
    if protocol != "tcp":
        raise TakeoverError(
            409,
            f"this sidecar has no {what}",
            f'add to the configuration under listeners: {{{names}, bind: "IP:PORT"}}, then reload',
        )
    raise TakeoverError(
        409,
        f"this sidecar has no {what} for {service}; a TCP connection does not say which service it is for, "
        "so each service needs a listener of its own",
        f'add to the configuration under listeners: {{{names}, service: {service}, bind: "IP:PORT"}}, then reload',
    )


def default_route_address(family: socket.AddressFamily) -> str:
    """The address of the interface that leads to the default route; the loopback address without such a route."""
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((_FAR_AWAY[family], 9))
            return str(probe.getsockname()[0])
    except OSError:
        return "::1" if family == socket.AF_INET6 else "127.0.0.1"


def is_local(ip: str) -> bool:
    """Whether the address belongs to this machine (this network namespace)."""
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((ip, 0))
    except OSError:
        return False
    return True


def own_listener(config: Config, address: Address) -> str | None:
    """The name of what this sidecar itself has at a local address, if it has something there."""
    binds = [(f"listener {listener.name}", listener.bind) for listener in config.listeners]
    binds += [("metrics", config.metrics)]
    binds += [(key, bind) for key, bind in config.apis.items() if not bind.startswith("unix:")]
    for name, bind in binds:
        ip, port = host_port(bind)
        if port == address.port and (ip == address.ip or ipaddress.ip_address(ip).is_unspecified):
            return name
    return None
