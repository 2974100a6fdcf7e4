"""The composite model as a method of OpenSTL, the video-prediction benchmark: ``fc-lstm`` for its runner.

OpenSTL's conventions (version 1, on Lightning): a method is a Lightning module built as
``method_maps[name](steps_per_epoch=…, test_mean=…, test_std=…, save_dir=…, **config)``. It makes its network in
`_build_model(**config)`, is called with ``batch_x (B, T_in, C, H, W)``, float frames as the data set scales them, and
returns ``(B, T_out, C, H, W)``. Validation, test, metrics (MSE and MAE summed over a frame), optimiser and schedule
are the benchmark's own and stay so; only the network and its training loss are ours.

Needs OpenSTL, which is installed from its repository.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..nn import FusedComposite

NAME = "fc-lstm"

# Of OpenSTL's data sets: frames in [0, 1] whose pixels are on or off. Others are real-valued.
_BERNOULLI = ("mmnist", "moving_mnist", "mfmnist", "mmnist_cifar")


def register(name: str = NAME) -> type:
    """Make the method known to OpenSTL's runner under `name` (lower case), and return its class.

    Then ``--method fc-lstm``, or ``args.method = "fc-lstm"`` with `no_display_method_info`, for that display knows
    OpenSTL's own methods only. Settings, all optional: ``num_hidden`` (``"2048,2048"``: units of each layer, equal),
    ``reconstruct``, ``predict``, ``likelihood``, ``peephole``, ``dropout``, ``backend`` as `lstmvid.FusedComposite`'s;
    the likelihood is Bernoulli for Moving MNIST and its like, else gaussian.

    Raises:
        ModuleNotFoundError: OpenSTL is not installed.
        ValueError: the name is taken by another method.
    """
    from openstl.methods import method_maps
    from openstl.methods.base_method import Base_method

    if name in method_maps:
        raise ValueError(f"OpenSTL has a method {name!r} already: choose another name")

    class FCLSTM(Base_method):
        """Encoder, reconstruction and future prediction with fused LSTMs (Srivastava et al., 2015)."""

        def _build_model(self, **config: Any) -> FusedComposite:
            return FusedComposite(**composite_arguments(config))

        def forward(self, batch_x: Tensor, batch_y: Tensor | None = None, **kwargs: Any) -> Tensor:
            """The `aft_seq_length` frames after `batch_x`, on the model's own output; `batch_y` is not looked at."""
            return self.model(batch_x, predict_steps=self.hparams["aft_seq_length"]).prediction

        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            """Reconstruction plus teacher-forced prediction, in nats or half squared error, summed over a frame."""
            loss = self.model(*batch).loss
            self.log("train_loss", loss, on_step=True, on_epoch=True, prog_bar=True)
            return loss

    method_maps[name] = FCLSTM
    return FCLSTM


def composite_arguments(config: dict[str, Any]) -> dict[str, Any]:
    """`FusedComposite`'s arguments from OpenSTL's settings.

    Raises:
        ValueError: `num_hidden` lists layers of unequal size, or `in_shape` isn't ``(T, C, H, W)``.
    """
    shape = tuple(config["in_shape"])
    if len(shape) != 4:
        raise ValueError(f"in_shape must be (T, C, H, W), got {shape}")
    hidden = config.get("num_hidden", "2048,2048")
    sizes = [int(size) for size in (hidden.split(",") if isinstance(hidden, str) else hidden)]
    if not sizes or len(set(sizes)) > 1:
        raise ValueError(f"num_hidden must be layers of one size, as '2048,2048', got {hidden!r}")
    options = ("reconstruct", "predict", "likelihood", "peephole", "dropout", "backend")
    binary = config["dataname"] in _BERNOULLI
    return {
        "frame_shape": shape[1:],
        "hidden_size": sizes[0],
        "num_layers": len(sizes),
        "predict": "unconditional",  # its free run is how it was trained
        "likelihood": "bernoulli" if binary else "gaussian",
        "batch_first": True,
    } | {name: config[name] for name in options if name in config}
