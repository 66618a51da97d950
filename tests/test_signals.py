"""Signals that ask a run to stop."""

import signal
import threading

import pytest

from lrunet_jax.train.signals import stop_signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_is_noted_and_the_second_has_its_usual_effect(number):
    came = []
    usual = signal.signal(number, lambda *_: came.append(number))
    try:
        with stop_signals() as stop_requested:
            assert not stop_requested()
            signal.raise_signal(number)
            assert stop_requested()
            assert came == []
            signal.raise_signal(number)
            assert came == [number]
        signal.raise_signal(number)
        assert came == [number, number]  # outside nothing is noted
    finally:
        signal.signal(number, usual)


def test_a_second_ctrl_c_ends_python():
    # A process in a shell's background begins with the signal ignored.
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with stop_signals() as stop_requested:
            signal.raise_signal(signal.SIGINT)
            assert stop_requested()
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, usual)


@pytest.mark.usefixtures("terminal")
def test_a_terminal_that_goes_away_is_noted_as_often_as_it_says():
    with stop_signals() as stop_requested:
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGHUP)
        assert stop_requested()


def test_a_terminal_that_goes_away_is_not_noted_under_nohup():
    usual = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_signals() as stop_requested:
            signal.raise_signal(signal.SIGHUP)
            assert not stop_requested()
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, usual)


def test_another_thread_notes_none():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def run():
        with stop_signals() as stop_requested:
            seen.append((signal.getsignal(signal.SIGTERM), stop_requested()))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [(before, False)]
