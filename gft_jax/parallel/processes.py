"""Runs of several processes, of one host or of many, under JAX's distributed runtime."""

import ipaddress
import os
import socket
import sys
import threading

import jax

from gft_jax.pairing import Share
from gft_jax.sampling.arguments import checked_count

# JAX itself ends a process that has waited in vain, without a word that a user could act on: we must be first.
_MARGIN = 3600
_PATIENCE = 10


def start(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout: int = 300,
) -> None:
    """Joins the processes of a run; to be called by each of them before anything else that JAX does.

    Afterwards ``jax.devices()`` are those of all processes and ``jax.local_devices()`` the own ones; every program over
    all devices is started by all processes alike. Without arguments JAX finds the others by the environment: SLURM,
    Open MPI, an indexed Job of Kubernetes, Cloud TPU. Under SLURM and Open MPI each process then has one device: start
    as many on a host as it has devices.

    A run needs all its processes to the end: when one dies the others end too, after a minute or two, and the run goes
    on from its last checkpoint when it is started again. A program ends with `leave`.

    Args:
        coordinator: ``host:port`` of process 0, where it listens: a port that is free there and reachable from other
            hosts. With a loopback address it listens there alone, else on all addresses of the host.
        num_processes: how many there are.
        process_id: which of them this is, from 0.
        timeout: seconds to wait for the others.

    Raises:
        ValueError: for some of the three arguments without the rest, out of range, or none where the environment names
            no others.
        OSError: if the port is in use, or may not be used.
        TimeoutError: if the others do not come. End the program then: the attempt cannot be repeated.
        RuntimeError: if JAX has been used before, or this has been called before.
    """
    _check(coordinator, num_processes, process_id)
    timeout = checked_count("timeout", timeout)
    if coordinator is not None and process_id == 0:
        _check_port_is_free(coordinator)
    found: list[Exception] = []

    def join() -> None:
        try:
            jax.distributed.initialize(
                coordinator,
                num_processes,
                process_id,
                initialization_timeout=timeout + _MARGIN,
                coordinator_bind_address=coordinator if coordinator and _is_loopback(coordinator) else None,
            )
        except Exception as error:
            found.append(error)

    joining = threading.Thread(target=join, name="gft_jax.parallel.start", daemon=True)
    joining.start()
    joining.join(timeout)
    if joining.is_alive():
        where = (
            "as the environment says" if coordinator is None else f"{num_processes} of them at {coordinator}"
        )
        which = "this process" if process_id is None else f"process {process_id}"
        raise TimeoutError(
            f"{which} has waited {timeout} s in vain for the others, {where}: see whether all were started, with the "
            "same coordinator and number of processes and each with a process_id of its own; whether process 0 is "
            "alive; and whether its port can be reached from the other hosts (firewall, host name). Where hosts start "
            "late, wait longer"
        )
    if found and coordinator is None and isinstance(found[0], ValueError):
        raise ValueError(
            f"the environment names no other processes ({found[0]}): give coordinator, num_processes and process_id, "
            "or start the program by SLURM, Open MPI, Kubernetes or on a Cloud TPU"
        ) from found[0]
    if found:
        raise found[0]


def leave(status: int) -> None:
    """Ends the program with an exit status; to be called last.

    A process that ends otherwise waits for all others to end, too, for up to five minutes. After an error that the
    others may not have met this one waits ten seconds, and then ends, by which they learn of it and end in turn.
    """
    if status == 0 or not jax.distributed.is_initialized():
        sys.exit(status)
    leaving = threading.Thread(target=jax.distributed.shutdown, name="gft_jax.parallel.leave", daemon=True)
    leaving.start()
    leaving.join(_PATIENCE)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # sys.exit would wait for the others once more


def is_main() -> bool:
    """Whether this is the process that writes logs and files of the run: process 0, or the only one."""
    return jax.process_index() == 0


def share() -> Share:
    """The rows of every batch that this process gives: as many as each of the others."""
    return Share(jax.process_index(), jax.process_count())


def _check(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    given = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == len(given):
        return
    if missing or coordinator is None or num_processes is None or process_id is None:
        raise ValueError(
            f"{' and '.join(missing)} missing: give coordinator, num_processes and process_id, all three, or none of "
            "them under SLURM, Open MPI, Kubernetes or on a Cloud TPU"
        )
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise ValueError(f"coordinator is HOST:PORT, such as node0:12345, got {coordinator!r}")
    checked_count("num_processes", num_processes)
    if not 0 <= process_id < num_processes:
        raise ValueError(
            f"process_id counts from 0 to {num_processes - 1} with num_processes={num_processes}, got {process_id}"
        )


def _is_loopback(coordinator: str) -> bool:
    host = coordinator.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_port_is_free(coordinator: str) -> None:
    # JAX's own attempt to listen would leave a process that may crash as it ends.
    host, _, port = coordinator.rpartition(":")
    is_v6 = _is_loopback(coordinator) and ":" in host
    address = host.strip("[]") if _is_loopback(coordinator) else ""
    try:
        socket.create_server(
            (address, int(port)), family=socket.AF_INET6 if is_v6 else socket.AF_INET
        ).close()
    except OSError as error:
        raise OSError(
            f"process 0 cannot listen at {coordinator} ({error.strerror}): give all processes another port, a "
            "free one, or end the program that uses it"
        ) from error
