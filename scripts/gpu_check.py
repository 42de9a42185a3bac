"""The steps of ``scripts/gpu_check.sh``: their order, time limits and records.

Imports the standard library only, so that it can report any package that the machine lacks.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[1]
# Seconds that a step has to end after its time limit, in which pytest writes its report.
GRACE = 5.0
LEAST = {"torch": (2, 10), "triton": (3, 6)}
CHECKER_FOUND = 86  # exit code that the memory checker returns for errors

# Tests that visit each own kernel at least once, as pytest's -k takes them; all of them are marked `device`.
VISITS = {
    "CUDA C++: fuse_sum_kernel, fuse_sum_backward_kernel, column_sums_kernel": (
        "test_every_width_of_access and (float32 or bfloat16)"
    ),
    "CUDA C++: bn_statistics_kernel, bn_running_affine_kernel, bn_act_kernel, bn_backward_sums_kernel, "
    "bn_backward_input_kernel": ("test_bn_act and test_parity and cuda and 17 and float32 and residual-relu"),
    "Triton: fuse_sum_kernel, fuse_sum_backward_kernel": (
        "test_fuse_sum and test_parity and triton and bilinear-False and 17 and float32"
    ),
    "Triton: bn_statistics_kernel, bn_affine_kernel, bn_act_kernel, bn_backward_sums_kernel, "
    "bn_backward_input_kernel": ("test_bn_act and test_parity and triton and 17 and float32 and residual-relu"),
    "Triton: bn_moments_kernel": "test_statistics_on_a_device",
    "Triton: upsample_conv1x1_sum_kernel": (
        "test_upsample and triton and (test_channels_of_wide_networks or "
        "test_parity and bilinear-False and 17 and float32)"
    ),
    "Triton: strided_conv_chain_kernel": (
        "test_strided and triton and (test_channels_of_wide_networks or test_parity and 17 and float32)"
    ),
    "Triton: grouped_conv3x3_kernel": (
        "test_grouped and triton and (test_channels_of_wide_networks or test_parity and float32)"
    ),
}
KERNEL_TESTS = tuple(
    f"tests/ops/test_{name}.py"
    for name in (
        "fuse_sum", "bn_act", "bn_act_contract", "bn_act_triton", "upsample_conv1x1_sum", "strided_conv_chain",
        "grouped_conv3x3",
    )
)  # fmt: skip
EVERY_KERNEL = ("-k", " or ".join(f"({tests})" for tests in VISITS.values()), *KERNEL_TESTS)
# The checker skips kernels of libraries: they are not tested here, and take most of its time.
OWN_KERNELS = "kns=fuse_sum,kns=column_sums,kns=bn_,kns=upsample_conv1x1,kns=strided_conv,kns=grouped_conv"

# Every test that needs the device, in parts that may run side by side.
PARITY = {
    "parity_cuda": (
        "-k",
        "cuda",
        "tests/ops/test_bn_act_cuda.py",
        *(f"tests/ops/test_{name}.py" for name in ("fuse_sum", "bn_act", "bn_act_contract")),
    ),
    "parity_engine": ("-k", "[v1- or [ocr-", "tests/inference/test_cuda_executor.py"),
    "parity_fuse_sum": ("-k", "triton", "tests/ops/test_fuse_sum.py"),
    "parity_bn_act": ("-k", "triton", *(path for path in KERNEL_TESTS if "bn_act" in path)),
    "parity_convolutions": tuple(path for path in KERNEL_TESTS if "conv" in path),
    "parity_training": ("tests/training/test_accelerate_precision.py",),
    "parity_engine_heads": ("-k", "not ([v1- or [ocr-)", "tests/inference/test_cuda_executor.py"),
}
TRITON_ONLY = ("parity_fuse_sum", "parity_bn_act", "parity_convolutions")


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        name: of the step and of its log.
        command: what runs.
        cap: the most seconds that it gets.
        least: with fewer seconds left it is not begun.
        needs: what it cannot do without, as `Check.lacking` names it.
        environment: added to this process's own.
        beside: whether it may run beside its neighbours of which that is true as well.
        by: when it is ended at the latest, in seconds of the whole run: something is to be left for what follows.
    """

    name: str
    command: list[str]
    cap: float
    least: float = 10.0
    needs: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    beside: bool = False
    by: float = float("inf")


class Check:
    """Runs steps within a time limit, and records each as it ends."""

    def __init__(self, out: Path, seconds: float, workers: int = 1) -> None:
        self.out = out
        self.start = time.monotonic()
        self.deadline = self.start + seconds
        self.workers = workers
        # Missing requirements of the machine: the name in a step's `needs`, and the reason.
        self.lacking: dict[str, str] = {}
        self.records: list[dict[str, Any]] = []
        self.stopped = ""
        self._lock = threading.Lock()
        (out / "summary.jsonl").write_text("")

    def record(self, name: str, status: str, code: int | None = None, seconds: float = 0.0, note: str = "") -> None:
        """Write one line of summary.jsonl and flush it to disk: the next step may crash the machine."""
        line = {"name": name, "status": status, "exit_code": code, "seconds": round(seconds, 1), "note": note}
        with self._lock:
            self.records.append(line)
            with (self.out / "summary.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
                file.flush()
                os.fsync(file.fileno())
            print(shown(line), flush=True)

    def run_all(self, steps: list[Step]) -> None:
        """Run the steps in order, and consecutive parallel ones together."""
        for beside, group in itertools.groupby(steps, lambda step: step.beside):
            if beside and self.workers > 1:
                with ThreadPoolExecutor(self.workers) as pool:
                    list(pool.map(self.run, group))
            else:
                for step in group:
                    self.run(step)

    def run(self, step: Step) -> None:
        """Run one step, or record why it is skipped."""
        missing = [self.lacking[need] for need in step.needs if need in self.lacking]
        for kind in ("log", "xml", "json"):  # files of an earlier run must not be read as results of this one
            (self.out / f"{step.name}.{kind}").unlink(missing_ok=True)
        limit = min(step.cap, min(self.deadline, self.start + step.by) - time.monotonic() - GRACE)
        if self.stopped:
            self.record(step.name, "left out", note=self.stopped)
        elif missing:
            self.record(step.name, "missing", note="; ".join(missing))
        elif limit < min(step.least, step.cap):
            self.record(step.name, "left out", note="no time")
        else:
            start = time.monotonic()
            code, ended = self._execute(step, limit)
            status, note = judged(self.out, step, code)
            if ended:
                status, note = "timeout", f"ended after {limit:.0f} s; {note}".strip("; ")
                if self.stopped:
                    status, note = "failed", self.stopped
            self.record(step.name, status, code, time.monotonic() - start, note)

    def _execute(self, step: Step, limit: float) -> tuple[int | None, bool]:
        """Return the exit code, and whether the step was ended by its time limit."""
        start = time.monotonic()
        try:
            with (self.out / f"{step.name}.log").open("w") as log:
                process = subprocess.Popen(
                    step.command, cwd=ROOT, env=environment(step.environment), stdin=subprocess.DEVNULL, stdout=log,
                    stderr=subprocess.STDOUT, start_new_session=True,
                )  # fmt: skip
        except OSError as error:
            (self.out / f"{step.name}.log").write_text(f"{error}\n")
            return 127, False
        while time.monotonic() - start < limit and not self.stopped:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(0.1), False
        # SIGINT makes pytest write its reports; a process that hangs in the driver ignores it.
        for how, patience in ((signal.SIGINT, GRACE - 2), (signal.SIGKILL, 2)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, how)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(patience)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # child processes of the step
        return process.poll(), True

    def stop(self, number: int, frame: object) -> None:
        """End the run at a signal, with the results so far."""
        self.stopped = f"stopped by {signal.Signals(number).name}"

    def finish(self) -> int:
        """Write summary.txt and return the exit status."""
        failed = any(r["status"] in ("failed", "timeout") for r in self.records)
        lines = [shown(r) for r in self.records]
        for r in self.records:
            lines += figures(self.out / f"{r['name']}.json")
        lines.append("FAILED" if failed or self.stopped else "nothing failed")
        (self.out / "summary.txt").write_text("\n".join(lines) + "\n")
        print(lines[-1])
        return 1 if failed or self.stopped else 0


def shown(record: dict[str, Any]) -> str:
    return f"{record['name']:24} {record['status']:8} {record['seconds']:6.1f} s  {record['note']}".rstrip()


def judged(out: Path, step: Step, code: int | None) -> tuple[str, str]:
    """Return status and note of a step that ended by itself, from its exit code and output."""
    status = "ok" if code == 0 else "failed"
    notes = []
    log = (out / f"{step.name}.log").read_text(errors="replace")
    report = counted(out / f"{step.name}.xml")
    if report is not None:
        passed, skipped, bad = report
        notes.append(f"{passed} passed, {skipped} skipped, {len(bad)} failed")
        notes += bad[:3]
        if passed == 0 and code == 0:
            status = "failed"
            notes.append("nothing ran")
    elif collected := re.findall(r"^\d[^\n]*tests? collected.*$", log, re.MULTILINE):
        notes.append(collected[-1])
    # setup.py continues without the parts that it cannot build, and prints that.
    said = [line for line in log.splitlines() if line.startswith("hrnet_fast: ")]
    if step.name == "build" and said:
        status = "failed"
        notes += [line[:300] for line in said]
    if code == CHECKER_FOUND:
        notes += re.findall(r"^=+ ((?:ERROR|RACECHECK) SUMMARY.*)$", log, re.MULTILINE)
    if status == "failed" and not notes:
        notes = [line[:300] for line in log.splitlines()[-1:]]
    return status, "; ".join(notes)


def counted(report: Path) -> tuple[int, int, list[str]] | None:
    """Return the passed, skipped and failed tests of a junit report, or None without one."""
    try:
        cases = list(xml.etree.ElementTree.parse(report).iter("testcase"))
    except (OSError, xml.etree.ElementTree.ParseError):
        return None
    kinds = [{child.tag for child in case} for case in cases]
    bad = [str(c.get("name")) for c, k in zip(cases, kinds, strict=True) if k & {"failure", "error"}]
    skipped = sum("skipped" in k for k in kinds)
    return len(cases) - skipped - len(bad), skipped, bad


def figures(path: Path) -> Iterator[str]:
    """Return one line for each measurement of a benchmark file, without texts."""
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
        for case in json.loads(path.read_text()).get("benchmarks", ()):
            numbers = {k: v for k, v in case["extra_info"].items() if isinstance(v, (int, float))}
            yield f"{case['name']}: {numbers}"


def environment(added: dict[str, str]) -> dict[str, str]:
    """Return this process's environment without variables that change the tests, and with named pytest plugins only."""
    unwanted = ("PYTEST_ADDOPTS", "PYTEST_PLUGINS", "TRITON_INTERPRET", "HRNET_FAST_IMPL", "HRNET_FAST_BUILD")
    own = {name: value for name, value in os.environ.items() if name not in unwanted}
    return {**own, "PYTHONUNBUFFERED": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", **added}


def tool(name: str) -> str | None:
    """Return the path of a CUDA tool, from PATH or from the CUDA installation."""
    homes = [Path(os.environ.get(v, "")) for v in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(v)]
    homes.append(Path("/usr/local/cuda"))
    places = [os.environ.get("PATH", "")] + [str(h / d) for h in homes for d in ("bin", "compute-sanitizer")]
    return shutil.which(name, path=os.pathsep.join(places))


def said(*command: str | None, seconds: float = 20.0) -> str:
    """Return the output of a command, empty if it is missing or does not end."""
    if command[0] is None:
        return ""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(
            [str(part) for part in command], cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False,
            errors="replace",
        )  # fmt: skip
        return done.stdout.strip()
    return ""


def probe() -> dict[str, Any]:
    """Return the versions of packages and the device of this interpreter."""
    found: dict[str, Any] = {"python": sys.version.split()[0], "device": None, "arch": None}
    for package in ("torch", "triton", "pytest", "pytest_benchmark", "ninja"):
        try:
            found[package] = str(getattr(importlib.import_module(package), "__version__", "of unknown version"))
        except Exception as error:  # a package with missing libraries raises OSError or other errors
            found[package] = None
            found[f"{package}_error"] = str(error)[:200]
    if found["torch"]:
        import torch

        found["torch_cuda"] = torch.version.cuda
        if torch.cuda.is_available():
            major, minor = torch.cuda.get_device_capability()
            found |= {"device": torch.cuda.get_device_name(), "arch": f"{major}.{minor}"}
    return found


def older(version: str, least: tuple[int, ...]) -> bool:
    return tuple(int(n) for n in re.findall(r"\d+", version)[:2]) < least


def examine(check: Check, python: str, dry_run: bool) -> dict[str, Any]:
    """Record the environment and missing requirements as the first step."""
    start = time.monotonic()
    smi = shutil.which("nvidia-smi")
    (check.out / "environment.log").write_text(said(smi, "-q") or "no nvidia-smi\n")
    try:
        answer = said(python, str(Path(__file__)), "--probe", seconds=min(60.0, max(1.0, check.deadline - start)))
        found = dict(json.loads(answer.splitlines()[-1]))
    except (ValueError, IndexError, TypeError):
        found = {}
    nvcc, checker = tool("nvcc"), tool("compute-sanitizer")
    found |= {
        "nvcc": nvcc,
        "nvcc_version": next((v for v in said(nvcc, "--version").splitlines() if "release" in v), None),
        "compute_sanitizer": checker,
        "revision": said("git", "rev-parse", "HEAD") or None,
        "changed": said("git", "status", "--porcelain", "--untracked-files=no").splitlines(),
        "interpreter": python,
    }
    (check.out / "environment.json").write_text(json.dumps(found, indent=1) + "\n")

    lacking = {
        "torch": "torch cannot be imported",
        "device": "torch sees no CUDA device",
        "triton": "triton cannot be imported",
        "pytest": "pytest cannot be imported",
        "pytest_benchmark": "pytest-benchmark cannot be imported",
        "compute_sanitizer": "compute-sanitizer is not installed",
        "nvcc": "nvcc is not installed",
    }
    check.lacking = {name: why for name, why in lacking.items() if not found.get(name)}
    notes = [found.get("device") or "no device", *(f"{p} {found[p]}" for p in LEAST if found.get(p))]
    notes += [f"{p} is older than {'.'.join(map(str, v))}" for p, v in LEAST.items()
              if found.get(p) and older(found[p], v)]  # fmt: skip
    notes += [found["nvcc_version"]] if found["nvcc_version"] else []
    notes += [why for name, why in check.lacking.items() if name != "device"]
    if not (found.get("ninja") or shutil.which("ninja")):
        notes.append("no ninja: the extension is built one file at a time")
    needed = ("torch", "pytest") if dry_run else ("torch", "pytest", "device")
    bad = any(name in check.lacking for name in needed)
    if dry_run:
        # A dry run collects the device tests, skips the memory checker and runs the benchmarks.
        check.lacking = {n: w for n, w in check.lacking.items() if n in ("torch", "pytest", "pytest_benchmark")}
    check.record("environment", "failed" if bad else "ok", 1 if bad else 0, time.monotonic() - start, "; ".join(notes))
    return found


DOCTOR = "import json; from hrnet_fast.doctor import examine; print(json.dumps(examine(), indent=1))"


def doctor(check: Check, python: str, dry_run: bool) -> None:
    """Check ``hrnet-fast doctor``: with a device, built and installed implementations must be usable."""
    check.run(Step("doctor", [python, "-c", DOCTOR], 60, 5, ("torch",)))
    if dry_run or check.records[-1]["status"] != "ok":
        return
    log = (check.out / "doctor.log").read_text(errors="replace")
    try:
        found = json.loads(log[log.index("{\n") :])
        usable = {name: found["implementations"][name]["usable"] for name in ("cuda", "triton")}
        reasons = {name: found["implementations"][name]["reason"] for name in ("cuda", "triton")}
        wrong = [line for line in found["engine"] if "works" not in line]
    except (ValueError, KeyError, TypeError):
        return
    (check.out / "doctor.json").write_text(json.dumps(found, indent=1) + "\n")
    wrong += [
        f"{name} is not usable: {reasons[name]}"
        for name, from_what in (("cuda", "nvcc"), ("triton", "triton"))
        if from_what not in check.lacking and "device" not in check.lacking and not usable[name]
    ]
    if not usable["cuda"]:
        check.lacking["cuda"] = reasons["cuda"]
    if wrong:
        check.record("implementations", "failed", 1, 0, "; ".join(wrong))


def steps(out: Path, python: str, found: dict[str, Any], seconds: float, quick: bool, dry_run: bool) -> list[Step]:
    """Return all steps after the environment, in order of importance."""
    options = ["-o", "addopts=-ra --strict-markers", "-p", "no:cacheprovider", "--color=no", "--tb=short",
               "--continue-on-collection-errors"]  # fmt: skip
    # Without --strict-config, which makes pytest-timeout's setting an error if that plugin is not loaded.
    pytest = [python, "-m", "pytest", *options]

    def tests(name: str, *selection: str, cap: float, least: float = 10.0, needs: tuple[str, ...] = ()) -> Step:
        how = ["--collect-only", "-q"] if dry_run else ["-v", f"--junitxml={out / name}.xml"]
        command = [*pytest, *how, "-m", "device", *selection]
        return Step(name, command, cap, least, ("pytest", "device", *needs), beside=dry_run)

    def checker(name: str, cap: float) -> Step:
        step = tests(name, *EVERY_KERNEL, cap=cap, least=20, needs=("compute_sanitizer",))
        if dry_run or not found.get("compute_sanitizer"):
            return step
        path = found["compute_sanitizer"]
        filters = ["--kernel-name", OWN_KERNELS] if "--kernel-name" in said(path, "--help") else []
        head = [path, "--tool", name, "--error-exitcode", str(CHECKER_FOUND), "--target-processes", "application-only"]
        # A separate allocation for each tensor: the allocator's large blocks would hide accesses past an end.
        alone = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        return replace(step, command=[*head, *filters, *step.command], environment=alone)

    def bench(name: str, file: str, *selection: str, cap: float) -> Step:
        plugin = ["-p", "pytest_benchmark.plugin"]
        # Benchmarks beyond the step's time are recorded as such instead of lost.
        how = [] if dry_run else ["--benchmark", "-v", "-s", f"--results={out / name}.json",
                                  f"--budget={0.8 * cap / 60:.2f}", f"--junitxml={out / name}.xml"]  # fmt: skip
        # A fresh tuning cache: the user's may be of another version.
        added = {"HRNET_FAST_CACHE": str(out / "choices" / name)}
        command = [*pytest, *plugin, *(how or ["-q"]), f"benchmarks/{file}.py", *selection]
        needs = ("pytest", "pytest_benchmark", "device")
        return Step(name, command, cap, 15, needs, added, beside=dry_run)

    added = {}
    if found.get("arch") and not os.environ.get("TORCH_CUDA_ARCH_LIST"):
        added["TORCH_CUDA_ARCH_LIST"] = found["arch"]
    if found.get("nvcc") and shutil.which("nvcc") is None:
        added["PATH"] = os.pathsep.join((os.environ.get("PATH", ""), str(Path(found["nvcc"]).parent)))
    command = [python, "setup.py", *(["--name"] if dry_run else ["build_ext", "--inplace"])]
    made = [Step("build", command, 0.45 * seconds, 10, ("torch",), added)]
    model = "bench_inference"
    quick_peers = ("--contenders", "eager,engine")
    made.append(tests("parity_kernels", *EVERY_KERNEL, cap=0.2 * seconds))
    if quick:
        made.append(tests("parity_engine", "-k", "[v1- and (float32 or float16)", PARITY["parity_engine"][-1], cap=40))
        made += [checker("memcheck", 40), checker("racecheck", 30)]
        made.append(bench("engine_w32_pose", model, "-k", "w32_pose", *quick_peers, cap=45))
        made.append(bench("fuse_sum", "bench_fuse_sum", "-k", "cuda or triton", cap=45))
        return made
    for name, selection in PARITY.items():
        needs = ("triton",) if name in TRITON_ONLY else ("cuda",) if name == "parity_cuda" else ()
        step = tests(name, *selection, cap=0.35 * seconds, needs=needs)
        made.append(replace(step, beside=True, by=0.7 * seconds))
    made += [checker("memcheck", 75), checker("racecheck", 60)]
    for network in ("w32_pose", "w48_pose", "w48_seg"):
        made.append(bench(f"engine_{network}", model, "-k", network, *quick_peers, cap=75))
    made.append(
        bench(
            "compiled_w32_pose",
            model,
            "-k",
            "w32_pose",
            "--contenders",
            "channels-last,engine,reduce-overhead",
            cap=150,
        )
    )
    made.append(bench("fuse_sum", "bench_fuse_sum", "-k", "cuda or triton", cap=45))
    made += [bench(n, f"bench_{n}", cap=45) for n in ("bn_act", "grouped_conv3x3", "strided_conv_chain",
                                                      "upsample_conv1x1_sum")]  # fmt: skip
    made.append(bench("training", "bench_training", "-k", "batch-16-", cap=90))
    made.append(
        bench(
            "autotuned_w32_pose", model, "-k", "w32_pose", "--contenders", "channels-last,engine,max-autotune", cap=300
        )
    )
    return made


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"gpu_check: {message}; usage: {USAGE}\n")


USAGE = "scripts/gpu_check.sh OUTDIR [MINUTES] [--quick] [--dry-run] [--python PATH]"


def minutes(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e4:
        raise ValueError
    return value


def main() -> int:
    """Run all steps; 0 if nothing failed."""
    parser = Parser(usage=USAGE, description=__doc__)
    parser.add_argument("out", metavar="OUTDIR", type=Path)
    parser.add_argument("minutes", metavar="MINUTES", nargs="?", type=minutes, help="for everything together")
    parser.add_argument("--quick", action="store_true", help="fewer tests, and the two most important benchmarks")
    parser.add_argument("--dry-run", action="store_true", help="rehearse without a device")
    parser.add_argument("--python", default=sys.executable, help="interpreter that has torch")
    given = parser.parse_intermixed_args()
    python = shutil.which(given.python)
    if python is None:
        parser.error(f"--python {given.python} cannot be run")
    try:
        given.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"{given.out} is no folder to write to: {error.strerror}")
    out, python = given.out.resolve(), os.path.abspath(python)
    (out / "summary.txt").unlink(missing_ok=True)
    seconds = 60 * (given.minutes or (2.8 if given.quick else 9.0))
    # Tests compile kernels on the host, so they run in parallel. Benchmarks run alone.
    shutil.rmtree(out / "choices", ignore_errors=True)
    check = Check(out, seconds, max(1, min(6, (os.cpu_count() or 1) // (1 if given.dry_run else 2))))
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, check.stop)
    found = examine(check, python, given.dry_run)
    build, *rest = steps(out, python, found, seconds, given.quick, given.dry_run)
    check.run(build)
    doctor(check, python, given.dry_run)
    check.run_all(rest)
    return check.finish()


if __name__ == "__main__":
    if sys.argv[1:] == ["--probe"]:
        print(json.dumps(probe()))
        sys.exit(0)
    sys.exit(main())
