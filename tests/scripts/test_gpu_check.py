"""The script for machines with a GPU: order, budget, what it says of failures and of what is missing, what it keeps.

A stand-in takes the interpreter's place: the steps themselves need a device.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gpu_check_list
import gpu_check_runner
import pytest
from gpu_check_runner import Check, Step

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "gpu_check.sh"
FULL = [
    "environment", "build", "doctor", "parity_kernels", "parity_cuda", "parity_engine", "parity_fuse_sum",
    "parity_bn_act", "parity_convolutions", "parity_training", "parity_engine_heads", "memcheck", "racecheck",
    "engine_w32_pose", "engine_w48_pose", "engine_w48_seg", "compiled_w32_pose", "fuse_sum", "bn_act",
    "grouped_conv3x3", "strided_conv_chain", "upsample_conv1x1_sum", "graphed_step", "training",
    "autotuned_w32_pose",
]  # fmt: skip
QUICK = [
    "environment", "build", "doctor", "parity_kernels", "parity_engine", "memcheck", "racecheck", "engine_w32_pose",
    "fuse_sum",
]  # fmt: skip
MACHINE = {
    "device": "a device", "arch": "9.0", "torch": "2.11.0", "torch_cuda": "13.0", "triton": "3.6.0", "pytest": "8.4",
    "pytest_benchmark": "5.1", "ninja": "1.13",
}  # fmt: skip
USABLE = {"usable": True, "reason": "it is there"}
DOCTOR = {"engine": ["float32: works"], "implementations": {"cuda": USABLE, "triton": USABLE}}


pytestmark = pytest.mark.processes


class Stand:
    """A folder with a stand-in for the interpreter and for the memory checker, and a run of the script."""

    def __init__(self, folder: Path) -> None:
        self.out = folder / "out"
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.tool("python", "", dict(MACHINE))
        self.tool("nvcc", "", {})
        checker = self.bin / "compute-sanitizer"
        checker.write_text('#!/bin/sh\necho checker "$@"\ncase "$1" in --help) echo --kernel-name;; esac\n')
        checker.chmod(0o755)

    def tool(self, name: str, case: str, machine: dict[str, Any], told: dict[str, Any] | None = None) -> None:
        """`case` is shell: patterns on all arguments, and what they do."""
        path = self.bin / name
        path.write_text(
            f"""#!/bin/sh
case "$*" in
  *gpu_check_machine*) echo '{json.dumps(machine)}'; exit 0;;
  *doctor*) echo '{json.dumps(told or DOCTOR, indent=1)}'; exit 0;;
esac
echo "$@"
env | grep -E '^(PYTEST|TRITON|HRNET|TORCH_CUDA)'
case "$*" in
  {case}
esac
exit 0
"""
        )
        path.chmod(0o755)

    def command(self, *arguments: str) -> list[str | Path]:
        return [SCRIPT, self.out, "--python", str(self.bin / "python"), *arguments]

    def environment(self) -> dict[str, str]:
        # CUDA's own folder is not looked into.
        nowhere = str(self.bin / "nowhere")
        return {**os.environ, "PATH": f"{self.bin}:{os.environ['PATH']}", "CUDA_HOME": nowhere, "TRITON_INTERPRET": "1"}

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments), env=self.environment(), capture_output=True, text=True, check=False
        )

    def lines(self) -> dict[str, dict[str, Any]]:
        made = [json.loads(line) for line in (self.out / "summary.jsonl").read_text().splitlines()]
        assert all(set(line) == {"name", "status", "exit_code", "seconds", "note"} for line in made)
        return {line["name"]: line for line in made}


@pytest.fixture
def stand(tmp_path: Path) -> Stand:
    return Stand(tmp_path)


def ordered(names: list[str]) -> list[str]:
    """Parity tests may run side by side, and end in any order."""
    return sorted(names, key=lambda n: (FULL.index("parity_cuda") if n.startswith("parity_") else FULL.index(n), n))


@pytest.mark.parametrize(("options", "names"), [([], FULL), (["--quick"], QUICK)])
def test_every_step_is_reached_in_order(stand: Stand, options: list[str], names: list[str]) -> None:
    done = stand.run(*options)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = stand.lines()
    assert list(lines)[:4] == names[:4]
    assert [n for n in lines if not n.startswith("parity_")] == [n for n in names if not n.startswith("parity_")]
    assert ordered(list(lines)) == ordered(names)
    assert {line["status"] for line in lines.values()} == {"ok"}
    assert (stand.out / "summary.txt").read_text().splitlines()[-1] == "nothing failed"
    for name in names[1:]:
        log = (stand.out / f"{name}.log").read_text()
        words = [w for w in log.split() if w.startswith(("tests/", "benchmarks/", "scripts/", "setup.py"))]
        assert all((ROOT / word).exists() for word in words)
        assert words or name in ("doctor", "memcheck", "racecheck")
        assert "TRITON_INTERPRET" not in log
    assert "TORCH_CUDA_ARCH_LIST=9.0" in (stand.out / "build.log").read_text()
    assert "PYTEST_DISABLE_PLUGIN_AUTOLOAD=1" in (stand.out / "parity_kernels.log").read_text()
    checked = (stand.out / "memcheck.log").read_text()
    assert checked.startswith("checker --tool memcheck --error-exitcode 86")
    assert "--kernel-name kns=fuse_sum" in checked


def test_a_failing_step_is_reported_and_the_rest_goes_on(stand: Stand) -> None:
    stand.tool("python", "*bench_fuse_sum*) echo no such thing; exit 3;;", MACHINE)
    (stand.bin / "compute-sanitizer").write_text("#!/bin/sh\necho '==== ERROR SUMMARY: 2 errors'; exit 86\n")
    assert stand.run("--quick").returncode == 1
    lines = stand.lines()
    assert ordered(list(lines)) == ordered(QUICK)
    assert (lines["fuse_sum"]["status"], lines["fuse_sum"]["exit_code"]) == ("failed", 3)
    assert lines["fuse_sum"]["note"] == "no such thing"
    assert (lines["memcheck"]["status"], lines["memcheck"]["note"]) == ("failed", "ERROR SUMMARY: 2 errors")
    assert (stand.out / "summary.txt").read_text().splitlines()[-1] == "FAILED"


@pytest.mark.parametrize(
    ("case", "note"),
    [
        ("*setup.py*) echo 'hrnet_fast: the CUDA sources do not build, leaving them out: x';;", "sources do not build"),
        ("*setup.py*) echo broken; exit 1;;", "broken"),
    ],
)
def test_a_build_without_kernels_has_failed(stand: Stand, case: str, note: str) -> None:
    stand.tool("python", case, MACHINE)
    assert stand.run("--quick").returncode == 1
    assert stand.lines()["build"]["status"] == "failed"
    assert note in stand.lines()["build"]["note"]


def test_kernels_that_cannot_be_used_have_failed(stand: Stand) -> None:
    bad = {"usable": False, "reason": "built without nvcc"}
    told = {"engine": ["float32: WRONG by 1"], "implementations": {"cuda": bad, "triton": USABLE}}
    stand.tool("python", "", MACHINE, told)
    assert stand.run().returncode == 1
    lines = stand.lines()
    assert "WRONG" in lines["implementations"]["note"]
    assert "cuda is not usable: built without nvcc" in lines["implementations"]["note"]
    assert (lines["parity_cuda"]["status"], lines["parity_cuda"]["note"]) == ("missing", "built without nvcc")
    assert lines["parity_fuse_sum"]["status"] == "ok"


@pytest.mark.parametrize(
    ("lacks", "missing"),
    [
        ("triton", {"parity_fuse_sum", "parity_bn_act", "parity_convolutions"}),
        ("pytest_benchmark", set(FULL[FULL.index("engine_w32_pose") :]) - {"graphed_step"}),
        ("compute-sanitizer", {"memcheck", "racecheck"}),
        ("ninja", set()),
    ],
)
def test_what_is_missing_is_named_and_fails_nothing(stand: Stand, lacks: str, missing: set[str]) -> None:
    if lacks == "compute-sanitizer":
        (stand.bin / lacks).unlink()
    stand.tool("python", "", MACHINE | {lacks: None})
    assert stand.run().returncode == 0
    lines = stand.lines()
    assert {n for n, line in lines.items() if line["status"] == "missing"} == missing
    assert all(lacks.replace("_", "-") in lines[name]["note"] for name in missing)


def test_without_a_device(stand: Stand) -> None:
    stand.tool("python", "", MACHINE | {"device": None, "arch": None})
    assert stand.run("--quick").returncode == 1
    lines = stand.lines()
    assert lines["environment"]["status"] == "failed"
    assert lines["memcheck"]["note"] == "torch sees no CUDA device"


def test_an_interpreter_that_prints_nothing(stand: Stand) -> None:
    (stand.bin / "python").write_text("#!/bin/sh\nexit 1\n")
    assert stand.run("--quick").returncode == 1
    assert stand.lines()["environment"]["status"] == "failed"
    assert "torch cannot be imported" in stand.lines()["parity_kernels"]["note"] + stand.lines()["build"]["note"]


def test_no_time(stand: Stand) -> None:
    assert stand.run("0.01").returncode == 0
    assert {line["note"] for name, line in stand.lines().items() if name != "environment"} == {"no time"}
    assert "left out" in (stand.out / "summary.txt").read_text()


@pytest.mark.slow
def test_the_time_that_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cap ends a step; what then does not fit is left out; something short still runs."""
    monkeypatch.setattr(gpu_check_runner, "GRACE", 2.1)
    check = Check(tmp_path, 8.0)
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    stubborn = ["sh", "-c", "trap '' INT; echo begun; while :; do sleep 0.1; done"]
    quick = ["sh", "-c", "exit 0"]
    check.run_all([
        Step("capped", sleep, 0.5),
        Step("stubborn", stubborn, 0.5),
        Step("long", quick, 60, 30),
        Step("late", quick, 60, 1, by=0.1),
        Step("short", quick, 60, 1),
    ])  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "summary.jsonl").read_text().splitlines()]
    assert [(line["name"], line["status"]) for line in lines] == [
        ("capped", "timeout"), ("stubborn", "timeout"), ("long", "left out"), ("late", "left out"), ("short", "ok"),
    ]  # fmt: skip
    assert check.finish() == 1
    assert (tmp_path / "stubborn.log").read_text() == "begun\n"


def test_side_by_side(tmp_path: Path) -> None:
    check = Check(tmp_path, 60.0, workers=2)
    # Each waits for the other.
    meet = "touch {0}; for i in $(seq 100); do [ -e {1} ] && exit 0; sleep 0.1; done; exit 1"
    names = tmp_path / "a", tmp_path / "b"
    steps = [Step(n.name, ["sh", "-c", meet.format(n, o)], 20, 1, beside=True)
             for n, o in (names, names[::-1])]  # fmt: skip
    check.run_all([*steps, Step("last", ["true"], 20, 1)])
    assert [r["status"] for r in check.records] == ["ok"] * 3
    assert check.records[-1]["name"] == "last"


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_cut_off_on_the_way(stand: Stand, how: signal.Signals) -> None:
    stand.tool("python", "*test_cuda_executor.py*) touch $0.there; sleep 4;;", MACHINE)
    process = subprocess.Popen(stand.command("--quick"), env=stand.environment(), stdout=subprocess.DEVNULL)
    for _ in range(300):
        if (stand.bin / "python.there").exists():
            break
        time.sleep(0.1)
    process.send_signal(how)
    process.wait(30)
    assert process.returncode == (1 if how == signal.SIGTERM else -how)
    lines = stand.lines()
    done = {"environment", "build", "doctor", "parity_kernels"}
    assert {n for n, line in lines.items() if line["status"] == "ok"} == done
    if how == signal.SIGTERM:
        assert lines["parity_engine"]["status"] == "failed"
        assert lines["fuse_sum"]["status"] == "left out"
        assert {lines[n]["note"] for n in ("parity_engine", "fuse_sum")} == {"stopped by SIGTERM"}
        assert (stand.out / "summary.txt").exists()


@pytest.mark.parametrize(
    "arguments",
    [[], ["out", "soon"], ["out", "-1"], ["out", "nan"], ["out", "9", "more"], ["out", "--slow"],
     ["out", "--only", "build,nothing"], ["out", "--python", "/no/such/python"], ["/proc/version/out"]],
)  # fmt: skip
def test_bad_arguments(arguments: list[str], tmp_path: Path) -> None:
    done = subprocess.run([SCRIPT, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "usage" in done.stderr
    assert not any(tmp_path.iterdir()) or "--python" in arguments


def test_reports_are_read(tmp_path: Path) -> None:
    step = Step("some", [], 1)
    (tmp_path / "some.log").write_text("words\n")
    case = '<testcase name="{}">{}</testcase>'
    for bodies, status, note in (
        (["", "<skipped/>", "<failure/>"], "ok", "1 passed, 1 skipped, 1 failed; t2"),
        (["<skipped/>"], "failed", "0 passed, 1 skipped, 0 failed; nothing ran"),
    ):
        cases = "".join(case.format(f"t{i}", body) for i, body in enumerate(bodies))
        (tmp_path / "some.xml").write_text(f"<testsuites><testsuite>{cases}</testsuite></testsuites>")
        assert gpu_check_runner.judged(tmp_path, step, 0) == (status, note)
    (tmp_path / "some.xml").write_text("<testsuites><tests")
    assert gpu_check_runner.judged(tmp_path, step, 1) == ("failed", "words")
    (tmp_path / "some.json").write_text(
        json.dumps({"benchmarks": [{"name": "b", "extra_info": {"eager_ms": 2.5, "explained": "words"}}]})
    )
    assert list(gpu_check_runner.figures(tmp_path / "some.json")) == ["b: {'eager_ms': 2.5}"]
    assert not list(gpu_check_runner.figures(tmp_path / "none.json"))


COLLECT = """
import io, json, sys
from contextlib import redirect_stdout
import pytest
made = {}
for name, arguments in json.loads(sys.argv[1]).items():
    with redirect_stdout(io.StringIO()) as said:
        pytest.main(["-o", "addopts=-ra --strict-markers", "-p", "no:cacheprovider", "--collect-only", "-q",
                     "-m", "device", *arguments])
    made[name] = [line for line in said.getvalue().splitlines() if "::" in line]
print(json.dumps(made))
"""


@pytest.mark.slow
def test_selections(tmp_path: Path) -> None:
    """Each kernel has tests, and each test that needs the device is in one part; other plugins are not there."""
    for package in ("hypothesis", "xdist", "pytest_timeout", "timm", "onnxruntime", "openvino"):
        (tmp_path / f"{package}.py").write_text("raise ImportError('it is not here')\n")
    tests = [
        "tests/ops",
        "tests/training",
        "tests/inference",
        "tests/models/test_registry.py",
        "tests/cli/test_cli_engine.py",
    ]
    asked: dict[str, list[str]] = {
        kernel: ["-k", k, *gpu_check_list.KERNEL_TESTS] for kernel, k in gpu_check_list.VISITS.items()
    }
    asked |= {name: list(selection) for name, selection in gpu_check_list.PARITY.items()}
    asked |= {"every": list(gpu_check_list.EVERY_KERNEL), "all": tests}
    done = subprocess.run(
        [sys.executable, "-c", COLLECT, json.dumps(asked)], cwd=ROOT, capture_output=True, text=True, check=False,
        env=gpu_check_runner.environment({"PYTHONPATH": str(tmp_path)}),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert all(found.values()), found
    for kernel in gpu_check_list.VISITS:
        assert all(("[cuda" if "CUDA" in kernel else "[triton") in name for name in found[kernel])
    assert sorted(found["every"]) == sorted(name for kernel in gpu_check_list.VISITS for name in found[kernel])
    parts = [name for part in gpu_check_list.PARITY for name in found[part]]
    assert len(parts) == len(set(parts))
    assert set(parts) == set(found["all"])


def test_every_kernel_is_named() -> None:
    cuda = "".join(path.read_text() for path in (ROOT / "kernels" / "cuda").glob("*.cuh"))
    triton = "".join(path.read_text() for path in (ROOT / "kernels" / "triton").glob("*.py"))
    kernels = {f"CUDA C++: {n}" for n in re.findall(r"__global__[^;{]*?(\w+_kernel)\(", cuda)}
    kernels |= {f"Triton: {n}" for n in re.findall(r"^def (\w+_kernel)\(", triton, re.MULTILINE)}
    named = {f"{key.split(': ')[0]}: {n}" for key in gpu_check_list.VISITS for n in key.split(": ")[1].split(", ")}
    assert named == kernels
    assert all(any(part in n for part in re.findall(r"kns=(\w+)", gpu_check_list.OWN_KERNELS)) for n in kernels)


@pytest.mark.slow
def test_a_rehearsal(tmp_path: Path) -> None:
    """With the real interpreter, a step of each kind; the null device's tests run the others."""
    names = ["doctor", "memcheck", "fuse_sum"]
    options = ["--quick", "--dry-run", "--only", ",".join(names), "--python", sys.executable]
    done = subprocess.run([SCRIPT, tmp_path / "out", *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    lines = [json.loads(line) for line in (tmp_path / "out" / "summary.jsonl").read_text().splitlines()]
    assert sorted(line["name"] for line in lines) == sorted(["environment", *names])
    assert {line["status"] for line in lines} == {"ok"}
    assert re.search(r"\d+/\d+ tests collected", next(x["note"] for x in lines if x["name"] == "memcheck"))
