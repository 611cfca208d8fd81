"""Run folders as a stranger may send them: links, pipes, escapes, code, forged checkpoints, numbers of any size.

`FOLDERS` is the table: name -> `Hostile`. Each function changes a copy of a good run (CartPole, from `tests/golden`),
whose checkpoints can be forged with a manifest that fits (`forge`). `place` is a folder beside it with files that no
command may change, and with `ran`, which exists as soon as code of the folder has run.

    python tests/run/hostile_folders.py FOLDER     make all of them there, to try commands by hand
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import struct
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

GOOD = Path(__file__).parent.parent / "golden" / "run_folders" / "async"
ESCAPES = "\x1b]0;title\x07\x1b[2J\u202e\x9b31m"
SCRIPT = "</title><script>alert(1)</script><img src=x onerror=alert(1)>"
CHECKPOINT = "checkpoints/000000003114"
MODEL, STATE, MANIFEST = "model.safetensors", "state.json", "manifest.json"
OTHERS = ("proximal", "optimizer", "normalizers")


@dataclass(frozen=True)
class Hostile:
    """One folder. codes: command -> exit code that it must have; the others may have any documented one but 1."""

    make: Callable[[Path, Path], None]
    codes: Mapping[str, int] = field(default_factory=dict)


FOLDERS: dict[str, Hostile] = {}
READING = ("info", "report", "watch", "compare")
USING = ("eval", "load_policy", "export", "resume")


def hostile(**codes: int) -> Callable[[Callable[[Path, Path], None]], Callable[[Path, Path], None]]:
    """Enter a function into the table. `reading` and `using` stand for the commands of that kind."""
    kinds = {"reading": READING, "using": USING}
    named = {name: code for kind, names in kinds.items() if (code := codes.get(kind)) is not None for name in names}
    named |= {name: code for name, code in codes.items() if name not in kinds}

    def enter(make: Callable[[Path, Path], None]) -> Callable[[Path, Path], None]:
        FOLDERS[make.__name__] = Hostile(make, named)
        return make

    return enter


def make_folder(name: str, place: Path) -> Path:
    """Make one folder of the table beside the files of `place`; returns it."""
    run = place / name
    shutil.copytree(GOOD, run)
    (place / "secret").write_text("secret\n")
    (place / "elsewhere").mkdir()
    (place / "elsewhere" / ".hidden").mkdir()
    (place / "elsewhere" / ".hidden" / "key").write_text("key\n")
    FOLDERS[name].make(run, place)
    return run


# -- tools -------------------------------------------------------------------------------------------------------


def replace_by_link(path: Path, target: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    path.symlink_to(target)


def replace_by_pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def replace_by_folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


def with_settings(run: Path, **values: str) -> None:
    """Change lines of config.toml; values are TOML. Names are written section__key."""
    lines, section = [], ""
    for line in (run / "config.toml").read_text().splitlines():
        if line.startswith("["):
            section = line.strip("[]")
            lines.append(line)
            lines += [f"{k.split('__', 1)[1]} = {v}" for k, v in values.items() if k.split("__", 1)[0] == section]
        elif f"{section}__{line.partition(' ')[0]}" not in values:
            lines.append(line)
    sections = {line.strip("[]") for line in lines if line.startswith("[")}
    for name, value in values.items():
        new, key = name.split("__", 1)
        if new not in sections:
            lines += [f"[{new}]", f"{key} = {value}"]
    (run / "config.toml").write_text("\n".join(lines) + "\n")


def with_code(run: Path, place: Path, name: str = "evil.py") -> None:
    """A module in the folder that leaves a file when it is imported, and has everything that is asked of it."""
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).write_text(
        f"open({str(place / 'ran')!r}, 'w').close()\n"
        "import gymnasium\nclass Env(gymnasium.Env): pass\n"
        "gymnasium.register('Evil-v0', entry_point=Env)\n"
        "def wrap(env): return env\n"
        "class Net: pass\n"
    )


def with_status(run: Path, **values: Any) -> None:
    (run / "status.json").write_text(json.dumps({**json.loads((run / "status.json").read_text()), **values}))


def forge(run: Path, change: Callable[[dict[str, bytes]], None], **manifest: Any) -> None:
    """Change the files of the checkpoint, and write a manifest that fits."""
    folder = run / CHECKPOINT
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != MANIFEST}
    change(files)
    shutil.rmtree(folder)
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    write_manifest(folder, {n: (len(d), hashlib.sha256(d).hexdigest()) for n, d in files.items()}, **manifest)


def write_manifest(folder: Path, listed: Mapping[str, tuple[int, str]], **values: Any) -> None:
    """A manifest with a correct hash of its own."""
    entries = {name: {"size": size, "sha256": sha256} for name, (size, sha256) in listed.items()}
    manifest = {"format": 1, "sfactory": "0.1", "torch": "2.11", "files": entries, **values}
    manifest["sha256"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(manifest))


def forge_state(run: Path, **values: Any) -> None:
    def change(files: dict[str, bytes]) -> None:
        files[STATE] = json.dumps({**json.loads(files[STATE]), **values}).encode()

    forge(run, change)


def tensors(data: bytes) -> dict[str, np.ndarray]:
    from safetensors.numpy import load

    return load(data)


def packed(arrays: Mapping[str, np.ndarray]) -> bytes:
    from safetensors.numpy import save

    return save(dict(arrays))


def forge_tensors(run: Path, file: str, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    """Change the tensors of one file of the checkpoint."""

    def changed(files: dict[str, bytes]) -> None:
        arrays = tensors(files[file])
        change(arrays)
        files[file] = packed(arrays)

    forge(run, changed)


def with_header(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file with this header."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


# -- links -------------------------------------------------------------------------------------------------------


@hostile(using=2, info=0, report=2, watch=2, compare=2)
def config_is_a_link(run: Path, place: Path) -> None:
    shutil.move(run / "config.toml", place / "config.toml")
    (run / "config.toml").symlink_to(place / "config.toml")


@hostile(report=2, resume=2)
def report_is_a_link(run: Path, place: Path) -> None:
    (run / "report.html").symlink_to(place / "secret")


@hostile(report=2, watch=2, resume=2)
def log_is_a_link(run: Path, place: Path) -> None:
    replace_by_link(run / "log.txt", place / "secret")


@hostile(report=2, watch=2, compare=2, resume=2)
def metrics_are_a_link(run: Path, place: Path) -> None:
    replace_by_link(run / "metrics.jsonl", place / "secret")


@hostile(report=2, watch=2, compare=2, resume=2)
def status_is_a_dangling_link(run: Path, place: Path) -> None:
    replace_by_link(run / "status.json", place / "elsewhere" / "new")


@hostile(resume=2)
def lock_is_a_link(run: Path, place: Path) -> None:
    (run / ".lock").symlink_to(place / "secret")


@hostile(resume=2)
def tensorboard_is_a_link(run: Path, place: Path) -> None:
    (run / "tb").symlink_to(place / "elsewhere")


@hostile(resume=2)
def debug_file_is_a_link(run: Path, place: Path) -> None:
    (run / "debug").mkdir()
    (run / "debug" / "sampler-0.log").symlink_to(place / "secret")


@hostile(resume=2)
def run_id_is_a_link(run: Path, place: Path) -> None:
    (run / "run_id").symlink_to(place / "secret")


@hostile(info=2, report=2, using=2)
def checkpoints_lead_out_of_the_run(run: Path, place: Path) -> None:
    shutil.copytree(run / CHECKPOINT, place / "elsewhere" / Path(CHECKPOINT).name)
    replace_by_link(run / "checkpoints", place / "elsewhere")


@hostile(info=2, using=2)
def checkpoint_is_a_link(run: Path, place: Path) -> None:
    shutil.move(run / CHECKPOINT, place / "elsewhere")
    (run / CHECKPOINT).symlink_to(place / "elsewhere" / Path(CHECKPOINT).name)


@hostile(info=5, using=5)
def weights_are_a_link(run: Path, place: Path) -> None:
    shutil.move(run / CHECKPOINT / MODEL, place / "weights")
    (run / CHECKPOINT / MODEL).symlink_to(place / "weights")


@hostile(info=5, using=5)
def manifest_is_a_loop_of_links(run: Path, place: Path) -> None:
    replace_by_link(run / CHECKPOINT / MANIFEST, Path(MANIFEST))


@hostile(info=2, eval=5, load_policy=5, export=5, resume=2)
def corrupt_leads_out_of_the_run(run: Path, place: Path) -> None:
    (run / CHECKPOINT / MODEL).write_bytes(b"")
    (run / "corrupt").symlink_to(place / "elsewhere")


@hostile(reading=0)
def videos_are_links(run: Path, place: Path) -> None:
    (run / "film.mp4").symlink_to(place / "secret")
    (run / "films").symlink_to("/")


@hostile(reading=0, using=0)
def hidden_folders_beside_checkpoints(run: Path, place: Path) -> None:
    (run / "checkpoints" / ".git").mkdir()
    (run / "checkpoints" / ".git" / "HEAD").write_text("ref\n")
    (run / "checkpoints" / "2024").mkdir()


@hostile(reading=0, using=0)
def hard_links(run: Path, place: Path) -> None:
    os.link(run / "log.txt", place / "copy")
    (run / "log.txt").unlink()
    shutil.copy(place / "copy", run / "log.txt")


# -- no files ----------------------------------------------------------------------------------------------------


@hostile(report=2, watch=2, compare=2, resume=2)
def metrics_are_a_pipe(run: Path, place: Path) -> None:
    replace_by_pipe(run / "metrics.jsonl")


@hostile(report=2, watch=2, compare=2, resume=2)
def status_is_a_pipe(run: Path, place: Path) -> None:
    replace_by_pipe(run / "status.json")


@hostile(info=0, report=2, watch=2, compare=0, using=2)
def config_is_a_pipe(run: Path, place: Path) -> None:
    replace_by_pipe(run / "config.toml")


@hostile(report=2, watch=2, resume=2)
def log_is_a_socket(run: Path, place: Path) -> None:
    (run / "log.txt").unlink()
    here = os.open(".", os.O_RDONLY)
    os.chdir(run)  # the path of a socket has at most 108 bytes
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("log.txt")
    os.fchdir(here)
    os.close(here)


@hostile(info=5, using=5)
def state_is_a_pipe(run: Path, place: Path) -> None:
    replace_by_pipe(run / CHECKPOINT / STATE)


@hostile(info=5, using=5)
def manifest_is_a_pipe(run: Path, place: Path) -> None:
    replace_by_pipe(run / CHECKPOINT / MANIFEST)


@hostile(report=2, watch=2, compare=2, resume=2)
def metrics_are_a_folder(run: Path, place: Path) -> None:
    replace_by_folder(run / "metrics.jsonl")


@hostile(report=2, watch=2, compare=2, resume=2)
def status_is_a_folder(run: Path, place: Path) -> None:
    replace_by_folder(run / "status.json")


@hostile(info=2, report=2, using=2)
def checkpoints_are_a_file(run: Path, place: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").write_text("")


@hostile(resume=2)
def debug_holds_a_pipe(run: Path, place: Path) -> None:
    (run / "debug").mkdir()
    os.mkfifo(run / "debug" / "learner.log")


# -- code --------------------------------------------------------------------------------------------------------


@hostile(reading=0, using=2)
def encoder_of_the_folder(run: Path, place: Path) -> None:
    with_code(run, place)
    with_settings(run, model__encoder='"evil:Net"')


@hostile(reading=0, using=2)
def environment_of_the_folder(run: Path, place: Path) -> None:
    with_code(run, place)
    with_settings(run, env__name='"evil:Env"')


@hostile(reading=0, using=2)
def environment_in_a_file_of_the_folder(run: Path, place: Path) -> None:
    with_code(run, place, "sub/evil.py")
    with_settings(run, env__name='"sub/evil.py:Env"')


@hostile(reading=0, using=2)
def registered_environment_of_the_folder(run: Path, place: Path) -> None:
    with_code(run, place)
    with_settings(run, env__name='"gymnasium/evil:Evil-v0"')


@hostile(reading=0, using=2)
def wrapper_of_the_folder(run: Path, place: Path) -> None:
    with_code(run, place)
    with_settings(run, env__wrappers='"TimeAwareObservation,evil:wrap"')


@hostile(reading=0, using=2)
def function_of_the_standard_library(run: Path, place: Path) -> None:
    with_settings(
        run, env__name='"subprocess:run"', env__settings=f'{{args = ["touch", {json.dumps(str(place / "ran"))}]}}'
    )


@hostile(reading=0, using=2)
def wrapper_that_writes_videos(run: Path, place: Path) -> None:
    folder = json.dumps(str(place / "videos"))
    with_settings(
        run, env__wrappers='"RecordVideo"', env__wrapper_settings=f"{{RecordVideo = {{video_folder = {folder}}}}}"
    )


@hostile(reading=0, using=2)
def forged_id_of_a_run(run: Path, place: Path) -> None:
    with_code(run, place)
    with_settings(run, model__encoder='"evil:Net"')
    (run / "run_id").write_text("../../elsewhere/record\n")
    record = {"modules": ["evil"], "folder": str(run)}
    (place / "elsewhere" / "record.json").write_text(json.dumps(record))


@hostile()
def modules_with_usual_names(run: Path, place: Path) -> None:
    for name in ("gymnasium", "torch", "numpy", "json", "rich", "sitecustomize", "usercustomize", "av"):
        with_code(run, place, f"{name}.py")


# -- text --------------------------------------------------------------------------------------------------------


@hostile(reading=0)
def escapes_in_status_log_and_metrics(run: Path, place: Path) -> None:
    with_status(run, state=f"failed {ESCAPES}", sentence=ESCAPES + SCRIPT, checkpoint=ESCAPES)
    with (run / "log.txt").open("a") as log:
        log.write(f"2026-11-30 10:00:00 sampler-0 {ESCAPES} {SCRIPT}\n2026-11-30 10:00:00 learner {ESCAPES}\n")
    with (run / "metrics.jsonl").open("a") as rows:
        rows.write(json.dumps({"env_steps": 10**6, "seconds": 9, ESCAPES + SCRIPT: 1}) + "\n")


@hostile(info=0, report=0, watch=0, compare=0)
def escapes_in_settings(run: Path, place: Path) -> None:
    with_settings(
        run,
        env__name=json.dumps(f"gymnasium/{ESCAPES}{SCRIPT}"),
        env__protocol=json.dumps(ESCAPES + SCRIPT),
        env__drop=json.dumps(ESCAPES),
        env__settings=f"{{{json.dumps(ESCAPES + SCRIPT)} = {json.dumps(ESCAPES + SCRIPT)}}}",
    )


@hostile(report=2, watch=2, compare=2, using=2, info=0)
def script_in_a_choice(run: Path, place: Path) -> None:
    with_settings(run, run__mode=json.dumps(ESCAPES + SCRIPT))


@hostile(report=2, using=2)
def escapes_in_names_of_settings(run: Path, place: Path) -> None:
    with (run / "config.toml").open("a") as file:
        file.write(f"\n[{json.dumps(ESCAPES)}]\n{json.dumps(ESCAPES)} = 1\n")


@hostile(info=5, using=5)
def escapes_in_the_manifest(run: Path, place: Path) -> None:
    entry = (0, hashlib.sha256(b"").hexdigest())
    write_manifest(run / CHECKPOINT, {ESCAPES + "\n": entry}, sfactory=ESCAPES, torch=[ESCAPES])


@hostile(info=0, report=0)
def escapes_in_a_checkpoint(run: Path, place: Path) -> None:
    forge_state(run, env=ESCAPES, protocol=ESCAPES + SCRIPT, observations=[ESCAPES])


@hostile(reading=0, using=0)
def escapes_in_names_of_files(run: Path, place: Path) -> None:
    (run / f"{ESCAPES}\n.mp4").write_bytes(b"")
    (run / "bytes\udcff.mp4").write_bytes(b"")
    (run / "checkpoints" / f"000{ESCAPES}").mkdir()
    (run / "corrupt" / f"{ESCAPES}\n").mkdir(parents=True)


@hostile(reading=0, using=0)
def bytes_that_are_not_utf8(run: Path, place: Path) -> None:
    for name in ("metrics.jsonl", "log.txt", "status.json"):
        with (run / name).open("ab") as file:
            file.write(b'\xff\xfe{"env_steps": 1\xff}\n')


@hostile(report=2, using=2, info=0)
def settings_that_are_not_utf8(run: Path, place: Path) -> None:
    with (run / "config.toml").open("ab") as file:
        file.write(b"# \xff\n")


@hostile(report=0, watch=0)
def half_a_character_in_status(run: Path, place: Path) -> None:
    with_status(run, sentence="\ud800", state="\udfff")


# -- types and numbers -------------------------------------------------------------------------------------------


@hostile(report=2, watch=2, compare=2, using=2)
def settings_of_wrong_types(run: Path, place: Path) -> None:
    with_settings(run, run__seed="[1]", model__hidden='"wide"', optim__lr="true", sampling__num_samplers="1979-05-27")


@hostile(report=2, watch=2, compare=2, using=2)
def more_lanes_than_memory(run: Path, place: Path) -> None:
    with_settings(run, sampling__envs_per_group="1000000000000000")


@hostile(report=2, watch=2, compare=2, using=2)
def more_groups_than_memory(run: Path, place: Path) -> None:
    with_settings(run, sampling__num_samplers="9000000000000000000", batch__slots="9000000000000000000")


@hostile(report=2, watch=2, compare=2, using=2)
def network_wider_than_memory(run: Path, place: Path) -> None:
    with_settings(run, model__hidden="[1000000000, 1000000000]")


@hostile(reading=0, using=5)
def network_deeper_than_memory(run: Path, place: Path) -> None:
    with_settings(run, model__hidden=f"[{', '.join(['128'] * 100_000)}]")


@hostile(report=2, watch=2, compare=2, using=2)
def memory_wider_than_memory(run: Path, place: Path) -> None:
    with_settings(run, model__core='"lstm"', model__core_size="1000000000", model__separate="false")


@hostile(report=2, watch=2, compare=2, using=2)
def numbers_without_end(run: Path, place: Path) -> None:
    with_settings(run, stop__env_steps='"1e999999999"', optim__lr="1e999", run__seed="0x" + "f" * 50_000)


@hostile(report=2, watch=2, compare=2, using=2)
def settings_nested_without_end(run: Path, place: Path) -> None:
    with_settings(run, env__settings=f"{{a = {'[' * 5000}{']' * 5000}}}")


@hostile(report=2, watch=2, compare=2, using=2)
def settings_larger_than_memory(run: Path, place: Path) -> None:
    with (run / "config.toml").open("ab") as file:
        file.truncate(2**40)


@hostile(info=0, report=0, compare=0)
def a_number_in_letters(run: Path, place: Path) -> None:
    with_settings(run, env__settings='{max_episode_steps = "1e999990k"}')


@hostile(reading=0)
def status_of_wrong_types(run: Path, place: Path) -> None:
    with_status(
        run, seconds=[1], env_steps="many", exit={"a": 1}, training_return="good", pid=[1], sentence={"a": 1},
        ledger={"sampled": "x", "trained": None, "skipped": 10**400, "discarded": [], "in_flight": 1},
    )  # fmt: skip


@hostile(reading=0)
def status_of_numbers_without_end(run: Path, place: Path) -> None:
    (run / "status.json").write_text(
        '{"state": "finished", "seconds": 1e999, "env_steps": NaN, "training_return": -Infinity, "updates": '
        + "9" * 4000 + "}"
    )  # fmt: skip


@hostile(reading=0)
def status_nested_without_end(run: Path, place: Path) -> None:
    (run / "status.json").write_text("[" * 100_000)


@hostile(watch=0)
def status_of_a_process_that_does_not_train(run: Path, place: Path) -> None:
    with_status(run, state="running", pid=os.getpid())
    (run / ".lock").write_text(str(os.getpid()))
    os.utime(run / "status.json", (2**32, 2**32))


@hostile(watch=0)
def status_of_the_first_process(run: Path, place: Path) -> None:
    with_status(run, state="running", pid=1)
    os.utime(run / "status.json", (2**32, 2**32))


@hostile(reading=0)
def rows_of_wrong_types(run: Path, place: Path) -> None:
    names = ("charts/episodic_return", "charts/SPS", "stage/learner/wait", "lag/mean", "lag/max", "faults/total")
    values = ('"x"', "[]", "{}", "true", "NaN", "1e999", "-1e300", "9" * 400, "null")
    with (run / "metrics.jsonl").open("a") as rows:
        for step, value in enumerate(values, start=10**6):
            fields = ", ".join(f'"{name}": {value}' for name in names)
            rows.write(f'{{"env_steps": {step}, "seconds": 10, {fields}}}\n')
            rows.write(f'{{"env_steps": {value}, "seconds": {value}}}\n')
        rows.write("[" * 100_000 + "\n" + "9" * 2_000_000 + "\n")


@hostile(report=2, compare=2)
def metrics_larger_than_memory(run: Path, place: Path) -> None:
    with (run / "metrics.jsonl").open("ab") as file:
        file.truncate(2**42)


@hostile(report=0)
def log_larger_than_memory(run: Path, place: Path) -> None:
    with (run / "log.txt").open("ab") as file:
        file.truncate(2**30)


@hostile(reading=0)
def rows_with_many_metrics(run: Path, place: Path) -> None:
    with (run / "metrics.jsonl").open("a") as rows:
        for step in range(3):
            row = {f"{step}/{number}": 1 for number in range(30_000)}
            rows.write(json.dumps({"env_steps": 10**6 + step, "seconds": 10, **row}) + "\n")


# -- checkpoints whose manifests fit -----------------------------------------------------------------------------


@hostile(info=5, using=5)
def weights_that_are_not_finite(run: Path, place: Path) -> None:
    forge_tensors(run, MODEL, lambda arrays: next(iter(arrays.values())).fill(np.nan))


@hostile(info=5, using=5)
def moments_that_are_not_finite(run: Path, place: Path) -> None:
    forge_tensors(run, "optimizer.safetensors", lambda arrays: arrays["0.exp_avg"].fill(np.inf))


@hostile(eval=5, load_policy=5, export=5)
def no_weights(run: Path, place: Path) -> None:
    forge_tensors(run, MODEL, lambda arrays: arrays.clear())


@hostile(eval=5, load_policy=5, export=5)
def weights_of_another_shape(run: Path, place: Path) -> None:
    forge_tensors(run, MODEL, lambda arrays: arrays.update({n: a[..., :1].copy() for n, a in arrays.items() if a.ndim}))


@hostile(eval=5, load_policy=5, export=5)
def weights_of_another_type(run: Path, place: Path) -> None:
    forge_tensors(run, MODEL, lambda arrays: arrays.update({n: a.astype(np.float64) for n, a in arrays.items()}))


@hostile(eval=5, load_policy=5, export=5)
def weights_with_strange_names(run: Path, place: Path) -> None:
    forge_tensors(run, MODEL, lambda arrays: arrays.update({ESCAPES: np.ones(1, np.float32)}))


@hostile(info=5, using=5)
def no_optimizer(run: Path, place: Path) -> None:
    forge(run, lambda files: files.pop("optimizer.safetensors"))


@hostile(info=5, using=5)
def header_longer_than_the_file(run: Path, place: Path) -> None:
    forge(run, lambda files: files.update({MODEL: with_header({}, length=2**62)}))


@hostile(info=5, using=5)
def header_without_end(run: Path, place: Path) -> None:
    text = b"[" * 1_000_000
    forge(run, lambda files: files.update({MODEL: struct.pack("<Q", len(text)) + text}))


@hostile(info=5, using=5)
def tensors_larger_than_the_file(run: Path, place: Path) -> None:
    entry = {"dtype": "F32", "shape": [2**30, 2**30], "data_offsets": [0, 16]}
    forge(run, lambda files: files.update({MODEL: with_header({"w": entry}, bytes(16))}))


@hostile(info=5, using=5)
def header_of_wrong_types(run: Path, place: Path) -> None:
    entry = {"dtype": ["F32"], "shape": "x", "data_offsets": {"a": 1}}
    forge(run, lambda files: files.update({MODEL: with_header({"w": entry, "v": 3, "__metadata__": 5})}))


@hostile(info=5, using=5)
def state_is_a_list(run: Path, place: Path) -> None:
    forge(run, lambda files: files.update({STATE: b"[1, 2]"}))


@hostile(info=5, using=5)
def state_of_texts(run: Path, place: Path) -> None:
    forge_state(run, env_steps="many", updates=[], seconds="long", launch={}, kl="x")


@hostile(info=5, using=5)
def state_that_is_not_finite(run: Path, place: Path) -> None:
    forge_state(run, seconds=float("nan"), updates=2**70)


@hostile(info=5, using=5)
def state_of_no_ranks(run: Path, place: Path) -> None:
    forge_state(run, world_size=0)


@hostile(info=5, using=5)
def state_of_too_many_ranks(run: Path, place: Path) -> None:
    forge_state(run, world_size=2**60)


@hostile(info=5, using=5)
def state_without_end(run: Path, place: Path) -> None:
    forge(run, lambda files: files.update({STATE: b"[" * 1_000_000}))


@hostile(resume=5)
def state_without_a_launch(run: Path, place: Path) -> None:
    def change(files: dict[str, bytes]) -> None:
        state = json.loads(files[STATE])
        del state["launch"]
        files[STATE] = json.dumps(state).encode()

    forge(run, change)


@hostile(info=5, using=5)
def manifest_of_wrong_types(run: Path, place: Path) -> None:
    forge(run, lambda files: None, files={STATE: {"size": "x", "sha256": [1]}}, sfactory=3, torch={"a": ESCAPES})


@hostile(info=5, using=5)
def manifest_with_files_elsewhere(run: Path, place: Path) -> None:
    secret = (place / "secret").read_bytes()
    files = {
        f.name: (f.stat().st_size, hashlib.sha256(f.read_bytes()).hexdigest()) for f in (run / CHECKPOINT).iterdir()
    }
    files.pop(MANIFEST)
    for name in ("../../../secret", str(place / "secret")):
        files[name] = (len(secret), hashlib.sha256(secret).hexdigest())
    write_manifest(run / CHECKPOINT, files)


@hostile(info=5, using=5)
def format_of_another_version(run: Path, place: Path) -> None:
    forge(run, lambda files: None, format=99)


@hostile(info=5, using=5)
def weights_with_a_hole(run: Path, place: Path) -> None:
    folder, size = run / CHECKPOINT, 2**41
    files = {f.name: (f.stat().st_size, hashlib.sha256(f.read_bytes()).hexdigest()) for f in folder.iterdir()}
    files.pop(MANIFEST)
    os.truncate(folder / MODEL, size)
    files[MODEL] = (size, "0" * 64)
    write_manifest(folder, files)


@hostile(info=5, using=5)
def manifest_with_a_bit_flipped(run: Path, place: Path) -> None:
    data = bytearray((run / CHECKPOINT / MANIFEST).read_bytes())
    data[len(data) // 2] ^= 1
    (run / CHECKPOINT / MANIFEST).write_bytes(bytes(data))


if __name__ == "__main__":
    for folder_name in FOLDERS:
        place = Path(sys.argv[1]) / folder_name
        place.mkdir(parents=True)
        print(make_folder(folder_name, place))
    print(len(FOLDERS), "folders")
