"""Fuzz test of checkpoint loading: a damaged file loads correctly or raises one CheckpointError.

    python scripts/fuzz_checkpoints.py --count 10000 --seed 0

Every case must give the tensors of the undamaged file or a ``CheckpointError``. Other outcomes are violations, and the
exit code is then 1: another exception, other numbers, execution of foreign code, a crash, more than ``--seconds`` or
more than 512 MiB. A case depends on ``--seed`` and its number alone; ``--only NUMBER`` repeats it.

Changed numbers in a format without checksums (torch.save before torch 1.6, safetensors) cannot be detected; such cases
are counted separately. So are files that load with a note on the damage: averaged or trained weights that lost their
name, so that the others are loaded, and a pickle in which a layer refers to another layer's memory.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import random
import resource
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

import torch  # noqa: E402
from checkpoint_mutations import MUTATIONS, Case  # noqa: E402
from checkpoint_samples import Sample, State, samples  # noqa: E402

from hrnet_fast.checkpoints import parse_checkpoint  # noqa: E402
from hrnet_fast.checkpoints.comparison import SHARED  # noqa: E402
from hrnet_fast.errors import CheckpointError  # noqa: E402

RIGHT, REFUSED, UNCHECKED, TOLD = "loads right", "CheckpointError", "no checksum", "noted"
OUTCOMES = (RIGHT, REFUSED, UNCHECKED, TOLD)
MEMBERS = "members cut or renamed"  # which zip files alone have
MOST_MEMORY = 512 << 20
# Audit events of executing or importing code, which reading a file must not cause.
WATCHED = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "subprocess.Popen",
    "socket.connect",
    "pickle.find_class",
)


@dataclass(frozen=True)
class Result:
    """The outcome of one case: one of :data:`OUTCOMES`, or a violation."""

    number: int
    sample: str
    mutation: str
    what: str
    outcome: str


class _Watch:
    """Collects audit events while a file is read."""

    def __init__(self) -> None:
        self.active = False
        self.seen: list[str] = []
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.active and event in WATCHED:
            self.seen.append(event)


class _Hang(BaseException):
    """Derives from BaseException, so that no handler of broken files catches it."""


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise _Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def equal(actual: State, expected: State) -> bool:
    """Whether keys, dtypes, shapes and bits are equal."""
    return actual.keys() == expected.keys() and all(
        v.dtype == actual[k].dtype and v.shape == actual[k].shape and torch.equal(v, actual[k])
        for k, v in expected.items()
    )


class Fuzz:
    """Makes cases of a seed and judges them.

    Args:
        seed: of all cases.
        folder: an empty one, for the files.
        seconds: that one case may take.
    """

    def __init__(self, seed: int, folder: Path, seconds: float = 20.0) -> None:
        self.seed = seed
        self.folder = folder
        self.seconds = seconds
        self.canary = folder / "canary"
        self.samples = samples()
        self.expected = [self._states(sample) for sample in self.samples]
        self.watch = _Watch()

    def _write(self, content: bytes, suffix: str) -> Path:
        path = self.folder / f"case{suffix}"
        path.write_bytes(content)
        return path

    def _states(self, sample: Sample) -> dict[str, State]:
        path = self._write(sample.content, sample.suffix)
        states = {}
        for weights in ("auto", "raw", "ema"):
            with contextlib.suppress(CheckpointError):
                states[weights] = parse_checkpoint(path, weights=weights).state
        return states

    def make(self, number: int) -> tuple[int, str, Case]:
        """Return the sample's index, the mutation's name and the damaged file of one number."""
        rng = random.Random(f"{self.seed} {number}")
        index = rng.randrange(len(self.samples))
        fitting = {k: v for k, (_, v) in MUTATIONS.items() if self.samples[index].kind == "zip" or k != MEMBERS}
        (name,) = rng.choices(list(fitting), list(fitting.values()))
        torch.manual_seed(rng.randrange(1 << 30))
        return index, name, MUTATIONS[name][0](self.samples[index], rng, self.canary)

    def run(self, number: int) -> Result:
        """Make one case, load it and judge."""
        index, name, case = self.make(number)
        sample = self.samples[index]
        path = self._write(case.content, sample.suffix)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        outcome = self._judge(index, path, case)
        if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before > MOST_MEMORY // 1024:
            outcome = "took more than 512 MiB"
        if self.canary.exists() or self.watch.seen:
            outcome = f"foreign code ran {self.watch.seen}"
            self.canary.unlink(missing_ok=True)
            self.watch.seen.clear()
        return Result(number, sample.name, name, case.what, outcome)

    def _judge(self, index: int, path: Path, case: Case) -> str:
        expected = self.expected[index]
        try:
            self.watch.active = True
            with _limited(self.seconds):
                checkpoint = parse_checkpoint(path)
        except CheckpointError:
            return REFUSED
        except _Hang:
            return f"took more than {self.seconds:g} s"
        except BaseException as error:
            return f"raised {type(error).__name__}: {str(error)[:120]}"
        finally:
            self.watch.active = False
        right = expected["auto"]
        if equal(checkpoint.state, right):
            return RIGHT
        if case.repaired is not None and equal(parse_checkpoint(self._write(case.repaired, path.suffix)).state, right):
            return UNCHECKED
        others = [state for weights, state in expected.items() if weights != "auto"]
        noted = any("left out other weights" in note or "weights alone" in note for note in checkpoint.notes)
        if noted and any(equal(checkpoint.state, state) for state in others):
            return TOLD
        if any(SHARED in note for note in checkpoint.notes):
            return TOLD
        return "loaded other numbers"


def _work(fuzz: Fuzz, numbers: list[int], pipe: Any) -> None:
    torch.set_num_threads(1)
    with open(os.devnull, "w") as nothing, contextlib.redirect_stderr(nothing):
        for number in numbers:
            pipe.send(number)
            pipe.send(fuzz.run(number))
    pipe.close()


def run_all(fuzz: Fuzz, numbers: list[int]) -> Iterator[Result]:
    """Yield the results of all cases. A process of their own runs them, and is replaced if it crashes or hangs in C."""
    context = multiprocessing.get_context("fork")
    pending = list(numbers)
    while pending:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(fuzz, pending, theirs))
        process.start()
        theirs.close()
        current, why = pending[0], "hung"
        try:
            while ours.poll(3 * fuzz.seconds):
                message = ours.recv()
                if isinstance(message, Result):
                    pending.remove(message.number)
                    yield message
                else:
                    current = message
            process.kill()
        except EOFError:
            process.join()
            why = f"ended the process with {process.exitcode}"
        process.join()
        if current in pending:
            index, name, case = fuzz.make(current)
            pending.remove(current)
            yield Result(current, fuzz.samples[index].name, name, case.what, why)


def table(results: list[Result]) -> str:
    """Return the outcomes of each mutation, one line each."""
    columns = (*OUTCOMES, "violations")
    counts: dict[str, Counter[str]] = {name: Counter() for name in (*MUTATIONS, "all")}
    for result in results:
        column = result.outcome if result.outcome in OUTCOMES else "violations"
        counts[result.mutation][column] += 1
        counts["all"][column] += 1
    lines = [f"{'':<28}{'cases':>8}" + "".join(f"{c:>17}" for c in columns)]
    lines += [
        f"{name:<28}{sum(row.values()):>8}" + "".join(f"{row[c]:>17}" for c in columns) for name, row in counts.items()
    ]
    return "\n".join(lines)


def main() -> int:
    """Run the cases, print a table, and return 1 if there is a violation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000, help="how many damaged files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=20.0, help="that one file may take")
    parser.add_argument("--only", type=int, help="repeat the case of this number, and keep its file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        fuzz = Fuzz(arguments.seed, Path(folder), arguments.seconds)
        if arguments.only is not None:
            _, _, case = fuzz.make(arguments.only)
            Path("fuzz_case.pth").write_bytes(case.content)
            result = fuzz.run(arguments.only)
            print(f"{result}\nthe file is in fuzz_case.pth")
            return result.outcome not in OUTCOMES
        results = []
        for result in run_all(fuzz, list(range(arguments.count))):
            results.append(result)
            if result.outcome not in OUTCOMES:
                print(
                    f"case {result.number}: {result.sample}, {result.mutation}, {result.what}: {result.outcome}",
                    flush=True,
                )
    print(table(results))
    return any(result.outcome not in OUTCOMES for result in results)


if __name__ == "__main__":
    sys.exit(main())
