"""Data-parallel processes under `torchrun`: one a GPU with NCCL, or on the CPU with gloo.

Each process computes its share of every batch; gradients are summed, so that a run of any number of
processes takes the steps of a single one. Alone, all of this does nothing.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, distributed


@contextlib.contextmanager
def processes() -> Iterator[None]:
    """Join the other processes of this run, if `torchrun` started several, and leave them at the end."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    if torch.cuda.is_available() and os.environ.get("BALLAST_DEVICE") != "cpu":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        distributed.init_process_group("nccl")
    else:
        distributed.init_process_group("gloo")
    try:
        yield
    finally:
        distributed.destroy_process_group()


def place() -> tuple[int, int]:
    """(number of this process, number of processes); (0, 1) for one alone."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def is_first() -> bool:
    """Whether this process is the one that writes files and shows progress."""
    return place()[0] == 0


def wait() -> None:
    """Go on when all processes have come here."""
    if place()[1] > 1:
        distributed.barrier()


def total(values: Tensor) -> Tensor:
    """`values` summed over the processes, in place."""
    if place()[1] > 1:
        distributed.all_reduce(values)
    return values


def sum_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Sum the gradients of all processes; a trained parameter without one here counts as zero."""
    if place()[1] == 1:
        return
    dense = []
    for parameter in parameters:
        if not parameter.requires_grad:  # with a gradient of zero, weight decay would move it
            continue
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        if parameter.grad.is_sparse:
            parameter.grad = _sum_sparse(parameter.grad)
        else:
            dense.append(parameter.grad)
    if dense:
        flat = total(torch.cat([gradient.reshape(-1) for gradient in dense]))
        for gradient, part in zip(dense, flat.split([g.numel() for g in dense]), strict=True):
            gradient.copy_(part.view_as(gradient))


def _sum_sparse(gradient: Tensor) -> Tensor:
    """Rows in play of all processes, gathered padded to one size: NCCL has no sparse reduction."""
    gradient = gradient.coalesce()
    rows, values = gradient.indices()[0], gradient.values()
    count = torch.tensor([len(rows)], device=rows.device)
    counts = [torch.zeros_like(count) for _ in range(place()[1])]
    distributed.all_gather(counts, count)
    size = int(torch.stack(counts).max())
    padded_rows = torch.cat([rows, rows.new_zeros(size - len(rows))])
    padded_values = torch.cat([values, values.new_zeros((size - len(rows), values.shape[1]))])
    every_row = [torch.empty_like(padded_rows) for _ in counts]
    every_value = [torch.empty_like(padded_values) for _ in counts]
    distributed.all_gather(every_row, padded_rows)
    distributed.all_gather(every_value, padded_values)
    rows, values = torch.cat(every_row), torch.cat(every_value)
    return torch.sparse_coo_tensor(rows[None], values, gradient.shape).coalesce()
