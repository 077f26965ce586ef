"""The captioners through the real code of transformers and open_clip, with tiny random models."""

import itertools
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from alip.caption import coca
from alip.caption.captioners import Decoding
from alip.caption.choice import CaptionerChoice, open_captioner, weights_type
from alip.caption.sampling import Sampler, narrow
from alip.caption.transformers_models import strip_prompt
from alip.errors import UserError
from alip.model import precision as model_precision
from tests.helpers import tiny_captioners as tiny
from tests.helpers.captioning import made_once, write_captioner

CPU = torch.device("cpu")
SHORT = Decoding(num_beams=2, max_new_tokens=6)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of tiny models, made when first asked for."""
    return made_once(tiny, tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def images():
    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(0, 255, (40, 50 + i, 3), dtype=np.uint8)) for i in range(3)]


def captions(choice, images):
    captioner = open_captioner(choice, CPU)
    prepare = getattr(captioner, "prepare", lambda image: image)
    return captioner.caption([prepare(image) for image in images])


def reference(folder, images, prompt):
    """What the model's own documentation does: processor, generate, decode; one image at a time."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    config = model.generation_config
    forced = [config.forced_bos_token_id, config.forced_eos_token_id]  # Florence-2's come on top of the caption's own
    length = 6 + sum(token is not None for token in forced)
    texts = []
    for image in images:
        inputs = processor(images=image, return_tensors="pt", **({"text": prompt} if prompt else {}))
        tokens = model.eval().generate(**inputs, max_new_tokens=length, num_beams=2, do_sample=False)
        texts.append(processor.batch_decode(tokens, skip_special_tokens=True)[0].strip())
    return texts


@pytest.mark.parametrize(
    ("name", "prompt"),
    [("blip", None), ("blip", "a photo of"), ("blip2", None), ("git", None), ("florence2", "<DETAILED_CAPTION>")],
)
def test_batches_equal_the_documented_use_one_by_one(models, images, name, prompt):
    ours = captions(CaptionerChoice(models(name), prompt=prompt, decoding=SHORT), images)
    wanted = reference(models(name), images, prompt)
    assert ours == [strip_prompt(text, prompt) for text in wanted]
    assert any(ours)


@pytest.mark.parametrize(
    ("name", "prompt"),
    [("git", "a photo of"), ("blip2", "a photo of"), ("vit_gpt2", None), ("vit_gpt2", "a photo")],
)
def test_prompts_are_no_part_of_captions(models, images, name, prompt):
    ours = captions(CaptionerChoice(models(name), prompt=prompt, decoding=SHORT), images)
    assert len(ours) == 3 and all(isinstance(text, str) for text in ours) and any(ours)
    assert not any(prompt and text.startswith(prompt) for text in ours)
    assert all(len(text.split()) <= SHORT.max_new_tokens for text in ours)


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("length", [2, 6])
def test_florence2_has_captions_of_few_tokens(models, images, num_beams, length):
    """Its first and last token are forced (<s>, </s>); within two or six tokens they left no room for words."""
    decoding = Decoding(num_beams=num_beams, max_new_tokens=length)
    captioner = open_captioner(CaptionerChoice(models("florence2"), decoding=decoding), CPU)
    batch = [captioner.prepare(image) for image in images]
    assert captioner._generate_arguments["max_new_tokens"] == length + 2
    tokens = captioner.model.generate(**captioner._fixed_inputs(batch), **captioner._generate_arguments)
    assert tokens.shape[1] <= 1 + length + 2 and (tokens[:, 1] == 0).all()
    if length == 6:
        assert all(captioner.caption(batch))


def test_the_prompt_matters(models, images):
    texts = {
        prompt: tuple(captions(CaptionerChoice(models("git"), prompt=prompt, decoding=SHORT), images))
        for prompt in ("a photo of", "two large", "black water with")
    }
    assert len(set(texts.values())) > 1


@pytest.mark.parametrize("name", ["blip", "coca"])
def test_a_sampled_caption_depends_on_its_own_seed_only(models, images, name):
    choice = CaptionerChoice(models(name), decoding=Decoding(num_beams=1, sample=True, max_new_tokens=5))
    captioner = open_captioner(choice, CPU)
    batch = [captioner.prepare(image) for image in images]
    sampled = captioner.caption(batch, [1, 2, 3])
    assert captioner.caption(batch, [1, 2, 3]) == sampled
    assert captioner.caption(batch[2:], [3]) == sampled[2:]
    assert captioner.caption(batch[::-1], [3, 2, 1]) == sampled[::-1]
    assert captioner.caption(batch, [4, 5, 6]) != sampled
    assert captioner.caption([batch[0]] * 8, list(range(8))).count(sampled[0]) < 8


@pytest.mark.parametrize("name", ["blip", "coca"])
def test_bf16(models, images, name):
    texts = captions(CaptionerChoice(models(name), decoding=SHORT, precision="bf16"), images)
    assert len(texts) == 3 and any(texts)


def test_strip_prompt():
    assert strip_prompt(" A  Photo of a dog", "a photo of") == "a dog"
    assert strip_prompt("a dog", "a photo of") == "a dog"
    assert strip_prompt("a dog", None) == "a dog"
    assert strip_prompt("a photo", "a photo of") == "a photo"


# --- CoCa's search ---------------------------------------------------------------------------------------------------


def small_coca(seed, vocabulary=7):
    """A CoCa with few words, so that every caption can be tried."""
    from open_clip.coca_model import CoCa

    parts = {name: dict(part) for name, part in tiny.COCA.items() if name != "embed_dim"}
    for name in ("text_cfg", "multimodal_cfg"):
        parts[name]["vocab_size"] = vocabulary
    torch.manual_seed(seed)
    model = CoCa(embed_dim=32, **parts).eval()
    torch.nn.init.normal_(model.text_decoder.text_projection, std=1.0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(2.0)  # far from uniform, so that searches differ
    return model, torch.randn(3, 3, 32, 32)


def log_probabilities(model, image_embs, tokens):
    """Of the next word, straight from the two towers."""
    _, embs = model._encode_text(torch.tensor([tokens]))
    return model.text_decoder(image_embs, embs)[0, -1].float().log_softmax(-1)


@torch.inference_mode()
def test_wide_beams_find_the_best_of_all_captions():
    model, images = small_coca(0, vocabulary=5)
    start, end, longest = 1, 2, 3
    ours = coca.beam_search(model, images, Decoding(num_beams=100, max_new_tokens=longest), start, end)
    for image, found in zip(images, ours):
        _, embs = model._encode_image(image[None])
        scores = {}
        for length in range(1, longest + 1):
            for words in itertools.product(range(5), repeat=length):
                if end in words[:-1] or (length < longest and words[-1] != end):
                    continue  # only captions that ended, or are as long as allowed
                total = sum(log_probabilities(model, embs, [start, *words[:i]])[words[i]] for i in range(length))
                scores[words] = float(total) / length
        best = max(scores, key=scores.get)
        assert tuple(found) == tuple(word for word in best if word != end)


@torch.inference_mode()
def test_one_beam_is_greedy():
    model, images = small_coca(3)
    ours = coca.beam_search(model, images, Decoding(num_beams=1, max_new_tokens=8), 1, 2)
    for image, found in zip(images, ours):
        _, embs = model._encode_image(image[None])
        tokens = [1]
        while len(tokens) <= 8 and (tokens == [1] or tokens[-1] != 2):
            tokens.append(int(log_probabilities(model, embs, tokens).argmax()))
        assert found == [token for token in tokens[1:] if token != 2]


def test_greedy_equals_open_clips_own_generate(monkeypatch):
    """`generate` refuses to run beside transformers 5, which lacks its beam search; its top-1 path needs none of it."""
    import transformers
    from open_clip import coca_model

    needed = ("LogitsProcessorList", "RepetitionPenaltyLogitsProcessor", "MinLengthLogitsProcessor")
    for name in (*needed, "MaxLengthCriteria", "StoppingCriteriaList"):
        monkeypatch.setattr(coca_model, name, getattr(transformers, name), raising=False)
    monkeypatch.setattr(coca_model, "_has_transformers", True)
    monkeypatch.setitem(coca_model.GENERATION_TYPES, "top_k", transformers.TopKLogitsWarper)
    model, images = small_coca(5, vocabulary=40)
    theirs = model.generate(
        images, generation_type="top_k", top_k=1, seq_len=9, min_seq_len=4, sot_token_id=1, eos_token_id=2
    )
    ours = coca.beam_search(model, images, Decoding(num_beams=1, max_new_tokens=8, min_new_tokens=3), 1, 2)
    for row, found in zip(theirs.tolist(), ours):
        row = row[1:]
        row = row[: row.index(2)] if 2 in row else row
        assert found[: len(row)] == row  # theirs ends every caption with the end token, within the same length
        assert len(found) - len(row) <= 1


def test_minimum_length_and_repetition_penalty():
    model, images = small_coca(5)
    longer = coca.beam_search(model, images, Decoding(num_beams=2, max_new_tokens=9, min_new_tokens=7), 1, 2)
    assert all(7 <= len(row) <= 9 for row in longer)
    plain = coca.beam_search(model, images, Decoding(num_beams=1, max_new_tokens=9, min_new_tokens=9), 1, 2)
    varied = coca.beam_search(
        model, images, Decoding(num_beams=1, max_new_tokens=9, min_new_tokens=9, repetition_penalty=50.0), 1, 2
    )
    assert sum(len(set(row)) for row in varied) > sum(len(set(row)) for row in plain)


def test_narrow():
    logits = torch.tensor([[0.1, 0.4, 0.2, 0.3]]).log()
    assert torch.allclose(narrow(logits, 0, 1.0), torch.tensor([[0.1, 0.4, 0.2, 0.3]]))
    assert torch.allclose(narrow(logits, 2, 1.0), torch.tensor([[0.0, 4 / 7, 0.0, 3 / 7]]))
    assert torch.allclose(narrow(logits, 0, 0.5), torch.tensor([[0.0, 4 / 7, 0.0, 3 / 7]]))
    assert torch.allclose(narrow(logits, 0, 0.01), torch.tensor([[0.0, 1.0, 0.0, 0.0]]))


def test_words_are_sampled_with_their_probabilities():
    probabilities = torch.tensor([0.05, 0.0, 0.6, 0.25, 0.1])
    logits = probabilities.log().expand(20_000, 5)
    words = Sampler(Decoding(num_beams=1, sample=True), range(20_000), 20_000)(logits)
    found = torch.bincount(words, minlength=5) / len(words)
    assert found[1] == 0 and torch.allclose(found, probabilities, atol=0.015)
    hot = Sampler(Decoding(num_beams=1, sample=True, temperature=0.1), range(100), 100)(logits[:100])
    assert (hot == 2).all()


# --- what users get wrong --------------------------------------------------------------------------------------------


def test_without_transformers_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match="pip install 'transformers"):
        open_captioner(CaptionerChoice("blip"), CPU)


def test_coca_needs_no_transformers(monkeypatch, models, images):
    folder = models("coca")
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert any(captions(CaptionerChoice(f"coca:{folder}", decoding=SHORT), images))


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (CaptionerChoice("no/such-model-anywhere"), "cannot load the captioner"),
        (CaptionerChoice("file:none.py"), "no file"),
        (CaptionerChoice("existing:none.json"), "no file"),
        (CaptionerChoice("coca:ViT-B-32"), "no folder"),
        (CaptionerChoice("coca:no-model/no-weights"), "cannot load CoCa"),
        (CaptionerChoice("coca", prompt="a photo of"), "no --prompt"),
        (CaptionerChoice("coca", options={"top": "2"}), "--option"),
        (CaptionerChoice("coca", engine="vllm"), "--engine vllm is for Hugging Face models"),
        (CaptionerChoice("blip", endpoint={"base_url": "http://localhost"}), "--base-url belongs to"),
        (CaptionerChoice("blip", precision="fp16"), "fp16 needs a GPU"),
    ],
)
def test_mistakes(choice, message):
    with pytest.raises(UserError, match=message):
        open_captioner(choice, CPU)


def test_mistakes_in_captioner_files(tmp_path):
    path = write_captioner(tmp_path, "x = 1\n")
    with pytest.raises(UserError, match="no function create_captioner"):
        open_captioner(CaptionerChoice(f"file:{path}"), CPU)
    other = tmp_path / "other.py"
    other.write_text("def create_captioner(device, options):\n    return 3\n")
    with pytest.raises(UserError, match="returned int"):
        open_captioner(CaptionerChoice(f"file:{other}"), CPU)


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_beams": 0},
        {"min_new_tokens": 31},
        {"temperature": 0},
        {"top_p": 0},
        {"sample": True},
        {"repetition_penalty": 0},
    ],
)
def test_decoding_is_checked(wrong):
    with pytest.raises(UserError):
        Decoding(**wrong)


@pytest.mark.parametrize("has_bf16, automatic", [(True, torch.bfloat16), (False, torch.float32)])
def test_precision_on_a_cpu(monkeypatch, has_bf16, automatic):
    monkeypatch.setattr(model_precision, "cpu_has_bf16", lambda: has_bf16)
    assert weights_type("auto", CPU) == automatic
    assert weights_type("bf16", CPU) == torch.bfloat16
    assert weights_type("fp32", CPU) == torch.float32
