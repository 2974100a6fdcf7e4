"""Model files and checkpoints as the released programs of the original authors write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

Message = dict[str, Any]


class Name(str):
    """An enum value: printed without quotes."""


TRAINED = {"epsilon": 1e-4, "momentum": 0.9, "gradient_clip": 1e-4, "eps_decay_factor": 0.9, "eps_decay_after": 10000}
WEIGHT = {"init_type": Name("UNIFORM"), "scale": 0.01, **TRAINED, "l2_decay": 1e-4}
BIAS = {"init_type": Name("CONSTANT"), "scale": 0.0, **TRAINED}
CELL = ("w_dense", "w_diag", "b")


class OriginalFiles:
    """Builds messages as dictionaries and writes them to a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @staticmethod
    def layer(
        name: str,
        num_hid: int,
        input_dims: int = 0,
        output_dims: int = 0,
        *,
        without: tuple[str, ...] = (),
        **more: Any,
    ) -> Message:
        """An LSTM block; an input or output exists where its size is not 0, a parameter block unless `without` it."""
        message: Message = {"name": name, "num_hid": num_hid}
        blocks = list(CELL)
        if input_dims:
            message |= {"has_input": True, "input_dims": input_dims}
            blocks.append("w_input")
        if output_dims:
            message |= {"has_output": True, "output_dims": output_dims}
            blocks += ["w_output", "b_output"]
        message |= {block: BIAS if block.startswith("b") else WEIGHT for block in blocks if block not in without}
        return message | more

    def stack(self, suffix: str, num_layers: int, num_hid: int, input_dims: int, output_dims: int) -> list[Message]:
        """Layers `lstm_1_<suffix>`, ... of which the first takes the frame and the last gives the output."""
        return [
            self.layer(
                f"lstm_{depth + 1}_{suffix}",
                num_hid,
                num_hid if depth else input_dims,
                output_dims if depth == num_layers - 1 else 0,
            )
            for depth in range(num_layers)
        ]

    def composite(
        self,
        frame: int = 5,
        num_hid: int = 3,
        num_layers: int = 2,
        reconstruct: str | None = "unconditional",
        predict: str | None = "conditional",
        **more: Any,
    ) -> Message:
        message: Message = {"name": "lstm_combo", "checkpoint_dir": "/models", "max_iters": 10000000}
        message["lstm"] = self.stack("enc", num_layers, num_hid, frame, 0)
        for mode, field, short, long in (
            (reconstruct, "lstm_dec", "dec", "dec"),
            (predict, "lstm_future", "fut", "future"),
        ):
            if mode is not None:
                conditional = mode == "conditional"
                message |= {f"{long}_seq_length": 10, f"{long}_conditional": conditional}
                message[field] = self.stack(short, num_layers, num_hid, frame if conditional else 0, frame)
        return message | more

    def classifier(self, features: int = 5, num_hid: int = 3, num_layers: int = 2, classes: int = 4) -> Message:
        return {"name": "lstm_classifier", "lstm": self.stack("cls", num_layers, num_hid, features, classes)}

    def text(self, message: Message, indent: str = "") -> str:
        """Protobuf text, one field a line, as `text_format.PrintMessage` prints it."""
        lines = []
        for field, value in message.items():
            for item in value if isinstance(value, list) else [value]:
                if isinstance(item, dict):
                    lines += [f"{indent}{field} {{\n{self.text(item, indent + '  ')}{indent}}}\n"]
                else:
                    quoted = isinstance(item, str) and not isinstance(item, Name)
                    shown = f'"{item}"' if quoted else str(item).lower() if isinstance(item, bool) else str(item)
                    lines += [f"{indent}{field}: {shown}\n"]
        return "".join(lines)

    def write_model(self, message: Message | str, name: str = "model.pbtxt") -> Path:
        path = self.folder / name
        path.write_text(message if isinstance(message, str) else self.text(message))
        return path

    @staticmethod
    def parameters(message: Message, seed: int = 0) -> dict[str, np.ndarray]:
        """Random float32 values of every dataset that a checkpoint of this model has; left-out blocks are zero."""
        rng = np.random.default_rng(seed)
        values = {}
        for layer in [layer for field in ("lstm", "lstm_dec", "lstm_future") for layer in message.get(field, [])]:
            hidden, inputs, outputs = layer["num_hid"], layer.get("input_dims", 0), layer.get("output_dims", 0)
            shapes = {"w_dense": (4 * hidden, hidden), "w_diag": (1, 3 * hidden), "b": (1, 4 * hidden)}
            if inputs:
                shapes["w_input"] = (4 * hidden, inputs)
            if outputs:
                shapes |= {"w_output": (outputs, hidden), "b_output": (1, outputs)}
            for block, shape in shapes.items():
                value = rng.normal(0.0, 0.7, shape) if block in layer else np.zeros(shape)
                values[f"{layer['name']}:{block}"] = value.astype(np.float32)
        return values

    def write_checkpoint(
        self,
        values: dict[str, np.ndarray],
        name: str = "model.h5",
        *,
        velocities: dict[str, np.ndarray] | None = None,
        updates: int = 7000,
    ) -> Path:
        """Each parameter with its velocity beside it and its number of updates as an attribute of the file."""
        h5py = pytest.importorskip("h5py")
        path = self.folder / name
        with h5py.File(path, "w") as file:
            for dataset, value in values.items():
                file.create_dataset(dataset, data=value)
                velocity = np.full_like(value, 123.0) if velocities is None else velocities[dataset]
                file.create_dataset(f"{dataset}_grad", data=velocity)
                file.attrs[f"{dataset}_t"] = updates
        return path


@pytest.fixture
def files(tmp_path: Path) -> OriginalFiles:
    return OriginalFiles(tmp_path)
