"""Bytes that a device sends over NVLink and over the network in a collective, by rings inside and between nodes."""

from typing import NamedTuple

from experiments.scaling.hardware import DEVICES_PER_NODE, Hardware


class Traffic(NamedTuple):
    """Bytes that one device sends (and receives)."""

    nvlink: float = 0.0
    network: float = 0.0

    def plus(self, other: "Traffic", times: float = 1.0) -> "Traffic":
        """This and so many times another."""
        return Traffic(self.nvlink + times * other.nvlink, self.network + times * other.network)

    def seconds(self, hardware: Hardware) -> float:
        """One link after the other, and no latency."""
        links = self.nvlink / hardware.nvlink_rate + self.network / hardware.network_rate
        return links / hardware.links_reached


class Group(NamedTuple):
    """Devices of a collective: so many on each of so many nodes."""

    on_node: int
    nodes: int


def groups(num_devices: int, fsdp: int) -> tuple[Group, Group]:
    """The devices that share one copy of the parameters, and those that hold the same part of it.

    Devices are numbered node by node, and the devices of a copy follow each other, as in `gft_jax.parallel.mesh`.

    Raises:
        ValueError: if the devices do not make such groups, or a group shares its nodes unevenly.
    """
    node = min(num_devices, DEVICES_PER_NODE)
    if num_devices % fsdp or num_devices % node or max(fsdp, node) % min(fsdp, node):
        raise ValueError(
            f"{num_devices} devices in nodes of {node} do not make groups of fsdp={fsdp}: use a divisor or multiple of "
            f"{node} that divides {num_devices}"
        )
    inside = min(fsdp, node)
    return Group(inside, fsdp // inside), Group(node // inside, num_devices // fsdp // (node // inside))


def all_gather(size: float, group: Group) -> Traffic:
    """Each device has a part and ends with all ``size`` bytes: first from its like on other nodes, then in its node.

    A ring over n devices sends ``(n - 1) / n`` of what it gathers.
    """
    of_node = size / group.on_node
    return Traffic(
        size * (group.on_node - 1) / group.on_node,
        of_node * (group.nodes - 1) / group.nodes,
    )


def reduce_scatter(size: float, group: Group) -> Traffic:
    """Each device has ``size`` bytes and ends with a part of their sum: an all-gather backwards."""
    return all_gather(size, group)


def all_reduce(size: float, group: Group) -> Traffic:
    """Each device ends with the sum: a reduce-scatter, then an all-gather."""
    return reduce_scatter(size, group).plus(all_gather(size, group))
