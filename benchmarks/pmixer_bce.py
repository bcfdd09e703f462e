"""SASRec as the well-known PyTorch port of the authors' code trains it: the paper's own recipe.

Padded to 50 on the left, pre-LN, a feed-forward layer as wide as the states, one uniform negative at every
position drawn outside the user's items, binary cross entropy, Adam with betas .9 and .98. Written from the
description, without that port's sampler processes: negatives are drawn for a whole batch at once.
"""

from collections.abc import Iterator

import protocol
import torch
from plain_probe import padded
from torch import Tensor, nn
from torch.nn import functional


class Block(nn.Module):
    """Attention of the normed state to the state, then two width-keeping layers, each with a residual."""

    def __init__(self, task: protocol.Task) -> None:
        super().__init__()
        size = task.hidden_size
        self.query_norm, self.inner_norm = nn.LayerNorm(size, eps=1e-8), nn.LayerNorm(size, eps=1e-8)
        self.attention = nn.MultiheadAttention(size, task.heads, task.dropout, batch_first=True)
        self.inner = nn.Sequential(
            nn.Linear(size, size),
            nn.Dropout(task.dropout),
            nn.ReLU(),
            nn.Linear(size, size),
            nn.Dropout(task.dropout),
        )

    def forward(self, states: Tensor, hidden_keys: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D). hidden_keys: (L, L), True where a position may not look."""
        query = self.query_norm(states)
        attended, _ = self.attention(query, states, states, attn_mask=hidden_keys, need_weights=False)
        states = self.inner_norm(query + attended)
        mixed: Tensor = states + self.inner(states)
        return mixed


class SASRec(nn.Module):
    """Kang & McAuley 2018 as its authors published it. Histories are padded on the left."""

    def __init__(self, num_items: int, task: protocol.Task) -> None:
        super().__init__()
        self.items = nn.Embedding(num_items + 1, task.hidden_size, padding_idx=0)
        self.positions = nn.Embedding(task.max_len + 1, task.hidden_size, padding_idx=0)
        self.dropout = nn.Dropout(task.dropout)
        self.blocks = nn.ModuleList(Block(task) for _ in range(task.layers))
        self.norm = nn.LayerNorm(task.hidden_size, eps=1e-8)
        for weight in self.parameters():
            if weight.dim() == 2:
                nn.init.xavier_normal_(weight)
        with torch.no_grad():
            self.items.weight[0] = 0
            self.positions.weight[0] = 0

    def forward(self, history: Tensor) -> Tensor:
        """(B, L) -> (B, L, D)."""
        length = history.shape[1]
        is_real = history > 0
        place = torch.arange(1, length + 1) * is_real
        states = self.items(history) * self.items.embedding_dim**0.5 + self.positions(place)
        states = self.dropout(states) * is_real[:, :, None]
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        for block in self.blocks:
            states = block(states, future) * is_real[:, :, None]
        normed: Tensor = self.norm(states)
        return normed


def negatives(seen: Tensor, shape: torch.Size, num_items: int) -> Tensor:
    """(B, L) uniform item ids that are none of the user's own. seen: (B, I) bool."""
    drawn = torch.randint(1, num_items + 1, shape)
    while bool((hit := seen.gather(1, drawn)).any()):
        drawn = torch.where(hit, torch.randint(1, num_items + 1, shape), drawn)
    return drawn


def train_epoch(
    model: SASRec, optimizer: torch.optim.Optimizer, history: Tensor, targets: Tensor, users: int
) -> float:
    """One pass over all users in random order; the mean loss of a target."""
    model.train()
    num_items = model.items.num_embeddings - 1
    total = 0.0
    for rows in torch.split(torch.randperm(len(history)), users):
        positive = targets[rows]
        seen = torch.zeros(len(rows), num_items + 1, dtype=torch.bool)
        seen.scatter_(1, history[rows], True).scatter_(1, positive, True)
        negative = negatives(seen, positive.shape, num_items)
        is_target = positive > 0
        hidden = model(history[rows])  # (B, L, D)
        up = (hidden * model.items(positive)).sum(-1)[is_target]
        down = (hidden * model.items(negative)).sum(-1)[is_target]
        loss = functional.binary_cross_entropy_with_logits(up, torch.ones_like(up))
        loss = loss + functional.binary_cross_entropy_with_logits(down, torch.zeros_like(down))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item() * len(up)
    return total / int((targets > 0).sum())


def scored(model: SASRec, history: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of `history` and their (B, I) scores of the next item, all rows in turn."""
    model.eval()
    for rows in torch.split(torch.arange(len(history)), 512):
        with torch.no_grad():
            yield rows, model(history[rows])[:, -1] @ model.items.weight.T


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
    parts = [[items[:-3] for items in sequences], [items[1:-2] for items in sequences]]
    parts.append([items[:-2] for items in sequences])
    # Reversed twice: `padded` keeps the end of a sequence, and pads after it.
    history, targets, valid_history = (
        padded([items[: -task.max_len - 1 : -1] for items in part], task.max_len).flip(1) for part in parts
    )
    valid_targets = torch.tensor([items[-2] for items in sequences])
    users = protocol.users_per_step(task, sequences)
    model = SASRec(max(max(items) for items in sequences), task)
    optimizer = torch.optim.Adam(model.parameters(), lr=task.learning_rate, betas=(0.9, 0.98))
    notes = {"batch": f"{users} users", "inner_size": task.hidden_size, "scored_items": 2}
    record = protocol.Run(task, "source", sum(p.numel() for p in model.parameters()), notes)
    record.train(
        int((targets > 0).sum()),
        lambda: train_epoch(model, optimizer, history, targets, users),
        lambda: validate(model, valid_history, valid_targets),
    )
    record.rank(lambda: rank(model, valid_history, valid_targets, task.topk))
    return record


if __name__ == "__main__":
    protocol.start(run)
