"""The weighted symmetric InfoNCE of both paths, computed in chunks, exact on any number of ranks.

The inputs are features, a scale and one weight per sample; gates and histories are elsewhere (alip.loss). Notation,
per path, with the global batch's N images x and texts (or captions) t, and this rank's n of them:

    L_ij = logit_scale · x_i·t_j                                     logits; one chunk at a time, never all of them
    r_i  = log Σ_j exp L_ij,   c_j = log Σ_i exp L_ij                 over a row (image → text), over a column
    loss = 1/(2N) · Σ_i w_i (r_i + c_i − 2 L_ii)
    ∂loss/∂L_ij = 1/(2N) · (w_i exp(L_ij − r_i) + w_j exp(L_ij − c_j) − 2 w_i [i = j])

A rank computes the n rows of its own images against all N columns. Its r_i are complete; c_j, w_j and the loss's sum
are completed by one all-reduce of 2N + 1 numbers per path. The backward pass recomputes the chunks, except for a fixed
amount that is cached.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from itertools import accumulate

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from alip.chunks import default_chunk, tiling, visit_chunks
from alip.cpu_products import multiply, multiply_add

# New names since torch 2.14, which warns about the old ones. (None at all in a torch built without distributed.)
_all_gather = getattr(dist, "all_gather_single", None) or getattr(dist, "all_gather_into_tensor", None)
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or getattr(dist, "reduce_scatter_tensor", None)


@contextmanager
def exact_products() -> Iterator[None]:
    """Matrix products of fp32 tensors in fp32, whatever TF32 or bf16 the process allows elsewhere.

    A logit of 100 computed in TF32 is off by 2e-3 or more. The setting is the process's own, so it holds in the
    threads of `visit_chunks` too, and is restored at the end.
    """
    backends = [torch.backends.cuda.matmul, torch.backends.mkldnn.matmul]
    backends = [backend for backend in backends if hasattr(backend, "fp32_precision")]  # from torch 2.9 on
    settings = [backend.fp32_precision for backend in backends]
    try:
        common = torch.get_float32_matmul_precision()
    except RuntimeError:  # torch does not tell in a process that set its backends one by one
        common = "highest"
    try:
        # First the setting for all, which has to agree with the others: some of torch (TunableOp) fails where not.
        if common != "highest":
            torch.set_float32_matmul_precision("highest")
        for backend in backends:
            if backend.fp32_precision != "ieee":
                backend.fp32_precision = "ieee"
        yield
    finally:
        if common != "highest":
            torch.set_float32_matmul_precision(common)
        for backend, setting in zip(backends, settings):
            if backend.fp32_precision != setting:
                backend.fp32_precision = setting


class Collectives:
    """The collectives of the loss; in a single process they cost nothing.

    group: a torch.distributed process group, None for the default one. Without an initialised torch.distributed
        there is one rank.
    """

    def __init__(self, group: dist.ProcessGroup | None = None):
        distributed = dist.is_available() and dist.is_initialized()
        self.group = group
        self.rank = dist.get_rank(group) if distributed else 0
        self.size = dist.get_world_size(group) if distributed else 1

    @classmethod
    def alone(cls) -> Collectives:
        """Those of one process, whatever torch.distributed says."""
        found = cls.__new__(cls)
        found.group, found.rank, found.size = None, 0, 1
        return found

    def gather_reports(self, report: Tensor) -> Tensor:
        """One (k,) report per rank → (ranks, k)."""
        if self.size == 1:
            return report[None]
        reports = report.new_empty(self.size * len(report))
        _all_gather(reports, report, group=self.group)
        return reports.view(self.size, -1)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over the ranks, in place."""
        if self.size > 1:
            dist.all_reduce(values, group=self.group)
        return values

    def start_gather(self, rows: Tensor, sizes: Sequence[int]) -> Callable[[], Tensor]:
        """Starts to gather every rank's (sizes[rank], D) rows; calling the result returns all of them (N, D), by rank.

        The collective needs equal counts, so ranks with fewer rows pad theirs and the padding is removed afterwards.
        """
        if self.size == 1:
            return lambda: rows
        most = max(sizes)
        share = F.pad(rows, (0, 0, 0, most - len(rows))).contiguous()
        shares = rows.new_empty(self.size * most, rows.shape[1])
        work = _all_gather(shares, share, group=self.group, async_op=True)

        def finish() -> Tensor:
            work.wait()
            if min(sizes) == most:
                return shares
            return torch.cat([part[:size] for part, size in zip(shares.split(most), sizes)])

        return finish

    def start_scatter(self, rows: Tensor, sizes: Sequence[int]) -> Callable[[], Tensor]:
        """The gather's transpose: starts to sum all ranks' (N, D) rows; calling the result returns this rank's part."""
        if self.size == 1:
            return lambda: rows
        most = max(sizes)
        shares = rows
        if min(sizes) < most:
            shares = torch.cat([F.pad(part, (0, 0, 0, most - len(part))) for part in rows.split(list(sizes))])
        share = rows.new_empty(most, rows.shape[1])
        work = _reduce_scatter(share, shares, group=self.group, async_op=True)

        def finish() -> Tensor:
            work.wait()
            return share[: sizes[self.rank]]

        return finish


def _diagonal(chunk: Tensor, i: slice, j: slice, first: int) -> tuple[slice, Tensor]:
    """The rows of this chunk whose own column, first + row, is in it too; and a view of the logits there."""
    rows = slice(max(i.start, j.start - first), max(i.start, j.start - first, min(i.stop, j.stop - first)))
    return rows, chunk.diagonal(first + i.start - j.start)[: rows.stop - rows.start]


def log_sum_exps(
    rows: Tensor, columns: Tensor, first: int, chunk: int, cache_bytes: int = 0
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Of the logits rows (n, D) · columnsᵀ (N, D): r (n,), c (N,), the positives L_ii (n,), and some of the chunks.

    One product serves both directions. All three are float64: near 100 fp32 has five decimals, so rounding errors would
    add up from chunk to chunk, and exceed r_i − L_ii where the model is right.
    first: the column of the first row's own text. cache_bytes: at most this many bytes of logits, the first whole
    chunks, are returned for `gradient_products`.
    """
    r = rows.new_full((len(rows),), -torch.inf, dtype=torch.float64)
    c = rows.new_full((len(columns),), -torch.inf, dtype=torch.float64)
    positive = torch.zeros_like(r)
    chunks = list(tiling(len(rows), len(columns), chunk))
    sizes = [(i.stop - i.start, j.stop - j.start) for i, j in chunks]
    bytes_up_to = accumulate(height * width * rows.element_size() for height, width in sizes)
    cached = [rows.new_empty(size) for size, needed in zip(sizes, bytes_up_to) if needed <= cache_bytes]

    def visit(number: int, i: slice, j: slice, buffers: list[Tensor]) -> None:
        logits, scratch = buffers
        if number < len(cached):
            logits = cached[number]
        multiply(rows[i], columns[j].T, logits)
        highest = logits.amax(dim=1, keepdim=True)
        total = torch.sub(logits, highest, out=scratch).exp_().sum(dim=1)
        r[i] = torch.logaddexp(r[i], highest[:, 0] + total.double().log())
        highest = logits.amax(dim=0)
        total = torch.sub(logits, highest, out=scratch).exp_().sum(dim=0)
        c[j] = torch.logaddexp(c[j], highest + total.double().log())
        own, there = _diagonal(logits, i, j, first)
        positive[own] = there.double()

    visit_chunks(rows, len(rows), len(columns), chunk, 2, visit)
    return r, c, positive, cached


def gradient_products(
    rows: Tensor,
    columns: Tensor,
    weight: Tensor,
    by_row: tuple[Tensor, Tensor],
    by_column: tuple[Tensor, Tensor],
    first: int,
    chunk: int,
    cached: Sequence[Tensor] = (),
) -> tuple[Tensor, Tensor]:
    """G · columns (n, D) and Gᵀ · rows (N, D), where G = 2N · ∂loss/∂L.

    weight: w of the rows (n,). by_row: (r, w) of the rows, by_column: (c, w) of the columns, as `_split` gives them.
    cached: the first chunks of the logits L, as far as they were cached; the others are recomputed.
    """
    (r, row_weight), (c, column_weight) = by_row, by_column
    r, row_weight = r[:, None], row_weight[:, None]
    to_rows, to_columns = torch.zeros_like(rows), torch.zeros_like(columns)

    def visit(number: int, i: slice, j: slice, buffers: list[Tensor]) -> None:
        logits, G, scratch = buffers
        if number < len(cached):
            logits = cached[number]
        else:
            multiply(rows[i], columns[j].T, logits)
        torch.sub(logits, r[i], out=G).exp_().mul_(row_weight[i])
        torch.sub(logits, c[j], out=scratch).exp_()
        G.addcmul_(scratch, column_weight[j])
        own, there = _diagonal(G, i, j, first)
        there.sub_(weight[own], alpha=2)
        multiply_add(G, columns[j], to_rows[i], scratch)
        multiply_add(G.T, rows[i], to_columns[j], scratch)

    visit_chunks(rows, len(rows), len(columns), chunk, 3, visit)
    return to_rows, to_columns


def _split(log_sum: Tensor, weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """float64 (r, w) → (r', w') of `dtype` with w · exp(L − r) = w' · exp(L − r').

    What r loses by rounding goes into the weight, so no digit is lost where L is nearly r, even at a scale of 100.
    """
    rounded = log_sum.to(dtype)
    return rounded, (weight * (rounded.double() - log_sum).exp()).to(dtype)


def _path_loss(
    rows: Tensor,
    columns: Tensor,
    weight: Tensor,
    own: slice,
    logit_scale: Tensor,
    collectives: Collectives,
    chunk: int,
    cache_bytes: int,
) -> tuple[Tensor, list[Tensor]]:
    """The global loss of one path, and the tensors that `gradient_products` needs.

    rows: (n, D) logit_scale · x, this rank's. columns: (N, D). weight: (n,). own: the columns of this rank's samples.
    """
    total = len(columns)
    r, c, positive, cached = log_sum_exps(rows, columns, own.start, chunk, cache_bytes)
    own_weight = weight.double()

    # exp c_j is summed over the ranks. Normalised features have L <= logit_scale, so with that shift float64 cannot
    # overflow, nor underflow at any scale below 350: no all-reduce for the maxima is needed.
    shared = own_weight.new_zeros(2 * total + 1)
    shared[:total] = (c - logit_scale).exp()
    shared[total:-1][own] = own_weight
    shared[-1] = (own_weight * ((r - positive) - positive)).sum()
    if collectives.size > 1:
        collectives.sum(shared)
        c = shared[:total].log() + logit_scale
    all_weights = shared[total:-1]

    loss = (shared[-1] + (all_weights * c).sum()) / (2 * total)
    saved = [columns, weight, *_split(r, own_weight, rows.dtype), *_split(c, all_weights, rows.dtype), *cached]
    return loss.to(rows.dtype), saved


def _without_second_derivative(backward: Callable) -> Callable:
    """RuntimeError under create_graph=True. With once_differentiable alone, the gradient of a loss that is itself
    differentiated would count as a constant, and a gradient penalty as zero, without a word."""

    @wraps(backward)
    def checked(ctx, *loss_gradients):
        if torch.is_grad_enabled():
            raise RuntimeError("this loss has no second derivative: differentiate it without create_graph=True")
        return backward(ctx, *loss_gradients)

    return checked


class _BiPathContrast(torch.autograd.Function):
    """See `bi_path_contrast`. Autocast is off here in both directions, and so is TF32: the products stay in fp32."""

    @staticmethod
    def forward(
        ctx, image, text, caption, logit_scale, text_path, caption_path, collectives, sizes, chunk, cache_bytes
    ):
        own = slice(sum(sizes[: collectives.rank]), sum(sizes[: collectives.rank + 1]))
        cache_bytes = cache_bytes // 2 if any(ctx.needs_input_grad) else 0  # for each path
        losses, saved = [], []
        with torch.autocast(image.device.type, enabled=False), exact_products():
            arriving = [collectives.start_gather(text, sizes), collectives.start_gather(caption, sizes)]
            rows = logit_scale * image
            for finish, weight in zip(arriving, (text_path, caption_path)):
                columns = finish()  # the captions are sent while the texts' path is computed
                loss, needed = _path_loss(rows, columns, weight, own, logit_scale, collectives, chunk, cache_bytes)
                losses.append(loss)
                saved.append(needed)
        ctx.save_for_backward(image, logit_scale, *saved[0], *saved[1])
        ctx.counts = [len(path) for path in saved]
        ctx.collectives, ctx.sizes, ctx.chunk, ctx.first = collectives, sizes, chunk, own.start
        ctx.set_materialize_grads(False)
        return tuple(losses)

    @staticmethod
    @_without_second_derivative
    @once_differentiable
    def backward(ctx, *loss_gradients):
        image, logit_scale, *saved = ctx.saved_tensors
        collectives, sizes = ctx.collectives, ctx.sizes
        image_gradient, scale_gradient = None, torch.zeros_like(logit_scale)
        column_gradients: list[Callable[[], Tensor] | None] = []
        with torch.autocast(image.device.type, enabled=False), exact_products():
            rows = logit_scale * image
            for loss_gradient, path in zip(loss_gradients, (saved[: ctx.counts[0]], saved[ctx.counts[0] :])):
                if loss_gradient is None:  # not part of what is differentiated, on any rank
                    column_gradients.append(None)
                    continue
                columns, weight, r, w_r, c, w_c, *cached = path
                to_rows, to_columns = gradient_products(
                    rows, columns, weight, (r, w_r), (c, w_c), ctx.first, ctx.chunk, cached
                )
                # Times the number of ranks, because DDP divides by it.
                factor = loss_gradient * (collectives.size / (2 * len(columns)))
                column_gradients.append(collectives.start_scatter(to_columns.mul_(factor), sizes))
                scale_gradient += torch.einsum("nd,nd->n", image, to_rows.mul_(factor)).sum()
                to_rows *= logit_scale
                image_gradient = to_rows if image_gradient is None else image_gradient.add_(to_rows)
                del to_rows, to_columns  # before the next path makes its own
            text_gradient, caption_gradient = (finish and finish() for finish in column_gradients)
        return image_gradient, text_gradient, caption_gradient, scale_gradient, None, None, None, None, None, None


def bi_path_contrast(
    image: Tensor,
    text: Tensor,
    caption: Tensor,
    logit_scale: Tensor,
    text_path_weight: Tensor,
    caption_path_weight: Tensor,
    collectives: Collectives,
    sizes: Sequence[int],
    chunk: int | None = None,
    cache_bytes: int = 0,
) -> tuple[Tensor, Tensor]:
    """The global batch's loss of the two paths, mean_i w_i·(CE_image_i + CE_text_i)/2 each; the same on every rank.

    image, text, caption: (n, D) fp32 or fp64, this rank's rows, L2-normalised; n may be 0 on some ranks.
    logit_scale: scalar of the same type. text_path_weight, caption_path_weight: (n,) >= 0, constants for the gradient.
    sizes: n of every rank, in rank order. chunk: side of a chunk (None: by device). cache_bytes: at most this many
    bytes of logits stay in memory for the backward pass, which recomputes the others.

    Gradients are multiplied by the number of ranks, so that their mean over the ranks, as DDP computes it, is the
    gradient of one process with the whole batch. A row of image, text or caption gets its complete gradient (other
    ranks' parts included); logit_scale gets the contribution of this rank's images, and the mean of these is complete.
    """
    chunk = chunk or default_chunk(image.device)
    return _BiPathContrast.apply(
        image,
        text,
        caption,
        logit_scale,
        text_path_weight,
        caption_path_weight,
        collectives,
        tuple(sizes),
        chunk,
        cache_bytes,
    )
