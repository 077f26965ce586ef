"""Tiny, randomly initialised captioning models as folders on the disk, in the forms that their libraries save."""

from __future__ import annotations

import json
from pathlib import Path

import torch

SENTENCE = """a photo of the small red dog and two large blue cat on an image in black water with green tree next to
man woman standing is beach street table snow house car picture what does describe"""
WORDS = SENTENCE.split()


def bert_tokenizer():
    """A lower-casing word tokenizer with BERT's special tokens."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]"]
    vocabulary = {word: i for i, word in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        extra_special_tokens=["[DEC]", "[ENC]"],
    )


def bart_tokenizer(**more):
    """A word tokenizer with BART's special tokens, for decoders that start with <s> and end with </s>."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<s>", "<pad>", "</s>", "<unk>", "<image>"]
    vocabulary = {word: i for i, word in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        **more,
    )


def save_blip(folder: Path, seed: int = 0) -> Path:
    """A BLIP captioner of 30,000 parameters on 32 × 32 images."""
    from transformers import BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

    tokenizer = bert_tokenizer()
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "encoder_hidden_size": 32,
        "intermediate_size": 64,
        "projection_dim": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "bos_token_id": 5,  # [DEC], as in the released BLIP
        "eos_token_id": 3,
        "sep_token_id": 3,
        "pad_token_id": 0,
    }
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    torch.manual_seed(seed)
    model = BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=vision, projection_dim=16))
    model.save_pretrained(folder)
    BlipProcessor(BlipImageProcessor(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)
    return folder


COCA = {
    "embed_dim": 32,
    "vision_cfg": {
        "image_size": 32,
        "layers": 2,
        "width": 64,
        "patch_size": 8,
        "attentional_pool": True,
        "attn_pooler_heads": 4,
        "output_tokens": True,
    },
    "text_cfg": {
        "context_length": 76,
        "vocab_size": 49408,
        "width": 32,
        "heads": 2,
        "layers": 2,
        "embed_cls": True,
        "output_tokens": True,
    },
    "multimodal_cfg": {
        "context_length": 76,
        "vocab_size": 49408,
        "width": 32,
        "heads": 2,
        "layers": 2,
        "attn_pooler_heads": 4,
    },
}


def save_coca(folder: Path, seed: int = 0) -> Path:
    """A CoCa of 5 million parameters (mostly word embeddings) on 32 × 32 images, as open_clip's hub folders are."""
    from open_clip.factory import create_model
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    preprocess = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "size": [32, 32]}
    config = {"model_cfg": COCA | {"custom_text": True}, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(seed)
    model = create_model(f"local-dir:{folder}", load_weights=False)
    torch.nn.init.normal_(model.text_decoder.text_projection, std=0.1)  # open_clip leaves it uninitialised
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    return folder


def _vision(**more):
    return {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2} | more


def save_git(folder: Path) -> Path:
    """A GIT captioner; its tokenizer and prompt handling are BERT's."""
    from transformers import CLIPImageProcessor, GitConfig, GitForCausalLM, GitProcessor

    tokenizer = bert_tokenizer()
    torch.manual_seed(0)
    config = GitConfig(
        vision_config=_vision(image_size=32, patch_size=8),
        vocab_size=len(tokenizer),
        max_position_embeddings=64,
        bos_token_id=2,
        eos_token_id=3,
        pad_token_id=0,
        **_vision(),
    )
    GitForCausalLM(config).save_pretrained(folder)
    crop = {"height": 32, "width": 32}
    image_processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=crop)
    GitProcessor(image_processor, tokenizer).save_pretrained(folder)
    return folder


def save_blip2(folder: Path) -> Path:
    """BLIP-2 with an OPT language model: four query tokens stand before the text."""
    from transformers import Blip2Config, Blip2ForConditionalGeneration, Blip2Processor, BlipImageProcessor

    tokenizer = bart_tokenizer()
    text = {
        "model_type": "opt",
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "ffn_dim": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "word_embed_proj_dim": 32,
        "max_position_embeddings": 64,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
    }
    qformer = _vision(encoder_hidden_size=32, vocab_size=len(tokenizer))
    torch.manual_seed(0)
    config = Blip2Config(
        vision_config=_vision(image_size=32, patch_size=8),
        qformer_config=qformer,
        text_config=text,
        num_query_tokens=4,
        image_token_index=4,
    )
    Blip2ForConditionalGeneration(config).save_pretrained(folder)
    image_processor = BlipImageProcessor(size={"height": 32, "width": 32})
    Blip2Processor(image_processor, tokenizer, num_query_tokens=4).save_pretrained(folder)
    return folder


def save_florence2(folder: Path) -> Path:
    """Florence-2: DaViT and BART, with its task tokens as prompts."""
    from transformers import CLIPImageProcessor, Florence2Config, Florence2ForConditionalGeneration, Florence2Processor

    tokenizer = bart_tokenizer(extra_special_tokens={"image_token": "<image>"})
    text = {
        "model_type": "bart",
        "vocab_size": len(tokenizer),
        "d_model": 32,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "max_position_embeddings": 128,
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 2,
    }
    vision = {
        "embed_dim": [8, 16, 16, 16],
        "num_heads": [1, 2, 2, 2],
        "num_groups": [1, 2, 2, 2],
        "depths": [1, 1, 1, 1],
        "window_size": 4,
        "projection_dim": 32,
    }
    torch.manual_seed(0)
    config = Florence2Config(text_config=text, vision_config=vision, image_token_id=4)
    model = Florence2ForConditionalGeneration(config)
    # As in the released generation config: captions begin with <s> and end with </s>, whatever the model makes of it.
    model.generation_config.forced_bos_token_id, model.generation_config.forced_eos_token_id = 0, 2
    model.generation_config.no_repeat_ngram_size = 3
    model.save_pretrained(folder)
    size = {"height": 64, "width": 64}
    image_processor = CLIPImageProcessor(size=size, do_center_crop=False, crop_size=size)
    image_processor.image_seq_length = 4 + 1  # 64 / 32 squared, and their mean
    Florence2Processor(image_processor, tokenizer).save_pretrained(folder)
    return folder


def save_vit_gpt2(folder: Path) -> Path:
    """A VisionEncoderDecoder: two halves, and no common processor."""
    from transformers import (
        GPT2Config,
        VisionEncoderDecoderConfig,
        VisionEncoderDecoderModel,
        ViTConfig,
        ViTImageProcessor,
    )

    tokenizer = bart_tokenizer()
    decoder = GPT2Config(
        vocab_size=len(tokenizer), n_positions=64, n_embd=32, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=2
    )
    torch.manual_seed(0)
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        ViTConfig(**_vision(image_size=32, patch_size=8)), decoder
    )
    config.decoder_start_token_id, config.pad_token_id = 0, 1
    VisionEncoderDecoderModel(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
