"""`sfactory doctor`: its checks on values and files of other machines, and the command on this one."""

import configparser
import importlib.metadata
import json
import resource
from pathlib import Path

import pytest
from ranks_helpers import variables

from sfactory.tools import doctor
from sfactory.tools.doctor import GIB, MachineFinding

ROOT = Path(__file__).parents[2]
NO_LIMIT = resource.RLIM_INFINITY


def write_files(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu.max": "100000 0\n"}, None),
        ({}, None),
    ],
)
def test_cpu_quota_reads_both_versions_of_control_groups(tmp_path, files, cores):
    assert doctor.cpu_quota(write_files(tmp_path, files)) == cores


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"memory.max": "2147483648\n"}, 2 * GIB),
        ({"memory.max": "max\n"}, None),
        ({"memory/memory.limit_in_bytes": "1073741824\n"}, GIB),
        ({"memory/memory.limit_in_bytes": "9223372036854771712\n"}, None),
        ({}, None),
    ],
)
def test_memory_limit_reads_both_versions_of_control_groups(tmp_path, files, limit):
    assert doctor.memory_limit(write_files(tmp_path, files)) == limit


def test_cpu_quota_of_a_parent_group_applies_to_its_children(tmp_path):
    write_files(tmp_path, {"job/cpu.max": "200000 100000", "job/step/cpu.max": "max 100000"})
    write_files(tmp_path, {"self": "1:cpu:/x\n0::/job/step\n"})
    groups = doctor.control_groups(tmp_path, tmp_path / "self")
    assert groups == [tmp_path, tmp_path / "job", tmp_path / "job" / "step"]
    assert doctor.smallest(doctor.cpu_quota(group) for group in groups) == 2.0
    assert doctor.smallest([None, None]) is None


@pytest.mark.parametrize(
    ("finding", "level", "text"),
    [
        (doctor.check_python((3, 11, 7), "2.13.0"), "ok", "Python 3.11.7, torch 2.13.0"),
        (doctor.check_python((3, 10, 1), "2.13.0"), "bad", "needs Python 3.11 or newer"),
        (doctor.check_python((3, 12, 1), None), "bad", "pip install torch"),
        (doctor.check_python((3, 12, 1), None, "2.13.0 cannot be imported: x"), "bad", "--force-reinstall torch"),
        (doctor.check_cores(64, 64, None), "ok", "quota none"),
        (doctor.check_cores(64, 64, 4.0), "warn", "use at most --sampling.num-samplers 3"),
        (doctor.check_cores(64, 4, 4.0), "ok", "64 of the machine, 4 allowed, quota 4"),
        (doctor.check_cores(8, 1, None), "warn", "share one core"),
        (doctor.check_cores(8, 8, 1.5), "warn", "share one core"),
        (doctor.check_threads({}, 8), "ok", "no variable set: samplers and evaluator get one thread each"),
        (doctor.check_threads({"OMP_NUM_THREADS": "1"}, 8), "ok", "OMP_NUM_THREADS=1"),
        (doctor.check_threads({"MKL_NUM_THREADS": "8"}, 8), "warn", "8 threads in every sampler"),
        (doctor.check_threads({"OMP_NUM_THREADS": "64"}, 8), "warn", "a number from 1 to 8; export OMP_NUM_THREADS=1"),
        (doctor.check_threads({"OMP_NUM_THREADS": "all"}, 8), "warn", "should be a number"),
        (doctor.check_memory(32 * GIB, 30 * GIB, None), "ok", "32.0 GiB, 30.0 free"),
        (doctor.check_memory(32 * GIB, 30 * GIB, 2 * GIB), "ok", "2.0 GiB (limit; the machine has 32.0), 2.0 free"),
        (doctor.check_memory(32 * GIB, GIB // 2, None), "warn", "stop other processes"),
        (doctor.check_memory(32 * GIB, 30 * GIB, GIB // 2), "warn", "about 0.6 GiB"),
        (doctor.check_shared_memory(64 * 2**20, True), "ok", "/dev/shm 0.06 GiB"),
        (doctor.check_shared_memory(None, False), "warn", "TMPDIR"),
        (doctor.check_descriptors(1024, NO_LIMIT), "ok", "1024, at most no limit"),
        (doctor.check_descriptors(256, 256), "warn", "ulimit -Hn 320"),
        (doctor.check_descriptors(64, 64), "bad", "ulimit -Hn"),
        (doctor.check_process_exit(True, True), "ok", "death signal yes, pidfd yes, subreaper yes"),
        (doctor.check_process_exit(True, True, False), "warn", "session of their own may be left over"),
        (doctor.check_process_exit(False, True), "warn", "training works"),
        (doctor.check_cuda(["H100", "H100"], True, "2.13"), "ok", "H100, H100"),
        (doctor.check_cuda([], True, "2.13+cpu"), "warn", "torch 2.13+cpu sees no device"),
        (doctor.check_cuda([], False, "2.13+cpu"), "ok", "on the CPU"),
        (doctor.check_learners(["gloo"], {}, 0), "ok", "one; several can talk over gloo"),
        (doctor.check_learners(["gloo"], variables(1, 4, 29500), 2), "warn", "rank 1 of 4; several can talk over gloo"),
        (doctor.check_learners([], variables(1, 4, 29500), 0), "bad", "built without torch.distributed"),
        (doctor.check_learners(["gloo"], {"RANK": "1", "WORLD_SIZE": "4"}, 0), "bad", "LOCAL_RANK"),
        (doctor.check_bf16({"avx512_bf16", "sse"}), "ok", "auto measures bf16"),
        (doctor.check_bf16({"sse"}), "ok", "run.precision auto is fp32"),
        (doctor.check_kernels("/home/me/.cache/sfactory/kernels/12.so"), "ok", "kernels/12.so"),
        (doctor.check_kernels("", "no C compiler (cc, gcc or clang) was found"), "warn", "training works"),
        (doctor.check_rendering({}, False, {}), "ok", "not installed"),
        (doctor.check_rendering({"DISPLAY": ":0"}, True, {}), "ok", "DISPLAY=:0"),
        (doctor.check_rendering({"WAYLAND_DISPLAY": "w"}, True, {}), "ok", "WAYLAND_DISPLAY=w"),
        (doctor.check_rendering({}, True, {"EGL": True}), "ok", "videos of MuJoCo use libEGL"),
        (doctor.check_rendering({}, True, {"OSMesa": True}), "warn", "export MUJOCO_GL=osmesa"),
        (doctor.check_rendering({}, True, {}), "warn", "apt-get install libegl1"),
        (doctor.check_rendering({"MUJOCO_GL": "osmesa"}, True, {"EGL": True}), "warn", "apt-get install libosmesa6"),
        (doctor.check_rendering({"MUJOCO_GL": "egl"}, True, {"EGL": True}), "ok", "MUJOCO_GL=egl"),
        (doctor.check_folder(Path("runs"), 9 * GIB, True), "ok", "runs can be written, 9.0 GiB free"),
        (doctor.check_folder(Path("runs"), GIB // 2, True), "warn", "checkpoints need disk space"),
        (doctor.check_folder(Path("runs"), None, False), "bad", "use --run.dir"),
    ],
)
def test_doctor_checks_report_level_and_advice(finding, level, text):
    assert finding.level == level
    assert text in f"{finding.found} {finding.advice}"
    assert bool(finding.advice) == (level != "ok")  # advice for every finding that is not ok


def test_doctor_reads_the_extras_of_setup_cfg_from_the_package_metadata():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    assert set(doctor.extras()) == set(parser["options.extras_require"]) - doctor.NOT_CHECKED
    assert doctor.extras()["onnx"] == ["onnx", "onnxscript", "onnxruntime"]
    assert doctor._not_installed(["numpy", "sfactory-absent"]) == ["sfactory-absent"]
    found = {f.topic: f for f in doctor.check_extras({"onnx": ["onnxruntime"], "atari": []})}
    assert found["extra onnx"] == MachineFinding("warn", "extra onnx", "no onnxruntime", "pip install 'sfactory[onnx]'")
    assert found["extra atari"].level == "ok"


def test_doctor_tests_the_folder_by_writing_to_it(tmp_path):
    free, writable = doctor._free_space(tmp_path / "runs" / "deep")
    assert writable
    assert free > 0
    assert list(tmp_path.iterdir()) == []
    assert doctor._free_space(Path("/proc/none/deep")) == (None, False)


def test_doctor_command_succeeds_on_this_machine(typed):
    code, out, line = typed("doctor")
    assert code == 0
    assert line.startswith("sfactory: healthy (exit 0): nothing prevents training")
    topics = [row[6:20].strip() for row in out.splitlines() if row[:5].strip() in ("ok", "warn")]
    assert topics[:3] == ["python", "cores", "threads"]
    import torch

    assert f"torch {torch.__version__}" in out


def test_doctor_command_exits_11_only_for_bad_findings(typed, monkeypatch):
    found = [MachineFinding("warn", "cores", "1", "buy one"), MachineFinding("ok", "cuda", "none")]
    monkeypatch.setattr(doctor, "examine", lambda folder: found)
    assert typed("doctor")[0] == 0
    found.append(MachineFinding("bad", "runs folder", "/x cannot be written", "give --run.dir"))
    code, out, line = typed("doctor", "--json")
    assert code == 11
    assert json.loads(out)["bad"] == 1
    assert line == "sfactory: cannot train here (exit 11): runs folder: /x cannot be written: give --run.dir"


def test_doctor_warns_without_a_compiler_for_the_kernels(tmp_path, monkeypatch):
    assert doctor.check_kernels(*doctor._kernels()).level == "ok"
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    (finding,) = [one for one in doctor.examine(tmp_path) if one.topic == "kernels"]
    assert (finding.level, finding.advice != "") == ("warn", True)
    assert finding.found.startswith("no C compiler (cc, gcc or clang) was found")


def test_doctor_says_why_torch_cannot_be_imported(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("raise ImportError('libexample.so: cannot open shared object file')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    problem = doctor._torch()["problem"]
    assert problem.startswith(importlib.metadata.version("torch"))
    assert problem.endswith("cannot be imported: ImportError: libexample.so: cannot open shared object file")
