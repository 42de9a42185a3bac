"""``hrnet-fast launch`` on small scripts."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import call, refused

import hrnet_fast as hf
from hrnet_fast.integrations import legacy

ROOT = Path(__file__).parents[2]
PATHS = f"{ROOT}:{ROOT / 'tests'}"
NETWORK = """
import sys
import torch
import hrnet_fast as hf
from upstream_standins import CHANNELS, HighResolutionModule

class Network(torch.nn.Module):  # whose constructor moves and switches nothing
    def __init__(self):
        super().__init__()
        self.stage2 = HighResolutionModule(3)

    def forward(self, x):
        maps = [torch.nn.functional.avg_pool2d(x[:, :1], 2**k).repeat(1, c, 1, 1) for k, c in enumerate(CHANNELS)]
        return self.stage2(maps)[0]

def told(model):
    return hf.explain(model).fast, model.stage2.fused_settings.memory

x = torch.randn(2, 3, 16, 16)
"""


def start(*command: str, cwd: Path, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    done = [sys.executable, *prefix, "-m", "hrnet_fast.cli", "launch", *command]
    environment = {"PYTHONPATH": PATHS, "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin", "HOME": str(cwd)}
    return subprocess.run(done, capture_output=True, text=True, timeout=240, cwd=cwd, env=environment, check=False)


def write(folder: Path, text: str, name: str = "tools/train.py") -> Path:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / "tools" / "networks.py").write_text(NETWORK, encoding="utf-8")
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


@pytest.fixture
def _own_interpreter_state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """What running a script in this process changes for good, and would not matter in one of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    yield
    sys.modules.pop("networks", None)


@pytest.mark.slow
@pytest.mark.usefixtures("_own_interpreter_state")
def test_a_script_runs_as_it_does_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each way to use a network accelerates it; arguments, modules beside the script and names are Python's."""
    write(
        tmp_path,
        """
import os, pickle, sys
from networks import *

class Kept:
    pass

if __name__ == "__main__":
    print(sys.argv, os.path.basename(sys.path[0]), pickle.loads(pickle.dumps(Kept())).__class__ is Kept)
    called, moved, switched, wrapped, plain = (Network() for _ in range(5))
    torch.jit.trace(called, x, check_trace=False)  # looks only
    assert not hasattr(called.stage2, "fused_settings")
    called(x).mean().backward()
    moved.to("cpu")
    switched.eval()
    torch.nn.DataParallel(torch.nn.Sequential(wrapped))
    print([told(m) for m in (called, moved, switched, wrapped)], hasattr(plain.stage2, "fused_settings"))
    print(torch.compile(torch.nn.Linear(2, 2), backend="eager", fullgraph=True)(torch.ones(1, 2)).shape)
    sys.exit(7)
""",
    )
    original = torch.nn.Module.to, torch.nn.Module.__call__, torch.nn.DataParallel.__init__
    options = ("--memory", "min", "tools/train.py", "--cfg", "x.yaml", "--memory", "mine")
    code, out, err = call(capsys, "launch", *options)
    assert code == 7, err
    assert (torch.nn.Module.to, torch.nn.Module.__call__, torch.nn.DataParallel.__init__) == original
    lines = out.splitlines()
    assert lines[0] == "['tools/train.py', '--cfg', 'x.yaml', '--memory', 'mine'] tools True"
    assert lines[1:] == [f"{[(4, 'min')] * 4} False", "torch.Size([1, 2])"]
    said = [line for line in err.splitlines() if "blocks take the fused path" in line]
    told = "4 of 4 blocks take the fused path (impl='auto')"
    assert said == [f"hrnet-fast launch: {kind}: {told}" for kind in ("Network", "Sequential")]


@pytest.mark.slow
@pytest.mark.processes
def test_errors_are_the_scripts_own(tmp_path: Path) -> None:
    script = write(tmp_path, "from networks import *\ndef fail():\n    raise hf.InputError('its own')\n\nfail()\n")
    done = start("--", "tools/train.py", cwd=tmp_path)
    alone = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, cwd=tmp_path, check=False, timeout=240,
        env={"PYTHONPATH": PATHS, "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.returncode == alone.returncode == 1
    said, trace = done.stderr.split("\n", 1)
    assert said == "hrnet-fast launch: no HRNet was accelerated: none was moved, wrapped, switched or called."
    assert trace.replace('"tools/', f'"{tmp_path}/tools/') == alone.stderr


@pytest.mark.slow
@pytest.mark.processes
def test_torchrun_modules_and_started_processes(tmp_path: Path) -> None:
    """A process of torchrun runs a module whose network DDP wraps, and which starts a process of its own."""
    write(
        tmp_path,
        """
import torch.multiprocessing as mp
from tools.networks import *

def work(rank):
    print("child", told(Network().eval()), flush=True)

if __name__ == "__main__":
    torch.distributed.init_process_group("gloo")
    model = torch.nn.parallel.DistributedDataParallel(Network())
    model(x).mean().backward()
    print("parent", told(model.module), sys.argv[1:], flush=True)
    mp.spawn(work, nprocs=1)
    torch.distributed.destroy_process_group()
""",
    )
    (tmp_path / "tools" / "__init__.py").touch()
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node=1", "--standalone")
    done = start("-m", "tools.train", "-v", cwd=tmp_path, prefix=launcher)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["child (4, 'lean')", "parent (4, 'lean') ['-v']"]
    assert done.stderr.count("blocks take the fused path") == 2, done.stderr  # of the process and its child


@pytest.mark.usefixtures("_own_interpreter_state")
def test_old_names_are_supplied_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(
        tmp_path,
        """
import numpy as np
import scipy.misc
print(np.zeros(2, dtype=np.float).dtype, np.int(2.5), scipy.misc.imresize(np.eye(4), (2, 3)).shape)
try:
    np.nothing
except AttributeError as error:
    print(error)
""",
    )
    _, out, err = call(capsys, "launch", "--legacy", "tools/train.py")
    assert out.splitlines() == ["float64 2 (2, 3)", "module 'numpy' has no attribute 'nothing'"], err
    for name in ("scipy.misc", "numpy.float", "numpy.int"):
        assert err.count(f"hrnet-fast launch: {name} is supplied") == 1
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(AttributeError, match="module 'numpy' has no attribute 'float'"):  # the script's own
        call(capsys, "launch", "tools/train.py")
    assert "hrnet-fast launch" not in capsys.readouterr().err  # one of several processes reports


def test_old_image_functions_stretch_to_bytes() -> None:
    ramp = np.linspace(-1.0, 3.0, 16).reshape(4, 4)
    assert legacy.imresize(ramp, (4, 4), "nearest").ravel().tolist() == [round(17 * k) for k in range(16)]
    colours = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    assert np.array_equal(legacy.imresize(colours, 100), colours)
    assert legacy.imresize(colours, 0.5).shape == (2, 2, 3)
    assert np.array_equal(legacy.imrotate(colours, 90, "nearest"), np.rot90(colours))
    for arguments in ((ramp[0], 50), (ramp, 50, "linear"), (ramp, 50, "nearest", "F")):
        with pytest.raises(hf.InputError, match=r"imresize: .* accepted are"):
            legacy.imresize(*arguments)
    with pytest.raises(hf.InputError, match="imrotate: interp='lanczos'"):
        legacy.imrotate(colours, 90, "lanczos")


def test_wrong_arguments_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "nowhere.py: there is no such file" in refused(capsys, "launch", "nowhere.py")
    assert "'most' is not one of" in refused(capsys, "launch", "--memory", "most", __file__)
    assert "impl='quick'" in refused(capsys, "launch", "--impl", "quick", __file__)
