"""The mailbox with a reader and a learner that are stopped at every load and store."""

import itertools

import numpy as np
import pytest

from sfactory.shm import atomics
from sfactory.shm.arena import Arena, Field
from sfactory.shm.mailbox import NOTHING, Mailbox, mailbox_layout

WORDS = ("begun", "done", "count")
P = 2  # weights; the learner writes one after the other


class Loads:
    """An array whose every load first lets the other process go on, if the schedule says so."""

    def __init__(self, array, schedule):
        self.array, self.schedule = array, schedule

    def __getitem__(self, index):
        self.schedule.before_load()
        return self.array[index]


class Rows(Loads):
    """The two buffers: a copy of one loads its weights one by one."""

    def __getitem__(self, buffer):
        weights = []
        for number in range(P):
            self.schedule.before_load()
            weights.append(self.array[buffer, number])
        return weights


class Schedule:
    """The learner's stores, in order, and how many of them are done before which load of the reader."""

    def __init__(self, stores, pauses):
        self.stores, self.pauses, self.loads = iter(stores), pauses, 0

    def before_load(self):
        for array, index, value in itertools.islice(self.stores, self.pauses.get(self.loads, 0)):
            array[index] = value
        self.loads += 1


def recorded(mailbox, versions, monkeypatch):
    """The stores of a learner that publishes these versions, after which the mailbox is as before."""
    arrays = (mailbox.begun, mailbox.done, mailbox.count, mailbox.buffers)
    before, stores = [array.copy() for array in arrays], []

    def store(words, index, value):
        stores.append((words, index, value))
        words[index] = value

    monkeypatch.setattr(atomics, "store", store)
    for publication, version in enumerate(versions):
        weights, value = mailbox.begin(version), float(100 * version + publication)
        buffer = next(b for b in range(2) if np.shares_memory(weights, mailbox.buffers[b]))
        for number in range(P):
            stores.append((mailbox.buffers, (buffer, number), value))
            weights[number] = value
        mailbox.finish(version)
    monkeypatch.undo()
    for array, values in zip(arrays, before, strict=True):
        array[...] = values
    return stores


def make_mailbox():
    arena = Arena.create({**mailbox_layout(1), "mail": Field((2, P), "float32")})
    arena["mail_begun"][0, :2] = arena["mail_done"][0, :2] = NOTHING
    return Mailbox(arena, arena["mail"], policy=0)


def fetches(mailbox, stores, pauses, count):
    """Fetch `count` times, in a schedule of loads and stores; the versions and the weights that came with them."""
    reader = object.__new__(Mailbox)
    schedule = Schedule(stores, pauses)
    for name in WORDS:
        setattr(reader, name, Loads(getattr(mailbox, name), schedule))
    reader.buffers = Rows(mailbox.buffers, schedule)
    current, seen = NOTHING, []
    for _ in range(count):
        out = np.full(P, NOTHING, np.float32)
        version = reader.fetch(out, current)
        seen.append((current, version, out.tolist()))
        current = current if version == NOTHING else version
    return seen


def check(seen, pauses):
    for current, version, weights in seen:
        if version != NOTHING:
            assert version >= current, f"version {current} is followed by {version}, learner stopped at {pauses}"
        if version not in (current, NOTHING):
            told = f"version {version} has the weights {weights}, learner stopped at {pauses}"
            assert len(set(weights)) == 1, told
            assert weights[0] // 100 == version, told


SEQUENCES = {"first versions": (0, [0, 1, 2]), "later": (2, [2, 3, 4]), "a version that repeats": (0, [5, 5, 5, 5])}


@pytest.mark.parametrize("case", SEQUENCES)
def test_mailbox_never_gives_an_older_version_or_torn_weights_however_reader_and_learner_interleave(monkeypatch, case):
    published, following = SEQUENCES[case]
    mailbox = make_mailbox()
    for version in range(published):
        mailbox.begin(version)[:] = 100 * version
        mailbox.finish(version)
    stores = recorded(mailbox, following, monkeypatch)
    arrays = [getattr(mailbox, name) for name in WORDS] + [mailbox.buffers]
    before = [array.copy() for array in arrays]
    loads, versions = 18, set()  # two fetches and the beginning of the third
    for first, second in itertools.combinations_with_replacement(range(loads), 2):
        for early in range(1, len(stores) + 1):
            for late in (0, 1, 2, 5, 6, 7, len(stores)) if first < second else (0,):
                pauses = {first: early, second: late} if first < second else {first: early}
                for array, values in zip(arrays, before, strict=True):
                    array[...] = values
                seen = fetches(mailbox, stores, pauses, 3)
                check(seen, pauses)
                versions |= {version for _, version, _ in seen}
    assert versions >= set(following), "the schedules reach every version"


def test_mailbox_of_a_learner_stopped_at_any_store_gives_what_was_published_before(monkeypatch):
    mailbox = make_mailbox()
    stores = recorded(mailbox, range(4), monkeypatch)
    per_version = len(stores) // 4
    for done in range(len(stores)):
        array, index, value = stores[done]
        array[index] = value
        out = np.full(P, NOTHING, np.float32)
        complete = (done + 1) // per_version - 1
        version = mailbox.fetch(out, NOTHING)
        assert version in (complete, NOTHING)  # nothing new for the moment between two stores of `finish`
        assert version == NOTHING or out.tolist() == [101 * version] * P
    assert version == 3
