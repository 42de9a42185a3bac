"""Readers of mmpose's heatmap decoding: ``decoder`` in 1.x, ``test_cfg`` in 0.x."""

from __future__ import annotations

from collections.abc import Mapping

from hrnet_fast.models.upstream.description import check_flag
from hrnet_fast.models.upstream.openmmlab_parts import registered_name
from hrnet_fast.models.upstream.section import Section

_TAPS = 11  # blur width in ``hrnet_fast.keypoints``
Decoding = tuple[str, tuple[str, ...]]


def read_decoder(head: Section) -> Decoding:
    """Return the decoding method of mmpose 1.x's codec (``mmpose/codecs``), and notes.

    Raises:
        ConfigError: :mod:`hrnet_fast.keypoints` does not decode this codec or kind of heatmap.
    """
    if head.get("decoder", None) is None:
        return "msra", ()
    codec = head.section("decoder")
    codec.get("type")
    codec.no_effect("input_size", "heatmap_size", "sigma")  # settings of training targets
    udp = registered_name(codec, "MSRAHeatmap", "UDPHeatmap") == "UDPHeatmap"
    if udp:
        codec.expect("heatmap_type", "gaussian")  # 'combined' has two offsets per keypoint beside its heatmap
        codec.no_effect("radius_factor")  # read for combined heatmaps only
    method = "udp" if udp else "dark" if check_flag(codec.get("unbiased", False), codec.name("unbiased")) else "msra"
    notes = _blur_note(codec, "blur_kernel_size", method)
    codec.close()
    return method, notes


def read_test_cfg(model: Section) -> Decoding:
    """Return the decoding method of mmpose 0.x's ``test_cfg``, and notes.

    Source: ``mmpose/core/evaluation/top_down_eval.py`` (``keypoints_from_heatmaps``).

    Raises:
        ConfigError: :mod:`hrnet_fast.keypoints` does not have this kind of heatmap or decoding.
    """
    test = Section(model.get("test_cfg", None) or {}, model.name("test_cfg"))
    test.expect("target_type", "GaussianHeatmap", "GaussianHeatMap")
    if check_flag(test.get("use_udp", False), test.name("use_udp")):
        method = "udp"
    else:
        unbiased = check_flag(test.get("unbiased_decoding", False), test.name("unbiased_decoding"))
        # True and unbiased_decoding are older spellings
        process = test.expect("post_process", "default", "unbiased", True)
        method = "dark" if unbiased or process == "unbiased" else "msra"
    return method, _blur_note(test, "modulate_kernel", method)


def _blur_note(section: Section, key: str, method: str) -> tuple[str, ...]:
    taps = section.get(key, _TAPS)
    if method == "msra" or taps == _TAPS:
        return ()
    return (f"{section.name(key)} is {taps}; this package's {method!r} decoding blurs by {_TAPS} taps",)


def codec_note(cfg: Section, model: Section) -> tuple[str, ...]:
    """Return a note if a file of mmpose 1.x has another ``codec`` than its head, for instance by inheritance."""
    given = cfg.values.get("codec"), model.values.get("head", {}).get("decoder")
    codec, decoder = (str(x["type"]).rpartition(".")[2] if isinstance(x, Mapping) else None for x in given)
    if codec is None or decoder is None or codec == decoder:
        return ()
    return (
        f"codec is {codec}, {model.name('head.decoder')} {decoder}: the heatmaps decode by the latter, as in mmpose",
    )
