"""The names of parameters that DistributedDataParallel reports by number."""

from __future__ import annotations

import re

from torch import nn

_LONGEST = 3
_NUMBERS = re.compile(r"did not receive grad for rank \d+: ([\d ]+)")


def name_parameters(error: BaseException, model: nn.Module) -> None:
    """Adds the names as a note, where the error has DDP's numbers of parameters without a gradient."""
    found = _NUMBERS.search(str(error))
    if found is None:
        return
    # DDP counts the parameters that need a gradient, in this order.
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    unused = [names[number] for number in map(int, found[1].split()) if number < len(names)]
    error.add_note(", ".join(unused[:_LONGEST]) + (" ..." if len(unused) > _LONGEST else ""))
