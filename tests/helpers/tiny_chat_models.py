"""Tiny, randomly initialised vision-language models with tokenizers and chat templates in the forms of their families.

The templates are written for the tests. They give the prompt formats that the families document.
"""

from __future__ import annotations

from pathlib import Path

import torch

from tests.helpers.tiny_captioners import WORDS

QWEN_MARKS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"]
QWEN_MARKS += ["<|image_pad|>", "<|video_pad|>"]
TURNS = ["system", "user", "assistant", "User:", "Assistant:", "USER:", "ASSISTANT:", "You", "are", "a", "helpful"]

# <|im_start|>system … <|im_end|>, <|im_start|>user <|vision_start|><|image_pad|><|vision_end|> … as Qwen-VL documents.
QWEN_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] %}{% if c['type'] == 'text' %}{{ c['text'] }}{% else %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
LLAVA_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] | upper }}: {% for c in m['content'] if c['type'] == 'image' %}<image>\n"
    "{% endfor %}{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] }} {% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
SMOLVLM_TEMPLATE = (
    "<|im_start|>{% for m in messages %}{{ m['role'] | capitalize }}:{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)


def word_tokenizer(special: list[str], **roles):
    """Words, punctuation and line breaks, with special tokens. roles: bos_token, eos_token, …"""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary: dict[str, int] = {}
    for word in [*special, "<unk>", "\n", ".", ",", ":", *TURNS, *WORDS, "Describe", "image", "sentence", "caption"]:
        vocabulary.setdefault(word, len(vocabulary))
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\n|\w+:|\w+|[^\s\w]"), "isolated"), pre_tokenizers.WhitespaceSplit()]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", **roles)
    others = [mark for mark in special if mark not in roles.values()]
    fast.add_special_tokens({"additional_special_tokens": others})
    return fast


def _text(tokenizer, **more):
    """A language model of one layer."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
    } | more


def _save(model, processor, folder: Path, tokenizer) -> Path:
    """Writes the folder. Words get louder than special tokens, and images than words: a random model that ends at once,
    or says the same of every image, would test nothing."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("merger.linear_fc2.weight", "merger.mlp.2.weight", "proj.weight", "linear_2.weight")):
                parameter *= 10
        head = model.get_output_embeddings().weight
        marks = [number for word, number in tokenizer.get_vocab().items() if word.startswith("<")]
        head[marks] *= 0.05
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _qwen_tokenizer():
    return word_tokenizer(QWEN_MARKS, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def _qwen_marks(tokenizer):
    names = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
    names |= {"vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}
    return {name: tokenizer.convert_tokens_to_ids(mark) for name, mark in names.items()}


def save_qwen2_5_vl(folder: Path, width: int = 32) -> Path:
    """Qwen2.5-VL: the number of image tokens depends on the image's size; there is a system turn.

    width: of the language model, a multiple of 32 (vLLM on a CPU has no attention for heads of 16: 128 gives 64).
    """
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    tokenizer = _qwen_tokenizer()
    torch.manual_seed(0)
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "patch_size": 8}
    vision |= {"out_hidden_size": width, "window_size": 32, "fullatt_block_indexes": [0], "spatial_merge_size": 2}
    sections = [width // 16, 3 * width // 32, 3 * width // 32]
    rope = {"rope_type": "default", "mrope_section": sections, "rope_theta": 10000.0}
    text = _text(tokenizer, hidden_size=width, rope_parameters=rope)
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, **_qwen_marks(tokenizer))
    size = {"shortest_edge": 32 * 32, "longest_edge": 64 * 64}
    images = Qwen2VLImageProcessor(patch_size=8, merge_size=2, size=size)
    processor = Qwen2_5_VLProcessor(
        images,
        tokenizer,
        Qwen2VLVideoProcessor(patch_size=8, merge_size=2, size=size),
        chat_template=SYSTEM + QWEN_TEMPLATE,
    )
    return _save(Qwen2_5_VLForConditionalGeneration(config), processor, folder, tokenizer)


def save_qwen3_vl(folder: Path) -> Path:
    """Qwen3-VL: deepstack features, and no system turn."""
    from transformers import (
        Qwen2VLImageProcessor,
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
        Qwen3VLProcessor,
        Qwen3VLVideoProcessor,
    )

    tokenizer = _qwen_tokenizer()
    torch.manual_seed(0)
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "patch_size": 8}
    vision |= {"out_hidden_size": 32, "spatial_merge_size": 2, "num_position_embeddings": 64}
    vision |= {"deepstack_visual_indexes": [0]}
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
    text = _text(tokenizer, head_dim=16, rope_parameters=rope)
    config = Qwen3VLConfig(text_config=text, vision_config=vision, **_qwen_marks(tokenizer))
    size = {"shortest_edge": 32 * 32, "longest_edge": 64 * 64}
    images = Qwen2VLImageProcessor(patch_size=8, merge_size=2, size=size)
    processor = Qwen3VLProcessor(
        images,
        tokenizer,
        Qwen3VLVideoProcessor(patch_size=8, merge_size=2, size=size),
        chat_template=QWEN_TEMPLATE,
    )
    return _save(Qwen3VLForConditionalGeneration(config), processor, folder, tokenizer)


def save_smolvlm(folder: Path) -> Path:
    """SmolVLM: images are cut into tiles, as many as their shape needs."""
    from transformers import (
        SmolVLMConfig,
        SmolVLMForConditionalGeneration,
        SmolVLMImageProcessor,
        SmolVLMProcessor,
        SmolVLMVideoProcessor,
    )

    special = ["<|im_start|>", "<end_of_utterance>", "<pad>", "<fake_token_around_image>", "<image>", "<global-img>"]
    special += [f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)]
    tokenizer = word_tokenizer(special, bos_token="<|im_start|>", eos_token="<end_of_utterance>", pad_token="<pad>")
    for name, mark in (
        ("image", "<image>"),
        ("fake_image", "<fake_token_around_image>"),
        ("global_image", "<global-img>"),
    ):
        setattr(tokenizer, f"{name}_token", mark)
    tokenizer.end_of_utterance_token = "<end_of_utterance>"
    tokenizer.image_token_id = tokenizer.convert_tokens_to_ids("<image>")
    torch.manual_seed(0)
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 32, "patch_size": 8}
    config = SmolVLMConfig(
        vision_config=vision,
        text_config={"model_type": "llama", **_text(tokenizer)},
        image_token_id=tokenizer.image_token_id,
        scale_factor=2,
        pad_token_id=tokenizer.pad_token_id,
    )
    images = SmolVLMImageProcessor(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    video = SmolVLMVideoProcessor(size={"longest_edge": 32}, max_image_size={"longest_edge": 32})
    processor = SmolVLMProcessor(images, tokenizer, video, image_seq_len=4, chat_template=SMOLVLM_TEMPLATE)
    return _save(SmolVLMForConditionalGeneration(config), processor, folder, tokenizer)


def save_paligemma(folder: Path) -> Path:
    """PaliGemma: image tokens, then a prompt such as "caption en"; no chat."""
    from transformers import (
        PaliGemmaConfig,
        PaliGemmaForConditionalGeneration,
        PaliGemmaProcessor,
        SiglipImageProcessor,
    )

    tokenizer = word_tokenizer(
        ["<pad>", "<eos>", "<bos>", "<image>"], bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"
    )
    torch.manual_seed(0)
    vision = {"model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 64}
    vision |= {
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
        "projection_dim": 32,
    }
    images = SiglipImageProcessor(size={"height": 32, "width": 32})
    images.image_seq_length = 16
    processor = PaliGemmaProcessor(images, tokenizer)
    text = {"model_type": "gemma", **_text(processor.tokenizer, head_dim=16)}
    config = PaliGemmaConfig(
        vision_config=vision,
        text_config=text,
        projection_dim=32,
        hidden_size=32,
        image_token_index=processor.tokenizer.convert_tokens_to_ids("<image>"),
    )
    return _save(PaliGemmaForConditionalGeneration(config), processor, folder, processor.tokenizer)


def save_llava(folder: Path) -> Path:
    """LLaVA 1.5: CLIP's image tokens in a USER … ASSISTANT dialogue."""
    from transformers import CLIPImageProcessor, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

    tokenizer = word_tokenizer(
        ["<s>", "</s>", "<pad>", "<image>"], bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    tokenizer.image_token = "<image>"
    torch.manual_seed(0)
    vision = {"model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 64}
    vision |= {"num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    config = LlavaConfig(
        text_config={"model_type": "llama", **_text(tokenizer)},
        vision_config=vision,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
    )
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor = LlavaProcessor(
        images,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
        chat_template=LLAVA_TEMPLATE,
    )
    return _save(LlavaForConditionalGeneration(config), processor, folder, tokenizer)
