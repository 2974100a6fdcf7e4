"""What the original authors' model files say: their messages as dataclasses, and their reader.

The field names and defaults are the format's; what a module of ours makes of them is in `original_layout`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from lstmvid.compat.pbtxt import Identifier, parse

_CONSTANT = Identifier("CONSTANT")


@dataclass(frozen=True)
class OriginalBlock:
    """How one parameter starts and is trained. A block left out of the text means a constant 0, never trained."""

    init_type: Identifier = _CONSTANT
    scale: float = 0.0
    epsilon: float = 0.0
    momentum: float = 0.0
    l2_decay: float = 0.0
    gradient_clip: float = 0.0
    eps_decay_factor: float = 1.0
    eps_decay_after: int = 0
    file_name: str = ""
    dataset_name: str = ""


@dataclass(frozen=True)
class OriginalLSTM:
    """One layer. Sizes of 0 were left out of the text and follow from the neighbours."""

    name: str
    num_hid: int
    w_dense: OriginalBlock | None = None
    w_diag: OriginalBlock | None = None
    b: OriginalBlock | None = None
    w_input: OriginalBlock | None = None
    w_output: OriginalBlock | None = None
    b_output: OriginalBlock | None = None
    has_input: bool = False
    has_output: bool = False
    use_relu: bool = False
    input_dims: int = 0
    output_dims: int = 0
    input_dropprob: float = 0.0
    output_dropprob: float = 0.0


@dataclass(frozen=True)
class OriginalLogreg:
    """A logistic regression. The format has it for a program of its own; no LSTM model uses it."""

    name: str
    num_inputs: int
    num_outputs: int
    w: OriginalBlock | None = None
    b: OriginalBlock | None = None
    dropprob: float = 0.0


@dataclass(frozen=True)
class OriginalModel:
    """A whole model file; `source` is where it was read from. The field names are the format's."""

    source: str
    name: str = ""
    lstm: tuple[OriginalLSTM, ...] = ()
    lstm_dec: tuple[OriginalLSTM, ...] = ()
    lstm_future: tuple[OriginalLSTM, ...] = ()
    dec_seq_length: int | None = None
    future_seq_length: int | None = None
    dec_conditional: bool = False
    future_conditional: bool = False
    decoder_copy_init_state: bool = False
    future_copy_init_state: bool = False
    binary_data: bool = False
    relu_data: bool = False
    squash_relu: bool = False
    squash_relu_lambda: float = 2.0
    timestamp: tuple[str, ...] = ()
    checkpoint_dir: str = ""
    max_iters: int = 0
    print_after: int = 1
    validate_after: int = 0
    save_after: int = 0
    display_after: int = 0
    logreg: OriginalLogreg | None = None


def read_model(path: str | os.PathLike[str]) -> OriginalModel:
    """Read a model file (`.pbtxt`).

    Raises `ValueError` with file and line if it can't be read, has a field that the format has not, or a value of the
    wrong type. Whether a module of ours can be this model is for `composite_arguments` and `classifier_arguments`.
    """
    source = os.fspath(path)
    try:
        text = Path(source).read_text(encoding="utf-8-sig")
    except OSError as reason:
        raise ValueError(f"{source}: can't read the model file ({reason.strerror})") from reason
    except UnicodeDecodeError as reason:
        raise ValueError(f"{source}: the model file is not UTF-8 text ({reason})") from reason
    return parse(text, OriginalModel, source=source, given={"source": source})
