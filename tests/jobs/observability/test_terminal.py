"""A reader that goes away ends nothing: it is noticed, and what is written afterwards is dropped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from jobs.observability.driver_events import interrupts
from jobs.observability.terminal import TerminalOutput

pytestmark = pytest.mark.usefixtures("sighup")

WRITER = """
import sys
from jobs.observability.terminal import TerminalOutput
output = TerminalOutput(sys.stdout)
for number in range(100_000):
    print("line", number, file=output)
    output.flush()
    if output.closed_by_reader.is_set():
        break
print("after", file=output)
print(output.closed_by_reader.is_set(), output.isatty(), file=sys.stderr)
"""


def test_a_closed_pipe_is_noticed_and_raises_nothing() -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", WRITER], stdout=pipe, stderr=pipe, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stderr is not None
        assert writer.stdout.readline() == "line 0\n"
        writer.stdout.close()
        assert writer.stderr.read() == "True False\n"
    assert writer.returncode == 0


def test_a_stream_that_is_read_gets_all() -> None:
    read, write = os.pipe()
    with os.fdopen(write, "w") as stream:
        output = TerminalOutput(stream)
        assert output.write("text") == 4
        output.flush()
        assert os.read(read, 10) == b"text"
        assert not output.closed_by_reader.is_set()
    os.close(read)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_each_signal_asks_the_job_to_stop(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with interrupts() as seen:
        signal.raise_signal(number)
        assert seen.is_set()
    assert signal.getsignal(number) == before


def test_a_terminal_that_closes_may_send_several() -> None:
    with interrupts() as seen:
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGHUP)
        assert seen.is_set()


def test_a_second_ctrl_c_ends_at_once() -> None:
    with interrupts():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_under_nohup_a_terminal_that_closes_changes_nothing() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interrupts() as seen:
            signal.raise_signal(signal.SIGHUP)
            assert not seen.is_set()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
