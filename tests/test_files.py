"""Files of a folder that a stranger may have written: regular files only, no links, bounded sizes."""

import os

import pytest

from sfactory import files
from sfactory.errors import FileRefused


def make(folder, what):
    path = folder / "name"
    target = folder / "target"
    target.write_text("secret")
    match what:
        case "a link":
            path.symlink_to(target)
        case "a dangling link":
            path.symlink_to(folder / "nothing")
        case "a loop":
            path.symlink_to(path)
        case "a pipe":
            os.mkfifo(path)
        case "a folder":
            path.mkdir()
    return path


@pytest.mark.parametrize("what", ["a link", "a dangling link", "a loop", "a pipe", "a folder"])
def test_files_opens_nothing_but_regular_files(tmp_path, what):
    path = make(tmp_path, what)
    for open_it in (files.open_to_read, files.open_to_append, files.open_lock, lambda p: files.replace_text(p, "x")):
        with pytest.raises(FileRefused, match=r"name is a (link|pipe|folder), expected a file"):
            open_it(path)
    assert (tmp_path / "target").read_text() == "secret"
    assert not (tmp_path / "nothing").exists()
    assert not files.is_file(path)


def test_open_to_read_refuses_a_file_that_becomes_a_link_after_it_was_looked_at(tmp_path, monkeypatch):
    path = make(tmp_path, "a link")
    monkeypatch.setattr(files, "require", lambda path, expected: None)
    with pytest.raises(OSError, match="symbolic links"):
        files.open_to_read(path)


def test_open_to_read_refuses_more_bytes_than_are_read(tmp_path):
    (tmp_path / "a").write_bytes(bytes(11))
    with pytest.raises(FileRefused, match="has 11 bytes; at most 10 are read"):
        files.read_bytes(tmp_path / "a", 10)
    assert files.read_bytes(tmp_path / "a", 11) == bytes(11)


@pytest.mark.parametrize("holes", [[(0, 2**40)], [(2**29, 2**29 + 2**20), (2**31, 2**31 + 1)]])
def test_open_to_read_refuses_a_file_that_is_a_hole(tmp_path, holes):
    with (tmp_path / "a").open("wb") as file:
        for start, end in holes:
            file.seek(start)
            file.write(b"x")
            file.truncate(end)
    with pytest.raises(FileRefused, match="without data"):
        files.open_to_read(tmp_path / "a")


def test_read_end_starts_with_a_whole_line(tmp_path):
    (tmp_path / "a").write_bytes(b"one\ntwo\xff\nthree\n")
    assert files.read_end(tmp_path / "a", 8) == ("three\n", False)
    assert files.read_end(tmp_path / "a", 100) == ("one\ntwo�\nthree\n", True)


def test_replace_text_does_not_follow_a_link_of_its_temporary_name(tmp_path):
    (tmp_path / "target").write_text("secret")
    (tmp_path / f".a.{os.getpid()}").symlink_to(tmp_path / "target")
    files.replace_text(tmp_path / "a", "text")
    assert ((tmp_path / "a").read_text(), (tmp_path / "target").read_text()) == ("text", "secret")
    assert files.is_file(tmp_path / "a")


def test_replace_text_in_writes_into_the_open_folder_wherever_it_is(tmp_path):
    folder, elsewhere = tmp_path / "a", tmp_path / "b"
    folder.mkdir()
    opened = os.open(folder, os.O_DIRECTORY)
    folder.rename(elsewhere)
    folder.mkdir()
    files.replace_text_in(opened, "name", "text")
    os.close(opened)
    assert [(path.name, path.read_text()) for path in elsewhere.iterdir()] == [("name", "text")]
    assert not list(folder.iterdir())


def test_folder_entries_follows_no_link(tmp_path):
    (tmp_path / "link").symlink_to("/")
    with pytest.raises(FileRefused, match="is a link, expected a folder"):
        files.folder_entries(tmp_path / "link")
    assert files.folder_entries(tmp_path / "nothing") == []
