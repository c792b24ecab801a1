"""The frozen CLIP vision tower that the student learns from."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from estl.neurons.linear import make_linears_fast

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
TRAINED_ON = "trained_on.txt"  # beside the weights: see `ClipTeacher.trained_on`
HUB_TIMEOUT = 2.0  # seconds to find out whether the hub answers


class TeacherOutput(NamedTuple):
    """A teacher's outputs: the class token after the last layer norm; the last hidden states of the
    patches, row by row, without that norm; the last layer's attention from the class token to the
    patches, mean over heads, each map summing to 1.
    """

    pooled: Float[Tensor, "B E"]
    patches: Float[Tensor, "B N E"]
    attention: Float[Tensor, "B g g"]


class ClipTeacher(nn.Module):
    """A frozen CLIP vision tower.

    The tower is outside the module tree: no parameters, no keys in any `state_dict`, `train()` does
    not reach it, and no optimizer, DDP or checkpoint sees it. `.to(device)` moves it, alone or with
    the module that holds it. It runs without gradient and in the precision of the run: that of the
    surrounding autocast, else float32. Outputs have the image's dtype in either case.

    One forward pass gives all three outputs. Every layer keeps its fused attention; besides, only
    the class token's row of the last layer's attention matrix is computed.

    Args:
        name_or_folder: a name on the Hugging Face hub, or a folder written by `save_pretrained`
            (a whole CLIP model or its vision tower). A name is looked up in the local cache first.
            Or such a `transformers` model itself, which is then frozen.

    Raises:
        FileNotFoundError: if a path is given and no such folder exists.
        OSError: if the name is in no local cache and the hub does not answer or does not know it.
        ValueError: if the folder holds no complete CLIP vision tower, or the model is not one.

        teacher = ClipTeacher("openai/clip-vit-base-patch16")
        teacher(torch.rand(2, 3, 180, 240)).patches         # (2,196,768)
    """

    mean: Tensor
    std: Tensor
    tower: Any

    def __init__(
        self, name_or_folder: str | Path | nn.Module = "openai/clip-vit-base-patch16"
    ) -> None:
        super().__init__()
        if isinstance(name_or_folder, nn.Module):
            tower, preprocessor = _tower_of(name_or_folder), dict[str, Any]()
            name_or_folder = type(name_or_folder).__name__
        else:
            tower, preprocessor = _load(name_or_folder)
        make_linears_fast(tower)
        object.__setattr__(self, "tower", tower.eval().requires_grad_(False))  # no child: see above
        mean = preprocessor.get("image_mean", CLIP_MEAN)
        std = preprocessor.get("image_std", CLIP_STD)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        self.name_or_folder = str(name_or_folder)

    @property
    def dim(self) -> int:
        """E, the width of `pooled` and `patches`."""
        return int(self.tower.config.hidden_size)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the patches."""
        side = int(self.tower.config.image_size) // int(self.tower.config.patch_size)
        return side, side

    @property
    def trained_on(self) -> frozenset[str]:
        """The keys (`estl.data.twins.image_key`) of the images that `estl train-teacher` trained it
        on; empty for any other model.
        """
        file = Path(self.name_or_folder).expanduser() / TRAINED_ON
        return frozenset(file.read_text().split() if file.is_file() else ())

    @torch.no_grad()
    def forward(self, image: Float[Tensor, "B 3 h w"]) -> TeacherOutput:
        """The tower's outputs for `image`, RGB in [0,1] of any size.

        The whole image is resized (bicubic, antialiased) to the tower's square and normalized with
        the mean and standard deviation of its own preprocessor, or else CLIP's. Nothing is cropped,
        so that patches stay aligned with the events.

        Raises:
            ValueError: images that are not floating point, such as bytes.
        """
        if not image.is_floating_point():
            raise ValueError(
                f"images are {str(image.dtype).rpartition('.')[2]}, and have to be floats in "
                "[0,1]: divide bytes by 255"
            )
        size = int(self.tower.config.image_size)
        x = image
        if x.shape[-2:] != (size, size):
            x = F.interpolate(x, (size, size), mode="bicubic", antialias=True).clamp(0.0, 1.0)
        x = (x - self.mean) / self.std

        # Hooks read the last layer's projections; the attention that they feed stays fused.
        last = self.tower.encoder.layers[-1].self_attn
        seen: dict[str, Tensor] = {}
        with (
            last.q_proj.register_forward_hook(lambda *args: seen.update(query=args[2])),
            last.k_proj.register_forward_hook(lambda *args: seen.update(key=args[2])),
        ):
            out = self.tower(pixel_values=x)
        attention = _class_attention(seen["query"], seen["key"], last.num_heads, last.scale)
        return TeacherOutput(
            pooled=out.pooler_output.to(image.dtype),
            patches=out.last_hidden_state[:, 1:].to(image.dtype),
            attention=attention.to(image.dtype).unflatten(1, self.grid),
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ClipTeacher":
        super()._apply(fn, recurse)
        self.tower._apply(fn)  # `.to`, `.cuda`, `.double`: all of them come here
        return self

    def extra_repr(self) -> str:
        """Name and size, as `print` shows them."""
        return f"{self.name_or_folder!r}, dim={self.dim}, grid={self.grid}"


def _class_attention(
    query: Float[Tensor, "B M E"], key: Float[Tensor, "B M E"], heads: int, scale: float
) -> Float[Tensor, "B N"]:
    """Row 0 of softmax(scale * QK^T) without column 0, mean over heads, summing to 1.

    The products are summed in float32 under autocast too, as fused attention does.
    """
    q = query[:, 0].float().unflatten(-1, (heads, -1))
    k = key.float().unflatten(-1, (heads, -1))
    with torch.autocast(q.device.type, enabled=False):
        scores = torch.einsum("bhd,bmhd->bhm", q, k) * scale
    row = scores.softmax(-1)[:, :, 1:].mean(1)
    return row / row.sum(1, keepdim=True)


def _tower_of(model: nn.Module) -> Any:
    """The vision tower of a CLIP model of `transformers`, or the model itself if it is one."""
    from transformers import CLIPVisionConfig

    tower = getattr(model, "vision_model", model)
    if not isinstance(getattr(tower, "config", None), CLIPVisionConfig):
        raise ValueError(
            f"teacher {type(model).__name__} is no CLIP vision tower: give a CLIPVisionModel or "
            "CLIPModel of transformers"
        )
    return tower


def _load(name_or_folder: str | Path) -> tuple[Any, dict[str, Any]]:
    """Tower and preprocessor settings, from a folder, else the local cache, else the hub."""
    name, folder = str(name_or_folder), Path(name_or_folder).expanduser()
    if folder.is_dir():
        try:
            tower = _tower(str(folder), local=True)
        except (OSError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"teacher {name!r} is no folder of a CLIP model: {reason}") from error
        file = folder / "preprocessor_config.json"
        return tower, json.loads(file.read_text()) if file.is_file() else {}
    if not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name) or isinstance(name_or_folder, Path):
        raise FileNotFoundError(f"teacher {name!r}: there is no such folder")
    try:
        return _tower(name, local=True), _hub_preprocessor(name, local=True)
    except OSError:
        _ask_hub(name)
    return _tower(name, local=False), _hub_preprocessor(name, local=False)


def _tower(source: str, local: bool) -> Any:
    from transformers import CLIPVisionModel

    with quiet_transformers(bars=not local):  # a bar for downloads
        loaded: Any = CLIPVisionModel.from_pretrained(
            source,
            local_files_only=local,
            attn_implementation="sdpa",
            dtype=torch.float32,
            output_loading_info=True,
        )
    tower, info = loaded
    missing = sorted(info["missing_keys"])
    if missing:  # transformers would initialize them at random
        raise ValueError(
            f"teacher {source!r} has no weights for {missing[0]} and {len(missing) - 1} others of "
            "a CLIP vision tower: give a CLIP model"
        )
    return tower


@contextmanager
def quiet_transformers(bars: bool = False) -> Iterator[None]:
    """Silence transformers' notes (as on a CLIP's text half) and, unless `bars`, its bars."""
    from transformers.utils import logging

    verbosity, still = logging.get_verbosity(), logging.is_progress_bar_enabled() and not bars
    logging.set_verbosity_error()
    if still:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if still:
            logging.enable_progress_bar()


def _hub_preprocessor(name: str, local: bool) -> dict[str, Any]:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        file = hf_hub_download(name, "preprocessor_config.json", local_files_only=local)
    except EntryNotFoundError:  # also raised for an absent local entry
        return {}
    return dict(json.loads(Path(file).read_text()))


def _ask_hub(name: str) -> None:
    """Raise at once if the hub does not answer: `from_pretrained` would retry for half a minute."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    try:
        get_hf_file_metadata(hf_hub_url(name, "config.json"), timeout=HUB_TIMEOUT)
    except Exception as error:  # several libraries' errors, with no common base
        raise OSError(
            f"teacher {name!r} is no folder, is not in the local cache, and the hub does not give "
            f"it ({type(error).__name__}): name a folder with a CLIP model, or train one with "
            "`estl train-teacher`"
        ) from error
