"""Encoded images and their augmentation → normalised tensors. Two decoders, one result: DALI's, and Pillow's."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import warnings
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from alip.data.augment import CENTRE, Augmentation, AugmentationParams, sample_params
from alip.data.image_file import open_image
from alip.data.jpeg import jpeg_size
from alip.errors import UserError

IN_FLIGHT = 3  # batches given to a decoder before the first is asked back


_DALI_FILTERS = {"bilinear": "INTERP_LINEAR", "bicubic": "INTERP_CUBIC"}
INTERPOLATIONS = tuple(_DALI_FILTERS)
_PIL_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True)
class PixelFormat:
    """image_size: side of the square; mean, std: of red, green, blue, for values 0 to 1; interpolation: of the crop's
    resize to the square, "bilinear" or "bicubic", low-pass filtered where it shrinks; raw: uint8 pixels from 0 to 255,
    neither mean nor std applied."""

    image_size: int
    mean: Sequence[float]
    std: Sequence[float]
    interpolation: str = "bilinear"
    raw: bool = False


class BrokenImage(Exception):
    """An image that cannot be decoded. number: in its batch; detail: the decoder's message."""

    def __init__(self, number: int, detail: str):
        super().__init__(detail)
        self.number, self.detail = number, detail


class DaliDecoder:
    """Decodes with DALI: on the GPU (`mixed`) if `device` is one, else on the CPU with `threads` threads.

    `submit` takes a batch, `result` returns the oldest one as a (n, 3, side, side) float32 (raw: uint8) tensor on
    `device`, or raises BrokenImage. Only the crop is decoded. At most IN_FLIGHT batches may be in flight.
    """

    def __init__(self, form: PixelFormat, augmentation: Augmentation | None, batch_size: int, threads: int, device):
        try:
            import nvidia.dali
        except ImportError:
            raise UserError("DALI is not installed here (it exists for Linux only): choose --reader torch") from None
        self._dali = nvidia.dali
        self.form, self.augmentation, self.batch_size = form, augmentation, batch_size
        self.threads, self.device = threads, torch.device(device)
        self._pipe = None
        self._waiting: deque = deque()

    def submit(self, encoded: list[np.ndarray], params: AugmentationParams) -> None:
        """encoded: n writable arrays of uint8, each one image's bytes. (DLPack, by which DALI gets their memory, knows
        no other ones; DALI only reads.)"""
        if self._pipe is None:
            self._pipe = self._build(self.batch_size, self.threads, IN_FLIGHT)
            self._warm_up()
        self._feed(self._pipe, encoded, params)
        self._pipe.schedule_run()
        self._waiting.append((encoded, params))  # DALI reads these very bytes: they must stay alive until the result

    def result(self) -> torch.Tensor:
        """The oldest batch in flight."""
        encoded, params = self._waiting[0]
        try:
            image = self._output()
        except (RuntimeError, IndexError) as error:  # the first failure, and the error of a pipeline after one
            waiting = list(self._waiting)
            self.reset()
            for number, (encoded, params) in enumerate(waiting):
                self._find_broken(encoded, params, number * self.batch_size)
            raise error
        self._waiting.popleft()
        return image

    def reset(self) -> None:
        """Forgets everything in flight."""
        self._pipe = None
        self._waiting.clear()

    def drain(self) -> None:
        """Discards what is in flight, so that a new epoch can begin."""
        while self._waiting:
            try:
                self._pipe.outputs()
                self._waiting.popleft()
            except (RuntimeError, IndexError):
                self.reset()  # a broken image that nobody will see

    def _warm_up(self) -> None:
        """A pipeline's first `schedule_run` runs as often as its queue is deep; every later one runs once. So the
        first one gets images of one pixel, and from there on batches go in and come out one by one."""
        out = io.BytesIO()
        Image.new("RGB", (1, 1)).save(out, "JPEG")
        pixel = np.frombuffer(out.getbuffer(), np.uint8)
        params = sample_params(
            self.augmentation, np.ones((1, 2), np.int64), self.form.image_size, 0, 0, np.zeros(1, int)
        )
        for _ in range(IN_FLIGHT):
            self._feed(self._pipe, [pixel], params)
        self._pipe.schedule_run()
        for _ in range(IN_FLIGHT):
            self._pipe.outputs()

    def _build(self, batch_size: int, threads: int, queue_depth: int):
        fn, types = self._dali.fn, self._dali.types
        gpu = self.device.type == "cuda"
        side = self.form.image_size

        def source(name: str, dtype, ndim: int):
            return fn.external_source(name=name, dtype=dtype, ndim=ndim, no_copy=name == "encoded")

        pipe = self._dali.Pipeline(
            batch_size=batch_size,
            num_threads=threads,
            device_id=(self.device.index or 0) if gpu else None,
            prefetch_queue_depth=queue_depth,
            exec_dynamic=True,
        )
        with pipe:
            image = fn.decoders.image_slice(
                source("encoded", types.UINT8, 1),
                start=source("start", types.INT32, 1),
                shape=source("shape", types.INT32, 1),
                axis_names="WH",
                device="mixed" if gpu else "cpu",
                output_type=types.RGB,
                adjust_orientation=False,  # stored images are upright
            )
            image = fn.resize(
                image, size=(side, side), interp_type=getattr(types, _DALI_FILTERS[self.form.interpolation])
            )
            if self.augmentation and self.augmentation.warps:
                image = fn.warp_affine(image, matrix=source("matrix", types.FLOAT, 2), fill_value=255.0)
            if self.augmentation and self.augmentation.colours:
                image = fn.brightness_contrast(
                    image,
                    brightness=source("brightness", types.FLOAT, 0),
                    contrast=source("contrast", types.FLOAT, 0),
                    contrast_center=CENTRE,
                )
            image = fn.crop_mirror_normalize(
                image,
                mirror=source("mirror", types.INT32, 0),
                mean=[0.0 if self.form.raw else 255 * value for value in self.form.mean],
                std=[1.0 if self.form.raw else 255 * value for value in self.form.std],
                dtype=types.UINT8 if self.form.raw else types.FLOAT,
                output_layout="CHW",
            )
            pipe.set_outputs(image)
        pipe.build()
        return pipe

    def _feed(self, pipe, encoded: list[np.ndarray], params: AugmentationParams) -> None:
        # As DALI's own list, made of the arrays' memory at once: given one by one they cost four times as much.
        pipe.feed_input("encoded", self._dali.tensors.TensorListCPU.from_dlpack_list(encoded, "", False))
        for name in ("start", "shape", "mirror", "matrix", "brightness", "contrast"):
            values = getattr(params, name)
            if values is not None:
                pipe.feed_input(name, values)

    def _output(self) -> torch.Tensor:
        """The very memory that DALI wrote: its dynamic executor gives it away (a copy would cost a tenth of the whole).

        On a GPU the batch is bound to torch's present stream: kernels launched there wait for DALI's, the host does
        not, and DALI takes the memory back in that stream's order.
        """
        stream = torch.cuda.current_stream(self.device) if self.device.type == "cuda" else None
        (output,) = self._pipe.outputs(cuda_stream=stream)
        with torch.cuda.device(self.device) if stream is not None else contextlib.nullcontext():
            return torch.from_dlpack(output.as_tensor())

    def try_decode(self, encoded: list[np.ndarray], sizes: np.ndarray) -> str | None:
        """Decodes n whole images, (n, 2) sizes as width and height, in a pipeline of their own; an error's message."""
        count = len(encoded)
        params = AugmentationParams(np.zeros((count, 2), np.int32), sizes, np.zeros(count, np.int32))
        pipe = self._build(count, self.threads, 1)
        self._feed(pipe, encoded, params)
        try:
            pipe.schedule_run()
            pipe.outputs()
        except (RuntimeError, IndexError) as error:
            return _last_line(error)
        return None

    def _find_broken(self, encoded: list[np.ndarray], params: AugmentationParams, base: int) -> None:
        """Decodes one by one to find out which image made a batch fail."""
        for i, one in enumerate(encoded):
            pipe = self._build(1, 1, 1)
            single = {name: None if values is None else values[i : i + 1] for name, values in vars(params).items()}
            self._feed(pipe, [one], AugmentationParams(**single))
            try:
                pipe.schedule_run()
                pipe.outputs()
            except (RuntimeError, IndexError) as error:
                raise BrokenImage(base + i, _last_line(error)) from None


def _last_line(error: Exception) -> str:
    """DALI's message is a page; the part about the image is in a line that names the error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "rror" in line and "Critical" not in line and "operator" not in line]
    return (telling or lines or ["no reason given"])[-1][:200]


def check_decodes(encoded: Sequence[bytes], threads: int = 1) -> list[str | None]:
    """What the decoder that trains reports about each of n images: None where it decodes all of it, else its message.

    That decoder is DALI's, on the CPU; Pillow's where DALI is not installed. One bad image does not hide the others.
    """
    errors: list[str | None] = [None] * len(encoded)
    sizes = [(1, 1)] * len(encoded)
    for number, one in enumerate(encoded):
        try:
            sizes[number] = jpeg_size(one) or open_image(one).size
        except Exception as error:
            errors[number] = f"no size: {error}"
    good = [number for number, error in enumerate(errors) if error is None]
    if importlib.util.find_spec("nvidia.dali") is None:
        for number in good:
            errors[number] = _pillow_error(encoded[number])
        return errors
    decoder = DaliDecoder(PixelFormat(16, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)), None, 1, threads, "cpu")

    def check(numbers: list[int]) -> None:
        if not numbers:
            return
        arrays = [np.frombuffer(bytearray(encoded[number]), np.uint8) for number in numbers]
        message = decoder.try_decode(arrays, np.array([sizes[number] for number in numbers], np.int32))
        if message and len(numbers) == 1:
            errors[numbers[0]] = message
        elif message:
            check(numbers[: len(numbers) // 2])
            check(numbers[len(numbers) // 2 :])

    batch: list[int] = []
    pixels = 0
    for number in good:
        batch.append(number)
        pixels += sizes[number][0] * sizes[number][1]
        if len(batch) == 64 or pixels > 64_000_000:
            check(batch)
            batch, pixels = [], 0
    check(batch)
    return errors


def _pillow_error(encoded: bytes) -> str | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            open_image(bytes(encoded)).convert("RGB")
    except Exception as error:
        return str(error)
    return None


class PlainDecoder:
    """The same with Pillow and threads, on any system. The interface is DaliDecoder's."""

    def __init__(self, form: PixelFormat, augmentation: Augmentation | None, batch_size: int, threads: int, device):
        self.form, self.device = form, torch.device(device)
        self._pool = ThreadPoolExecutor(max(1, threads))
        self._waiting: deque[list[Future]] = deque()

    def submit(self, encoded: list[np.ndarray], params: AugmentationParams) -> None:
        """encoded: n arrays of uint8, each one image's bytes."""
        jobs = [self._pool.submit(decode_one, one, params, i, self.form) for i, one in enumerate(encoded)]
        self._waiting.append(jobs)

    def result(self) -> torch.Tensor:
        """The oldest batch in flight."""
        image = torch.stack([job.result() for job in self._waiting.popleft()])
        if self.device.type == "cuda":
            image = image.pin_memory()
        return image.to(self.device, non_blocking=True)

    def drain(self) -> None:
        """Discards what is in flight."""
        while self._waiting:
            for job in self._waiting.popleft():
                job.cancel()


def decode_one(encoded: np.ndarray, params: AugmentationParams, i: int, form: PixelFormat) -> torch.Tensor:
    """Image i of a batch, augmented by row i of params: (3, side, side) float32, or uint8 if the form is raw."""
    side = form.image_size
    x, y = params.start[i].tolist()
    width, height = params.shape[i].tolist()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = open_image(bytes(encoded)).convert("RGB")
    except Exception as error:
        raise BrokenImage(i, str(error)) from None
    image = image.crop((x, y, x + width, y + height)).resize((side, side), _PIL_FILTERS[form.interpolation])
    if params.matrix is not None:
        image = image.transform(
            (side, side),
            Image.Transform.AFFINE,
            params.matrix[i].ravel().tolist(),
            Image.Resampling.BILINEAR,
            fillcolor=(255, 255, 255),
        )
    values = np.asarray(image, dtype=np.uint8 if form.raw and params.brightness is None else np.float32)
    if params.brightness is not None:
        values = params.brightness[i] * (CENTRE + params.contrast[i] * (values - CENTRE))
        values = np.clip(np.rint(values), 0, 255)
    if params.mirror[i]:
        values = values[:, ::-1]
    if not form.raw:
        values = (values / 255 - np.asarray(form.mean, np.float32)) / np.asarray(form.std, np.float32)
    dtype = np.uint8 if form.raw else np.float32
    return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1), dtype=dtype))
