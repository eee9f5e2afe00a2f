"""Numbers, holes and encodings as tools and systems write them."""

from __future__ import annotations

import codecs
import math
from pathlib import Path

import pytest

from guard.logs.log import Row, TraceError
from guard.logs.trace import TraceReader

LOSSES = [2.0 - 0.01 * at for at in range(30)]
BAD = 20
NAN = ("nan", "NaN", "NAN", "-nan", "nan(ind)", "-nan(ind)", "1.#QNAN", "-1.#IND")
INFINITY = ("inf", "Inf", "-inf", "+inf", "Infinity", "-Infinity", "1.#INF", "-1.#INF")


def rows(folder: Path, text: str | bytes, name: str = "run.log") -> list[Row]:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return list(TraceReader(path))


def table(bad: str, separator: str = ",", point: str = ".", end: str = "\n") -> str:
    cells = [bad if at == BAD else f"{loss:.4f}".replace(".", point) for at, loss in enumerate(LOSSES)]
    lines = [f"{at}{separator}{cell}{separator}0{point}5" for at, cell in enumerate(cells)]
    return end.join([separator.join(("step", "loss", "grad_norm")), *lines]) + end


def printed(bad: str, end: str = "\n") -> str:
    cells = [bad if at == BAD else f"{loss:.4f}" for at, loss in enumerate(LOSSES)]
    return end.join(f"iter {at}: loss {cell}, time 10.00ms" for at, cell in enumerate(cells)) + end


@pytest.mark.parametrize("write", [table, printed])
@pytest.mark.parametrize("spelling", [*NAN, *INFINITY])
def test_a_number_that_is_not_finite_is_a_row_in_every_spelling(
    spelling: str, write: object, tmp_path: Path
) -> None:
    found = rows(tmp_path, write(spelling))  # type: ignore[operator]
    assert [row.step for row in found] == list(range(30))
    loss = found[BAD].loss
    assert loss is not None
    assert math.isnan(loss) if spelling in NAN else math.isinf(loss)
    if spelling in INFINITY:
        assert (loss < 0) == spelling.startswith("-")


@pytest.mark.parametrize("hole", ["", "null", "None", "NA", "N/A", "<NA>", "-"])
def test_what_was_not_logged_is_a_hole(hole: str, tmp_path: Path) -> None:
    found = rows(tmp_path, table(hole))
    assert found[BAD] == Row(BAD, None, 0.5)
    assert all(row.loss is not None for row in found if row.step != BAD)


@pytest.mark.parametrize("separator", [";", "\t"])
def test_decimal_commas_are_read_where_commas_do_not_separate(separator: str, tmp_path: Path) -> None:
    text = table("nan", separator, point=",")
    assert rows(tmp_path, text, "t.csv")[3] == Row(3, pytest.approx(1.97), 0.5)


def test_steps_may_have_thousands_separators(tmp_path: Path) -> None:
    lines = (f"step {1000 * at:,} | loss {loss:.4f} | gnorm 0.5" for at, loss in enumerate(LOSSES))
    assert [row.step for row in rows(tmp_path, "\n".join(lines))] == [1000.0 * at for at in range(30)]


def test_columns_may_be_separated_by_spaces(tmp_path: Path) -> None:
    lines = ["step   loss  grad_norm", *(f"{at:4d} {loss:7.4f}  0.5" for at, loss in enumerate(LOSSES))]
    assert rows(tmp_path, "\n".join(lines))[4] == Row(4, pytest.approx(1.96), 0.5)


@pytest.mark.parametrize("text", [table("nan", end="\r\n"), printed("nan", end="\r\n")])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16-le", "utf-16-be"])
def test_files_of_windows_are_read(text: str, encoding: str, tmp_path: Path) -> None:
    marks = {"utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE}
    found = rows(tmp_path, marks.get(encoding, b"") + text.encode(encoding))
    assert [row.step for row in found] == list(range(30))


def test_the_loss_of_megatron_is_that_of_the_language_model(tmp_path: Path) -> None:
    text = " iteration {:8d}/ 500 | lm loss: {:.6E} | mtp_1 loss: 9.0E+00 | grad norm: 0.500 |"
    found = rows(tmp_path, "\n".join(text.format(at, loss) for at, loss in enumerate(LOSSES)))
    assert found[5] == Row(5, pytest.approx(1.95), 0.5)


@pytest.mark.parametrize("cut", ['\n{"step": 30, "lo', '\n{"step": 30'])
def test_the_last_line_of_a_run_that_was_killed_is_left_out(cut: str, tmp_path: Path) -> None:
    lines = [f'{{"step": {at}, "loss": {loss}}}' for at, loss in enumerate(LOSSES)]
    assert len(rows(tmp_path, "\n".join(lines) + cut)) == 30
    assert len(rows(tmp_path, table("nan") + "30")) == 30
    with pytest.raises(TraceError, match="not JSON"):
        rows(tmp_path, "\n".join(lines) + cut + "\n")


def test_sections_of_json_lines_are_part_of_the_name(tmp_path: Path) -> None:
    lines = (f'{{"step": {at}, "train": {{"loss": {loss}}}}}' for at, loss in enumerate(LOSSES))
    assert rows(tmp_path, "\n".join(lines))[1] == Row(1, 1.99, None)
