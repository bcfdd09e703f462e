"""SASRec as one writes it in an afternoon: padded to 50, post-LN, plain cross entropy over the catalogue.

The floor for speed: a library's training loop has no excuse to be slower than this file.
"""

from collections.abc import Iterator

import protocol
import torch
from torch import Tensor, nn
from torch.nn import functional


class SASRec(nn.Module):
    """Kang & McAuley 2018, in the post-LN form that RecBole has too. Histories are padded on the right."""

    def __init__(self, num_items: int, task: protocol.Task) -> None:
        super().__init__()
        self.items = nn.Embedding(num_items + 1, task.hidden_size, padding_idx=0)
        self.positions = nn.Embedding(task.max_len, task.hidden_size)
        self.norm = nn.LayerNorm(task.hidden_size)
        self.dropout = nn.Dropout(task.dropout)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                task.hidden_size, task.heads, task.inner_size, task.dropout, "gelu", batch_first=True
            )
            for _ in range(task.layers)
        )
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                nn.init.normal_(weight, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(weight)

    def forward(self, history: Tensor) -> Tensor:
        """(B, L) -> (B, L, D). The causal mask also hides the padding, which lies after every real item."""
        hidden: Tensor = self.dropout(self.norm(self.items(history) + self.positions.weight))
        mask = nn.Transformer.generate_square_subsequent_mask(history.shape[1])
        for layer in self.layers:
            hidden = layer(hidden, src_mask=mask, is_causal=True)
        return hidden


def padded(sequences: list[list[int]], length: int) -> Tensor:
    """(U, length) the last `length` items of each, zeros after them."""
    rows = torch.zeros(len(sequences), length, dtype=torch.long)
    for row, items in zip(rows, sequences, strict=True):
        kept = torch.tensor(items[-length:])
        row[: len(kept)] = kept
    return rows


def train_epoch(
    model: SASRec, optimizer: torch.optim.Optimizer, history: Tensor, targets: Tensor, users: int
) -> float:
    """One pass over all users in random order; the mean loss of a target."""
    model.train()
    total = 0.0
    for rows in torch.split(torch.randperm(len(history)), users):
        is_target = targets[rows] > 0
        hidden = model(history[rows])[is_target]  # (targets, D)
        loss = functional.cross_entropy(hidden @ model.items.weight.T, targets[rows][is_target])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item() * len(hidden)
    return total / int((targets > 0).sum())


def scored(model: SASRec, history: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of `history` and their (B, I) scores of the next item, all rows in turn."""
    model.eval()
    for rows in torch.split(torch.arange(len(history)), 512):
        with torch.no_grad():
            last = (history[rows] > 0).sum(1) - 1
            hidden = model(history[rows])[torch.arange(len(rows)), last]  # (B, D)
            yield rows, hidden @ model.items.weight.T


def validate(model: SASRec, history: Tensor, targets: Tensor) -> float:
    """Unmasked NDCG@10 over all users. history: (U, L), targets: (U,)."""
    values = [protocol.ndcg_at_10(scores, targets[rows]) for rows, scores in scored(model, history)]
    return torch.cat(values).mean().item()


def rank(model: SASRec, history: Tensor, targets: Tensor, topk: int) -> None:
    """The same with the history masked and the best items kept."""
    for rows, scores in scored(model, history):
        protocol.masked_ranks(scores, history[rows], targets[rows], topk)


def run(task: protocol.Task) -> protocol.Run:
    torch.manual_seed(task.seed)
    sequences = protocol.read_sequences(task)
    history = padded([items[:-3] for items in sequences], task.max_len)
    targets = padded([items[1:-2] for items in sequences], task.max_len)
    valid_history = padded([items[:-2] for items in sequences], task.max_len)
    valid_targets = torch.tensor([items[-2] for items in sequences])
    users = protocol.users_per_step(task, sequences)
    model = SASRec(max(max(items) for items in sequences), task)
    optimizer = torch.optim.Adam(model.parameters(), lr=task.learning_rate)
    record = protocol.Run(
        task, "source", sum(p.numel() for p in model.parameters()), {"batch": f"{users} users"}
    )
    record.train(
        int((targets > 0).sum()),
        lambda: train_epoch(model, optimizer, history, targets, users),
        lambda: validate(model, valid_history, valid_targets),
    )
    record.rank(lambda: rank(model, valid_history, valid_targets, task.topk))
    return record


if __name__ == "__main__":
    protocol.start(run)
