"""Process-wide flags with several holders."""

from __future__ import annotations

import pytest

from hrnet_fast.flags import ProcessFlag


class Settings:
    fast = False


def flag_of(settings: Settings) -> ProcessFlag:
    return ProcessFlag(lambda: settings.fast, lambda value: setattr(settings, "fast", value))


def test_it_is_the_users_again_whoever_ends_first() -> None:
    settings = Settings()
    flag = flag_of(settings)
    first, second = flag.held(True), flag.held(True)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert settings.fast  # the other one still needs it
    second.__exit__(None, None, None)
    assert not settings.fast


def test_an_error_lets_go() -> None:
    settings = Settings()
    with pytest.raises(ZeroDivisionError), flag_of(settings).held(True):
        raise ZeroDivisionError
    assert not settings.fast
