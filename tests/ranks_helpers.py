"""Start the processes of a job of several ranks, each as torchrun starts it."""

import os
import socket
import subprocess


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def start_ranks(commands, popen=subprocess.Popen, **options):
    """One process per rank, by its command. Without torchrun around them, each has an exit code of its own.

    popen: `ForkedCommand` where only what the ranks compute is looked at, not how they start.
    """
    port, number = free_port(), len(commands)
    return [
        popen(command, env={**os.environ, **variables(rank, number, port)}, **options)
        for rank, command in enumerate(commands)
    ]


def variables(rank, number, port):
    """What torchrun sets, on one machine."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(number),
        "LOCAL_WORLD_SIZE": str(number),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
