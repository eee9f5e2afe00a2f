"""A character that cannot be seen, or that looks like another one, is named with its place and its remedy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jobs.spec.errors import SpecError
from jobs.spec.job_spec import JobSpec

NBSP, ZERO_WIDTH = "\u00a0", "\u200b"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            f"name: s\ndata:{NBSP}{{dataset: digits, seed: 1}}\n",
            r"s.yaml:2:6: it contains an invisible no-break space \(U\+00A0\): write an",
        ),
        (f"train:\n  max_steps:{NBSP}4\n", r"train = .*no-break space"),
        (f"train: {{max_steps: 4{NBSP}}}\n", r"train.max_steps = .*no-break space"),
        (f"train: {{max{ZERO_WIDTH}_steps: 4}}\n", r"zero width space \(U\+200B\): delete it"),
        (f"data: {{dataset: digits{ZERO_WIDTH}}}\n", r"data.dataset = .*zero width space"),
        (
            f"workload: 'm:C'\noptions: {{url: 'x{ZERO_WIDTH}y'}}\n",
            r"options.url = .*a character that is not seen; .*zero",
        ),
        (f"workload: language\ndata: {{path: /tmp/text{NBSP}}}\n", r"data.path = .*no-break space"),
        ("data:\n\u3000 dataset: digits\n", r"ideographic space"),
        (f"name: s{NBSP}b\n", r"name = .*no-break space \(U\+00A0\): write an ordinary space, or write s-b"),
        ("data: {dataset: digits\u3164}\n", r"data.dataset = .*hangul filler"),
        ("data: {batch_size: \uff13\uff12}\n", r"data.batch_size = .*fullwidth digit three .*: write 3"),
        ("data:\u2028 {dataset: digits}\n", r"line break that editors do not show; .*:1:6: .*line separator"),
        ("optimizer: {lr: \u22120.1}\n", r"optimizer.lr = .*minus sign \(U\+2212\): write -"),
        ("optimizer\uff1a {lr: 0.1}\n", r"fullwidth colon \(U\+FF1A\): write :"),
        ("data: {dataset: \u201cdigits\u201d}\n", r'left double quotation mark \(U\+201C\): write "'),
    ],
)
def test_such_a_character_is_named(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(SpecError, match=says) as caught:
        JobSpec.load(tmp_path / "s.yaml")
    assert len(caught.value.problems) == 1


def test_one_in_an_override_is_named_too(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("name: s\n")
    with pytest.raises(SpecError, match="no-break space"):
        JobSpec.load(tmp_path / "s.yaml", [f"train.max_steps={NBSP}4"])


@pytest.mark.parametrize(
    "text",
    [
        "# it\u2019s a comment\nname: s\n",
        f"workload: language\ndata: {{path: '/tmp/my{NBSP}texts'}}\n",  # folders of macOS have them
        "workload: 'm:C'\noptions: {word: '\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645'}\n",
        "\ufeffname: s\n",
    ],
)
def test_what_may_have_been_meant_is_accepted(text: str, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(text, encoding="utf-8")
    assert JobSpec.load(tmp_path / "s.yaml").name == "s"


def test_numbers_of_numpy_are_numbers() -> None:
    spec = JobSpec.from_dict(
        {
            "workload": "m:C",
            "data": {"batch_size": np.int64(8)},
            "optimizer": {"lr": np.float32(0.5)},
            "options": {"a": np.ones(2)},
        }
    )
    assert (spec.data.batch_size, spec.optimizer.lr, spec.options["a"]) == (8, 0.5, [1.0, 1.0])
