"""Installed environment families are read once, and again as soon as a package comes or goes."""

import os
import shutil

from sfactory import families as module
from sfactory.families import families


def install(folder, package, family):
    """What an installer leaves of a package with one family."""
    metadata = folder / f"{package}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[sfactory.envs]\n{family} = {package}:make\n")
    return metadata


def later(folder, seconds):
    """Let the last change of a folder be so many seconds later: two within a tick of the clock look like one."""
    found = folder.stat()
    os.utime(folder, (found.st_atime, found.st_mtime + seconds))


def test_families_are_those_of_all_packages_in_alphabetical_order(tmp_path, monkeypatch):
    install(tmp_path, "somebodys", "mygames")
    monkeypatch.syspath_prepend(tmp_path)
    assert {"faults", "gymnasium", "minatar", "mygames"} <= set(families())
    assert [*families()] == sorted(families())
    assert families()["mygames"].value == "somebodys:make"


def test_families_see_what_is_installed_and_removed_while_the_process_runs(tmp_path, monkeypatch):
    before = families()
    monkeypatch.syspath_prepend(tmp_path)
    assert families() == before
    metadata = install(tmp_path, "somebodys", "mygames")
    later(tmp_path, 1)
    assert {*families()} - {*before} == {"mygames"}
    shutil.rmtree(metadata)
    later(tmp_path, 2)
    assert families() == before


def test_families_are_not_read_again_while_nothing_changes(tmp_path, monkeypatch):
    reads, read = [], module.entry_points
    monkeypatch.setattr(module, "entry_points", lambda **group: reads.append(group) or read(**group))
    monkeypatch.syspath_prepend(tmp_path)
    families().clear()  # what is given is the caller's own
    assert families()
    assert len(reads) == 1
