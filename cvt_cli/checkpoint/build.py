"""Building: a configuration and weights become a network."""

from typing import TYPE_CHECKING

from cvt_cli.checkpoint.weights_file import first_of
from cvt_cli.errors import ModelError
from cvt_cli.model.config import CvtConfig

if TYPE_CHECKING:
    import torch

    from cvt_cli.model.cvt import Cvt


def build(name: str, config: CvtConfig, weights: "dict[str, torch.Tensor]") -> "Cvt":
    """Build a network with weights, on the CPU, in evaluation mode, in the weights' dtype.

    Args:
        name: of the checkpoint, for messages.
        weights: under our names; counters that the file lacks are added.

    Raises:
        ModelError: if the weights do not fit the configuration.
    """
    import torch

    from cvt_cli.model.cvt import Cvt

    # A network with more blocks than there are weights is not built only to name the missing ones.
    if config.num_stages + sum(config.depth) > len(weights):
        raise ModelError(
            f"{name}: the weights do not fit the configuration: {len(weights)} tensors for "
            f"{sum(config.depth)} blocks in {config.num_stages} stages"
        )
    # On the meta device nothing is allocated or initialised; the weights are put in as they are.
    try:
        with torch.device("meta"):
            model = Cvt(config)
    except RuntimeError as error:  # the number of bytes overflows
        raise ModelError(
            f"{name}: the configuration describes a network that is too large"
        ) from error
    wanted = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    for key, shape in wanted.items():
        if key.endswith("num_batches_tracked"):
            # A counter of training steps that older files lack and inference ignores.
            weights.setdefault(key, torch.zeros(shape, dtype=torch.int64))
    missing = [key for key in wanted if key not in weights]
    left_over = [key for key in weights if key not in wanted]
    other_shape = [
        f"{key} is {tuple(weights[key].shape)}, not {shape}"
        for key, shape in wanted.items()
        if key in weights and tuple(weights[key].shape) != shape
    ]
    no_number = [
        key
        for key, value in weights.items()
        if not value.is_floating_point() and not key.endswith("num_batches_tracked")
    ]
    problems = [
        f"{len(keys)} {what} ({first_of(keys)})"
        for what, keys in (
            ("missing", missing),
            ("left over", left_over),
            ("of a different shape", other_shape),
            ("not floating-point", no_number),
        )
        if keys
    ]
    if problems:
        raise ModelError(f"{name}: the weights do not fit the configuration: {'; '.join(problems)}")
    model.load_state_dict(weights, assign=True)
    return model.eval()
