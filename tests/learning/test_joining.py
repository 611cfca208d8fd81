"""How a learner joins its job: the backend by the device, and what it does with it; no other process takes part."""

import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from sfactory.device.ranks import Ranks
from sfactory.errors import LearnerLost, SettingError
from sfactory.learning import process_group
from sfactory.learning.join import join

STALL_S = 70.0
zeros = torch.zeros


@pytest.fixture
def joined(monkeypatch):
    """Join as rank 1 of 2 on a device; rank 0 has come with a device of the kind `other`."""
    done = {"lines": []}

    def begin(backend, **options):
        done.update(options, backend=backend)

    def join_on(device, nccl=True, other=None):
        store = dist.HashStore()
        store.set("come/0", other or torch.device(device).type)
        monkeypatch.setattr(dist, "rendezvous", lambda *_, **options: iter([(store, 1, 2)]))
        monkeypatch.setattr(dist, "is_nccl_available", lambda: nccl)
        monkeypatch.setattr(dist, "init_process_group", begin)
        monkeypatch.setattr(dist, "get_backend", lambda: done["backend"])
        monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: done.update(cuda=str(device)))
        with monkeypatch.context() as patch:  # no GPU is needed
            patch.setattr(torch, "zeros", lambda *size, device, **options: zeros(*size, **options))
            done["learners"] = join(Ranks(1, 2, 1, 2), torch.device(device), STALL_S, print, done["lines"].append)
        return done

    yield join_on
    if "learners" in done:
        done["learners"].close()


def test_learners_on_gpus_join_over_nccl_whose_collectives_are_recorded_and_watched_by_nccl(joined):
    done = joined("cuda:1")
    assert (done["backend"], done["cuda"]) == ("nccl", "cuda:1")
    assert done["timeout"] == timedelta(seconds=STALL_S)
    assert done["learners"].recordable
    assert (done["rank"], done["world_size"]) == (1, 2)


@pytest.mark.parametrize(("device", "nccl"), [("cpu", True), ("cuda:1", False)])
def test_learners_on_cpus_or_without_nccl_join_over_gloo_whose_collectives_are_not_recorded(joined, device, nccl):
    done = joined(device, nccl)
    assert done["backend"] == "gloo"
    assert done["timeout"] > timedelta(hours=1)
    assert not done["learners"].recordable
    assert "cuda" not in done


def test_learners_on_devices_of_two_kinds_are_refused(joined):
    with pytest.raises(SettingError, match="rank 1 trains on cuda and rank 0 on cpu"):
        joined("cuda", other="cpu")


def test_learner_says_that_it_waits_for_the_others_to_come_if_they_are_long_in_coming(monkeypatch):
    monkeypatch.setattr(process_group, "REPORT_S", 0.1)
    monkeypatch.setenv("MASTER_ADDR", "node1")
    monkeypatch.setenv("MASTER_PORT", "29400")
    for seconds, expected in (
        (0.0, []),
        (0.4, ["rank 0 of 2 waits at node1:29400 for all others to come, for at most"]),
    ):

        def fail(*_, seconds=seconds, **options):
            time.sleep(seconds)
            raise RuntimeError("no route")

        lines = []
        monkeypatch.setattr(dist, "rendezvous", fail)
        with pytest.raises(LearnerLost, match=r"not all learners came within 300 s \(no route\)"):
            join(Ranks(0, 2, 0, 2), torch.device("cpu"), 60.0, print, lines.append)
        time.sleep(0.3)
        assert [line[: len(expected[0])] for line in lines] == expected
