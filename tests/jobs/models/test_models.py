"""Models for images of any size, deterministic, and torchvision where its import needs repair."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from jobs.models.vision import ModelError, build_model
from jobs.spec.job_spec import ModelSpec
from jobs.torchvision_compat import classification_models

REPOSITORY = Path(__file__).resolve().parents[3]


def model(
    name: str = "resnet18",
    *,
    channels: int = 1,
    classes: int = 10,
    size: int = 28,
    seed: int = 0,
    **spec: Any,
) -> nn.Module:
    config = ModelSpec(name=name, **spec)
    return build_model(config, channels=channels, classes=classes, image_size=size, seed=seed)


def layer1_size(network: nn.Module, size: int) -> int:
    seen: list[torch.Size] = []
    network.layer1.register_forward_hook(lambda _module, _input, output: seen.append(output.shape))
    network.eval()(torch.zeros(1, 1, size, size))
    return seen[0][-1]


@pytest.mark.parametrize(
    ("stem", "size", "expected"),
    [("auto", 28, 28), ("small", 28, 28), ("tiny", 28, 14), ("imagenet", 28, 7), ("auto", 65, 17)],
)
def test_the_stem_decides_how_much_of_a_small_image_is_left(stem: str, size: int, expected: int):
    assert layer1_size(model(stem=stem, size=size), size) == expected


@pytest.mark.parametrize("stem", ["small", "tiny", "imagenet"])
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_resnet_trains_on_images_of_8x8(name: str, stem: str):
    network = model(name, size=8, stem=stem)
    network(torch.randn(2, 1, 8, 8)).square().sum().backward()  # batch norm over maps of 1x1
    assert all(torch.isfinite(p.grad).all() and p.grad.any() for p in network.parameters())


@pytest.mark.parametrize(
    "name", ["mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_1", "regnet_x_400mf", "googlenet"]
)
def test_other_families_take_grey_images_and_any_number_of_classes(name: str):
    network = model(name, classes=7, size=64)
    assert network.training
    assert network(torch.randn(2, 1, 64, 64)).shape == (2, 7)


def test_a_vision_transformer_takes_the_size_of_the_images():
    assert model("vit_b_16", size=32).eval()(torch.zeros(1, 1, 32, 32)).shape == (1, 10)


@pytest.mark.parametrize("channels", [1, 3, 6])
def test_a_grey_image_gives_what_it_gave_in_three_equal_channels(channels: int):
    grey = torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    coloured = model("mobilenet_v3_small", channels=3, size=64).eval()
    adapted = model("mobilenet_v3_small", channels=channels, size=64).eval()
    expected = coloured(grey.expand(-1, 3, -1, -1))
    torch.testing.assert_close(adapted(grey.expand(-1, channels, -1, -1)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_images_may_have_any_number_of_channels(name: str):
    for channels in (2, 4, 5):
        assert model(name, channels=channels)(torch.randn(2, channels, 28, 28)).shape == (2, 10)


def test_weights_depend_on_the_seed_alone():
    torch.manual_seed(1)
    first = model(seed=3)
    torch.manual_seed(2)
    second, other = model(seed=3), model(seed=4)
    for a, b, c in zip(first.parameters(), second.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.ndim == 1 or not torch.equal(a, c)


def test_building_leaves_the_global_random_numbers_and_the_statistics_untouched():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    network = model()
    assert torch.equal(torch.rand(3), expected)
    assert network.bn1.num_batches_tracked == 0
    assert network.training


@pytest.mark.parametrize(
    ("name", "spec", "said"),
    [
        ("resnet81", {}, 'did you mean "resnet18"?'),
        ("fasterrcnn_resnet50_fpn", {}, "no such classification model"),
        ("squeezenet1_1", {"stem": "small"}, "the stem small is for ResNets"),
        ("alexnet", {}, "not for images of 28x28: "),
        ("vit_b_16", {}, "not for images of 28x28: "),
        ("maxvit_t", {}, "not for images of 28x28: "),
    ],
)
def test_what_cannot_be_built_is_one_clear_line(name: str, spec: dict, said: str):
    with pytest.raises(ModelError) as caught:
        model(name, **spec)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_published_weights_are_taken_where_they_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    published = model(channels=3, classes=1000, stem="imagenet", seed=9).state_dict()
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(published, tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth")
    tuned = model(pretrained=True, stem="imagenet").state_dict()
    for name, weight in tuned.items():
        if name == "conv1.weight":
            torch.testing.assert_close(weight, published[name].sum(1, keepdim=True))
        elif not name.startswith("fc."):
            assert torch.equal(weight, published[name]), name


def test_detection_and_segmentation_are_no_classification_models():
    names = classification_models()
    assert {"resnet18", "resnet50", "vit_b_16"} <= set(names)
    assert not [name for name in names if "rcnn" in name or "deeplab" in name]


def python(code: str, *paths: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(map(str, (*paths, REPOSITORY)))
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def stub(folder: Path, code: str) -> Path:
    """A folder with another torchvision in it, found before the installed one."""
    (folder / "torchvision").mkdir()
    (folder / "torchvision" / "__init__.py").write_text(textwrap.dedent(code))
    return folder


def test_torchvision_imports_beside_any_build_of_torch():
    result = python("""
        from jobs.torchvision_compat import import_torchvision
        torchvision = import_torchvision()
        assert import_torchvision() is torchvision
        import torch
        from torchvision.transforms import v2
        assert v2.RandomCrop(4)(torch.zeros(1, 8, 8)).shape == (1, 4, 4)
        network = torchvision.models.get_model("squeezenet1_1", num_classes=2)
        assert network(torch.zeros(1, 3, 64, 64)).shape == (1, 2)
    """)
    assert result.returncode == 0, result.stderr


def test_the_repair_declares_the_operators_and_imports_from_scratch(tmp_path: Path):
    folder = stub(
        tmp_path,
        """
        import torch
        from torchvision import half
        half.imports.append(1)
        if not hasattr(torch.ops.torchvision, "nms"):
            raise RuntimeError("operator torchvision::nms does not exist")
        """,
    )
    (folder / "torchvision" / "half.py").write_text("imports = []\n")
    result = python(
        """
        from jobs.torchvision_compat import import_torchvision
        assert import_torchvision().half.imports == [1]
        """,
        folder,
    )
    assert result.returncode == 0, result.stderr


def test_a_torchvision_that_imports_is_left_as_it_is(tmp_path: Path):
    result = python(
        """
        from jobs import torchvision_compat
        assert torchvision_compat.import_torchvision().marker == 7
        import torch
        assert not hasattr(torch.ops.torchvision, "nms")
        """,
        stub(tmp_path, "marker = 7"),
    )
    assert result.returncode == 0, result.stderr


def test_a_failure_that_the_repair_does_not_cure_is_raised_unchanged(tmp_path: Path):
    stub(tmp_path, "import os; exec(os.environ['FAILURE'])")
    result = python(
        """
        import os, torch
        from jobs.torchvision_compat import import_torchvision

        def failure(code):
            os.environ["FAILURE"] = code
            try:
                import_torchvision()
            except Exception as error:
                return str(error)

        assert failure("raise RuntimeError('something else')") == "something else"
        assert failure("import no_such_thing") == "No module named 'no_such_thing'"
        assert not hasattr(torch.ops.torchvision, "nms")
        missing = "operator torchvision::nms does not exist"
        for _ in range(2):
            assert failure(f"raise RuntimeError({missing!r})") == missing
        """,
        tmp_path,
    )
    assert result.returncode == 0, result.stderr
