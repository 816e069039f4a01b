"""Draw the picture at the top of the README from the library itself.

Usage: python docs/cover.py     (writes docs/cover.png beside this file; about half a minute)
"""
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from miniai.data.datasets import mnist
from miniai.foundations.clustering import KMeans
from miniai.foundations.meanshift import meanshift
from miniai.foundations.tiled import matmul_tiled

def draw_digits(ax, images):
    ax.imshow(images[:30].reshape(5, 6, 28, 28).permute(0, 2, 1, 3).reshape(140, 168), cmap="gray_r")
    ax.set_title("we read the digits by hand")

def draw_matmul(ax, images):
    x = images[:400].reshape(400, -1).float()/255
    x = x - x.mean(1, keepdim=True)
    x = x/x.norm(dim=1, keepdim=True)
    ax.imshow(matmul_tiled(x, x.T.contiguous()), cmap="magma", vmin=0)
    ax.set_title("multiply matrices ourselves")

def draw_shift(ax):
    g = torch.Generator().manual_seed(42)
    centres = torch.rand(6, 2, generator=g)*70 - 35
    points = (centres[:, None] + torch.randn(6, 250, 2, generator=g)*2.2).reshape(-1, 2)
    path = [points]
    for _ in range(5): path.append(meanshift(path[-1], 2.5, steps=1))
    path = torch.stack(path).numpy() # (steps, points, 2)
    ax.plot(path[:, :, 0], path[:, :, 1], lw=0.5, color="C1", alpha=0.6)
    ax.scatter(*path[0].T, s=2, color="C0", alpha=0.5)
    ax.scatter(*path[-1].T, s=12, color="C3", zorder=3)
    ax.set_title("let points find their clusters")

def draw_means(ax, images):
    km = KMeans(n_clusters=30, n_init=1, max_iter=25, random_state=0).fit(images[:20_000].reshape(-1, 784).numpy().astype(np.float32))
    ax.imshow(np.asarray(km.cluster_centers_).reshape(5, 6, 28, 28).transpose(0, 2, 1, 3).reshape(140, 168), cmap="gray_r")
    ax.set_title("and find what digits have in common")

def main():
    images, labels = mnist()
    fig = Figure(figsize=(13, 3.2), layout="constrained")
    axes = fig.subplots(1, 4)
    draw_digits(axes[0], images)
    draw_matmul(axes[1], images[labels.argsort(stable=True)][::150])
    draw_shift(axes[2])
    draw_means(axes[3], images)
    for ax in axes: ax.set(xticks=[], yticks=[])
    fig.savefig(Path(__file__).with_name("cover.png"), dpi=90)

if __name__ == "__main__": main()
