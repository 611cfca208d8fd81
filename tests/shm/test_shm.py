"""The arena, doorbell, slot table, trajectories and mailbox."""

import itertools
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from sfactory.shm import arena
from sfactory.shm.arena import Arena, Field
from sfactory.shm.doorbell import Doorbell
from sfactory.shm.mailbox import NOTHING, Mailbox, mailbox_layout
from sfactory.shm.slots import (
    FREE,
    LEARNING,
    READY,
    SAMPLING,
    Request,
    SlotTable,
    pack,
    slot_table_layout,
    unpack,
)
from sfactory.shm.trajectory import MAGIC, Schema, Trajectories

T, E = 4, 3


def make_slot_table(groups=2, slots=2):
    arena = Arena.create(slot_table_layout(groups, slots))
    return SlotTable(arena, slots, T, E)


def make_mailbox(size=1000):
    arena = Arena.create({**mailbox_layout(1), "mail": Field((2, size), "float32")})
    arena["mail_begun"][0, :2] = arena["mail_done"][0, :2] = NOTHING
    return Mailbox(arena, arena["mail"], policy=0)


def test_arena_maps_share_memory_and_arrays_share_no_cache_line():
    layout = {"a": Field((3,), "uint8"), "b": Field((2, 2), "float32"), "c": Field((1,), "int64")}
    one = Arena.create(layout)
    two = Arena(layout, os.dup(one.fd))
    one["b"][1, 0] = 2.5
    assert two["b"][1, 0] == 2.5
    addresses = [one[name].__array_interface__["data"][0] for name in layout]
    assert all(address % 64 == 0 for address in addresses)
    assert len(set(addresses)) == 3


def test_arena_that_does_not_fit_names_the_settings_to_lower():
    with pytest.raises(MemoryError, match="envs-per-group"):
        Arena.create({"too_big": Field((1 << 50,), "uint8")})


def test_arena_allocate_twice_keeps_the_contents():
    fd, layout = Arena.reserve(), {"w": Field((4,), "float32")}
    Arena.allocate(layout, fd)["w"][:] = 7
    assert (Arena.allocate(layout, fd)["w"] == 7).all()


def test_doorbell_drops_rings_when_full_and_still_wakes():
    bell = Doorbell.create()
    for _ in range(20_000):  # far more than a pipe holds; must not block
        bell.ring()
    assert bell.wait(0)
    while bell.drain():
        pass
    assert not bell.wait(0)
    bell.ring()
    assert bell.wait(0)


def test_doorbell_ring_wakes_a_waiting_reader():
    bell = Doorbell.create()
    threading.Timer(0.05, bell.ring).start()
    assert bell.wait(5.0)


def test_pack_and_unpack_are_inverse():
    for request in (Request(0, 0, 0), Request(1, 255, 65535), Request(2**38, 3, 31)):
        assert unpack(pack(request)) == request


def test_slot_table_transition_requires_the_source_state():
    slot_table = make_slot_table()
    slot_table.transition(0, 1, FREE, SAMPLING)
    with pytest.raises(AssertionError, match="is sampling, not free"):
        slot_table.transition(0, 1, FREE, SAMPLING)
    slot_table.transition(0, 1, SAMPLING, READY)
    assert slot_table.handover_count(0, 1) == 1
    slot_table.transition(0, 1, READY, LEARNING)
    slot_table.transition(0, 1, LEARNING, FREE)
    assert slot_table.handover_count(0, 1) == 1
    assert slot_table.in_state(FREE) == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_slot_table_response_to_an_old_request_leaves_the_new_one_pending():
    slot_table = make_slot_table()
    slot_table.request(0, Request(1, 0, 0))
    word = int(slot_table.request_words[0])
    slot_table.request(0, Request(2, 0, 1))
    slot_table.respond(0, word)
    assert slot_table.pending(0)
    slot_table.respond(0, int(slot_table.request_words[0]))
    assert not slot_table.pending(0)


def fill_slot(slot_table, group, slot, steps=T, number=0):
    slot_table.transition(group, slot, FREE, SAMPLING)
    for t in range(steps):
        number += 1
        slot_table.request(group, Request(number, slot, t))
        slot_table.respond(group, int(slot_table.request_words[group]))
    return number


def test_row_counts_are_consistent_in_every_state_of_a_slot():
    slot_table = make_slot_table()
    assert slot_table.row_counts() == (0, 0, 0, 0, 0)
    number = fill_slot(slot_table, 0, 0)
    assert slot_table.row_counts() == (T * E, 0, 0, 0, T * E)
    slot_table.transition(0, 0, SAMPLING, READY)
    assert slot_table.row_counts().consistent
    fill_slot(slot_table, 0, 1, steps=2, number=number)
    assert slot_table.row_counts() == ((T + 2) * E, 0, 0, 0, (T + 2) * E)
    slot_table.transition(0, 0, READY, LEARNING)
    slot_table.transition(0, 0, LEARNING, FREE)
    assert not slot_table.row_counts().consistent  # trained rows are counted by the learner
    slot_table.learner_rows[0].trained = T * E
    assert slot_table.row_counts().consistent


def test_discard_unfinished_counts_the_rows_of_an_unfinished_slot_once_after_many_restarts():
    slot_table = make_slot_table()
    number = fill_slot(slot_table, 0, 0)
    slot_table.transition(0, 0, SAMPLING, READY)
    fill_slot(slot_table, 0, 1, steps=3, number=number)
    for _ in range(3):  # assigned, never added
        slot_table.discard_unfinished(0)
        assert slot_table.row_counts() == ((T + 3) * E, 0, 0, 3 * E, T * E)
    slot_table.request(0, Request(T + 4, 1, 0))
    assert slot_table.row_counts() == ((T + 4) * E, 0, 0, 3 * E, (T + 1) * E)


def test_poison_fills_every_kind_of_field():
    schema = Schema(T, E, 1, 1, {"obs": ((2,), "float32")}, {"action": ((), "int64")}, 2, 1, state_size=3)
    arena = Arena.create(schema.layout())
    trajectories = Trajectories(arena, schema)
    trajectories.poison()
    assert np.isnan(trajectories["obs"]).all()
    assert (trajectories["action"] == MAGIC).all()
    assert trajectories["obs"].shape == (1, 1, T + 1, E, 2)
    assert trajectories["memory"].shape == (1, 2, E, 3)


def test_mailbox_fetches_the_newest_weights_once():
    mailbox, out = make_mailbox(), np.zeros(1000, np.float32)
    assert mailbox.fetch(out, NOTHING) == NOTHING
    for version in (0, 1, 2):
        mailbox.begin(version)[:] = version
        mailbox.finish(version)
        assert mailbox.version() == version
    assert mailbox.fetch(out, 0) == 2
    assert (out == 2).all()
    out[:] = -1
    assert mailbox.fetch(out, 2) == 2
    assert (out == -1).all()  # no newer version: no copy


def test_mailbox_skips_incomplete_weights_and_keeps_the_previous_ones():
    mailbox, out = make_mailbox(), np.zeros(1000, np.float32)
    mailbox.begin(0)[:] = 1.0
    mailbox.finish(0)
    mailbox.begin(1)[:500] = 2.0  # the learner is killed here
    assert mailbox.fetch(out, NOTHING) == 0
    assert (out == 1.0).all()


class Interrupted:
    """Buffers during whose copy the learner publishes again: the first half is old, the second half new."""

    def __init__(self, mailbox, times):
        self.real, self.mailbox, self.times = mailbox.buffers, mailbox, times

    def __getitem__(self, buffer):
        copy = self.real[buffer].copy()
        if self.times > 0:
            self.times -= 1
            self.mailbox.buffers = self.real
            for _ in range(2):  # both buffers, so the one being read too
                publish(self.mailbox, self.mailbox.version() + 1)
            self.mailbox.buffers = self
            copy[500:] = self.real[buffer][500:]
        return copy


def publish(mailbox, version):
    mailbox.begin(version)[:] = version
    mailbox.finish(version)


def test_mailbox_discards_a_copy_that_the_writer_has_torn():
    mailbox, out = make_mailbox(), np.zeros(1000, np.float32)
    publish(mailbox, 0)
    mailbox.buffers = Interrupted(mailbox, times=3)
    assert mailbox.fetch(out, NOTHING) == 6
    assert (out == 6).all()
    mailbox.buffers.times = 100  # torn at every attempt: the caller keeps its weights
    assert mailbox.fetch(out, 5) == NOTHING


def test_check_room_counts_the_page_cache_as_free(tmp_path):
    """Cached files count towards the memory of a container, but the kernel frees them on demand."""
    mib = 2**20
    (tmp_path / "memory.max").write_text(f"{100 * mib}\n")
    (tmp_path / "memory.current").write_text(f"{99 * mib}\n")
    (tmp_path / "memory.stat").write_text(f"anon 5\ninactive_file {60 * mib}\n")
    arena._check_room(50 * mib, tmp_path)
    with pytest.raises(MemoryError, match="61 MiB are free"):
        arena._check_room(70 * mib, tmp_path)
    (tmp_path / "memory.stat").write_text("anon 5\n")
    with pytest.raises(MemoryError, match="1 MiB are free"):
        arena._check_room(50 * mib, tmp_path)


@pytest.mark.parametrize(
    ("member", "files"),
    [
        ("0::/slurm/job1\n", {"slurm/job1/memory.max": 1 << 30, "slurm/job1/memory.current": 50 << 20}),
        ("4:memory:/slurm/job1\n", {"memory/slurm/job1/memory.limit_in_bytes": 1 << 30,
                                    "memory/slurm/job1/memory.usage_in_bytes": 50 << 20}),
    ],
)  # fmt: skip
def test_check_room_sees_the_limit_of_a_nested_group(tmp_path, member, files):
    for name, number in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{number}\n")
    (tmp_path / "self").write_text(member)
    arena._check_room(900 << 20, tmp_path, tmp_path / "self")
    with pytest.raises(MemoryError, match=r"974 MiB are free: the control group .*slurm/job1 allows 1024 MiB, 50 MiB"):
        arena._check_room(4 << 30, tmp_path, tmp_path / "self")


def test_arena_asks_for_huge_pages():
    """As the kernel reports it; whether pages become huge is a setting of the system."""
    arena = Arena.create({"wide": Field((3 << 20,), "uint8")})
    other = Arena(arena.layout, os.dup(arena.fd))
    mappings = Path("/proc/self/smaps").read_text().split("VmFlags:")
    for one in (arena, other):
        address = f"{one['wide'].ctypes.data:x}-"
        (flags,) = (after for before, after in itertools.pairwise(mappings) if address in before)
        assert "hg" in flags.partition("\n")[0].split()
        one.close()
