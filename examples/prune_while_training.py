"""A plain PyTorch loop on the 8 x 8 digits of scikit-learn, and the three lines that prune the net as it trains.

    python examples/prune_while_training.py

It prints, for each epoch, the mean training loss, the test accuracy and the parameters, and what the pruner did.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

from spectrim import Pruner, schedules  # added, 1 of 3

EPOCHS = 22


def digits() -> tuple[torch.Tensor, ...]:
    """Returns 1400 training images with their labels, and 397 to test on; entries in [0, 1]."""
    found = load_digits()
    x, y = torch.tensor(found.data / 16, dtype=torch.float32), torch.tensor(found.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, test = order[:1400], order[1400:]
    return x[train], y[train], x[test], y[test]


def main() -> list[dict]:
    """Returns one record an epoch: loss, accuracy, parameters."""
    x, y, test_x, test_y = digits()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 10))
    sgd = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    slower = torch.optim.lr_scheduler.StepLR(sgd, step_size=4, gamma=0.8)
    pruner = Pruner(net, sgd, keep=schedules.linear(16), every=4)  # added, 2 of 3
    records = []
    for epoch in range(EPOCHS):
        total = 0.0
        for batch in torch.randperm(len(x)).split(50):
            loss = nn.functional.cross_entropy(net(x[batch]), y[batch])
            sgd.zero_grad()
            loss.backward()
            sgd.step()
            total += loss.item() * len(batch)
        slower.step()
        changes = pruner.step(epoch)  # added, 3 of 3
        with torch.no_grad():
            accuracy = (net(test_x).argmax(1) == test_y).float().mean().item()
        parameters = sum(p.numel() for p in net.parameters())
        records.append({"epoch": epoch, "loss": total / len(x), "accuracy": accuracy, "parameters": parameters})
        print(f"epoch {epoch:2}  loss {total / len(x):.4f}  accuracy {accuracy:.1%}  parameters {parameters:,}")
        for change in changes:
            print(f"    {change.name}: {change.action}, {change.rank} values kept, {change.params_after:,} numbers")
    return records


if __name__ == "__main__":
    main()
