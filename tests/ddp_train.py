"""Train a small U-Net for some steps and write its losses; alone, or in processes that share it.

Started by test_train.py, directly or by ``torchrun``. Each step's whole batch is drawn
from (seed, step) alone, and a process takes its own part of it, so that the batches are the same.
"""

import copy
import json
import os
import sys

import torch
from test_train import SMALL, blobs
from torch.nn.functional import mse_loss

from cryonb.learning.train import train
from cryonb.learning.unet import UNet

BATCH = 16
torch.set_num_threads(1)
torch.manual_seed(0)
model = UNet(1, levels=1, **SMALL)
torch.nn.init.normal_(model.exit.weight, std=0.05)
average, images = copy.deepcopy(model), blobs()
rank, drawn = int(os.environ.get("RANK", 0)), []


def draw(n, generator):
    """This process's n of the 16 images of a step; noise is drawn for all of them."""
    whole = torch.Generator().manual_seed(len(drawn))
    drawn.append(n)
    index = torch.randint(0, len(images), (BATCH,), generator=whole)
    noisy = images[index] + torch.randn(BATCH, 16, 16, generator=whole)
    part = slice(n * rank, n * (rank + 1))
    return images[index][part], noisy[part]


def loss(model, batch, fraction, generator):
    clean, noisy = batch
    return mse_loss(model(noisy[:, None], torch.zeros(len(noisy), 1))[:, 0], clean)


options = {"batch_size": BATCH, "precision": "no", "checkpoint": sys.argv[2], "seed": 0}
steps = list(train(model, average, draw, loss, BATCH * int(sys.argv[3]), **options))
weights = [float(p.detach().double().sum()) for p in average.parameters()]
with open(f"{sys.argv[1]}-{rank}.json", "w") as file:
    json.dump({"losses": [s.loss for s in steps], "shares": drawn, "weights": weights}, file)
