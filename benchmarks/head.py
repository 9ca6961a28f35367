#!/usr/bin/env python
"""Features to probabilities: Detectron2's linear layer and softmax, ours, the authors' form."""

import argparse
import contextlib
from functools import partial

import torch
import torch.nn.functional as F
from timing import HEADER, alternate, print_row
from torch import nn

from tde_det import TDE, CausalNormClassifier

N, D, C = 1000, 1024, 1203


def authors_form(x, classifier, alpha, mean):
    """TDE as the paper's code has it: per head, the counterfactual goes through all weights."""
    weight = classifier.weight
    heads = classifier.num_heads
    logits, tde = [], []
    direction = mean / mean.norm()
    for xk, wk, dk in zip(*(v.chunk(heads, -1) for v in (x, weight, direction))):
        wk = wk / (wk.norm(dim=1, keepdim=True) + classifier.gamma)
        unit = xk / xk.norm(dim=1, keepdim=True)
        dk = dk.unsqueeze(0)
        cosine = (xk * dk).sum(1, keepdim=True) / xk.norm(dim=1, keepdim=True) / dk.norm()
        factual = classifier.tau / heads * unit @ wk.t()
        logits.append(factual)
        counterfactual = cosine * (dk / dk.norm()) * alpha
        tde.append(classifier.tau / heads * (unit - counterfactual) @ wk.t())
    p, q = F.softmax(sum(logits), dim=1), F.softmax(sum(tde), dim=1)
    scores = (1 - p[:, -1:]) * q[:, :-1] / (1 - q[:, -1:])
    return torch.cat([scores, p[:, -1:]], dim=1)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=51)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.manual_seed(0)
    x = torch.randn(N, D, device=args.device).relu()
    linear = nn.Linear(D, C + 1).to(args.device).eval()
    classifier, tde = CausalNormClassifier(D, C).to(args.device), TDE(D).to(args.device)
    tde.update_mean(x, torch.ones(N, dtype=torch.bool, device=args.device))
    half = torch.bfloat16 if args.device == "cpu" else torch.float16

    def run(function, dtype):
        amp = torch.autocast(args.device, dtype) if dtype else contextlib.nullcontext()
        with amp:
            result = function()
        if args.device != "cpu":
            torch.cuda.synchronize()
        return result

    def stock():
        return F.softmax(linear(x), dim=1)

    def ours():
        return F.softmax(tde(x, classifier(x), classifier.class_weight()), dim=1)

    def theirs():
        return authors_form(x, classifier, tde.alpha, tde.feature_mean)

    print(HEADER)
    with torch.inference_mode():
        assert torch.allclose(ours(), theirs(), atol=1e-5)
        shape = f"N={N}, D={D}, C={C}, {args.device}"
        for name, dtype in (("float32", None), ("AMP", half)):
            for item, other in (
                ("linear + softmax (stock) and TDE with exemption", ours),
                ("linear + softmax (stock) and the authors' form of TDE", theirs),
            ):
                pair = partial(run, stock, dtype), partial(run, other, dtype)
                print_row(f"{item}, {shape}, {name}", *alternate(*pair, args.repeats))


if __name__ == "__main__":
    main()
