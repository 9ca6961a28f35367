"""The losses once more, as loops over boxes and classes with the `math` module: slow, and plain."""

import math


def softmax(z):
    top = max(z)
    exps = [math.exp(v - top) for v in z]
    return [e / sum(exps) for e in exps]


def sigmoid(v):
    return 1 / (1 + math.exp(-v)) if v >= 0 else math.exp(v) / (1 + math.exp(v))


def mean(values):
    return sum(values) / max(len(values), 1)


def bce(probability, is_positive):
    return -math.log(probability if is_positive else 1 - probability)


def cross_entropy(logits, labels):
    return mean([-math.log(softmax(z)[y]) for z, y in zip(logits, labels)])


def normalised(weights):
    return [w * len(weights) / sum(weights) for w in weights]


def inverse_weights(counts, power):
    return normalised([n**-power for n in counts])


def effective_weights(counts, beta):
    return normalised([(1 - beta) / (1 - beta**n) for n in counts])


def weighted_cross_entropy(logits, labels, weights):
    """Weights of the classes; the background (any further label) weighs 1."""
    weight = [*weights, 1.0]
    return mean([weight[y] * -math.log(softmax(z)[y]) for z, y in zip(logits, labels)])


def focal(logits, labels, gamma):
    losses = []
    for z, y in zip(logits, labels):
        p = softmax(z)[y]
        losses.append(-((1 - p) ** gamma) * math.log(p))
    return mean(losses)


def sigmoid_focal(logits, labels, num_classes, gamma, alpha, weights=None):
    losses = []
    for z, y in zip(logits, labels):
        total = 0.0
        for i in range(num_classes):
            p_t = sigmoid(z[i]) if i == y else 1 - sigmoid(z[i])
            factor = 1.0 if alpha < 0 else alpha if i == y else 1 - alpha
            total += -factor * (1 - p_t) ** gamma * math.log(p_t)
        losses.append(total * ([*weights, 1.0][y] if weights else 1.0))
    return mean(losses)


def ldam(logits, labels, counts, max_margin, scale, weights=None):
    rarest = min(counts)
    losses = []
    for z, y in zip(logits, labels):
        z = list(z)
        if y < len(counts):
            z[y] -= scale * max_margin * (rarest / counts[y]) ** 0.25
        weight = [*weights, 1.0][y] if weights else 1.0
        losses.append(-weight * math.log(softmax(z)[y]))
    return mean(losses)


def eql(logits, labels, images, num_images, threshold):
    num_classes = len(images)
    losses = []
    for z, y in zip(logits, labels):
        total = 0.0
        for i in range(num_classes):
            is_rare = images[i] / num_images < threshold
            if y != num_classes and is_rare and i != y:
                continue
            total += bce(sigmoid(z[i]), i == y)
        losses.append(total)
    return mean(losses)


class EQLv2:
    def __init__(self, num_classes, gamma, mu, alpha):
        self.num_classes, self.gamma, self.mu, self.alpha = num_classes, gamma, mu, alpha
        self.positive = [0.0] * num_classes
        self.negative = [0.0] * num_classes
        self.started = False

    def __call__(self, logits, labels):
        negative_weight, positive_weight = [], []
        for i in range(self.num_classes):
            ratio = self.positive[i] / (self.negative[i] + 1e-10) if self.started else 100.0
            weight = 1 / (1 + math.exp(-self.gamma * (ratio - self.mu)))
            negative_weight.append(weight)
            positive_weight.append(1 + self.alpha * (1 - weight))
        negative_weight.append(1.0)  # objectness
        positive_weight.append(1.0)
        losses = []
        for z, y in zip(logits, labels):
            total = 0.0
            for i, value in enumerate(z):
                weight = positive_weight[i] if i == y else negative_weight[i]
                total += weight * bce(sigmoid(value), i == y)
                if i < self.num_classes:
                    sums = self.positive if i == y else self.negative
                    sums[i] += weight * abs(sigmoid(value) - (i == y))
                    self.started = True
            losses.append(total)
        return mean(losses)


class Seesaw:
    def __init__(self, num_columns, p, q, objectness):
        self.samples = [0] * num_columns
        self.p, self.q, self.objectness = p, q, objectness

    def _cross_entropy(self, z, y):
        probs = softmax(z)
        denominator = 0.0
        for j, value in enumerate(z):
            factor = 1.0
            if j != y:
                n_j, n_y = max(self.samples[j], 1), max(self.samples[y], 1)
                if n_j < n_y:
                    factor *= (n_j / n_y) ** self.p
                ratio = probs[j] / max(probs[y], 1e-2)
                if ratio > 1:
                    factor *= ratio**self.q
            denominator += factor * math.exp(value)
        return -math.log(math.exp(z[y]) / denominator)

    def __call__(self, logits, labels):
        for y in labels:
            self.samples[y] += 1
        losses = []
        for z, y in zip(logits, labels):
            if not self.objectness:
                losses.append(self._cross_entropy(z, y))
                continue
            background = len(z) - 1
            loss = bce(sigmoid(z[-1]), y == background)
            losses.append(loss if y == background else loss + self._cross_entropy(z[:-1], y))
        return mean(losses)


def federated(logits, labels, sampled):
    """``sampled``: the classes that count."""
    return mean([sum(bce(sigmoid(z[i]), i == y) for i in sampled) for z, y in zip(logits, labels)])


def softmax_federated(logits, labels, sampled):
    losses = []
    for z, y in zip(logits, labels):
        denominator = sum(math.exp(z[i]) for i in sampled)
        losses.append(-math.log(math.exp(z[y]) / denominator))
    return mean(losses)


def logit_adjustment(logits, labels, counts, tau, background):
    prior = [n / sum(counts) for n in counts]
    adjustment = [tau * math.log(len(counts) * p) for p in prior] + [0.0] * background
    adjusted = [[v + a for v, a in zip(z, adjustment)] for z in logits]
    return cross_entropy(adjusted, labels)


def gol(logits, labels):
    losses = []
    for z, y in zip(logits, labels):
        eta = [math.exp(-math.exp(-min(max(v, -4), 10))) for v in z]
        losses.append(sum(bce(p, i == y) for i, p in enumerate(eta)))
    return mean(losses)


def ecm(logits, labels, counts):
    """``counts`` include the background's, if there is one."""
    losses = []
    for z, y in zip(logits, labels):
        total = 0.0
        for i, v in enumerate(z):
            others = sum(counts) - counts[i]
            denominator = counts[i] ** 0.25 + others**0.25
            w_positive = 1 / (others**0.25 / denominator)
            w_negative = 1 / (counts[i] ** 0.25 / denominator)
            up, down = w_positive * math.exp(v), w_negative * math.exp(-v)
            odds = others / counts[i]
            total += odds * math.log((1 + odds) / odds) * bce(up / (up + down), i == y)
        losses.append(total)
    return mean(losses)


def scores(z, activation):
    if activation == "softmax":
        return softmax(z)
    if activation == "sigmoid":
        return [sigmoid(v) for v in z]
    if activation == "gumbel":
        return [math.exp(-math.exp(-v)) for v in z]
    background = sigmoid(z[-1])
    classes = softmax(z[:-1]) if "softmax" in activation else [sigmoid(v) for v in z[:-1]]
    return [(1 - background) * p for p in classes] + [background]
