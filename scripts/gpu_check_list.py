"""The list of steps of ``scripts/gpu_check.sh``, most important first: their commands and time limits."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpu_check_machine import said
from gpu_check_runner import CHECKER_FOUND, Step

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


class Commands:
    """Makes steps of tests, benchmarks and programs.

    Args:
        out: folder of the results.
        python: the interpreter.
        found: the machine, as `gpu_check_machine.examine` returns it.
        dry_run: whether to collect tests and to run benchmarks without measuring, on a machine without a device.
    """

    def __init__(self, out: Path, python: str, found: dict[str, Any], dry_run: bool) -> None:
        self.out, self.python, self.found, self.dry_run = out, python, found, dry_run
        # Without --strict-config, which makes pytest-timeout's setting an error if that plugin is not loaded.
        self._pytest = [
            python, "-m", "pytest", "-o", "addopts=-ra --strict-markers", "-p", "no:cacheprovider", "--color=no",
            "--tb=short", "--continue-on-collection-errors",
        ]  # fmt: skip

    def build(self, cap: float) -> Step:
        """Build the extension in place, for the device's architecture."""
        added = {}
        if self.found.get("arch") and not os.environ.get("TORCH_CUDA_ARCH_LIST"):
            added["TORCH_CUDA_ARCH_LIST"] = self.found["arch"]
        if self.found.get("nvcc") and shutil.which("nvcc") is None:
            added["PATH"] = os.pathsep.join((os.environ.get("PATH", ""), str(Path(self.found["nvcc"]).parent)))
        command = [self.python, "setup.py", *(["--name"] if self.dry_run else ["build_ext", "--inplace"])]
        return Step("build", command, cap, 10, ("torch",), added)

    def program(self, name: str, file: str, *arguments: str, cap: float, needs: tuple[str, ...] = ("device",)) -> Step:
        """Run a Python program of this folder; it fails by its exit code, and the last line that it prints is noted."""
        command = [self.python, f"scripts/{file}", *arguments]
        return Step(name, command, cap, needs=("torch", *needs), beside=self.dry_run)

    def tests(self, name: str, *selection: str, cap: float, least: float = 10.0, needs: tuple[str, ...] = ()) -> Step:
        """Run the tests of a selection that need a device."""
        how = ["--collect-only", "-q"] if self.dry_run else ["-v", f"--junitxml={self.out / name}.xml"]
        command = [*self._pytest, *how, "-m", "device", *selection]
        return Step(name, command, cap, least, ("pytest", "device", *needs), beside=self.dry_run)

    def checker(self, name: str, cap: float) -> Step:
        """Run every kernel under a tool of the memory checker."""
        step = self.tests(name, *EVERY_KERNEL, cap=cap, least=20, needs=("compute_sanitizer",))
        path = self.found.get("compute_sanitizer")
        if self.dry_run or not path:
            return step
        filters = ["--kernel-name", OWN_KERNELS] if "--kernel-name" in said(path, "--help") else []
        head = [path, "--tool", name, "--error-exitcode", str(CHECKER_FOUND), "--target-processes", "application-only"]
        # A separate allocation for each tensor: the allocator's large blocks would hide accesses past an end.
        alone = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        return replace(step, command=[*head, *filters, *step.command], environment=alone)

    def bench(self, name: str, file: str, *selection: str, cap: float) -> Step:
        """Run a benchmark."""
        # Benchmarks beyond the step's time are recorded as such instead of lost.
        how = ["-q"] if self.dry_run else ["--benchmark", "-v", "-s", f"--results={self.out / name}.json",
                                           f"--budget={0.8 * cap / 60:.2f}",
                                           f"--junitxml={self.out / name}.xml"]  # fmt: skip
        # A fresh tuning cache: the user's may be of another version.
        added = {"HRNET_FAST_CACHE": str(self.out / "choices" / name)}
        command = [*self._pytest, "-p", "pytest_benchmark.plugin", *how, f"benchmarks/{file}.py", *selection]
        return Step(name, command, cap, 15, ("pytest", "pytest_benchmark", "device"), added, beside=self.dry_run)

    def inference(self, name: str, network: str, contenders: str = "eager,engine", *, cap: float) -> Step:
        """Run the benchmark of inference with a network."""
        return self.bench(name, "bench_inference", "-k", network, "--contenders", contenders, cap=cap)


def quick_steps(made: Commands, seconds: float) -> list[Step]:
    """Return the steps of ``--quick``."""
    return [
        made.build(0.45 * seconds),
        made.tests("parity_kernels", *EVERY_KERNEL, cap=0.2 * seconds),
        made.tests("parity_engine", "-k", "[v1- and (float32 or float16)", PARITY["parity_engine"][-1], cap=40),
        made.checker("memcheck", 40),
        made.checker("racecheck", 30),
        made.inference("engine_w32_pose", "w32_pose", cap=45),
        made.bench("fuse_sum", "bench_fuse_sum", "-k", "cuda or triton", cap=45),
    ]


def full_steps(made: Commands, seconds: float) -> list[Step]:
    """Return all steps."""
    return [
        made.build(0.45 * seconds),
        made.tests("parity_kernels", *EVERY_KERNEL, cap=0.2 * seconds),
        *_parity(made, seconds),
        made.checker("memcheck", 75),
        made.checker("racecheck", 60),
        made.inference("engine_w32_pose", "w32_pose", cap=75),
        made.inference("engine_w48_pose", "w48_pose", cap=75),
        made.inference("engine_w48_seg", "w48_seg", cap=75),
        made.inference("compiled_w32_pose", "w32_pose", "channels-last,engine,reduce-overhead", cap=150),
        made.bench("fuse_sum", "bench_fuse_sum", "-k", "cuda or triton", cap=45),
        made.bench("bn_act", "bench_bn_act", cap=45),
        made.bench("grouped_conv3x3", "bench_grouped_conv3x3", cap=45),
        made.bench("strided_conv_chain", "bench_strided_conv_chain", cap=45),
        made.bench("upsample_conv1x1_sum", "bench_upsample_conv1x1_sum", cap=45),
        made.program("graphed_step", "gpu_check_step.py", "--json", str(made.out / "graphed_step_cases.json"), cap=120),
        made.bench("training", "bench_training", "-k", "batch-16-", cap=90),
        made.inference("autotuned_w32_pose", "w32_pose", "channels-last,engine,max-autotune", cap=300),
    ]


def _parity(made: Commands, seconds: float) -> list[Step]:
    """Return the steps of PARITY, which run beside each other."""
    needs = {"parity_cuda": ("cuda",), **dict.fromkeys(TRITON_ONLY, ("triton",))}
    found = [made.tests(n, *s, cap=0.35 * seconds, needs=needs.get(n, ())) for n, s in PARITY.items()]
    return [replace(step, beside=True, by=0.7 * seconds) for step in found]
