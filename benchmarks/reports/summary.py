"""The paper's Table 13, made of records of tables 17 to 19: memory and time of HRNet relative to a rival."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.reports.figures import is_ours, ratio
from benchmarks.reports.records import Record
from benchmarks.reports.tables import Cells, Table, paper_value

QUANTITIES = ("training memory", "inference memory", "training step", "inference")
# HRNet and rival, as paired in Table 13.
PAIRS = (
    ("hrnetv1_w48_pose", "simplebaseline_r152"),
    ("hrnetv2_w48_seg", "pspnet_r101"),
    ("hrnetv2_w48_seg", "deeplabv3_r101"),
    ("faster_rcnn_hrnetv2p_w32", "faster_rcnn_r101_fpn"),
    ("faster_rcnn_hrnetv2p_w48", "faster_rcnn_x101_64x4d_fpn"),
)
COLUMNS = ("HRNet", "rival", "run as", *(f"{q}, {whose}>" for q in QUANTITIES for whose in ("paper", "here")))
NOTE = (
    "HRNet's figure divided by the rival's: below 1x HRNet takes less. Inference at batch 1. The rival is plain "
    'PyTorch in channels-last; HRNet is that too ("eager"), or this package: its engine, `accelerate` in training. '
    "Detectors are backbone and pyramid here, whole in the paper."
)


def summary_table(records: Sequence[Record]) -> Table | None:
    """Return the table of HRNet / rival of every quantity, in the paper and here; None without such records."""
    found = {key: r for r in records if (key := _key(r)) is not None}
    rows: list[Cells] = []
    marks: list[str] = []
    for hrnet, rival in PAIRS:
        for ours in (False, True):
            pairs = [(found.get((q, hrnet, ours)), found.get((q, rival, False))) for q in QUANTITIES]
            cells = [cell for pair in pairs for cell in _ratio_cells(*pair)]
            if any(cells[1::2]):
                rows.append((hrnet, rival, "hrnet_fast" if ours else "eager", *cells))
                marks.append("ours" if ours else "")
    return Table("Table 13: HRNet / rival", COLUMNS, tuple(rows), tuple(marks), keys=2, note=NOTE) if rows else None


def _key(record: Record) -> tuple[str, str, bool] | None:
    row = record.params.get("row")
    own = is_ours(record.contender)
    if row is None or "table" not in record.params or record.quantity not in QUANTITIES:
        return None
    if record.quantity.startswith("inference") and record.params.get("batch") != 1:
        return None
    return (record.quantity, str(row), own) if own or record.contender.startswith("eager") else None


def _ratio_cells(hrnet: Record | None, rival: Record | None) -> tuple[str, str]:
    if hrnet is None or rival is None:
        return "", ""
    return ratio(paper_value(hrnet), paper_value(rival)), ratio(hrnet.value, rival.value)
