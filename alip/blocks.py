"""The weighted two-direction InfoNCE of both paths, walked in blocks, exact on any number of ranks.

Nothing here knows of gates or histories: it takes features, a scale and one weight per sample. Notation, per path, with
the global batch's N images x and texts (or captions) t, and this rank's n of them:

    L_ij = logit_scale · x_i·t_j                                     logits; never stored beyond one block
    r_i  = log Σ_j exp L_ij,   c_j = log Σ_i exp L_ij                 over a row (image → text), over a column
    loss = 1/(2N) · Σ_i w_i (r_i + c_i − 2 L_ii)
    ∂loss/∂L_ij = 1/(2N) · (w_i exp(L_ij − r_i) + w_j exp(L_ij − c_j) − 2 w_i [i = j])

A rank holds the n rows of its own images and all N columns. Its r_i are complete; c_j, w_j and the loss's sum are
completed by one all-reduce of 2N + 1 numbers per path. The backward pass computes each block anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


class Ranks:
    """The collectives that the loss needs; in a single process each is free.

    group: a torch.distributed process group, None for the default one. Without an initialised torch.distributed
        there is one rank.
    """

    def __init__(self, group: dist.ProcessGroup | None = None):
        distributed = dist.is_available() and dist.is_initialized()
        self.group = group
        self.rank = dist.get_rank(group) if distributed else 0
        self.size = dist.get_world_size(group) if distributed else 1

    def gather_reports(self, report: Tensor) -> Tensor:
        """One (k,) report per rank → (ranks, k)."""
        if self.size == 1:
            return report[None]
        reports = report.new_empty(self.size * len(report))
        dist.all_gather_into_tensor(reports, report, group=self.group)
        return reports.view(self.size, -1)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over the ranks, in place."""
        if self.size > 1:
            dist.all_reduce(values, group=self.group)
        return values

    def start_gather(self, rows: Tensor, sizes: Sequence[int]) -> Callable[[], Tensor]:
        """Starts to gather every rank's (sizes[rank], D) rows; call the result to wait and get all (N, D), by rank.

        The collective wants equal shares, so ranks with fewer rows pad theirs and the padding is cut out again.
        """
        if self.size == 1:
            return lambda: rows
        most = max(sizes)
        share = F.pad(rows, (0, 0, 0, most - len(rows))).contiguous()
        shares = rows.new_empty(self.size * most, rows.shape[1])
        work = dist.all_gather_into_tensor(shares, share, group=self.group, async_op=True)

        def finish() -> Tensor:
            work.wait()
            if min(sizes) == most:
                return shares
            return torch.cat([part[:size] for part, size in zip(shares.split(most), sizes)])

        return finish

    def start_scatter(self, rows: Tensor, sizes: Sequence[int]) -> Callable[[], Tensor]:
        """The gather's transpose: starts to sum every rank's (N, D) rows; the result waits and gives this rank's."""
        if self.size == 1:
            return lambda: rows
        most = max(sizes)
        shares = rows
        if min(sizes) < most:
            shares = torch.cat([F.pad(part, (0, 0, 0, most - len(part))) for part in rows.split(list(sizes))])
        share = rows.new_empty(most, rows.shape[1])
        work = dist.reduce_scatter_tensor(share, shares, group=self.group, async_op=True)

        def finish() -> Tensor:
            work.wait()
            return share[: sizes[self.rank]]

        return finish


def default_block(device: torch.device) -> int:
    """Side of a block: two 4 MB buffers that stay in a CPU core's cache; on a GPU larger, to launch fewer kernels."""
    return 1024 if device.type == "cpu" else 4096


def _blocks(rows: Tensor, columns: Tensor, block: int) -> Iterator[tuple[slice, slice, Tensor, Tensor]]:
    """(row slice, column slice, rows·columnsᵀ of the block, scratch of the same shape), in buffers used again."""
    height, width = min(block, len(rows)), min(block, len(columns))
    logits, scratch = rows.new_empty(2, height * width)
    for top in range(0, len(rows), block):
        some_rows = slice(top, min(top + block, len(rows)))
        for left in range(0, len(columns), block):
            some_columns = slice(left, min(left + block, len(columns)))
            shape = (some_rows.stop - top, some_columns.stop - left)
            product = logits[: shape[0] * shape[1]].view(shape)
            torch.mm(rows[some_rows], columns[some_columns].T, out=product)
            yield some_rows, some_columns, product, scratch[: shape[0] * shape[1]].view(shape)


def log_sum_exps(rows: Tensor, columns: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """r (n,) and c (N,) of the logits rows (n, D) · columnsᵀ (N, D): one product for both, float64.

    Both are carried over the blocks in float64: near 100 fp32 has only five decimals, and the roundings would add up.
    """
    r = rows.new_full((len(rows),), -torch.inf, dtype=torch.float64)
    c = rows.new_full((len(columns),), -torch.inf, dtype=torch.float64)
    for i, j, logits, scratch in _blocks(rows, columns, block):
        highest = logits.amax(dim=1, keepdim=True)
        total = torch.sub(logits, highest, out=scratch).exp_().sum(dim=1)
        r[i] = torch.logaddexp(r[i], highest[:, 0] + total.double().log())
        highest = logits.amax(dim=0)
        total = logits.sub_(highest).exp_().sum(dim=0)
        c[j] = torch.logaddexp(c[j], highest + total.double().log())
    return r, c


def softmax_products(rows: Tensor, columns: Tensor, a: Tensor, b: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """G·columns (n, D) and Gᵀ·rows (N, D) with G_ij = exp(L_ij − a_i) + exp(L_ij − b_j); a is (n, 1), b (N,)."""
    to_rows, to_columns = torch.zeros_like(rows), torch.zeros_like(columns)
    for i, j, logits, scratch in _blocks(rows, columns, block):
        torch.sub(logits, a[i], out=scratch).exp_()
        weights = logits.sub_(b[j]).exp_().add_(scratch)
        to_rows[i].addmm_(weights, columns[j])
        to_columns[j].addmm_(weights.T, rows[i])
    return to_rows, to_columns


class _Path:
    """One path (images with texts, or images with captions) seen from one rank; see the module's docstring."""

    def __init__(self, rows: Tensor, columns: Tensor, weight: Tensor, own: slice):
        self.rows = rows  # (n, D) logit_scale · x
        self.columns = columns  # (N, D)
        self.weight = weight  # (n,)
        self.own = own  # the columns that belong to the rows

    def forward(self, logit_scale: Tensor, ranks: Ranks, block: int) -> tuple[Tensor, Tensor, Tensor]:
        """The global loss, and what the backward pass needs: a_i = r_i − log w_i (n, 1) and b_j = c_j − log w_j."""
        total = len(self.columns)
        r, c = log_sum_exps(self.rows, self.columns, block)
        weight = self.weight.double()
        positive = (self.rows * self.columns[self.own]).sum(dim=1).double()

        # exp c_j summed over the ranks. Normalised features have L <= logit_scale, so with that shift float64 cannot
        # overflow, nor underflow at any scale below 350: no all-reduce for the maxima is needed.
        shared = weight.new_zeros(2 * total + 1)
        shared[:total] = (c - logit_scale).exp()
        shared[total:-1][self.own] = weight
        shared[-1] = (weight * (r - 2 * positive)).sum()
        ranks.sum(shared)
        c = shared[:total].log() + logit_scale
        all_weights = shared[total:-1]

        loss = (shared[-1] + (all_weights * c).sum()) / (2 * total)
        a = (r - weight.log()).to(self.rows.dtype)[:, None]
        b = (c - all_weights.log()).to(self.rows.dtype)
        return loss.to(self.rows.dtype), a, b

    def backward(self, a: Tensor, b: Tensor, block: int) -> tuple[Tensor, Tensor]:
        """2N · ∂loss/∂rows (n, D) and 2N · ∂loss/∂columns (N, D), the latter of this rank's rows alone."""
        to_rows, to_columns = softmax_products(self.rows, self.columns, a, b, block)
        positive = 2 * self.weight[:, None]
        to_rows -= positive * self.columns[self.own]
        to_columns[self.own] -= positive * self.rows
        return to_rows, to_columns


class _BiPathContrast(torch.autograd.Function):
    """See `bi_path_contrast`. Autocast is switched off here in both directions: the products stay in fp32."""

    @staticmethod
    def forward(ctx, image, text, caption, logit_scale, text_path, caption_path, ranks, sizes, block):
        own = slice(sum(sizes[: ranks.rank]), sum(sizes[: ranks.rank + 1]))
        with torch.autocast(image.device.type, enabled=False):
            waiting = [ranks.start_gather(text, sizes), ranks.start_gather(caption, sizes)]
            rows = logit_scale * image
            losses, saved = [], []
            for finish, weight in zip(waiting, (text_path, caption_path)):
                columns = finish()  # the captions travel while the texts' path is computed
                loss, a, b = _Path(rows, columns, weight, own).forward(logit_scale, ranks, block)
                losses.append(loss)
                saved += [columns, weight, a, b]
        ctx.save_for_backward(image, logit_scale, *saved)
        ctx.ranks, ctx.sizes, ctx.block, ctx.own = ranks, sizes, block, own
        ctx.set_materialize_grads(False)
        return tuple(losses)

    @staticmethod
    @once_differentiable
    def backward(ctx, *loss_gradients):
        image, logit_scale, *saved = ctx.saved_tensors
        ranks, sizes = ctx.ranks, ctx.sizes
        image_gradient, scale_gradient = torch.zeros_like(image), torch.zeros_like(logit_scale)
        waiting: list[Callable[[], Tensor] | None] = [None, None]
        with torch.autocast(image.device.type, enabled=False):
            rows = logit_scale * image
            for k, loss_gradient in enumerate(loss_gradients):
                if loss_gradient is None:  # the same on every rank: all differentiate the same loss
                    continue
                columns, weight, a, b = saved[4 * k : 4 * k + 4]
                to_rows, to_columns = _Path(rows, columns, weight, ctx.own).backward(a, b, ctx.block)
                factor = loss_gradient * (ranks.size / (2 * len(columns)))  # × ranks: DDP divides by them
                waiting[k] = ranks.start_scatter(to_columns.mul_(factor), sizes)
                to_rows *= factor
                scale_gradient += (image * to_rows).sum()
                image_gradient += to_rows.mul_(logit_scale)
            text_gradient, caption_gradient = (finish and finish() for finish in waiting)
        return image_gradient, text_gradient, caption_gradient, scale_gradient, None, None, None, None, None


def bi_path_contrast(
    image: Tensor,
    text: Tensor,
    caption: Tensor,
    logit_scale: Tensor,
    text_path_weight: Tensor,
    caption_path_weight: Tensor,
    ranks: Ranks,
    sizes: Sequence[int],
    block: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The global batch's loss of the two paths, mean_i w_i·(CE_image_i + CE_text_i)/2 each; the same on every rank.

    image, text, caption: (n, D) fp32 or fp64, this rank's rows, L2-normalised; n may be 0 on some ranks.
    logit_scale: scalar of the same type. text_path_weight, caption_path_weight: (n,) >= 0, constants for the gradient.
    sizes: n of every rank, in rank order. block: side of a block (None: by device).

    Gradients come out multiplied by the number of ranks, so that their mean over the ranks, as DDP takes it, is the
    gradient of one process with the whole batch. A row of image, text or caption gets its complete gradient (other
    ranks' parts included); logit_scale gets the part of this rank's images, and the mean of these is complete too.
    """
    block = block or default_block(image.device)
    return _BiPathContrast.apply(
        image, text, caption, logit_scale, text_path_weight, caption_path_weight, ranks, tuple(sizes), block
    )
