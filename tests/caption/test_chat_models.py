"""Vision-language models through the real code of transformers: prompts, image tokens, padding, sampling; tiny ones."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from alip.caption.captioners import CHAT_PROMPT, Decoding
from alip.caption.choice import CaptionerChoice, open_captioner
from alip.errors import UserError
from tests.helpers import tiny_chat_models as tiny
from tests.helpers.captioning import made_once

CPU = torch.device("cpu")
PROMPTS = {
    "qwen2_5_vl": "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
    "<|image_pad|><|vision_end|>{}<|im_end|>\n<|im_start|>assistant\n",
    "qwen3_vl": "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{}<|im_end|>\n<|im_start|>assistant\n",
    "smolvlm": "<|im_start|>User:<image>{}<end_of_utterance>\nAssistant:",
    "llava": "USER: <image>\n{} ASSISTANT:",
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of tiny models, made when first asked for."""
    return made_once(tiny, tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def images():
    """Three shapes: with most of these families each has another number of image tokens."""
    draw = np.random.default_rng(0)
    shapes = ((40, 50), (64, 30), (90, 90))
    return [Image.fromarray(draw.integers(0, 255, (*shape, 3), dtype=np.uint8)) for shape in shapes]


def opened(folder, **more):
    decoding = more.pop("decoding", None) or Decoding(num_beams=1, max_new_tokens=6)
    return open_captioner(CaptionerChoice(folder, decoding=decoding, precision="fp32", **more), CPU)


def captions(captioner, images, seeds=None):
    return captioner.caption([captioner.prepare(image) for image in images], seeds)


@torch.inference_mode()
def reference(folder, images, prompt, chat, num_beams=1):
    """The documented use, one image at a time: chat template, generate, decode what is new."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model, processor = AutoModelForImageTextToText.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    texts = []
    for image in images:
        if chat:
            content = [{"type": "image", "image": image}, {"type": "text", "text": prompt}]
            inputs = processor.apply_chat_template(
                [{"role": "user", "content": content}],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
            )
        else:
            inputs = processor(images=image, text=prompt, return_tensors="pt")
        tokens = model.generate(**inputs, max_new_tokens=6, num_beams=num_beams, do_sample=False)
        new = tokens[0, inputs["input_ids"].shape[1] :]
        texts.append(processor.decode(new, skip_special_tokens=True).strip())
    return texts


@pytest.mark.parametrize("name", PROMPTS)
def test_the_prompt_is_in_the_models_own_chat_format(models, name):
    captioner = opened(models(name))
    assert captioner.prompt_text == PROMPTS[name].format(CHAT_PROMPT)
    assert captioner.metadata["prompt_text"] == captioner.prompt_text


@pytest.mark.parametrize("name", PROMPTS)
@pytest.mark.parametrize("num_beams", [1, 2])
def test_batches_equal_the_documented_use_one_by_one(models, images, name, num_beams):
    captioner = opened(models(name), prompt="what is the image", decoding=Decoding(num_beams, max_new_tokens=6))
    ours = captions(captioner, images)
    assert ours == reference(models(name), images, "what is the image", True, num_beams)
    assert all(ours) and len(set(ours)) > 1
    assert not any("<" in text or "what is the image" in text for text in ours)


@pytest.mark.parametrize("prompt", [None, "caption de"])
def test_paligemma_has_a_default_prompt(models, images, prompt):
    captioner = opened(models("paligemma"), prompt=prompt)
    assert captioner.prompt == (prompt or "caption en")
    ours = captions(captioner, images)
    assert ours == reference(models("paligemma"), images, prompt or "caption en", False)
    assert all(ours) and len(set(ours)) > 1


@pytest.mark.parametrize("name", ["qwen2_5_vl", "smolvlm"])
def test_a_sampled_caption_does_not_depend_on_its_batch(models, images, name):
    captioner = opened(models(name), decoding=Decoding(num_beams=1, sample=True, max_new_tokens=6))
    sampled = captions(captioner, images, [5, 6, 7])
    assert captions(captioner, images[1:], [6, 7]) == sampled[1:]
    assert len({captions(captioner, images[:1], [seed])[0] for seed in range(4)}) > 1


def test_large_images_are_shrunk(models):
    image = Image.new("RGB", (600, 300))
    assert opened(models("llava"), max_side=100).prepare(image).size == (100, 50)
    assert opened(models("llava")).prepare(image).size == (600, 300)


def test_options_reach_the_image_processor(models, images):
    one_tile, tiles = (
        opened(models("smolvlm"), options=options)._chat_inputs(images)["pixel_values"].shape[1]
        for options in ({"do_image_splitting": "false"}, {})
    )
    assert one_tile == 1 < tiles
    with pytest.raises(UserError, match=r"--option tiles: SmolVLMImageProcessor takes .*do_image_splitting"):
        opened(models("smolvlm"), options={"tiles": "3"})


def test_ofa_checkpoints_say_what_to_do(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "ofa", "architectures": ["OFAModel"]}))
    for name in (str(tmp_path), "OFA-Sys/ofa-base"):
        with pytest.raises(UserError, match=r"is an OFA checkpoint, .*existing:test_predict\.json"):
            opened(name)
