"""The routing records that publications and subscriptions come to.

They are updates as `Table.apply` takes them, without the flags that follow from other records (see flags.py).
"""

from __future__ import annotations

from collections.abc import Iterable

from fastside.config import ServicePolicy, milliseconds
from fastside.desired import Update
from fastside.registry import Endpoint


def outbound_record(service: str, protocol: str, policy: ServicePolicy, endpoints: Iterable[Endpoint]) -> Update:
    """How calls to a service are made."""
    update = {
        "op": "put",
        "direction": "outbound",
        "service": service,
        "protocol": protocol,
        "balance": policy.balance,
        "retry": policy.retry == "idempotent",
        "request_ms": _request_ms(policy),
        "endpoints": _sorted(endpoints),
    }
    if policy.balance == "consistent_hash":
        kind, _, header = policy.hash_by.partition(":")
        update["balance"] = f"hash_{kind}"
        if header:
            update["hash_header"] = header
    return update


def inbound_record(service: str, protocol: str, policy: ServicePolicy, endpoints: Iterable[Endpoint]) -> Update:
    """How calls from others reach the application. It balances evenly over the local ports and never sends twice."""
    return {
        "op": "put",
        "direction": "inbound",
        "service": service,
        "protocol": protocol,
        "balance": "least_request",
        "retry": False,
        "request_ms": _request_ms(policy),
        "endpoints": _sorted(endpoints),
    }


def _request_ms(policy: ServicePolicy) -> int:
    return 0 if policy.request_timeout is None else milliseconds(policy.request_timeout)


def _sorted(endpoints: Iterable[Endpoint]) -> list[list[str | int]]:
    """In an order that does not depend on who registered first, so that nothing changes for nothing."""
    return [[address.ip, address.port, weight] for address, weight in sorted(endpoints)]
